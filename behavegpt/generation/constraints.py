"""Which ids go together in training: the events of a behavior, the places of an event.

The heads predict behavior, event and place side by side from one hidden state; drawn apart they
would contradict each other (behavior Food at a gym). So each is drawn among the ids that training
saw together with the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.data.loader import columns_of
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST, PAD, UNKNOWN
from behavegpt.errors import CheckpointError
from behavegpt.generation.calibration import log_odds_of_slots
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.ragged import owners, ranges

FILE = "links.safetensors"
GAP_ODDS = "gap_odds"
PAIRS = (("behavior", "event"), ("event", "location"))  # given -> drawn
LEAN = 10.0  # events: as many as are needed before half of what they say together is believed


@dataclass(frozen=True)
class Link:
    """Ids of one field that occur with each id of another: entries pointer[id] : pointer[id + 1] of
    `ids`."""

    pointer: np.ndarray  # (given ids + 1,) int64
    ids: np.ndarray  # (pairs,) int64
    counts: np.ndarray  # (pairs,) int64 training events

    def allowed(self, given: torch.Tensor, size: int) -> torch.Tensor:
        """(N, size) bool: True at ids that occur with `given` (N,); all True where none does."""
        low, high = self._entries(given.cpu().numpy())
        row, entry = owners(high - low), ranges(low, high - low)

        mask = torch.zeros(len(low), size, dtype=torch.bool)
        mask[torch.from_numpy(row), torch.from_numpy(self.ids[entry])] = True
        # where nothing was seen together, nothing is ruled out
        mask[torch.from_numpy(low == high)] = True
        return mask.to(given.device)

    def scores(
        self, head: nn.Linear, hidden: torch.Tensor, given: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, M) of hidden states (N, C) at the ids (N, M) that occur with `given` (N,),
        minus infinity behind.

        For a field of many thousand ids: only those M are computed, at most. All but padding where
        none occurs.
        """
        # each different `given` once, as many rows share it
        values, place = given.unique(return_inverse=True)
        spans = zip(*self._entries(values.cpu().numpy()), strict=True)
        ids = [self.ids[low:high] for low, high in spans]
        anything = np.arange(PAD + 1, head.out_features)
        ids = [those if len(those) else anything for those in ids]

        width = max(len(those) for those in ids)  # M
        scores = hidden.new_full((len(given), width), -torch.inf)
        allowed = given.new_zeros(len(given), width)
        for index, those in enumerate(ids):
            rows, columns = place == index, torch.from_numpy(those).to(given.device)
            scores[rows, : len(those)] = F.linear(
                hidden[rows], head.weight[columns], head.bias[columns]
            )
            allowed[rows, : len(those)] = columns
        return scores, allowed

    def log_lift(self, given: torch.Tensor, size: int) -> torch.Tensor:
        """(N, size) float32: how much likelier each id is beside `given` (N,) than beside anything,
        as a logarithm; 0 where nothing is known.

        Added to the logits of a head that does not know `given`, it gives the probability of an id
        by both, as far as each of them tells something else.
        """
        low, high = self._entries(given.cpu().numpy())
        row, entry = owners(high - low), ranges(low, high - low)

        seen = np.zeros((len(low), size))
        seen[row, self.ids[entry]] = self.counts[entry]
        overall = np.bincount(self.ids, self.counts, size)  # (size,)
        share = overall / max(1, overall.sum())

        # few events lean to what the id does anywhere
        beside = (seen + LEAN * share) / (seen.sum(1, keepdims=True) + LEAN)
        lift = np.log(np.divide(beside, share, out=np.ones_like(beside), where=share > 0))
        return torch.from_numpy(lift.astype(np.float32)).to(given.device)

    def most_frequent(self, given: np.ndarray) -> np.ndarray:
        """The id (N,) that occurs most often with each of `given` (N,); 0 where none does."""
        most = np.full(len(self.pointer) - 1, PAD, np.int64)
        order = np.argsort(self.counts, kind="stable")
        owner = owners(np.diff(self.pointer))
        most[owner[order]] = self.ids[order]  # the last one written is the most frequent
        known = given < len(most)
        return np.where(known, most[np.where(known, given, 0)], PAD)

    def _entries(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of the ids `given` (N,) begin and end; an id that came after training
        (`vocabulary add`) has none."""
        known = given < len(self.pointer) - 1
        index = np.where(known, given, 0)
        low = np.where(known, self.pointer[index], 0)
        return low, np.where(known, self.pointer[index + 1], 0)


class Links(dict[tuple[str, str], Link]):
    """Pairs of fields -> which of their ids go together; and, if it was measured, how gaps depend
    on the slot."""

    gap_odds: torch.Tensor | None = None  # (slots, buckets), see calibration.log_odds_of_slots


def learn_links(model: BehaveGPTForBehaviorPrediction, store: EventStore) -> Links:
    """All that generation takes from the training data: pairs, what further fields that have a head
    go with, and the gap head's corrections by slot."""
    links = count_links(store)
    for field in further_fields(model.config.next_heads or (), store.schema):
        train = np.asarray(store.columns["split"]) == TRAIN
        behavior, drawn = store.column("behavior")[train], store.columns[field][train]
        links["behavior", field] = count_link(behavior, drawn, len(store.behaviors), UNKNOWN)
    if "gap" in (model.config.next_heads or ()):
        links.gap_odds = log_odds_of_slots(model, store)
    return links


def further_fields(heads: Sequence[str], schema: EventSchema) -> list[str]:
    """The extra and numeric columns among the fields that have a head."""
    return [field for field in (*schema.extra, *schema.numeric) if field in heads]


def count_links(store: EventStore) -> Links:
    """Pairs of a prepared folder's training split."""
    columns = columns_of(store)
    train = np.asarray(columns["split"]) == TRAIN
    links = Links()

    for given, drawn in PAIRS:
        # an event that is its own behavior needs no link
        is_same = given == "behavior" and store.schema.behavior_is_event
        if drawn not in columns or is_same:
            continue
        size = len(store.behaviors if given == "behavior" else store.vocabulary[given])
        # a place may be unknown, an event may not
        least = FIRST if drawn == "event" else UNKNOWN
        links[given, drawn] = count_link(columns[given][train], columns[drawn][train], size, least)

    return links


def count_link(given: np.ndarray, drawn: np.ndarray, size: int, least: int = FIRST) -> Link:
    """Link of two columns (N,) of ids; `given` has `size` ids, and `least` is the smallest id of
    `drawn` to count."""
    known = (given >= FIRST) & (drawn >= least)
    pairs, counts = np.unique(
        np.stack([given[known], drawn[known]]).astype(np.int64), axis=1, return_counts=True
    )

    # np.unique sorts the pairs by `given`, so its entries lie side by side
    pointer = np.searchsorted(pairs[0], np.arange(size + 1))
    # safetensors ignores strides
    return Link(pointer, np.ascontiguousarray(pairs[1]), counts.astype(np.int64))


def save_links(links: Links, folder: Path) -> None:
    """Write FOLDER/links.safetensors, beside a model's weights."""
    from safetensors.numpy import save_file

    parts: dict[str, np.ndarray] = {}
    for (given, drawn), link in links.items():
        parts |= {f"{given}.{drawn}.{name}": values for name, values in vars(link).items()}
    if links.gap_odds is not None:
        parts[GAP_ODDS] = links.gap_odds.numpy()
    save_file(parts, folder / FILE)


def links_of(store: EventStore) -> Callable[[BehaveGPTForBehaviorPrediction, Path], None]:
    """Learns the links of a trained model on its prepared folder and writes them; nothing without
    auxiliary heads."""

    def write(model: BehaveGPTForBehaviorPrediction, folder: Path) -> None:
        if model.config.next_heads:
            training = model.training
            save_links(learn_links(model.eval(), store), folder)
            model.train(training)

    return write


def load_links(folder: Path) -> Links:
    """What `save_links` wrote; nothing where there is no such file. Raises CheckpointError when it
    is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / FILE).is_file():
        return Links()

    try:
        parts = load_file(folder / FILE)
        odds = parts.pop(GAP_ODDS, None)
        # a column's name may hold dots
        pairs = dict.fromkeys(tuple(name.rpartition(".")[0].split(".", 1)) for name in parts)
        links = Links({})
        for given, drawn in pairs:
            link = [parts[f"{given}.{drawn}.{part}"] for part in ("pointer", "ids", "counts")]
            links[given, drawn] = Link(*link)
        links.gap_odds = None if odds is None else torch.from_numpy(odds)
        return links
    except (SafetensorError, KeyError, IndexError, OSError) as error:
        raise CheckpointError(
            f"{folder / FILE}: damaged ({error}); delete it, or train again."
        ) from None
