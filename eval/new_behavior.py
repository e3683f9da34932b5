"""How well are behaviors predicted that pretraining never saw, after two weeks of 1,000 users?
(paper: 4.3, Table 3)

    python eval/new_behavior.py configs/adapt/eval_new_behavior.yaml --logs DIR --work DIR
        --out rows.jsonl
    python eval/new_behavior.py configs/adapt/eval_new_behavior.yaml --out rows.jsonl --table
        [--plot figure.png]

The base is pretrained on the log without the held-out behaviors. Each of them is then added alone:
fine-tuned on the last days before validation of random users (of those who show it first, where it
is very rare), and scored on the test events of all users. Beside the methods: the base (which
cannot say the new behavior), the grown model before any training, and on the frozen encoder's
states the nearest class mean and Mecos-style matching, whose head learns on the known behaviors of
pretraining. Finished rows are skipped; `--tune` scores the validation events.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from behavegpt.baselines.approximate.mecos import MecosSettings, match, meta_train
from behavegpt.batch import IGNORED
from behavegpt.config import Settings, read_settings
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import evaluation_batches, row_length_for
from behavegpt.data.reencode import reencode
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.data.times import parse_date
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.finetune import FinetuneSettings, adapt_model, finetune
from behavegpt.grid import Grid, Row, Run, digest, grouped, made_once, mean_and_deviation, read_rows
from behavegpt.ingest.prepare import prepare
from behavegpt.io import workspace
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load
from behavegpt.training.evaluate import evaluate, hidden_states

Examples = tuple[torch.Tensor, torch.Tensor]  # states (M, C) and the classes (M,) that followed
KEY = ("behavior", "method", "seed")
GROUP = ("behavior", "method")  # rows that differ in the seed alone
UNTRAINED = ("base", "grown, untrained", "nearest class mean", "matching (Mecos-style)")
FIGURES = ("recall_new", "precision_new", "rec_m", "rec_w", "rec_w_known")


class Protocol(Settings):
    """What eval/new_behavior.py runs."""

    file: str
    name: str
    schema_: dict[str, str] = Field(alias="schema")
    split: str
    min_events: int
    new: tuple[str, ...]
    users: int
    first: tuple[str, ...]
    days: int
    pretrain: dict[str, Any]
    finetune: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]


def prepared(
    protocol: Protocol, logs: Path, work: Path, behavior: str | None = None, seed: int | None = None
) -> EventStore:
    """A prepared log, made once: without the new behaviors, with one of them, or (with a seed) its
    few examples."""
    # numbered, as a behavior's name need not be one of a folder
    number = "known" if behavior is None else f"new{protocol.new.index(behavior)}"
    folder = work / "data" / (number if seed is None else f"{number}-few{seed}")
    made_once(folder, lambda: _prepare(protocol, logs, folder, behavior, seed))
    return open_store(folder)


def _prepare(
    protocol: Protocol, logs: Path, folder: Path, behavior: str | None, seed: int | None
) -> None:
    """Write the rows of the log that are asked for, and prepare them."""
    rows = (
        f"select * replace ({protocol.name} as event) from read_parquet('{logs / protocol.file}')"
    )
    hidden = [name.replace("'", "''") for name in protocol.new if name != behavior]
    names = ", ".join(f"'{name}'" for name in hidden)
    rows = f"select * from ({rows}) where event not in ({names})"
    if seed is not None:
        rows = few_examples(protocol, rows, str(behavior), seed)

    part = folder.with_suffix(".parquet")
    duckdb.sql(f"copy ({rows}) to '{part}' (format parquet)")
    least = protocol.min_events if seed is None else 1  # a few examples are few a user, too
    prepare([part], folder, EventSchema(**protocol.schema_), split=protocol.split, min_events=least)


def few_examples(protocol: Protocol, rows: str, behavior: str, seed: int) -> str:
    """SQL of the last days before validation, of random users; of those who show a very rare
    behavior first."""
    end = parse_date(protocol.split.removeprefix("date:").split(",")[0], protocol.schema_["tz"])
    zone = f"timezone('{protocol.schema_['tz']}', timestamp)"
    days = (
        f"select * from ({rows}) where epoch({zone}) >= {end - protocol.days * 86400} and "
        f"epoch({zone}) < {end}"
    )

    # by a hash of user and seed: a random choice that DuckDB's threads cannot change
    shows = f"bool_or(event = '{behavior}')"
    order = f"{f'{shows} desc, ' if behavior in protocol.first else ''}hash(user_id + {seed})"
    users = f"select user_id from ({days}) group by user_id order by {order} limit {protocol.users}"
    return f"select * from ({days}) where user_id in ({users})"


def base(protocol: Protocol, logs: Path, work: Path) -> Path:
    """The model pretrained without the new behaviors, made once."""
    run = work / "base"

    def make() -> None:
        shutil.rmtree(run, ignore_errors=True)  # what a killed run left
        store = prepared(protocol, logs, work)
        overrides = [
            f"data.path={store.path}",
            f"out={run}",
            f"train.steps={protocol.pretrain['steps']}",
        ]
        pretrain(read_settings(PretrainSettings, protocol.pretrain["config"], overrides))

    return made_once(run, make, "model")


def settings_of(
    protocol: Protocol, row: dict[str, Any], model: Path, data: Path, out: Path
) -> FinetuneSettings:
    """The fine-tuning of a row."""
    # with --tune the row's own rate, else the method's
    method = dict(protocol.methods[row["method"]])
    rate = method.pop("lr")
    train = {**protocol.finetune, "lr": row.get("lr", rate), "seed": row["seed"]}
    return FinetuneSettings.model_validate(
        {"base": str(model), "data": {"path": str(data)}, "out": str(out), "train": train, **method}
    )


def run_row(protocol: Protocol, row: Row, logs: Path, work: Path, split: int) -> Row:
    """Fine-tune, score, and return the row's figures."""
    with workspace(work / f"run-{digest(row)}") as folder:
        return figures_of(protocol, row, logs, work, split, folder / "run")


