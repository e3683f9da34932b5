"""An update of a run: new events are predicted, learned, judged, and kept or rolled back."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import behavegpt
from behavegpt import decision
from behavegpt.bounded_yaml import load_yaml
from behavegpt.config import check_settings
from behavegpt.console import say
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.reencode import reencode, schema_difference
from behavegpt.data.store import TEST, TRAIN, VALID, EventStore, open_store
from behavegpt.data.times import MICROS
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.user_state import StatesOfHistories
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.generation.constraints import links_of
from behavegpt.ingest.histories import EventData
from behavegpt.io import write_text
from behavegpt.locks import lock
from behavegpt.model import BehaveGPTConfig
from behavegpt.paths import local_path
from behavegpt.predictor import Predictor
from behavegpt.timing import files as timing
from behavegpt.training.journal import LOCK
from behavegpt.training.model_folder import Trained, open_model, save_model
from behavegpt.training.settings import RunSettings
from behavegpt.training.setup import make_accelerator
from behavegpt.updating.append import Appended, append
from behavegpt.updating.drift import (
    COUNTS,
    Scored,
    asked_rows,
    compare_at,
    drift,
    score_counts,
    score_model,
    with_split,
)
from behavegpt.updating.learn import grow, train
from behavegpt.updating.new_events import NewEvents, moment, only_later, read_new
from behavegpt.updating.result import UpdateResult
from behavegpt.updating.settings import UpdateSettings
from behavegpt.updating.versions import MODEL, ROWS, STATES, Versions

LEAST = 30  # held-out targets; fewer do not judge
REMEDY = "wait for it, or stop it"


def update(
    run: str | Path,
    log: EventData,
    *,
    data: str | Path | None = None,
    columns: Mapping[str, Any] | None = None,
    users: EventData | None = None,
    **settings: Any,
) -> UpdateResult:
    """Bring a run of `train` or `finetune` up to date with a log of later events.

    First, the current model predicts the new events. Then its vocabulary grows by their labels, its
    frequencies and tables are recounted, and it is trained for some steps. RUN/model is replaced
    unless held-out users, whose new events it was not trained on, are predicted worse. `data`: the
    prepared folder before the first update, if it is not where the run's configuration says;
    `columns`: by role, where the log names them otherwise ({"user": "uid"}); `users`: the table of
    new users' features, for data prepared with one; `settings`: of UpdateSettings. Raises
    ConfigError, DataError and CheckpointError. Docs: docs/update.md.
    """
    # a misspelt setting is told before the run is locked or anything is read
    asked = check_settings(UpdateSettings, settings, "update")
    with _held(run) as versions:
        configured = _read_config(versions.run)
        before = _open(versions.run / MODEL)
        past = _open_past(versions, configured, data)
        refuse_baskets(before.tokenizer.event_schema, "update")
        _check_schema(before, past)
        new = read_new(log, past, dict(columns or {}), users, asked.max_reject_share)

        # a process that was killed behind the update, and before it said so, is started again
        rows = versions.rows()
        if rows and rows[-1]["digest"] == new.digest:
            say(f"{new.name}: already learned by the latest update; nothing was changed")
            return UpdateResult(rows[-1], versions.run / MODEL)

        # after the check of the digest: all of a log that was learned already would be late
        new = only_later(new, past, asked.late)
        with versions.add() as folder:
            # everything is written into this folder first: a killed update leaves the run as it was
            work = _Update(folder, configured, asked, versions)
            row = work.carry_out(before, past, new)
        versions.tidy(asked.keep)
    return UpdateResult(row, versions.run / MODEL)


def undo_update(run: str | Path) -> int:
    """Restore model, data and states from before the latest update; returns its number. Raises
    ConfigError if they were not kept."""
    with _held(run) as versions:
        return versions.undo()


@contextmanager
def _held(run: str | Path) -> Iterator[Versions]:
    """The updates of a run, which no other process changes meanwhile."""
    folder = local_path(run)
    # a model folder has no config.yaml, so naming it instead of the run's is noticed here
    if not (folder / "config.yaml").is_file() or not (folder / MODEL / "config.json").is_file():
        raise ConfigError(
            f"{folder}: not a finished run of train or finetune (no config.yaml or "
            "model/); name the run folder, not its model folder. `universal` needs no "
            "update: it counts whatever log you pass."
        )
    with lock(folder, folder / LOCK, REMEDY):
        versions = Versions(folder)
        # an earlier process may have been killed between its update and its publication
        versions.recover()
        yield versions


def _read_config(run: Path) -> RunSettings:
    """Data, loss and training loop of the run's configuration."""
    path = run / "config.yaml"
    tree = load_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: no settings of a run; restore the file as it was written.")
    # those of fine-tuning have a `base` too, which is a model
    named = {name: tree[name] for name in RunSettings.model_fields if name in tree}
    return check_settings(RunSettings, named, str(path))


def _open(folder: Path) -> Trained:
    """The model before the update. Raises ConfigError for a baseline."""
    trained = open_model(folder)
    if trained.model.config.model_type != BehaveGPTConfig.model_type:
        raise ConfigError(
            f"{folder}: a {trained.model.config.architecture}, whose vocabulary cannot "
            "grow; train it again on all events."
        )
    return trained


def _open_past(versions: Versions, configured: RunSettings, data: str | Path | None) -> EventStore:
    """All events before the update. Raises ConfigError where `data` is not what is gone on from."""
    if versions.data is None:
        return open_store(data or configured.data.path)
    if data is not None:
        raise ConfigError(
            f"{versions.run}: its updates continue from {versions.data}; remove --data."
        )
    return open_store(versions.data)


