"""Times: raw values -> instants -> local weekday and slot, right through daylight-saving changes.

A naive time is a wall clock of the schema's zone. A wall time that happens twice (clocks go back)
is the earlier instant; one that never happens (clocks go forward) is moved forward by the gap:
02:30 becomes 03:30. Seconds and microseconds are int64 since 1970-01-01 UTC; a wall time is counted
the same way as if it were UTC.
"""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError

MICROS = 1_000_000
DAY = 86_400
DST_RULE = (
    "A wall time that occurs twice is read as the earlier instant; one that never occurs is moved "
    "forward by the gap."
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP = 5 * DAY  # no zone has changed its offset and changed it back within five days since 1969


@dataclass(frozen=True)
class Zone:
    """UTC offsets in seconds: `offsets[i]` holds before `changes[i]` (ascending instants), the last
    one after all."""

    changes: np.ndarray  # (C,) int64
    offsets: np.ndarray  # (C + 1,) int64

    def wall(self, instant: np.ndarray) -> np.ndarray:
        """Wall-clock seconds (N,) int64 of instants in seconds (N,)."""
        return instant + self.offsets[np.searchsorted(self.changes, instant, side="right")]

    def instant(self, wall: np.ndarray) -> np.ndarray:
        """Instants in seconds (N,) int64 of wall-clock seconds (N,), by the rule in the module's
        head."""
        # the old offset holds until the clocks before and after the change have both passed it: the
        # later of the two readings of its instant
        thresholds = self.changes + np.maximum(self.offsets[:-1], self.offsets[1:])
        return wall - self.offsets[np.searchsorted(thresholds, wall, side="right")]


@cache
def zone(name: str, first_year: int = 1969, last_year: int = 2101) -> Zone:
    """The zone's offset changes between two years, found in zoneinfo's rules by bisection."""
    info = zoneinfo.ZoneInfo(name)
    if name == "UTC":  # no changes: a search would only take time
        return Zone(np.zeros(0, np.int64), np.zeros(1, np.int64))

    def offset(second: int) -> int:
        local = (_EPOCH + timedelta(seconds=second)).astimezone(info).utcoffset()
        return int((local or timedelta()).total_seconds())

    start, stop = _new_year(first_year), _new_year(last_year)

    # coarse steps, each with at most one change in it, which bisection then finds to the second
    changes, offsets = [], [offset(start)]

    for low in range(start, stop, _STEP):
        high = low + _STEP

        if offset(high) == offsets[-1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if offset(middle) != offsets[-1] else (middle, high)

        changes.append(high)
        offsets.append(offset(high))

    return Zone(np.array(changes, np.int64), np.array(offsets, np.int64))


def _new_year(year: int) -> int:
    """Epoch seconds at which a year begins in UTC."""
    return int((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds())


def calendar(seconds: np.ndarray, schema: EventSchema) -> tuple[np.ndarray, np.ndarray]:
    """Local weekday (N,) uint8, 0 = Monday, and slot of the day (N,) uint8/uint16 of instants in
    seconds (N,)."""
    local = zone(schema.tz).wall(seconds)

    # floor division: days before 1970 are negative
    day = local // DAY
    slot = (local - day * DAY) // (60 * schema.slot_minutes)
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday

    narrow = np.uint8 if schema.slots <= 256 else np.uint16
    return weekday.astype(np.uint8), slot.astype(narrow)


def instants(stamps: np.ndarray, is_wall: np.ndarray | bool, schema: EventSchema) -> np.ndarray:
    """Microsecond instants (N,) int64 of stamps (N,) int64, wall-clock times where `is_wall`
    (scalar or (N,)) holds."""
    if schema.tz == "UTC" or is_wall is False:
        return stamps

    # offsets are whole seconds: the fraction stays as it is
    seconds = stamps // MICROS
    return stamps + (zone(schema.tz).instant(seconds) - seconds) * MICROS * is_wall


def parse_date(text: str, tz: str = "UTC") -> int:
    """Epoch seconds of an ISO date or time; a naive one is a wall time of `tz`. Raises
    DataError."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise DataError(
            f"{text!r} is not a date; write one like 2013-05-01 or 2013-05-01T12:00."
        ) from None

    naive = moment.tzinfo is None
    seconds = int((moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(seconds=1))
    return int(zone(tz).instant(np.array([seconds]))[0]) if naive else seconds
