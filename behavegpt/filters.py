"""Which behaviors may be predicted: only some, never others, none that the user had, so many of
each group.

A filter takes behaviors out of the answer and changes nothing else: what is left keeps its order
and its probability, which is the model's for all behaviors. It comes after the decision rule.

Shape letters: U users, E events of all of them, n users of a piece, K behaviors, G groups, C
columns of an answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from behavegpt.data.label_texts import labels_of
from behavegpt.data.memory_past import CLASSES
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.data.user_state import UserState
from behavegpt.data.vocabulary import FIRST, UNKNOWN, as_text
from behavegpt.errors import ConfigError, DataError
from behavegpt.option_types import Label
from behavegpt.options import FilterOptions, PredictOptions
from behavegpt.ragged import owners, positions, ranges

NEAR = 20_000  # labels, the most frequent ones, among which near misses are looked for
TAKEN_OUT = -1.0  # stands for the probability of what a filter took out


class Seen(NamedTuple):
    """Behaviors that users had; user u those at offsets[u] .. offsets[u + 1] - 1."""

    offsets: np.ndarray  # (U + 1,) int64
    classes: np.ndarray  # (E,) int64, -1 for unknown


class Groups(NamedTuple):
    """Groups of behaviors."""

    names: np.ndarray  # (G,) object
    group: torch.Tensor  # (K,) int64 group of each behavior, G for those of none


@dataclass(frozen=True)
class Choice:
    """What of the probabilities becomes the answer: C columns, the best behavior first, or group by
    group."""

    top_k: int
    allowed: torch.Tensor  # (K,) bool
    groups: Groups | None = None
    exclude_seen: bool = False
    seen: Seen | None = None

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Rank (C,) from 1 of each column of the answer, and the group's name (C,) object."""
        if self.groups is None:
            return np.arange(1, min(self.top_k, int(self.allowed.sum())) + 1), None
        taken = self._taken(self._sizes()[:-1].numpy())
        return positions(taken) + 1, self.groups.names[owners(taken)]

    def best(
        self, probability: torch.Tensor, users: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and classes, each (n, C), of what is chosen from probabilities (n, K) of
        `users` (n,), which are overwritten; TAKEN_OUT where less is left."""
        if not bool(self.allowed.all()):
            probability[:, ~self.allowed] = TAKEN_OUT
        if self.seen is not None:
            # of these users alone, whose behaviors stand anywhere in the flat array
            lengths = np.diff(self.seen.offsets)[users]
            classes = self.seen.classes[ranges(self.seen.offsets[users], lengths)]
            rows, known = owners(lengths), classes >= 0
            probability[rows[known], classes[known]] = TAKEN_OUT

        if self.groups is None:
            # without groups no sort of all K
            found = probability.topk(len(self.columns[0]))
            return found.values, found.indices

        # by probability, then, stably, by group: each group lies together, at the same columns
        # for every user
        values, order = probability.sort(dim=1, descending=True, stable=True)
        by_group = self.groups.group[order].argsort(dim=1, stable=True)
        sizes = self._sizes()
        begin = (sizes.cumsum(0) - sizes)[:-1].numpy()
        column = torch.from_numpy(ranges(begin, self._taken(sizes[:-1].numpy())))
        chosen = by_group[:, column]
        return values.gather(1, chosen), order.gather(1, chosen)

    def _sizes(self) -> torch.Tensor:
        """Behaviors (G + 1,) of each group, those of none last."""
        assert self.groups is not None
        return torch.bincount(self.groups.group, minlength=len(self.groups.names) + 1)

    def _taken(self, sizes: np.ndarray) -> np.ndarray:
        """How many of each group's sizes (G,) behaviors an answer has."""
        return np.minimum(sizes, self.top_k)


def choose_from(
    options: PredictOptions, tokenizer: EventTokenizer, retired: Sequence[int] | None = None
) -> Choice:
    """The choice that options ask for, of classes but those `retired`.

    Raises ConfigError for a label that is no behavior, and where nothing is left.
    """
    behaviors = tokenizer.behaviors
    allowed = torch.ones(behaviors.classes, dtype=torch.bool)
    if options.among is not None:
        allowed[:] = False
        allowed[classes_of(options.among, tokenizer, "among")] = True
    if options.exclude:
        allowed[classes_of(options.exclude, tokenizer, "exclude")] = False

    if retired:
        allowed[list(retired)] = False

    groups = None
    if options.per_group is not None:
        groups = _groups(options.per_group, tokenizer)
        allowed &= groups.group < len(groups.names)
    if not bool(allowed.any()):
        named = [name for name in FilterOptions.model_fields if getattr(options, name)]
        named += ["retired behaviors"] if retired else []
        verb = "leave" if len(named) > 1 or retired else "leaves"
        raise ConfigError(
            f"{' and '.join(named)} {verb} none of the {behaviors.classes:,} behaviors; name fewer "
            "to exclude, or more to choose from."
        )
    return Choice(options.top_k, allowed, groups, options.exclude_seen)


def without_seen(
    choice: Choice, histories: EncodedHistories | None, states: Sequence[UserState] | None
) -> Choice:
    """The choice that leaves out what users had, where it asks for it; by their states, or else by
    their histories.

    Raises DataError for states that keep the last events alone, and for histories that tell no
    behavior.
    """
    if not choice.exclude_seen:
        return choice
    if states is not None:
        return replace(choice, seen=_seen_of_states(states))

    assert histories is not None
    ids = np.asarray(histories.columns["behavior"], np.int64)
    if len(ids) and (ids <= UNKNOWN).all():
        raise DataError(
            "exclude_seen: no event tells a behavior that the model knows; give histories with the "
            "column of the behavior, or leave exclude_seen out."
        )
    return replace(choice, seen=Seen(histories.offsets, ids - FIRST))


def classes_of(labels: Collection[object], tokenizer: EventTokenizer, option: str) -> torch.Tensor:
    """Classes (n,) int64 of behaviors by label. Raises ConfigError with near misses for labels that
    are none."""

    texts = as_labels(labels, tokenizer)
    ids = tokenizer.behaviors.encode(texts)
    strange = [text for text, id_ in zip(texts, ids.tolist(), strict=True) if id_ == UNKNOWN]
    if strange:
        more = f" (and {len(strange) - 1:,} other labels)" if len(strange) > 1 else ""
        raise ConfigError(
            f"{option}: the model knows no behavior {str(strange[0])[:100]!r}{more}. "
            f"{near_labels(str(strange[0])[:100], tokenizer)}"
        )
    return torch.from_numpy(ids - FIRST)


def near_labels(label: str, tokenizer: EventTokenizer) -> str:
    """What may have been meant by a label that is no behavior."""
    known = tokenizer.behaviors.values[:NEAR].to_pylist()
    near = difflib.get_close_matches(label, known, n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    # nothing is near: what labels look like helps as well
    dots = ", …" if len(known) > 5 else ""
    return f"The most frequent ones are {', '.join(map(repr, known[:5]))}{dots}."


def as_labels(labels: Collection[object], tokenizer: EventTokenizer) -> list[str | None]:
    """Labels as the model writes them: 7, 7.0 and "7" are one."""
    texts = as_text(labels).to_pylist()
    field = "event" if tokenizer.event_schema.behavior_is_event else "behavior"
    rule = tokenizer.event_schema.label_rules.get(field)
    written = labels_of({text for text in texts if text is not None}, rule) or {}
    return [written.get(text, text) for text in texts]


def _groups(mapping: Mapping[Label, Label], tokenizer: EventTokenizer) -> Groups:
    """The groups of a mapping from label to group, in their alphabetical order. Raises ConfigError
    where it has no behavior."""
    labels = as_labels(list(mapping), tokenizer)
    ids = tokenizer.behaviors.encode(labels)
    # a catalog names more than one model knows; a mapping of another log names nothing it knows
    known = ids > UNKNOWN
    if not known.any():
        first = str(next(iter(labels), ""))[:100]
        raise ConfigError(
            f"per_group: none of its {len(labels):,} labels is a behavior of the model, such as "
            f"{first!r}. {near_labels(first, tokenizer)}"
        )

    of_label = np.asarray([str(name) for name in mapping.values()], object)[known]
    names, numbers = np.unique(of_label, return_inverse=True)
    group = torch.full((tokenizer.behaviors.classes,), len(names))
    group[torch.from_numpy(ids[known] - FIRST)] = torch.from_numpy(numbers)
    return Groups(names, group)


def _seen_of_states(states: Sequence[UserState]) -> Seen:
    """What the counts of states hold."""
    # the empty array makes the first offset 0
    classes = [np.zeros(0, np.int64)]
    for state in states:
        if state.past is None:
            raise DataError(
                "exclude_seen: a state of a model without memory keeps the last events alone; give "
                "the whole histories, or leave exclude_seen out."
            )
        classes.append(state.past.slot_class[: state.past.number[CLASSES]].astype(np.int64))
    lengths = [len(part) for part in classes]
    return Seen(np.cumsum(lengths), np.concatenate(classes))
