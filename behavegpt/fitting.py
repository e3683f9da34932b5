"""fit: from a table of events to a trained, evaluated model in one call, for notebooks and scripts.

The same steps as `behavegpt prepare`, `train`, `evaluate` and `report`, with the same settings.

>>> import behavegpt                                                            # doctest: +SKIP
>>> model = behavegpt.fit(events, user="uid", event="app", tz="Europe/London")  # doctest: +SKIP
>>> model.predict(events, top_k=3).to_pandas()                                  # doctest: +SKIP
>>> model.evaluate().to_pandas()                                                # doctest: +SKIP
>>> model.report()                                                              # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

import behavegpt
from behavegpt.config import check_settings, closest, find_config, read_settings, read_yaml
from behavegpt.console import say
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore, open_store
from behavegpt.decision import learn_thresholds, save_thresholds
from behavegpt.errors import ConfigError
from behavegpt.evaluation import compare
from behavegpt.figures import METRICS
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.histories import EventData
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.sources import find_logs
from behavegpt.io import workspace
from behavegpt.locks import lock
from behavegpt.outputs import check_output
from behavegpt.paths import cache_folder, local_path
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.report import write_model_card, write_report
from behavegpt.tabular import Tabular
from behavegpt.trained_folder import load
from behavegpt.training.settings import DecisionSettings, TrainSettings

# settings of `fit` by whom they are for
COLUMNS = tuple(name for name in EventSchema.model_fields if name != "label_rules")
PREPARATION = (
    "users",
    "split",
    "min_events",
    "min_count",
    "max_vocabulary",
    "max_reject_share",
    "time_range",
    "memory",
)
TRAINING = tuple(name for name in PretrainSettings.model_fields if name not in ("out", "data"))


@dataclass(frozen=True, repr=False)
class Evaluation(Tabular):
    """Figures of models on the same events, as `behavegpt evaluate` writes them into
    metrics.json."""

    models: dict[str, dict[str, Any]]  # name -> figure -> value
    rows: int  # events that were predicted
    remarks: list[str]  # what a reader of the figures must know
    protocol: dict[str, Any]  # split, context, classes, hash of the data, ...
    path: Path  # metrics.json

    def to_table(self) -> pa.Table:
        """A row for each model: its name and METRICS, null where one has no value."""
        columns: dict[str, list[Any]] = {"model": list(self.models)}
        for name in METRICS:
            columns[name] = [model[name] for model in self.models.values()]
        return pa.table(columns)


class FittedPredictor(Predictor):
    """A Predictor that knows its run folder and its data: what `fit` returns."""

    def __init__(self, predictor: Predictor, run: Path, data: Path) -> None:
        """`run`: the folder with model, journal and report; `data`: the prepared folder."""
        # all that `load` found beside the model: a run in the cache may have learned times since
        super().__init__(
            predictor.model,
            predictor.tokenizer,
            predictor.links,
            predictor.thresholds,
            predictor._known,
            predictor.timing,
        )
        self.run, self.data = run, data

    @property
    def store(self) -> EventStore:
        """The prepared events it was trained on."""
        return open_store(self.data)

    def evaluate(
        self, split: Literal["valid", "test"] = "test", baselines: bool = True, **decision: Any
    ) -> Evaluation:
        """Metrics on a split, next to those of the count baselines; `decision` as for `predict`:
        prior_correction or thresholds. Raises DataError if the split is empty."""
        name = "metrics.json" if split == "test" else f"metrics.{split}.json"
        path = self.run / "eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)

        # one evaluation at a time writes the files of a run
        with lock(path):
            # this predictor, not the folder's: thresholds learned in this session count
            result = compare(self, self.store, path, split=split, baselines=baselines, **decision)

        return Evaluation(
            result["models"], result["rows"], result["remarks"], result["protocol"], path
        )

    def learn_thresholds(self, **settings: Any) -> FittedPredictor:
        """Learn thresholds on the validation split, keep them with the model, and return the model:
        `predict(..., thresholds=True)`.

        `settings`: objective="rec_m" or "f1_m", keep=0.99, min_targets=20, see DecisionSettings.
        Raises ConfigError and DataError.
        """
        asked = check_settings(DecisionSettings, settings, "learn_thresholds")
        self.thresholds = learn_thresholds(self.model, self.store, asked)
        save_thresholds(self.thresholds, self.tokenizer, self.run / "model")
        return self

    def report(self, names: Mapping[str, str] | None = None) -> Report:
        """Write RUN/report.html and the model card; evaluates first if needed. `names`: label ->
        readable name, for events and behaviors."""
        if not (self.run / "eval" / "metrics.json").exists():
            self.evaluate()
        path = write_report(self.run, names)
        write_model_card(self.run, self.data)
        return Report(path)

    def _facts(self) -> dict[str, object]:
        return {**super()._facts(), "run": self.run}


@dataclass(frozen=True)
class Report:
    """A report.html, shown in a notebook's cell."""

    path: Path

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" width="100%" height="640" style="border:0"></iframe>'


class _Settings(NamedTuple):
    columns: dict[str, object]  # of EventSchema
    preparation: dict[str, Any]  # of `prepare`
    training: list[str]  # overrides of PretrainSettings


