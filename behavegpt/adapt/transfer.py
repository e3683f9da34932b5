"""Weights of a base -> those of a new model: `plan_transfer` applies the table of modes to each
tensor, `apply_transfer` fills the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from behavegpt.adapt.mode_table import PARTS, TRAINED, part_of
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST, Vocabulary
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.embedding import module_name
from behavegpt.model.history import log_shares

# model.embedding.tables.FIELD, model.embedding.user.tables.FIELD, next_heads.FIELD
_PLACE_OF_FIELD = {"fields": 3, "users": 4, "next": 1}


class TensorPlan(NamedTuple):
    """What becomes of one tensor of the new model."""

    name: str
    part: str
    cell: str
    # (rows,) int64: the base's row for each, -1 where it has none; None: as a whole
    rows: torch.Tensor | None = None
    # (rows,) added to the base's: how far the log frequency of each class has moved
    shift: torch.Tensor | None = None
    # (rows, base rows) weights of the base's rows, where slots have another length
    mix: torch.Tensor | None = None


def plan_transfer(
    row: Mapping[str, str],
    base: Mapping[str, torch.Tensor],
    old: EventTokenizer,
    new: EventTokenizer,
    model: BehaveGPTForBehaviorPrediction,
    same_labels: bool = True,
) -> list[TensorPlan]:
    """What becomes of each tensor of `model`, given the base's tensors and both tokenizers.

    Raises ConfigError for a tensor that should be copied and has another shape.
    """
    plan = []
    # by the new model's tensors: what only the base has is dropped by not being asked for
    for name, tensor in model.state_dict().items():
        part = part_of(name)
        item = TensorPlan(name, part, row[part])
        # a feature that the base never read begins at 0, as in a new model
        if part == "users" and name not in base:
            item = item._replace(cell="fresh")

        if item.cell == "fresh":
            plan.append(item)
            continue

        # how the base's tensor becomes one of this shape: row by row, by the clock, or as a whole
        if item.cell in ("grown", "rows"):
            item = item._replace(rows=_row_map(name, old, new, same_labels))
            if name == "head.projection.bias" and row["prior"] == "fresh":
                item = item._replace(shift=prior_shift(old.behaviors, new.behaviors, item.rows))
        elif name.endswith("tables.slot.weight") and len(base[name]) != len(tensor):
            item = item._replace(mix=slot_mix(len(base[name]), len(tensor)))

        is_whole = item.rows is None and item.mix is None
        if is_whole and (name not in base or base[name].shape != tensor.shape):
            there = list(base[name].shape) if name in base else "absent"
            raise ConfigError(
                f"{name} is {there} in the base and {list(tensor.shape)} here, so it cannot be "
                f"{item.cell}; use the base's shape, or mode=scratch."
            )
        plan.append(item)
    return plan


def _row_map(
    name: str, old: EventTokenizer, new: EventTokenizer, same_labels: bool
) -> torch.Tensor | None:
    """The base's row (R,) for each of a tensor's R rows, -1 where there is none; None for a tensor
    whose rows are no labels (the gap's head)."""
    part = part_of(name)
    # rows of all others are classes
    field = None
    if part in _PLACE_OF_FIELD:
        # `geo.city` is called otherwise in a tensor's name
        fields = {module_name(name): name for name in new.vocabulary}
        field = fields.get(name.split(".")[_PLACE_OF_FIELD[part]])
        if field is None:
            return None
    ours = new.behaviors if field is None else new.vocabulary[field]
    theirs = old.behaviors if field is None else old.vocabulary[field]

    rows = torch.from_numpy(theirs.encode(ours.values)) - FIRST  # unknown: -1
    if not same_labels:
        rows = torch.full_like(rows, -1)
    if field is None:
        return rows
    # a vocabulary's own rows, padding and unknown, are the same everywhere
    return torch.cat([torch.arange(FIRST), torch.where(rows < 0, -1, rows + FIRST)])


def prior_shift(old: Vocabulary, new: Vocabulary, rows: torch.Tensor | None) -> torch.Tensor:
    """(K,) log frequency in the new data minus that in the old, for classes that are old[rows]: a
    bias holds it."""
    assert rows is not None
    before = log_shares(torch.from_numpy(old.counts).float())
    # -1, a class that is new, is clamped; its shift is not used
    return log_shares(torch.from_numpy(new.counts).float()) - before[rows.clamp(min=0)]


def slot_mix(old: int, new: int) -> torch.Tensor:
    """(new, old) weights that average the base's slots of a day over the time that each new slot
    covers.

    >>> slot_mix(4, 2).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    begin, end = torch.arange(new)[:, None] / new, torch.arange(1, new + 1)[:, None] / new
    low, high = torch.arange(old) / old, torch.arange(1, old + 1) / old

    # (new, old) overlap, in days
    shared = (torch.minimum(end, high) - torch.maximum(begin, low)).clamp(min=0)
    return shared / shared.sum(1, keepdim=True)


@torch.no_grad()
def match_scale(
    plan: Sequence[TensorPlan],
    base: Mapping[str, torch.Tensor],
    model: BehaveGPTForBehaviorPrediction,
) -> None:
    """Give fresh embeddings (ids, d) the mean and spread, by column, of the base's: copied blocks
    expect such inputs."""
    state = model.state_dict()
    for item in plan:
        known = base.get(item.name, torch.empty(0))[FIRST:]  # without padding and unknown
        if item.part == "fields" and len(known) > 1:
            # a new table has the standard deviation `initializer_range` and mean 0
            fresh = state[item.name] / model.config.initializer_range
            state[item.name].copy_(fresh * known.std(0) + known.mean(0))


@torch.no_grad()
def apply_transfer(
    plan: Sequence[TensorPlan],
    base: Mapping[str, torch.Tensor],
    model: BehaveGPTForBehaviorPrediction,
) -> None:
    """Fill `model`, whose weights are fresh, with what the plan takes from the base, and freeze
    what is not trained."""
    state = model.state_dict()
    for item in plan:
        if item.cell == "fresh":
            continue
        if item.rows is not None:
            known = item.rows >= 0
            state[item.name][known] = base[item.name][item.rows[known]]
            if item.shift is not None:
                state[item.name][known] += item.shift[known]
        elif item.mix is not None:
            state[item.name].copy_(item.mix @ base[item.name])
        else:
            state[item.name].copy_(base[item.name])

    trained = {item.name for item in plan if item.cell in TRAINED}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


class Counts(NamedTuple):
    """Numbers of one part of the model."""

    part: str
    cell: str
    reused: int
    new: int
    trained: int


def count_transfer(
    plan: Sequence[TensorPlan], model: BehaveGPTForBehaviorPrediction
) -> list[Counts]:
    """Parameters of each part that were reused, that are new, and that train; without those of
    LoRA."""
    sizes = dict(model.named_parameters())
    parts = []
    for part in PARTS:
        # buffers, such as class frequencies, are no parameters
        items = [item for item in plan if item.part == part and item.name in sizes]
        if not items:
            continue

        total = sum(sizes[item.name].numel() for item in items)
        new = sum(_new_numbers(item, sizes[item.name]) for item in items)
        cell = items[0].cell
        trained = total if cell in TRAINED else new if cell == "rows" else 0
        parts.append(Counts(part, cell, total - new, new, trained))
    return parts


def _new_numbers(item: TensorPlan, tensor: torch.Tensor) -> int:
    """How many numbers of a tensor do not come from the base."""
    if item.cell == "fresh":
        return tensor.numel()
    if item.rows is None:
        return 0
    return int((item.rows < 0).sum()) * (tensor.numel() // len(tensor))


def is_unchanged(plan: Sequence[TensorPlan]) -> bool:
    """Whether the start is the base itself, tensor for tensor."""
    return all(
        item.cell != "fresh"
        and item.mix is None
        and item.shift is None
        and (item.rows is None or torch.equal(item.rows, torch.arange(len(item.rows))))
        for item in plan
    )
