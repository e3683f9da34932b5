"""One table of modes: for each part of the model, where its weights come from and whether they are
trained.

A cell is one of

    copied    the base's weights; trained
    frozen    the base's weights; not trained
    adapted   the base's weights, not trained, beside low-rank matrices that are (LoRA)
    grown     rows by label: the base's where it knows the label, new ones fresh; trained
    rows      as grown, but the base's rows are not trained
    fresh     as in a new model; trained

`plan_transfer` applies the table to each tensor of a new model, `apply_transfer` fills the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import torch

from behavegpt.adapt.modes import Mode
from behavegpt.adapt.settings import AdaptSettings, LoraSettings
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST, Vocabulary
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.embedding import module_name
from behavegpt.model.history import log_shares

# part -> names of its tensors; the first pattern that matches counts
PARTS: dict[str, str] = {
    "time": r"model\.embedding\.tables\.(weekday|slot)\.",
    "fields": r"model\.embedding\.tables\.",  # event, location and further fields
    "users": r"model\.embedding\.user\.",  # what is known of the users
    "position": r"model\.embedding\.(position|gap)\.",
    "qk": r"model\.blocks\.\d+\.attention\.[qk]_proj\.",
    "vo": r"model\.blocks\.\d+\.attention\.[vo]_proj\.",
    "mlp": r"model\.blocks\.\d+\.mlp_(in|out)\.",
    "norms": r"model\.(blocks\.\d+\.\w+_)?norm\.",
    "dense": r"(head\.(dense|tied_projection)|given)\.",  # the prediction MLP's first layer
    "prior": r"head\.(history_gate|memory)\.log_prior",  # class frequencies: data, not weights
    "gate": r"head\.(history_gate|memory)\.",
    "projection": r"head\.projection\.",
    "next": r"next_heads\.",  # auxiliary heads
}
# Mode -> what becomes of each part. The auxiliary heads ("next") do as the projection does, the
# features of users as the fields do.
_TABLE = """
mode             fields time   position qk      vo      mlp     norms  dense   gate   projection
new_behavior     grown  copied copied   copied  copied  copied  copied copied  copied grown
cross_domain     fresh  copied copied   copied  copied  copied  copied copied  copied fresh
transformer_only fresh  fresh  copied   copied  copied  copied  copied fresh   fresh  fresh
lora             grown  frozen frozen   adapted adapted adapted frozen adapted copied grown
ofa              grown  copied copied   frozen  frozen  frozen  copied copied  copied grown
qk_only          fresh  fresh  fresh    frozen  fresh   fresh   fresh  fresh   fresh  fresh
head_only        rows   frozen frozen   frozen  frozen  frozen  frozen copied  copied grown
full             grown  copied copied   copied  copied  copied  copied copied  copied grown
scratch          fresh  fresh  fresh    fresh   fresh   fresh   fresh  fresh   fresh  fresh
"""
_LINES = [line.split() for line in _TABLE.strip().splitlines()]
MODES = {mode: dict(zip(_LINES[0][1:], row, strict=True)) for mode, *row in _LINES[1:]}
for _row in MODES.values():
    _row["next"], _row["users"] = _row["projection"], _row["fields"]
TRAINED = ("copied", "grown", "fresh")


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


def cells(mode: Mode, options: AdaptSettings, grow: bool) -> dict[str, str]:
    """Part -> cell of a mode under its options. Raises ConfigError for an option without effect.

    The prior follows the vocabulary: a grown one keeps the base's class frequencies; the data's own
    has its own, and the biases of known classes move with them.
    """
    row = dict(MODES[mode])  # a copy: the table is everybody's

    if options.rows == "new":
        if mode != "new_behavior":
            raise ConfigError(
                f"adapt.rows=new belongs to mode=new_behavior; mode={mode} trains the parts of "
                "its row."
            )
        # the base's part of the model stays as it is, whatever the mode's row says
        row = {part: "rows" if cell == "grown" else "frozen" for part, cell in row.items()}

    if options.time == "fresh":
        row["time"] = "fresh"
    if options.time == "copied" and row["time"] == "fresh":
        row["time"] = "copied"

    # the gate is frozen only with rows=new, which this option must not undo
    if options.gate != "auto" and row["gate"] in ("copied", "fresh"):
        row["gate"] = options.gate

    if options.lora != LoraSettings() and mode != "lora":
        raise ConfigError(f"adapt.lora has no effect on mode={mode}; remove it, or use mode=lora.")
    return row | {"prior": "grown" if grow and mode != "scratch" else "fresh"}


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


def part_of(name: str) -> str:
    """The part of the table a tensor belongs to."""
    return next(part for part, pattern in PARTS.items() if re.match(pattern, name))


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


assert set(MODES) == set(get_args(Mode))