def figures_of(protocol: Protocol, row: Row, logs: Path, work: Path, split: int, out: Path) -> Row:
    """The row's figures by a run in the folder `out`."""
    began = time.perf_counter()
    few = prepared(protocol, logs, work, row["behavior"], row["seed"])
    everything = prepared(protocol, logs, work, row["behavior"])
    model = base(protocol, logs, work)

    # what is not trained starts as the first method would: the grown model
    if row["method"] in UNTRAINED:
        first = {**row, "method": next(iter(protocol.methods))}
        grown = adapt_model(settings_of(protocol, first, model, few.path, out))
        network, tokenizer = grown.model, grown.tokenizer
    else:
        predictor = load(finetune(settings_of(protocol, row, model, few.path, out)) / "model")
        network, tokenizer = predictor.model, predictor.tokenizer
    if row["method"] == "base":
        predictor = load(model)
        network, tokenizer = predictor.model, predictor.tokenizer

    store = reencode(everything, tokenizer.vocabulary)
    # the two that compare states: the encoder must be the base's, and see no label that it lacks
    if row["method"] in UNTRAINED[2:]:
        hide_new_labels(network, load(model).model)
        train = SPLITS["train"]
        examples = collect(states(network, reencode(few, tokenizer.vocabulary), train))
        queries, classes = states(network, store, split), store.behaviors.classes
        if row["method"] == "nearest class mean":
            metrics = nearest_mean(examples, queries, classes)
        else:
            past = reencode(prepared(protocol, logs, work), tokenizer.vocabulary)
            head = meta_train(
                *collect(states(network, past, train)), MecosSettings(seed=row["seed"])
            )
            metrics = match(head, *examples, queries, classes)
    else:
        metrics, _ = evaluate(network, store, split)

    is_new = few.behaviors.values.to_numpy(False) == row["behavior"]
    shown = int((few.behaviors.counts * is_new).sum())
    # the base has no class for it
    labels = store.behaviors.values.to_pylist()
    new = labels.index(row["behavior"]) if row["behavior"] in labels else None
    return {
        **figures(metrics, new, store),
        "examples": shown,
        "train_events": few.manifest.events,
        "seconds": round(time.perf_counter() - began, 1),
    }


