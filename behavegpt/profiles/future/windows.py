"""Examples with a past and a held-out future, cut from the history itself: nothing of a later
window is looked at.

A cut is a moment; what is before it is the past of an example, the `horizon` days from it on are
its future. The latest cut lies one horizon before the history's end, the others in steps before it,
so that one client gives several examples. Times enter as ages at the cut: a model that is trained
at earlier cuts reads the whole history the same way later.

Shape letters: N examples, T events of their pasts, E events of the store, K labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from behavegpt.config import Settings
from behavegpt.data.collate import half_octaves
from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.errors import DataError
from behavegpt.profiles.fields import FIRST
from behavegpt.profiles.histories import Packed, model_names, pack
from behavegpt.profiles.sequences import SequenceStore
from behavegpt.ragged import owners, ranges

DAY = 86_400
AGES = 32  # half octaves of 1 + hours: the last one begins at 5 years
RECENT = (1, 3, 7, 14, 30, 60)  # days in which events of each type are counted


class CutSettings(Settings):
    """Where the history is cut."""

    horizon: float = Field(14, gt=0, description="days of the future")
    moments: int = Field(
        4, ge=1, description="how many; each time a client is read, one of them is drawn"
    )
    step: float = Field(7, gt=0, description="days between them")


class Examples(NamedTuple):
    """Pasts and futures of clients `row` (N,) of a store: each array (N,) int64, indices of its
    flat columns."""

    row: np.ndarray
    cut: np.ndarray  # epoch seconds
    stop: np.ndarray  # the past ends, and the future begins, before this event
    end: np.ndarray  # the future ends before this one


class Cuts(NamedTuple):
    """A store's histories at M moments, the latest first."""

    moment: np.ndarray  # (M,) epoch seconds
    stop: np.ndarray  # (M, U) int64
    end: np.ndarray  # (M, U) int64
    # (U,) int64: moments, from the latest on, before which the client has an event
    usable: np.ndarray

    def draw(self, rows: np.ndarray, rng: np.random.Generator) -> Examples:
        """An example of each client `rows` (N,), at one of its moments."""
        # `usable` counts from the latest moment on, so every index below it is one of the client's
        return self.at((rng.random(len(rows)) * self.usable[rows]).astype(np.int64), rows)

    def all_of(self, rows: np.ndarray) -> list[Examples]:
        """All examples of clients `rows` (N,), moment by moment."""
        clients = [rows[self.usable[rows] > index] for index in range(len(self.moment))]
        return [
            self.at(np.full(len(some), index), some)
            for index, some in enumerate(clients)
            if len(some)
        ]

    def at(self, index: np.ndarray, rows: np.ndarray) -> Examples:
        """Examples of clients `rows` (N,) at the moments `index` (N,)."""
        return Examples(rows, self.moment[index], self.stop[index, rows], self.end[index, rows])


class Past(NamedTuple):
    """Packed pasts, and what is known of them beside the fields."""

    packed: Packed
    days: Tensor  # (T,) float32: age of each event at the cut
    event: Tensor  # (T,) int64: its type, from 0


def end_of(store: SequenceStore) -> int:
    """The moment after the last event, epoch seconds."""
    return int(np.asarray(store.columns["time"]).max()) + 1


def cut_histories(store: SequenceStore, settings: CutSettings, now: int) -> Cuts:
    """The histories at each moment. Raises DataError when no client has an event before one."""
    horizon, step = round(settings.horizon * DAY), round(settings.step * DAY)
    # the latest cut leaves one whole horizon of future
    moment = now - horizon - step * np.arange(settings.moments)  # (M,)
    stop = np.stack([store.stops_before(int(cut)) for cut in moment])  # (M, U)
    end = np.stack([store.stops_before(int(cut) + horizon) for cut in moment])

    usable = (stop > store.offsets[:-1]).sum(axis=0)  # (U,)
    if not usable.any():
        raise DataError(
            f"no client has an event {settings.horizon:g} days before the history's end, so there "
            "is no future to learn from; choose a smaller cut.horizon."
        )

    return Cuts(moment, stop, end, usable)


def whole(store: SequenceStore, rows: np.ndarray, now: int) -> Examples:
    """The whole histories of clients `rows` (N,), cut at `now`, for their vectors."""
    stop = store.offsets[rows + 1]
    return Examples(rows, np.full(len(rows), now), stop, stop)


def read_past(
    store: SequenceStore, examples: Examples, fields: tuple[str, ...], longest: int
) -> Past:
    """The newest `longest` events before each cut, with their age as a further field."""
    lengths = np.minimum(examples.stop - store.offsets[examples.row], longest)  # (N,)
    source = ranges(examples.stop - lengths, lengths)  # (T,)
    moments = store.columns["time"][source].astype(np.int64)

    seconds = np.repeat(examples.cut, lengths) - moments  # (T,) no event is later than its cut

    names = model_names((*fields, "age"))
    columns = {names[name]: store.columns[name][source] for name in fields}
    columns["age"] = half_octaves(seconds / 3600, AGES)
    packed = pack(columns, lengths, longest)
    event = np.asarray(store.columns["event"])[source].astype(np.int64) - FIRST

    return Past(
        packed, torch.from_numpy((seconds / DAY).astype(np.float32)), torch.from_numpy(event)
    )


def counts(pasts: Past) -> Tensor:
    """(N, S) float32: log(1 + events) of each type in the last days and of all that were read, and
    the logarithms of 1 + days since the newest and the oldest of them."""
    bounds = pasts.packed.bounds
    # (T,) the example of each event
    which = torch.arange(len(bounds) - 1, device=bounds.device).repeat_interleave(bounds.diff())

    # (T, types)
    kind = torch.nn.functional.one_hot(pasts.event.clamp(0, len(EVENTS) - 1), len(EVENTS)).float()

    columns = []
    for days in (*RECENT, float("inf")):
        inside = kind * (pasts.days < days)[:, None]  # (T, types)
        columns.append(inside.new_zeros(len(bounds) - 1, len(EVENTS)).index_add(0, which, inside))

    # events are in time order: the last one is the newest
    ages = torch.stack([pasts.days[bounds[1:] - 1], pasts.days[bounds[:-1]]], dim=1)
    return torch.log1p(torch.cat([*columns, ages], dim=1))


def happens(store: SequenceStore, examples: Examples) -> np.ndarray:
    """(N, types) float32: whether each type of event occurs in the future."""
    lengths = examples.end - examples.stop
    source = ranges(examples.stop, lengths)
    occurs = np.zeros((len(lengths), len(EVENTS)), np.float32)
    occurs[owners(lengths), store.columns["event"][source].astype(np.int64) - FIRST] = 1
    return occurs


def chosen(
    store: SequenceStore, examples: Examples, field: str, top: int, events: tuple[int, ...]
) -> np.ndarray:
    """(N, top) float32: which of the `top` most frequent values of a field occur in the future's
    `events`."""
    lengths = examples.end - examples.stop
    source = ranges(examples.stop, lengths)

    # ids from FIRST on are by frequency; missing and rare become negative
    ids = store.columns[field][source].astype(np.int64) - FIRST

    kept = (
        np.isin(store.columns["event"][source].astype(np.int64) - FIRST, events)
        & (ids >= 0)
        & (ids < top)
    )

    labels = np.zeros((len(lengths), top), np.float32)
    labels[owners(lengths)[kept], ids[kept]] = 1

    return labels
