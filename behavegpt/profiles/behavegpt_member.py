"""BehaveGPT's own vector: the main model pretrained on the clients' stream of events, or a
checkpoint of it.

    behavegpt: {kind: behavegpt, model: {embedding_size: 24, num_hidden_layers: 2},
                train: {epochs: 3, lr: 2e-3}}
    behavegpt: {kind: behavegpt, checkpoint: runs/challenge/model}

The stream is that of `behavegpt convert recsys2025`, so a checkpoint trained by
configs/challenge.yaml fits: an event is its type and category, a behavior also tells the url, and
every `clock` days stands a tick, which lets the model see time pass. The vector is made by
`pooling`: the state at the last event and the mean of all states.
"""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import torch
from pydantic import Field, field_validator

from behavegpt.checksums import manifest_of
from behavegpt.config import PathText, closest
from behavegpt.console import progress
from behavegpt.data.database import literal
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import TOKENIZER_FILE, EventTokenizer
from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.datasets.clock import GAP, add_clock
from behavegpt.devices import choose_device
from behavegpt.embeddings.reader import Reader, lookups_of
from behavegpt.errors import ConfigError, first_line, violation
from behavegpt.ingest.prepare import prepare
from behavegpt.io import workspace, write_json
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.training.model_folder import open_model
from behavegpt.training.run import open_run
from behavegpt.training.settings import SHAPE, DataSettings, RunSettings, TrainSettings
from behavegpt.training.trainer import Trainer
from behavegpt.user_embeddings import UserEmbeddings

BLOCK = 8192  # clients whose histories are in memory at a time
ASKED = "SEMI JOIN clients c ON c.client = e.client"
MODEL, FACTS = "model", "stream.json"
MODEL_FILES = ("config.json", "model.safetensors", TOKENIZER_FILE)
SCHEMA = EventSchema(
    user="user_id",
    time="timestamp",
    event="event",
    behavior="behavior",
    extra=("item", "price"),
    tz="UTC",
)


class BehaviorSettings(MemberSettings):
    """How BehaveGPT is pretrained, or where it is."""

    kind: Literal["behavegpt"] = "behavegpt"
    checkpoint: PathText | None = Field(
        None, description="model folder of a run on such a stream; null: pretrain here"
    )
    clients: Literal["asked", "all"] = Field(
        "asked", description="whose streams it is pretrained on"
    )
    clock: float | None = Field(7, gt=0, description="days between ticks; null: none")
    model: dict[str, Any] = Field(
        default_factory=dict, description="BehaveGPTConfig, as `model` in a training config"
    )
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    min_count: int = Field(3, ge=1, description="events of a label below which it is unknown")
    most_labels: int | None = Field(
        20_000, ge=1, description="labels of a field; the most frequent are kept"
    )
    pool: tuple[str, ...] = Field(
        ("last", "mean"), min_length=1, description="parts of the vector, see `export`"
    )
    half_life: float = Field(7.0, gt=0, description="days, for decayed parts")

    @field_validator("model")
    @classmethod
    def _known_shape(cls, value: dict[str, Any]) -> dict[str, Any]:
        # transformers accepts any name, and a misspelled width would be the paper's
        for name in value:
            if name not in SHAPE:
                raise ValueError(f"unknown setting {name!r}. {closest(name, SHAPE)}")
        return value

    def shaping(self) -> dict[str, Any]:
        """A checkpoint counts by what is in its files, wherever it lies."""
        shaping = super().shaping()
        if self.checkpoint:
            try:
                shaping["checkpoint"] = manifest_of(Path(self.checkpoint), MODEL_FILES, {})["files"]
            except OSError as error:
                raise ConfigError(
                    f"checkpoint {self.checkpoint}: no model folder ({first_line(error)}); give "
                    "the `model` folder of a run."
                ) from None

        return shaping


def fit(context: Context, settings: BehaviorSettings, folder: Path) -> None:
    """Pretrain, or take the checkpoint; writes model/ and the time of the last ticks."""
    with context.connect() as con:
        end: datetime.datetime = con.execute("SELECT max(moment) FROM events").fetchall()[0][0]

    # kept for `embed`: ticks count back from it, so the same events give the same vector anywhere
    write_json(folder / FACTS, {"end": end.isoformat(sep=" ")})
    if settings.checkpoint:
        shutil.copytree(settings.checkpoint, folder / MODEL)
        open_model(folder / MODEL)  # damaged, or no model: said now
        return

    work = context.work(settings)  # a run that was stopped goes on from there
    store = _prepared(context, settings, work / "prepared", end.isoformat(sep=" "))
    train = settings.train.model_copy(update={"seed": context.seed})
    data = DataSettings(path=str(store.path))
    asked = RunSettings(out=str(work / "run"), data=data, loss=settings.loss, train=train)

    # resume: a stopped run goes on, a finished one is taken as it is
    with open_run(asked, "BehaveGPT", resume=True) as run:
        model = _build_model(store, settings)
        loss = build_loss(settings.loss, torch.tensor(store.behaviors.counts))
        trainer = Trainer(model, loss, store, train, run)
        trainer.fit()
        run.save(trainer.best_model(), EventTokenizer.from_store(store, model.config.max_length))

    shutil.copytree(run.path / "model", folder / MODEL)
    shutil.copy(run.path / "run.json", folder / "run.json")


