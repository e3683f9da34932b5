"""Splits: which events are for training, validation and test. Pure functions on times and user
hashes.

    time:0.7,0.15,0.15            by share of events, in the order of time
    span:0.7,0.15,0.15            by share of the calendar span
    date:2013-05-01,2013-07-01    validation from the first date on, test from the second (dates of
                                  the schema's zone)
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
# of a histogram of times: two passes reach a second in a span of 2^32
_BINS = 1 << 16


@dataclass(frozen=True)
class SplitRule:
    """A parsed rule: for `date` the two boundaries, else the cumulative shares where training and
    validation end."""

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
        if len(parts) != 2:
            raise DataError(f"--split {text!r}: two dates are needed; write {FORMS}.")
        start, stop = parse_date(parts[0], tz), parse_date(parts[1], tz)
        if start > stop:
            raise DataError(f"--split {text!r}: the dates must ascend; write {FORMS}.")
        return SplitRule(text.strip(), "date", dates=(start, stop))

    try:
        # exact: where a boundary lies must not depend on rounding
        train, valid, test = map(Fraction, parts)
    except (ValueError, ZeroDivisionError):
        raise DataError(f"--split {text!r}: three shares are needed; write {FORMS}.") from None
    if min(valid, test) < 0 or train <= 0 or abs(train + valid + test - 1) > Fraction(1, 10**6):
        raise DataError(
            f"--split {text!r}: the shares must sum to 1, the first above 0; write {FORMS}."
        )

    # shares written with few decimals sum to about 1
    whole = train + valid + test
    ends = (train / whole, (train + valid) / whole)
    return SplitRule(text.strip(), kind, ends=ends)  # type: ignore[arg-type]


def time_boundaries(
    rule: SplitRule,
    times: Callable[[], Iterable[np.ndarray]],
    first: int,
    last: int,
    events: int,
    per_second: int = 1,
) -> tuple[int, int]:
    """Epoch seconds from which on events are validation and test; `times()` iterates over all
    times, in pieces.

    Times are in units of 1 / `per_second`; `first` and `last` are the smallest and largest in whole
    seconds. A `user` rule has no boundaries: all is before them.
    """
    if rule.kind == "date":
        return rule.dates

    if rule.kind == "span":
        span = last + 1 - first
        return first + int(rule.ends[0] * span), first + int(rule.ends[1] * span)

    # behind the last event, so that by time everything is training
    if rule.kind == "user":
        return last + 1, last + 1

    start, stop = int(rule.ends[0] * events), int(rule.ends[1] * events)  # ranks of the first ones
    ranks = {rank for rank in (start, stop) if rank < events}
    # ranks, not quantiles: between two equal times no boundary can lie
    seconds = _order_statistics(times, ranks, first, last + 1, per_second)
    return seconds.get(start, last + 1), seconds.get(stop, last + 1)


def split_by_time(times: np.ndarray, boundaries: tuple[int, int]) -> np.ndarray:
    """Split (N,) uint8 of events at `times` (N,), in the unit of the boundaries."""
    return (times >= boundaries[0]).astype(np.uint8) + (times >= boundaries[1])


def split_by_user(rule: SplitRule, hashes: np.ndarray) -> np.ndarray:
    """Split (U,) uint8 of users by the upper half of the MD5 of their labels (U,) uint64."""
    # Exact to 2^-32: adding or removing other users moves nobody.
    train, valid = np.uint64(int(rule.ends[0] * 2**32)), np.uint64(int(rule.ends[1] * 2**32))
    upper = hashes >> np.uint64(32)  # (U,)
    return (upper >= train).astype(np.uint8) + (upper >= valid)


def _order_statistics(
    times: Callable[[], Iterable[np.ndarray]],
    ranks: set[int],
    first: int,
    end: int,
    per_second: int,
) -> dict[int, int]:
    """The seconds at 0-based ranks of all times, which lie in first..end, without holding them.

    Counts in 2^16 bins, then again inside the bins that hold the ranks: two passes for a span of
    2^32 seconds.
    """
    spans, below = dict.fromkeys(ranks, (first, end)), dict.fromkeys(ranks, 0)
    while any(stop - start > 1 for start, stop in spans.values()):
        # ranks in one bin share its histogram
        counts = {span: np.zeros(_BINS, np.int64) for span in spans.values()}
        widths = {(start, stop): -(-(stop - start) // _BINS) for start, stop in counts}

        for piece in times():
            for (start, stop), count in counts.items():
                low, high = start * per_second, stop * per_second
                # the first pass looks at all times: no copy
                inside = (
                    piece
                    if (start, stop) == (first, end)
                    else piece[(piece >= low) & (piece < high)]
                )
                count += np.bincount(
                    (inside - low) // (widths[start, stop] * per_second), minlength=_BINS
                )

        for rank, (start, stop) in spans.items():
            total = below[rank] + np.cumsum(counts[start, stop])  # (2^16,)
            bin_, width = int(np.searchsorted(total, rank, side="right")), widths[start, stop]
            below[rank] = int(total[bin_ - 1]) if bin_ else below[rank]
            spans[rank] = start + bin_ * width, min(start + (bin_ + 1) * width, stop)

    return {rank: start for rank, (start, _) in spans.items()}