def figures(metrics: PredictionMetrics, new: int | None, store: EventStore) -> dict[str, Any]:
    """Recall and precision of the new class, and recall over all and over the known classes."""
    by_class, overall = metrics.per_class(), metrics.compute(store.behaviors.counts)
    known = np.ones(metrics.classes, bool)

    # a model that cannot say the new behavior
    figures_new = {"recall_new": 0.0, "precision_new": 0.0, "rows_new": 0}
    if new is not None:
        known[new] = False
        figures_new = {
            "recall_new": float(by_class["recall"][new]),
            "precision_new": float(by_class["precision"][new]),
            "rows_new": int(by_class["support"][new]),
        }

    hit, rows = by_class["true_positive"][known].sum(), by_class["support"][known].sum()
    return figures_new | {
        "rec_m": overall["rec_m"],
        "rec_w": overall["rec_w"],
        "rec_w_known": float(hit / rows),
        "rows_known": int(rows),
    }


@torch.no_grad()
def states(
    model: BehaveGPTForBehaviorPrediction, store: EventStore, split: int
) -> Iterator[Examples]:
    """Unit vectors (N, C) of the encoder before the targets (N,) of a split, batch by batch."""
    length = model.config.max_length
    batches = evaluation_batches(
        store,
        split,
        max_length=length,
        rows_per_batch=16384 // row_length_for(length),
        fields=BatchFields(model.config.columns),
    )
    for batch, hidden in hidden_states(model, batches):
        wanted = batch.target != IGNORED
        yield F.normalize(hidden[wanted], dim=-1), batch.target[wanted]


def hide_new_labels(
    model: BehaveGPTForBehaviorPrediction, frozen: BehaveGPTForBehaviorPrediction
) -> None:
    """Make what the base does not know unknown to the grown model, whose encoder is the base's
    then."""
    for name, table in model.model.embedding.tables.items():
        known = frozen.model.embedding.tables[name].weight  # (ids of the base, d)
        table.weight.data[len(known) :] = known[UNKNOWN]


def collect(batches: Iterable[Examples]) -> Examples:
    """All states (M, C) and targets (M,) of the batches."""
    vectors, targets = zip(*batches, strict=True)
    return torch.cat(vectors), torch.cat(targets)


@torch.no_grad()
def nearest_mean(
    examples: Examples, queries: Iterable[Examples], classes: int
) -> PredictionMetrics:
    """Each query gets the class whose mean state over the few examples is nearest."""
    vectors, member = examples
    # (K, C); a mean's direction is that of the sum, and unit vectors make dot products cosines
    sums = torch.zeros(classes, vectors.shape[1]).index_add(0, member, vectors)
    seen = sums.abs().sum(1) > 0
    means, metrics = F.normalize(sums, dim=-1), PredictionMetrics(classes)

    for state, target in queries:
        scores = (state @ means.T).masked_fill(~seen, -2.0)  # below every cosine
        metrics.update(scores, target)
    return metrics


