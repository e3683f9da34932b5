"""Splits: which events are for training, validation and test. Pure functions on times and user hashes.

    time:0.7,0.15,0.15            by share of events, in the order of time
    span:0.7,0.15,0.15            by share of the calendar span
    date:2013-05-01,2013-07-01    validation from the first date on, test from the second (dates of the schema's zone)
    user:0.7,0.15,0.15            whole histories, by a stable hash of the user

An event at a boundary belongs to the later split, so events of the same second never straddle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from behavegpt.data.times import parse_date
from behavegpt.errors import DataError

Kind = Literal["time", "span", "date", "user"]
FORMS = "time:0.7,0.15,0.15, span:0.7,0.15,0.15, date:2013-05-01,2013-07-01 or user:0.7,0.15,0.15"
_BINS = 1 << 16


@dataclass(frozen=True)
class SplitRule:
    """A parsed rule: for `date` the two boundaries, else the cumulative shares where training and validation end."""

    text: str
    kind: Kind
    ends: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    dates: tuple[int, int] = (0, 0)  # epoch seconds


def parse_split(text: str, tz: str = "UTC") -> SplitRule:
    """Read a rule; dates are days of `tz`. Raises DataError that shows the four forms."""
    kind, _, values = text.strip().partition(":")
    parts = [part.strip() for part in values.split(",")]
    if kind not in get_args(Kind):
        raise DataError(f"--split {text!r}: unknown rule; write {FORMS}.")
    if kind == "date":
        try:
            start, stop = (parse_date(part, tz) for part in parts)
        except ValueError:
            raise DataError(f"--split {text!r}: two dates are needed; write {FORMS}.") from None
        if start > stop:
            raise DataError(f"--split {text!r}: the dates must ascend; write {FORMS}.")
        return SplitRule(text.strip(), "date", dates=(start, stop))
    try:
        train, valid, test = (Fraction(part) for part in parts)
    except (ValueError, ZeroDivisionError):
        raise DataError(f"--split {text!r}: three shares are needed; write {FORMS}.") from None
    if min(valid, test) < 0 or train <= 0 or abs(train + valid + test - 1) > Fraction(1, 10**6):
        raise DataError(f"--split {text!r}: the shares must sum to 1, the first above 0; write {FORMS}.")
    whole = train + valid + test
    return SplitRule(text.strip(), kind, ends=(train / whole, (train + valid) / whole))  # type: ignore[arg-type]


def time_boundaries(
    rule: SplitRule, seconds: Callable[[], Iterable[np.ndarray]], first: int, last: int, events: int
) -> tuple[int, int]:
    """Epoch seconds from which on events are validation and test; `seconds()` iterates over all times, in pieces.

    `first` and `last` are the smallest and largest time. A `user` rule has no boundaries: all is before them.
    """
    if rule.kind == "date":
        return rule.dates
    if rule.kind == "span":
        start, stop = (first + int(end * (last + 1 - first)) for end in rule.ends)
        return start, stop
    if rule.kind == "user":
        return last + 1, last + 1
    start, stop = (_order_statistic(seconds, int(end * events), first, last) for end in rule.ends)
    return start, stop


def split_by_time(seconds: np.ndarray, boundaries: tuple[int, int]) -> np.ndarray:
    """Split (N,) uint8 of events at epoch `seconds` (N,)."""
    return (seconds >= boundaries[0]).astype(np.uint8) + (seconds >= boundaries[1])


def split_by_user(rule: SplitRule, hashes: np.ndarray) -> np.ndarray:
    """Split (U,) uint8 of users by the upper half of the MD5 of their labels (U,) uint64."""
    # Exact to 2^-32: adding or removing other users moves nobody.
    train, valid = (np.uint64(int(end * 2**32)) for end in rule.ends)
    upper = hashes >> np.uint64(32)
    return (upper >= train).astype(np.uint8) + (upper >= valid)


def _order_statistic(seconds: Callable[[], Iterable[np.ndarray]], rank: int, low: int, high: int) -> int:
    """The value at 0-based `rank` of all values in low..high, without holding them; one past `high` if there is none.

    Counts in 2^16 bins, then again inside the bin that holds the rank: two passes for a span of 2^32.
    """
    end = high + 1
    while low < end:
        width = max(1, -(-(end - low) // _BINS))
        counts = np.zeros(_BINS, np.int64)
        for piece in seconds():
            inside = piece[(piece >= low) & (piece < end)]
            counts += np.bincount((inside - low) // width, minlength=_BINS)
        total = np.cumsum(counts)
        bin_ = int(np.searchsorted(total, rank, side="right"))
        if bin_ == _BINS:
            return end
        rank -= int(total[bin_ - 1]) if bin_ else 0
        low, end = low + bin_ * width, min(low + (bin_ + 1) * width, end)
        if width == 1:
            return low
    return end