def embed(context: Context, settings: BehaviorSettings, folder: Path) -> UserEmbeddings:
    """(U, D) float32 of the asked clients with an event."""
    model, tokenizer = open_model(folder / MODEL)
    model.eval().to(choose_device(context.device))

    end = json.loads((folder / FACTS).read_text(encoding="utf-8"))["end"]
    if context.at is not None:
        # the last tick stands a second after `end`
        end = str(np.datetime64(context.at - 1, "s")).replace("T", " ")
    # a checkpoint trained without ticks knows no gap field
    clock = settings.clock if GAP in tokenizer.event_schema.extra else None

    with workspace(context.cache / "stream") as work:
        with context.connect() as con:
            log, _ = _write_stream(con, work, ASKED, end, clock)

        # one split: everything is past, as nothing is predicted here
        store = prepare(log, work / "asked", tokenizer.event_schema, split="time:1,0,0")
        lookups = lookups_of(store, tokenizer)
        reader = Reader(model, store, lookups, settings.pool, settings.half_life)

        # in blocks: the states of all clients at once would not fit in memory
        users, blocks = np.arange(store.manifest.users), []
        with progress("embedding", len(users)) as tell:
            for start in range(0, len(users), BLOCK):
                blocks.append(reader.vectors(users[start : start + BLOCK]))
                tell(start + len(blocks[-1]), "")

        return UserEmbeddings(store.users().cast("int64").to_numpy(), np.concatenate(blocks))


def _prepared(context: Context, settings: BehaviorSettings, path: Path, end: str) -> EventStore:
    """The stream that it is pretrained on, prepared in `path`; what is there is opened."""
    if (path / "dataset.json").is_file():
        return open_store(path)

    whose = ASKED if settings.clients == "asked" else ""
    with workspace(context.cache / "stream") as work, context.connect() as con:
        log, schema = _write_stream(con, work, whose, end, settings.clock)
        return prepare(
            log,
            path,
            schema,
            split="user:0.95,0.05,0",
            min_count=settings.min_count,
            max_vocabulary=settings.most_labels,
        )


def _build_model(store: EventStore, settings: BehaviorSettings) -> BehaveGPTForBehaviorPrediction:
    """A new model for the stream."""
    tokenizer = EventTokenizer.from_store(store, settings.model.get("max_length", 90))
    try:
        config = BehaveGPTConfig(
            field_sizes=store.field_sizes(),
            num_behaviors=store.behaviors.classes,
            tokenizer_hash=tokenizer.hash,
            **settings.model,
        )
    # transformers raises many kinds of errors for a shape that does not fit
    except Exception as error:
        raise ConfigError(f"model: {violation(error)}") from None

    model = BehaveGPTForBehaviorPrediction(config)
    model.head.set_prior(torch.tensor(store.behaviors.counts))
    return model


def _write_stream(
    con: duckdb.DuckDBPyConnection, folder: Path, whose: str, end: str, clock: float | None
) -> tuple[Path, EventSchema]:
    """Write the events of some clients (`whose`: a join on `e.client`) as one log; ticks go back
    from `end`."""
    kinds = f"list_extract({list(EVENTS)!r}, e.event + 1)"
    plain, ticking = folder / "plain.parquet", folder / "ticking.parquet"

    con.execute(f"""COPY (
        SELECT e.client::VARCHAR AS user_id, e.moment AS timestamp, {kinds} AS kind,
            concat_ws(':', {kinds}, {_category()}) AS event,
            concat_ws(':', {kinds}, coalesce({_category()}, e.url::VARCHAR)) AS behavior,
            coalesce(e.sku, e.url)::VARCHAR AS item, e.sku::VARCHAR AS sku, e.url::VARCHAR AS url,
            {_category()} AS category, p.price::VARCHAR AS price
        FROM events e {whose} LEFT JOIN properties p ON p.sku = e.sku) TO {literal(plain)}""")

    if clock is None:
        return plain, SCHEMA

    return ticking, add_clock(con, plain, ticking, SCHEMA, clock, end)


def _category() -> str:
    """SQL: a product's category as text, `unknown` where its properties lack it, null where there
    is no product."""
    return "CASE WHEN e.sku IS NOT NULL THEN coalesce(p.category::VARCHAR, 'unknown') END"
