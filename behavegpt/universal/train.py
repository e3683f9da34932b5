"""Pretrain the universal mixer on many questions to a few logs: the same weights must answer all of
them.

A question says which column is the behavior, the event and the place. Variants make more kinds of
logs out of one: random unions of classes, a random part of the users, no place. Tables are counted
on the training split; the mixer learns on validation events, which are not in them, and on training
events, whose user's fold is left out. Random worlds (`worlds.py`) stand beside the real logs.

OUT/universal.safetensors, OUT/universal.json (settings, rows, versions), OUT/log.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from behavegpt.config import Settings
from behavegpt.console import progress, say
from behavegpt.data.memory import Spans, read_memory
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.memory_read import Readings
from behavegpt.data.store import SPLITS, TRAIN, EventStore, open_store
from behavegpt.errors import DataError
from behavegpt.model.mixer import Mixer
from behavegpt.outputs import check_output
from behavegpt.paths import local_path
from behavegpt.universal.model import UniversalModel, refuse_used, save_universal
from behavegpt.universal.reader import MemoryReader, fold_of, make_reader, store_reader, take
from behavegpt.universal.worlds import random_world

GIVEN = {"timed": ("time",), "placed": ("time", "location")}  # variant -> of the event asked for


class QuestionSettings(Settings):
    """A log and what is asked of it."""

    path: str = Field(description="folder written by `behavegpt prepare`")
    roles: dict[str, str] = Field(
        default_factory=dict,
        description="column that is taken as behavior, event or location, where not its own",
    )
    variants: tuple[str, ...] = Field(
        ("whole",),
        description=(
            "whole, merged (random unions of classes), part (of the users), nowhere (no place), "
            "timed and placed (the time of the event asked for is given, or its time and place)"
        ),
    )
    rows: int = Field(20_000, ge=100, description="events asked for in each variant")


class UniversalSettings(Settings):
    """A universal model to pretrain."""

    out: str = Field(description="folder of the weights")
    questions: dict[str, QuestionSettings] = Field(description="name -> log and question")
    worlds: int = Field(24, ge=0, description="random worlds beside the logs")
    world_rows: int = Field(6_000, ge=100, description="events asked for in each world")
    epochs: int = Field(8, ge=1, description="passes over all rows")
    batch: int = Field(512, ge=8, description="rows of a step, all of one question")
    lr: float = Field(4e-3, gt=0, description="peak learning rate of AdamW, one cycle")
    hidden_size: int = Field(32, ge=4, description="hidden units of the mixer")
    seed: int = Field(0, ge=0, description="seed of rows, variants and initialization")


@dataclass(frozen=True)
class View:
    """One variant of one question, read: N rows."""

    name: str
    readings: Readings
    shares: np.ndarray  # (B, J)
    position: np.ndarray  # (N,) places in `readings`
    target: torch.Tensor  # (N,) classes
    log_prior: torch.Tensor  # (K,)


def pretrain_universal(settings: UniversalSettings) -> Path:
    """Train the mixer and write it to OUT; returns OUT. Raises DataError for folders that hold
    nothing to ask."""
    out = local_path(settings.out)
    check_output(out, "into")
    refuse_used(out)

    rng = np.random.default_rng(settings.seed)
    views = list(read_views(settings, rng))

    torch.manual_seed(settings.seed)
    mixer = Mixer(len(EXPERTS) + 1, hidden_size=settings.hidden_size)
    fit_mixer(mixer, views, settings, rng)
    save_universal(UniversalModel(mixer, {"settings": settings.model_dump(mode="json")}), out)
    return out


def read_views(settings: UniversalSettings, rng: np.random.Generator) -> Iterator[View]:
    """All variants of all questions; validation and training rows of each."""
    for name, question in settings.questions.items():
        store = open_store(question.path)
        whole = store_reader(store, question.roles)
        for variant in question.variants:
            reader, users = _vary(whole, variant, store, rng)
            for split in ("valid", "train"):
                asked = np.asarray(store.columns["split"]) == SPLITS[split]
                view = read_rows(
                    f"{name}/{variant}/{split}",
                    reader,
                    users,
                    asked,
                    question.rows // 2,
                    rng,
                    training=split == "train",
                )
                say(f"{view.name}: {len(view.position):,} rows, {len(view.log_prior):,} classes")
                yield view

    for number in range(settings.worlds):
        yield _read_world(settings.seed * 1_000 + number, settings.world_rows, rng)


def _read_world(seed: int, rows: int, rng: np.random.Generator) -> View:
    """Rows of the last fifth of a random world, whose tables are counted on the first two
    thirds."""
    world = random_world(seed)
    columns = world.columns
    # a gap between what is counted and what is asked, as between training and later use
    early, late = np.quantile(columns.time, [2 / 3, 0.8])

    reader = make_reader(columns, world.offsets, columns.time < early, world.classes)
    return read_rows(
        f"world {seed}", reader, np.arange(len(world.offsets) - 1), columns.time >= late, rows, rng
    )


def _vary(
    reader: MemoryReader, variant: str, store: EventStore, rng: np.random.Generator
) -> tuple[MemoryReader, np.ndarray]:
    """The reader of a variant, and the users (n,) that may be asked."""
    columns, classes = reader.columns, reader.classes
    users = np.arange(len(reader.offsets) - 1)
    used = np.asarray(store.columns["split"]) == TRAIN

    if variant == "merged":
        # the classes merged at random into fewer: other frequencies, other repetitions
        classes = int(rng.integers(3, max(4, classes // 2)))
        union = rng.integers(0, classes, reader.classes + 1).astype(np.int32)
        union[-1] = -1  # of unknown behaviors
        columns = columns._replace(behavior=union[columns.behavior])
    elif variant == "part":
        # an eighth of the users, so that the tables know little
        users = np.sort(rng.permutation(users)[: max(8, len(users) // 8)])
        inside = np.zeros(len(reader.offsets) - 1, bool)
        inside[users] = True
        used = used & np.repeat(inside, np.diff(reader.offsets))
    elif variant == "nowhere":
        # one place for everybody: an expert of places must learn to say nothing
        columns = columns._replace(location=np.ones_like(columns.location))
    elif variant in GIVEN:
        return make_reader(columns, reader.offsets, used, classes, GIVEN[variant]), users
    else:
        return reader, users

    return make_reader(columns, reader.offsets, used, classes), users


def read_rows(
    name: str,
    reader: MemoryReader,
    users: np.ndarray,
    asked: np.ndarray,
    rows: int,
    rng: np.random.Generator,
    *,
    training: bool = False,
) -> View:
    """Read about `rows` of the `asked` (events,) bool: those of random `users` (n,), at most a
    tenth of one user's."""
    offsets = reader.offsets
    wanted = asked & (reader.columns.behavior >= 0)
    wanted[offsets[:-1][np.diff(offsets) > 0]] = False  # nothing is known before a first event

    # users in random order, until they have enough rows
    flat = np.flatnonzero(wanted)
    owner = np.searchsorted(offsets, flat, side="right") - 1
    _, first, count = np.unique(owner, return_index=True, return_counts=True)
    order = rng.permutation(np.flatnonzero(np.isin(owner[first], users)))
    most = max(50, rows // 10)
    size = np.minimum(count[order], most)
    order = np.sort(order[: np.searchsorted(np.cumsum(size), rows) + 1])
    pieces = [flat[first[u] : first[u] + count[u]][-most:] for u in order]  # each user's latest
    if not pieces:
        raise DataError(f"{name}: no event to ask for.")

    # a row is asked at the event before it
    low, high = np.array([p[0] - 1 for p in pieces]), np.array([p[-1] for p in pieces])
    user = owner[first[order]]
    folds = fold_of(user) if training else None
    spans = Spans(offsets[user], low, high, folds)
    readings = read_memory(reader.columns, reader.tables, spans)

    # places in the readings, which lie user by user, from `low` on
    begin = np.cumsum(high - low) - (high - low)
    position = np.concatenate([p - 1 - a + b for p, a, b in zip(pieces, low, begin, strict=True)])
    log_prior = torch.log(torch.from_numpy(reader.tables.prior))
    return View(
        name,
        readings,
        reader.shares,
        position,
        reader.target(np.concatenate(pieces) - 1),
        log_prior,
    )


def fit_mixer(
    mixer: Mixer, views: list[View], settings: UniversalSettings, rng: np.random.Generator
) -> None:
    """Cross-entropy over batches of one view each, in random order."""
    batches = sum(_parts(view, settings.batch) for view in views)
    steps = settings.epochs * batches
    optimizer = torch.optim.AdamW(mixer.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps + 1)

    mixer.train()
    with progress("universal", steps) as show:
        done, average = 0, 0.0
        for _ in range(settings.epochs):
            pieces: list[tuple[View, np.ndarray]] = []
            for view in views:
                rows = rng.permutation(len(view.position))
                parts = np.array_split(rows, _parts(view, settings.batch))
                pieces += [(view, part) for part in parts]

            for place in rng.permutation(len(pieces)):
                view, piece = pieces[place]
                memory = take(view.readings, view.position[piece], view.shares)
                loss = F.cross_entropy(mixer(memory, view.log_prior), view.target[piece])

                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
                optimizer.step()
                schedule.step()

                done += 1
                # a mean over the first 200 steps, then a moving one
                average += (loss.item() - average) / min(done, 200)
                show(done, f"loss {average:.3f}")
    mixer.eval()


def _parts(view: View, batch: int) -> int:
    """Batches of a view in each epoch."""
    return max(1, len(view.position) // batch)