def grid(protocol: Protocol) -> Iterator[dict[str, Any]]:
    """All rows; the base does not depend on the seed."""
    # by seeds: an interrupted grid has whole seeds rather than parts of all
    for seed in protocol.seeds:
        for behavior in protocol.new:
            for method in (*UNTRAINED, *protocol.methods):
                if method != "base" or seed == protocol.seeds[0]:
                    yield dict(zip(KEY, (behavior, method, seed), strict=True))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds as Markdown, with the change of the known behaviors'
    recall."""
    columns = (
        "new behavior",
        "examples",
        "method",
        "seeds",
        "its recall",
        "its precision",
        "macro recall",
        "weighted recall, known",
        "change",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    groups = grouped(rows, GROUP, (*FIGURES, "examples"))
    for (behavior, method), values in groups.items():
        before = groups[behavior, "base"]["rec_w_known"].mean()
        change = values["rec_w_known"].mean() / before - 1
        names = ("recall_new", "precision_new", "rec_m", "rec_w_known")
        cells = [mean_and_deviation(values[name]) for name in names]
        examples = "/".join(f"{n:.0f}" for n in sorted(set(values["examples"])))
        lines.append(
            f"| {behavior} | {examples} | {method} | {len(values['rec_m'])} | {' | '.join(cells)} "
            f"| {change:+.1%} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Recall of each new behavior and what the known ones lose, by method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = grouped(rows, GROUP, (*FIGURES, "examples"))
    behaviors = list(dict.fromkeys(behavior for behavior, _ in groups))
    methods = dict.fromkeys(method for _, method in groups)
    methods.pop("base", None)  # it cannot say the new behavior

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2))
    width = 0.8 / len(methods)  # bars side by side, a group for each behavior
    for number, method in enumerate(methods):
        places, recalls, spreads, changes = [], [], [], []
        for index, behavior in enumerate(behaviors):
            values = groups.get((behavior, method))
            if values is None:
                continue
            before = groups[behavior, "base"]["rec_w_known"].mean()
            places.append(index + (number - (len(methods) - 1) / 2) * width)
            recalls.append(values["recall_new"].mean())
            spreads.append(values["recall_new"].std())
            changes.append(100 * (values["rec_w_known"].mean() / before - 1))
        axes[0].bar(places, recalls, width, yerr=spreads, label=method)
        axes[1].bar(places, changes, width, label=method)

    axes[1].set_ylim(-15, 2)  # a bar that ends at the border goes further; the table has the number
    axes[1].axhline(-1, color="black", linestyle=":", linewidth=1)
    titles = (
        "recall of the new behavior, test",
        "known behaviors: change of weighted recall, % (cut at -15)",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xticks(range(len(behaviors)), behaviors)
        axis.set_title(title)
        axis.grid(alpha=0.3, axis="y")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, or show the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="configs/adapt/eval_new_behavior.yaml")
    parser.add_argument("--logs", type=Path, help="folder of the log")
    parser.add_argument("--work", type=Path, help="folder for prepared data and the base")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of rows")
    parser.add_argument("--only", nargs="*", default=[], help="methods to run")
    parser.add_argument(
        "--tune", type=float, nargs="*", help="score validation events at these learning rates"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the rows")
    parser.add_argument(
        "--plot", type=Path, help="draw recall of the new behaviors and loss of the known ones"
    )
    arguments = parser.parse_args(argv)

    protocol = read_settings(Protocol, arguments.config)
    if arguments.table or arguments.plot:
        rows = read_rows(arguments.out)
        print(table(rows))
        if arguments.plot:
            plot(rows, arguments.plot)
        return 0

    Grid(arguments.out).run(runs(protocol, arguments))
    return 0


def runs(protocol: Protocol, arguments: argparse.Namespace) -> Iterator[Run]:
    """The rows of the grid that are asked for; with `--tune` those of the first seed at each
    learning rate."""
    tuning = bool(arguments.tune)
    for row in grid(protocol):
        is_unwanted = arguments.only and row["method"] not in arguments.only
        if is_unwanted or (tuning and row["seed"] != protocol.seeds[0]):
            continue

        # what is not trained has no learning rate
        rates = arguments.tune if tuning and row["method"] not in UNTRAINED else [None]
        for rate in rates:
            yield Run(row | {"lr": rate}, partial(rows_of, protocol, row, rate, arguments))


def rows_of(
    protocol: Protocol, row: Row, rate: float | None, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The one row of a run."""
    asked = row if rate is None else row | {"lr": rate}
    split = SPLITS["valid" if arguments.tune else "test"]
    yield asked | run_row(protocol, asked, arguments.logs, arguments.work, split)
    print(" ".join(str(value) for value in asked.values()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
