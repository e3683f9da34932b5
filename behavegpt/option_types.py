"""Types of options: what a number, a list of labels or a time span may be, and what is said of
anything else."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from behavegpt.config import closest

# ASCII: other scripts' digits would be read as numbers too
UNTIL = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(minute|min|hour|h|day|d|week|w)s?\s*", re.ASCII)
SECONDS = {
    "minute": 60,
    "min": 60,
    "hour": 3600,
    "h": 3600,
    "day": 86400,
    "d": 86400,
    "week": 604800,
    "w": 604800,
}
LONGEST_SPAN = 36525 * 86400  # seconds; times end in 2100 anyway
LEAST_TEMPERATURE = 1e-3  # below, logits divided by it overflow; 0 says what is meant
Part = Literal["last", "mean", "decayed", "bag", "recent_bag", "behaviors"]
# of the part `behaviors`, the most frequent ones; a vector may have 2048 dimensions in all
MOST_BEHAVIORS = 256
PARTS: tuple[str, ...] = get_args(Part)
Policy = Literal["auto", "head", "observed", "typical"]


def _whole(value: Any) -> int:
    """Integers of Python and numpy; never text, a fraction, or a truth value."""
    # True is an Integral of 1, but nobody means it
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError("write a whole number")
    return int(value)


def _real(value: Any) -> float:
    """Finite numbers of Python and numpy; never text or a truth value."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError("write a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("the number is too large") from None


def _pool(parts: Any) -> Any:
    """A list of one known part or more, each named once."""
    # a text would be taken for a list of its letters
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ValueError('write a list of one part or more, for example ["last"]')

    for number, part in enumerate(parts):
        if part not in PARTS:
            raise ValueError(
                f"unknown part {part!r}. {closest(str(part)[:100], PARTS)}".rstrip(".")
            )
        if part in parts[:number]:
            raise ValueError(f"the part {part!r} is listed twice; list each one once")
    return tuple(parts)


def _labels(labels: Any) -> Any:
    """Any collection of labels but a single one, as a tuple; numpy's numbers as Python's."""
    # a text would be taken for a list of its letters
    if (
        labels is None
        or isinstance(labels, (str, bytes, Mapping))
        or not hasattr(labels, "__iter__")
    ):
        raise ValueError('write a list of labels, for example ["news"]')
    # pydantic's strict types know no numpy
    return tuple(label.item() if hasattr(label, "item") else label for label in labels)


def _groups(mapping: Any) -> Any:
    """A mapping of label to group that is not empty, both read as labels are."""
    if not isinstance(mapping, Mapping) or not mapping:
        raise ValueError('write a mapping of label to group, for example {"news": "reading"}')
    return dict(zip(_labels(mapping.keys()), _labels(mapping.values()), strict=True))


def _temperature(value: float) -> float:
    """0, or large enough to divide logits by."""
    if 0 < value < LEAST_TEMPERATURE:
        raise ValueError(f"write 0 for the most probable, or at least {LEAST_TEMPERATURE}")
    return value


def span_seconds(text: str) -> int:
    """Seconds of '2 days', '36 hours', '90 min' or '1 week'. Raises ValueError."""
    match = UNTIL.fullmatch(text.lower())
    if match is None:
        raise ValueError("write a time span like '2 days', '36 hours', '90 min' or '1 week'")

    seconds = float(match[1]) * SECONDS[match[2]]
    # below a second nothing happens: times are whole seconds
    if not 1 <= seconds <= LONGEST_SPAN:
        raise ValueError("write a time span of at least a second and at most 100 years")
    return round(seconds)


def _span(text: str) -> str:
    """A readable time span, as it was written."""
    span_seconds(text)
    return text


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real), Field(allow_inf_nan=False)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
# strict: a label keeps its type, so that True is not 1, nor 1 "1"
Label = StrictStr | StrictInt | StrictFloat | StrictBool
Labels = Annotated[tuple[Label, ...], BeforeValidator(_labels)]
Temperature = Annotated[Real, Field(ge=0, le=100), AfterValidator(_temperature)]
Span = Annotated[str, AfterValidator(_span)]
Groups = Annotated[dict[Label, Label], BeforeValidator(_groups)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(_pool), Field(min_length=1)]
