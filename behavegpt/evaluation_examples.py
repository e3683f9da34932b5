"""Examples of what a model expected, for the report: some users spread over the split, and a hit
and a miss of each frequent behavior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from behavegpt.data.collate import ReadsMemory, argument_name
from behavegpt.data.given import given_fields
from behavegpt.data.loader import columns_of, memory_of
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.metrics.bootstrap import TargetRanks
from behavegpt.predictor import Predictor

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
EXAMPLES = 5  # users spread over the split
HISTORY, SHORT_HISTORY = 6, 3  # events before the target, of these and of those by behavior
BEHAVIORS = 40  # the most frequent ones have a hit and a miss
LIKELIEST = 3
TRIES = 3  # rows looked at for an example of a behavior


@dataclass(frozen=True)
class _Reader:
    """What an example is made from."""

    predictor: Predictor
    store: EventStore
    memory: ReadsMemory | None
    shift: torch.Tensor  # (K,), subtracted from the logits
    names: Any  # labels of the users

    def example(self, row: int, history: int) -> dict[str, Any]:
        """The events before a row, what was expected there, and what came."""
        user = int(np.searchsorted(self.store.offsets, row, side="right") - 1)
        best = self.probabilities(user, row).topk(min(LIKELIEST, self.store.behaviors.classes))
        labels = self.predictor.tokenizer.labels(best.indices.numpy())
        end = row if self.store.baskets is None else self.store.baskets.first_of(row)
        past = slice(max(int(self.store.offsets[user]), end - history), end)
        before = zip(_times(self.store, past), *_texts(self.store, past), strict=True)
        return {
            "user": self.names[user].as_py(),
            "history": [list(event) for event in before],
            "predicted": [
                [str(label), round(float(p), 4)]
                for label, p in zip(labels, best.values, strict=True)
            ],
            "actual": self.store.behaviors.decode(self.store.column("behavior")[row : row + 1])[0],
        }

    @torch.no_grad()
    def probabilities(self, user: int, row: int) -> torch.Tensor:
        """Probabilities (K,) of the behavior of the event at a row, from the user's events before
        it."""
        if self.store.baskets is not None:
            return self._before_basket(user, self.store.baskets.first_of(row))
        model = self.predictor.model
        begin = max(int(self.store.offsets[user]), row - model.config.max_length)
        inputs = {}
        for field in model.config.columns:
            ids = torch.from_numpy(self.store.column(field)[begin:row].astype(np.int64))[None]
            inputs[argument_name(field)] = ids.to(model.device)
        last = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        last[0, -1] = True
        told = None if self.memory is None else self.memory.at(np.array([row - 1]))
        given = {}
        for field in given_fields(self.predictor.given):
            ids = torch.from_numpy(self.store.columns[field][row : row + 1].astype(np.int64))
            given[field] = ids.to(model.device)
        output = model(**inputs, select=last, memory=told, given=given or None)
        logits: torch.Tensor = output.logits[0]
        return (logits.float().cpu() - self.shift).softmax(-1)

    def _before_basket(self, user: int, end: int) -> torch.Tensor:
        """The same of what is in the basket that begins at `end`."""
        part = slice(int(self.store.offsets[user]), end)
        columns = {
            name: np.asarray(column[part]) for name, column in columns_of(self.store).items()
        }
        columns["time"] = columns["time"].astype(np.int64) + self.store.manifest.time_origin
        offsets = np.array([0, end - part.start])
        encoded = EncodedHistories(self.names[user : user + 1], offsets, columns, {}, {})
        chance = torch.from_numpy(self.predictor.shares(encoded)[0])
        return (chance.clamp(min=1e-12).log() - self.shift).softmax(-1)


def collect_examples(
    predictor: Predictor, store: EventStore, found: TargetRanks, shift: torch.Tensor
) -> dict[str, Any]:
    """What examples.json holds: `examples`, evenly spread over the targets, and `by_behavior`, for
    each of the most frequent behaviors the last hit and the last miss. (Of a history that is longer
    than the window, an example reads the last `max_length` events, the evaluation half of that or
    more: close calls may differ.)

    `found`: the ranks of the truth at the targets; `shift` (K,) is subtracted from the logits.
    """
    counts = predictor.model.counts
    # baskets are read as `predict` reads them
    memory: ReadsMemory | None = None
    if counts is not None and store.baskets is None:
        memory = memory_of(store, counts)
    reader = _Reader(predictor, store, memory, shift, store.users())
    users = np.searchsorted(store.offsets, found.rows, side="right") - 1
    deep = found.rows[found.rows - store.offsets[users] >= HISTORY]
    spread = deep[np.linspace(0, len(deep) - 1, EXAMPLES).astype(int)] if len(deep) else deep
    return {
        "examples": [reader.example(int(row), HISTORY) for row in np.unique(spread)],
        "by_behavior": _hit_and_miss(reader, found),
    }


def _hit_and_miss(reader: _Reader, found: TargetRanks) -> dict[str, list[dict[str, Any]]]:
    """Behavior -> an example where it was predicted, and one where it was not, the latest ones."""
    behavior = reader.store.column("behavior")[found.rows]
    ids, support = np.unique(behavior, return_counts=True)
    frequent = ids[np.argsort(-support, kind="stable")[:BEHAVIORS]]
    hit = found.ranks == 0

    examples: dict[str, list[dict[str, Any]]] = {}
    for identifier in frequent:
        label = str(reader.store.behaviors.decode(np.array([identifier]))[0])
        examples[label] = []
        for is_hit in (True, False):
            rows = found.rows[(behavior == identifier) & (hit == is_hit)]
            # an example reads a whole window; the evaluation packs windows, which may be shorter
            for row in rows[: -TRIES - 1 : -1]:
                example = reader.example(int(row), SHORT_HISTORY)
                if (example["predicted"][0][0] == label) == is_hit:
                    examples[label].append(example)
                    break
    return examples


def _times(store: EventStore, part: slice) -> list[str]:
    """Local times: `Mon 2012-04-02 18:30`."""
    minutes = store.columns["slot"][part].astype(int) * store.schema.slot_minutes
    weekdays = np.asarray(store.columns["weekday"][part]).astype(int)
    moments = np.asarray(store.columns["time"][part]).astype(np.int64) + store.manifest.time_origin
    # the local day is the one of the three around that of UTC with this weekday; day 0 was Thursday
    days = moments // 86_400
    days += (weekdays - (days + 3) + 1) % 7 - 1
    dates = days.astype("datetime64[D]").astype(str)
    return [
        f"{DAYS[weekday]} {date} {minute // 60:02d}:{minute % 60:02d}"
        for weekday, date, minute in zip(weekdays, dates, minutes, strict=True)
    ]


def _texts(store: EventStore, part: slice) -> tuple[list[str], list[str]]:
    event = store.vocabulary["event"].decode(store.column("event")[part])
    behavior = store.behaviors.decode(store.column("behavior")[part])
    return [x or "unknown" for x in event], [x or "unknown" for x in behavior]