def _check_schema(before: Trained, past: EventStore) -> None:
    """Raise CheckpointError where the model reads times and fields otherwise than the data."""
    lines = schema_difference(before.tokenizer.event_schema, past.schema)
    if lines:
        raise CheckpointError(
            f"{past.path} does not match the schema this model was trained with: "
            f"{'; '.join(lines)}. Pass the prepared folder that it was trained on: --data "
            "DIR."
        )


class _Update(NamedTuple):
    """One update, which writes a version's folder."""

    folder: Path
    configured: RunSettings
    asked: UpdateSettings
    versions: Versions

    def carry_out(self, before: Trained, past: EventStore, new: NewEvents) -> dict[str, Any]:
        """Write data, model and rows; returns the row of this update."""
        rows = self.versions.rows()
        # the folder of this version is there already, so its number is the last
        number, asked = self.versions.numbers[-1] + 1, self.asked
        began = datetime.datetime.now(datetime.UTC)
        # a tracker would take each update for a run of its own
        accelerator = make_accelerator(self.configured.train.model_copy(update={"wandb": None}))
        torch.manual_seed(asked.seed)

        events = append(past, new, self.folder / "data", asked, (asked.seed, number))
        before.model.to(accelerator.device)
        row = {"update": number, "made": began.isoformat(timespec="seconds"), **_counted(new)}
        row["new_users"] = events.new_users
        # before anything is learned: later the model would have seen what it predicts
        scored, found = predict_first(before, events)
        row |= found

        after, encoded = grow(before, events.store)
        row["loss"] = train(
            after.model, encoded, events.is_new, self.configured, asked, accelerator
        )
        row["held_out"], row["verdict"] = self._judge(scored, after, encoded, events)
        kept = self._keep(before, after, encoded, row["verdict"])
        row["labels"] = {
            field: [known.classes, kept.tokenizer.vocabulary[field].classes]
            for field, known in before.tokenizer.vocabulary.items()
        }
        if asked.states:
            _save_states(kept, events.store, self.folder / STATES)

        row["settings"] = asked.model_dump(mode="json")
        row["version"] = behavegpt.__version__
        ended = datetime.datetime.now(datetime.UTC)

        row["seconds"] = round((ended - began).total_seconds(), 1)
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in (*rows, row))
        write_text(self.folder / ROWS, "".join(lines))
        return row

    def _judge(
        self, scored: Scored, after: Trained, encoded: EventStore, events: Appended
    ) -> tuple[dict[str, Any], str]:
        """Both models on the new events of users that were held out, the same targets; and the
        verdict."""
        is_held = events.is_new & (np.asarray(encoded.columns["split"]) == VALID)
        asked = asked_rows(encoded, is_held)
        # `evaluate` scores a split, so the held-out events become one
        held = with_split(encoded, np.where(is_held, TEST, TRAIN).astype(np.uint8))
        figures = compare_at(scored, score_model(after.model, held), encoded, asked)

        verdict = "updated"
        # a few targets would roll back by chance
        if len(asked) < LEAST:
            verdict = "updated, not judged"
        elif figures["difference"] < -self.asked.margin:
            verdict = "rolled back"
        return figures, verdict

    def _keep(self, before: Trained, after: Trained, encoded: EventStore, verdict: str) -> Trained:
        """Write the model that stays."""
        place = self.folder / MODEL
        if verdict == "rolled back":
            # the grown vocabulary goes with the weights: the old model keeps the old one
            shutil.copytree(self.versions.run / MODEL, place)
            return before
        save_model(after.model, after.tokenizer, place, links_of(encoded))
        return after


def left_out(run: Path) -> list[str]:
    """What lies beside a run's model and belongs to its weights, so that an update leaves it
    out."""
    return [name for name in (decision.FILE, timing.FILE) if (run / MODEL / name).is_file()]


def _counted(new: NewEvents) -> dict[str, Any]:
    """What the log held."""
    seconds = new.table["time"].to_numpy() // MICROS
    return {
        "log": Path(new.name).name,
        "events": len(new.table),
        "users": len(new.table["user"].unique()),
        "from": moment(int(seconds.min())),
        "until": moment(int(seconds.max())),
        "late": new.late,
        "rejected": new.rejected,
        "digest": new.digest,
    }


def predict_first(before: Trained, events: Appended) -> tuple[Scored, dict[str, Any]]:
    """The model before the update on all new events, beside counts, and the drift."""
    store = reencode(events.store, before.tokenizer.vocabulary)
    store = with_split(store, np.where(events.is_new, TEST, TRAIN).astype(np.uint8))
    scored = {"model": score_model(before.model, store), COUNTS: score_counts(store)}
    figures = {name: found.figures for name, found in scored.items()}
    return scored["model"], {"prequential": figures, "drift": drift(store, scored)}


def _save_states(kept: Trained, store: EventStore, folder: Path) -> None:
    """The states of all users after the new events."""
    store = reencode(store, kept.tokenizer.vocabulary)
    columns = {**store.columns, "behavior": store.column("behavior")}
    # folders store seconds since their first event, states know those of the epoch
    columns["time"] = np.asarray(columns["time"]).astype(np.int64) + store.manifest.time_origin
    predictor = Predictor(kept.model, kept.tokenizer)
    histories = EncodedHistories(store.users(), store.offsets, columns, {}, {})
    states = StatesOfHistories(predictor.state_spec, histories)
    predictor.save_states(folder, states.values())