def fit(
    data: EventData,
    *,
    out: str | Path | None = None,
    config: str | Path = "small",
    evaluate: bool = True,
    **settings: object,
) -> FittedPredictor:
    """Prepare `data`, train on it, and evaluate: a FittedPredictor.

    `data`: files (CSV, JSON, parquet, Arrow), a pandas, polars or Arrow table, a
    `datasets.Dataset`, or a mapping of columns. `config`: the settings to start from, a file or the
    name of a shipped one. `settings`, by name:

    - columns and times, as EventSchema has them: user="uid", time="ts", event="app", behavior=...,
      tz="Europe/London"; those that are not named are guessed;
    - of `prepare`: split="time:0.7,0.15,0.15", min_events=5, min_count=2, ...;
    - of the training, in groups: model={"embedding_size": 64}, train={"steps": 500}, loss={"name":
      "cross_entropy"}.

    Without `out`, everything is kept in the cache folder ($BEHAVEGPT_CACHE, or ~/.cache/behavegpt):
    the same data and settings are not trained twice, and an interrupted run is resumed. Raises
    ConfigError and DataError.
    """
    # one flat list of names for people, who need not know which step reads which
    chosen = _by_owner(settings)
    # mistakes before the work, with paths that stand for those not known yet
    read_settings(PretrainSettings, config, [*chosen.training, "data.path=.", "out=."])
    if out is not None:
        run = _new_run(out)
        store = _prepare(data, chosen, run / "data")
    else:
        store = _prepare_in_cache(data, chosen)
        # the name tells data, settings and version, so the same call finds its run again
        run = cache_folder() / "runs" / _key(store.path.name, str(config), chosen.training)

    overrides = [*chosen.training, f"data.path={store.path}", f"out={run}"]
    if not (run / "model" / "config.json").exists():
        # a folder of one's own was checked to be new; in the cache an interrupted run goes on
        pretrain(read_settings(PretrainSettings, config, overrides), resume=out is None)
    say(f"model: {run / 'model'}")

    fitted = FittedPredictor(_opened(run, chosen), run, store.path)
    # a run of the cache was evaluated by the call that trained it
    if evaluate and not (run / "eval" / "metrics.json").exists():
        fitted.evaluate()
    return fitted


def _new_run(out: str | Path) -> Path:
    """The folder of a new run. Raises ConfigError where there is one already."""
    run = local_path(out)
    check_output(run, "into")
    if (run / "run.json").exists():
        raise ConfigError(
            f"{run} already contains a run; open it with behavegpt.load, or choose another `out`."
        )
    return run


def _opened(run: Path, chosen: _Settings) -> Predictor:
    """The run's predictor, which knows what is known of the users."""
    predictor = load(run)
    if "users" in chosen.preparation:
        return predictor.with_features(chosen.preparation["users"])
    return predictor


def _by_owner(settings: Mapping[str, object]) -> _Settings:
    """Settings by whose they are. Raises ConfigError for a name that nobody knows."""
    columns = {name: value for name, value in settings.items() if name in COLUMNS}
    preparation = {name: value for name, value in settings.items() if name in PREPARATION}
    rest = {name: value for name, value in settings.items() if name not in (*COLUMNS, *PREPARATION)}

    for name in rest:
        if name in TrainSettings.model_fields:
            raise ConfigError(
                f"fit has no setting {name!r}; it belongs to train: train={{{name!r}: ...}}."
            )
        if name.partition(".")[0] not in TRAINING:
            raise ConfigError(
                f"fit has no setting {name!r}. {closest(name, (*COLUMNS, *PREPARATION, *TRAINING))}"
            )

    return _Settings(columns, preparation, list(_overrides("", rest)))


def _overrides(prefix: str, settings: Mapping[str, object]) -> Iterator[str]:
    """Nested settings as `a.b=value`, the form of the command line.

    >>> list(_overrides("", {"train": {"steps": 5}, "loss.name": "dro"}))
    ['train.steps=5', 'loss.name="dro"']
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _overrides(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}={json.dumps(value, default=str)}"


def _prepare(data: EventData, chosen: _Settings, folder: Path) -> EventStore:
    """The prepared folder; one that is there already is taken away first."""
    logs = find_logs(data)
    schema = guess_schema(logs, chosen.columns)[0]
    say("columns: " + ", ".join(f"{role}={column}" for role, column in schema.roles.items()))
    return prepare(logs, folder, schema, overwrite=True, **chosen.preparation)


def _prepare_in_cache(data: EventData, chosen: _Settings) -> EventStore:
    """The prepared folder CACHE/data/CONTENT_HASH, which the same events and columns share."""
    cache = cache_folder() / "data"
    cache.mkdir(parents=True, exist_ok=True)
    with workspace(cache / "fit") as work:
        store = _prepare(data, chosen, work / "data")
        # under a lock: another process may have prepared the same events meanwhile
        # the name only shows when all events were read, so the work is beside it
        final = cache / store.manifest.content_hash
        with lock(final):
            if not final.exists():
                os.rename(store.path, final)
    return open_store(final)


def _key(content_hash: str, config: str, overrides: Sequence[str]) -> str:
    """A name for the run of these events and settings under this version."""
    text = json.dumps(
        [behavegpt.__version__, read_yaml(find_config(config)), sorted(overrides)], default=str
    )
    return f"{content_hash[:12]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
