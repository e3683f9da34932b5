"""`behavegpt.finetune_label`: a model fine-tuned for a label of users, beside probes of the same
users by the same folds.

RUN/model        the network, its columns and labels; `behavegpt.load_label` opens it
RUN/label.json   figures of every fold, and what was learned from whom

>>> import behavegpt                                                            # doctest: +SKIP
>>> result = behavegpt.finetune_label(                                          # doctest: +SKIP
...     "runs/mine/model", "shop.parquet", "labels.csv", "2011-10-10", "runs/churn"
... )
>>> behavegpt.load_label("runs/churn/model").predict("shop.parquet").to_pandas()  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from behavegpt.config import check_settings
from behavegpt.errors import ConfigError
from behavegpt.ingest.asked import seconds_of
from behavegpt.io import write_json
from behavegpt.labeling.settings import LabelSettings
from behavegpt.labeling.train import Answers, Examples, outputs, train_label
from behavegpt.locks import lock
from behavegpt.outputs import check_output
from behavegpt.paths import local_path
from behavegpt.predictor import Predictor
from behavegpt.probing.features import aggregates
from behavegpt.probing.labels import read_labels
from behavegpt.probing.past import Log, check_date, past_of, read_log, shown, trained_until
from behavegpt.probing.result import ProbeResult, Score, Scores
from behavegpt.probing.run import Question, Work, ask, name_of
from behavegpt.probing.scoring import METRICS, figures
from behavegpt.probing.settings import ProbeSettings
from behavegpt.shipped import is_universal
from behavegpt.trained_folder import load
from behavegpt.training.model_folder import save_model

FIGURES = "label.json"
HEAD = "label head"
BESIDE = ("vectors", "counts + aggregates", "all")  # sets of features that are probed beside it
Step = Callable[[str], None]  # what is fitted now


class Folded(NamedTuple):
    """What all folds share."""

    predictor: Predictor
    examples: Examples
    asked: Question
    settings: LabelSettings


def finetune_label(
    model: str | Path | Predictor,
    log: Any,
    labels: Any,
    at: Any,
    out: str | Path,
    *,
    label: str | None = None,
    label_user: str | None = None,
    columns: Mapping[str, Any] | None = None,
    step: Step = lambda name: None,
    **settings: Any,
) -> ProbeResult:
    """Fine-tune a trained model to predict a user label, and write it to OUT/model.

    Arguments as for `behavegpt.probe`: events of `log` at or after `at` are ignored. `settings`:
    those of LabelSettings. The metrics are cross-validated by user; the model that is written is
    trained on all users. Raises ConfigError, also for the universal model, and DataError.
    """
    chosen, folder = check_settings(LabelSettings, settings, "label"), local_path(out)
    check_output(folder, "into")  # now, not after the training
    predictor = model if isinstance(model, Predictor) else _opened(model)
    read = read_log(predictor, log, columns or {})
    moment = seconds_of(at, read.schema)
    check_date(read, moment, 0)

    rule = read.schema.label_rules.get("user")
    known = read_labels(labels, label, label_user, read.schema.user, rule, chosen.task)
    probing = _probing(chosen)
    # the same question as the probes': same users, same folds
    asked = ask(known, read, moment, probing)
    examples = examples_before(predictor, read, moment, asked.users)

    scores = []
    if chosen.seeds:  # none asks for the model alone: it is not judged, and trains once
        scores = _judged(Folded(predictor, examples, asked, chosen), step)
        beside = Work(predictor, read, probing, step).scores(asked, moment, 0, probing.probes)
        scores += [row for row in beside if row.features in BESIDE]

    step("all users")
    # the figures are those of the folds' models; the one that is kept learns from everybody
    answers = Answers(asked.target, known.classes, known.column)
    network, learned = train_label(predictor.model, examples, answers, chosen)
    facts = {"model": name_of(model), **_facts(predictor, asked, moment)}
    facts |= {"learned": learned, "settings": chosen.model_dump(mode="json")}
    result = ProbeResult(facts, Scores(tuple(scores)), _differences(scores), Scores(()))
    _write(folder, network, predictor, result)
    return result


def _facts(predictor: Predictor, asked: Question, moment: int) -> dict[str, Any]:
    """What was learned of whom, and whether the model may know what came later."""
    labels, until = asked.labels, trained_until(predictor)
    return {
        "at": shown(moment),
        "label": labels.column,
        "task": labels.task,
        "classes": list(labels.classes),
        "users": len(asked.users),
        "trained_on_later_events": None if until is None else until > moment,
    }


def _write(folder: Path, network: Any, predictor: Predictor, result: ProbeResult) -> None:
    """The model that learned from all users, and the figures of those of the folds."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / FIGURES):
        save_model(network, predictor.tokenizer, folder / "model")
        write_json(folder / FIGURES, result.to_dict())


def examples_before(predictor: Predictor, log: Log, at: int, users: pa.Array | None) -> Examples:
    """What is known of `users`, or of all, before `at`. Raises DataError without any event."""
    past = past_of(predictor, log, at, users)
    return Examples(past.encoded, aggregates(past, log.schema))


def _opened(model: str | Path) -> Predictor:
    """A trained model. Raises ConfigError for the universal one."""
    if is_universal(model):
        raise ConfigError(
            f"{model} has no network whose weights a label could move; train a model, or ask "
            "behavegpt probe."
        )
    return load(model)


def _probing(settings: LabelSettings) -> ProbeSettings:
    """The probes beside it: the same users and folds."""
    names = ("task", "folds", "top_labels", "min_users")
    shared = {name: getattr(settings, name) for name in names}
    # vectors of the states that the head pools
    own = {"seeds": max(1, settings.seeds), "pool": ("last", "mean")}
    return check_settings(ProbeSettings, shared | own, "label")


def _judged(work: Folded, step: Step) -> list[Score]:
    """The figures of users whom a model has not learned from, fold by fold."""
    asked, rows = work.asked, []
    for number, fold in enumerate(asked.folds):
        step(f"{HEAD}, fold {number + 1}")
        answers = Answers(asked.target[fold.train], asked.labels.classes, asked.labels.column)
        # another start for each repetition, as the probes beside it are drawn anew
        settings = work.settings.model_copy(update={"seed": work.settings.seed + fold.seed})
        network, _ = train_label(
            work.predictor.model, work.examples.of(fold.train), answers, settings
        )
        said = outputs(network, work.examples.of(fold.test))
        # a number is one output, (N, 1)
        said = said if asked.labels.classes else said[:, 0]
        rows.append(figures(asked.target[fold.test], said))

    # last and mean states, and the aggregates beside them
    width = 2 * work.predictor.model.config.hidden_size + work.examples.aggregates.shape[1]
    return [
        Score(
            *(HEAD, None, "fine-tuned", metric, 0, width),
            np.array([row[metric] for row in rows]),
            work.settings.folds,
        )
        for metric in METRICS[asked.labels.task]
    ]


def _differences(scores: list[Score]) -> Scores:
    """The head less each set of features and probe beside it, fold by fold."""
    heads = {row.metric: row for row in scores if row.features == HEAD}
    others = [row for row in scores if row.features != HEAD]
    return Scores(tuple(replace(heads[row.metric], probe=row.probe).minus(row) for row in others))
