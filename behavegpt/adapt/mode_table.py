"""One table of modes: for each part of the model, where its weights come from and whether they are
trained.

A cell is one of

    copied    the base's weights; trained
    frozen    the base's weights; not trained
    adapted   the base's weights, not trained, beside low-rank matrices that are (LoRA)
    grown     rows by label: the base's where it knows the label, new ones fresh; trained
    rows      as grown, but the base's rows are not trained
    fresh     as in a new model; trained

transfer.py applies the table to the tensors of a new model.
"""

from __future__ import annotations

import re
from typing import get_args

from behavegpt.adapt.modes import Mode
from behavegpt.adapt.settings import AdaptSettings, LoraSettings
from behavegpt.errors import ConfigError

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

assert set(MODES) == set(get_args(Mode))


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


def part_of(name: str) -> str:
    """The part of the table a tensor belongs to."""
    return next(part for part, pattern in PARTS.items() if re.match(pattern, name))
