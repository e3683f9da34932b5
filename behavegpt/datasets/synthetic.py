"""Phone-log-like events with known structure, 10^3 to 10^9 of them, for tests, scaling and
throughput.

The structure is that of synthetic_world.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.config import check_settings
from behavegpt.data.schema import EventSchema
from behavegpt.datasets.synthetic_world import (
    BURST_HOURS,
    BURST_SHARE,
    HOURS,
    ORIGIN,
    OUT,
    PAUSE_HOURS,
    SHARES,
    World,
    make_world,
)
from behavegpt.errors import DataError
from behavegpt.io import replacing
from behavegpt.options import SynthesizeOptions
from behavegpt.paths import local_path

SYNTHETIC_SCHEMA = EventSchema(
    user="user_id",
    time="timestamp",
    event="event",
    location="location",
    behavior="behavior",
    tz="Asia/Shanghai",
)
EVENTS_PER_USER = 30
HAUNTS = 8  # places a user goes out to
BLOCK_EVENTS = 1 << 17  # drawn at once: small enough for the processor's cache
ROW_GROUP = 1 << 20


def generate(
    out: str | Path,
    events: int,
    users: int | None = None,
    seed: int = 0,
    world: World | None = None,
    by_time: bool = False,
) -> EventSchema:
    """Write `events` events as parquet in bounded memory: user_id, timestamp (naive local),
    location, event, behavior.

    `users`: about how many (default: one per 30 events). Same seed, same file; the first users are
    the same whatever the total if the events per user are. Rows are sorted by user and time, or
    with `by_time` each row group by time, which mixes some 10,000 users. The file gets its name
    when it is complete.
    """
    out = local_path(out)
    per_user = _per_user(events, users, seed)

    blocks = _blocks(world or make_world(seed), events, per_user, seed)
    with replacing(out) as part, _writer(part) as writer:
        for table in _row_groups(blocks):
            writer.write_table(
                table.sort_by("timestamp") if by_time else table, row_group_size=ROW_GROUP
            )

    return SYNTHETIC_SCHEMA


def _writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        _ARROW,
        compression="zstd",
        use_dictionary=["location", "event", "behavior"],
        column_encoding={"user_id": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED"},
        store_schema=False,  # else readers get dictionaries where they expect text
    )


def small_log(
    events: int = 5000, users: int | None = None, seed: int = 0, world: World | None = None
) -> pa.Table:
    """What `generate` would write, in memory and with text columns, sorted by user and time."""
    per_user = _per_user(events, users, seed)
    blocks = _blocks(world or make_world(seed), events, per_user, seed)
    fields = [
        field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
        for field in _ARROW
    ]
    return pa.concat_tables(blocks).cast(pa.schema(fields)).combine_chunks()


_LABEL = pa.dictionary(pa.int32(), pa.string())
_ARROW = pa.schema(
    {
        "user_id": pa.int64(),
        "timestamp": pa.timestamp("us"),
        "location": _LABEL,
        "event": _LABEL,
        "behavior": _LABEL,
    }
)


def _per_user(events: int, users: int | None, seed: int) -> float:
    check_settings(
        SynthesizeOptions, {"events": events, "users": users, "seed": seed}, "synthetic log"
    )
    if users is not None and users > events:
        raise DataError(f"synthetic log: events={events}, users={users}; each user needs an event.")
    return events / users if users else EVENTS_PER_USER


def _row_groups(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for block in blocks:
        held.append(block)
        # blocks are never cut: about a row group of whole users
        if sum(map(len, held)) >= ROW_GROUP - BLOCK_EVENTS // 2:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _blocks(world: World, events: int, per_user: float, seed: int) -> Iterator[pa.Table]:
    """Tables of whole users, the last one cut, `events` rows in all; each block has a random stream
    of its own."""
    draw = _Draw(world)
    users = max(1, round(BLOCK_EVENTS / per_user))
    block, left = 0, events

    while left > 0:
        rng = np.random.default_rng([seed, 1, block])
        table = draw.block(rng, users, per_user, block * users).slice(0, left)
        yield table
        block, left = block + 1, left - len(table)


class _Draw:
    """A world's tables turned round: from a uniform number below SHARES to what is drawn."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.behavior = _outcomes(
            np.concatenate([world.transition, world.preference, world.routine])
        )
        self.event = _outcomes(world.event)
        self.kind = _outcomes(world.kind)

    def block(
        self, rng: np.random.Generator, users: int, per_user: float, first_user: int
    ) -> pa.Table:
        """All events of `users` users, log-normal in number (mean about `per_user`, at most ten
        times as many)."""
        drawn = rng.lognormal(np.log(per_user) - 0.5, 1.0, users).round()
        # (users,) mean of a log-normal: exp(mu + 1/2)
        length = np.clip(drawn, 1, np.ceil(10 * per_user)).astype(np.int64)

        user = np.repeat(np.arange(users), length)  # (N,)
        first = np.cumsum(length) - length  # (users,)

        # cut up by `_take`: one number per event is enough
        bits = rng.integers(0, 1 << 64, len(user), dtype=np.uint64)  # (N,)

        hours = self._hours(rng, bits, first, length)  # (N,)
        kind = _pick(self.kind, hours.astype(np.int64) % HOURS, _take(bits, 2))  # (N,)
        behavior = self._behaviors(rng, bits, user, first, kind)  # (N,)

        places = self._places(rng, users)  # (users, 2 + HAUNTS)
        # the highest 3 bits: eight places
        haunt = (bits >> np.uint64(61)).astype(np.int64)  # (N,)
        milliseconds = (hours * 3_600_000).astype(np.int64).view("m8[ms]")

        labels = self.world.labels

        return pa.Table.from_arrays(
            [
                pa.array(user + first_user),
                pa.array((ORIGIN + milliseconds).astype("M8[us]")),
                _column(places[user, np.where(kind == OUT, OUT + haunt, kind)], labels["location"]),
                _column(_pick(self.event, behavior, _take(bits, 16)), labels["event"]),
                _column(behavior, labels["behavior"]),
            ],
            schema=_ARROW,
        )

    def _hours(
        self, rng: np.random.Generator, bits: np.ndarray, first: np.ndarray, length: np.ndarray
    ) -> np.ndarray:
        """Hours since ORIGIN (N,): gaps summed on the users' clock, then read off the wall's."""
        gap = rng.standard_exponential(len(bits))  # (N,)
        # the lowest 2 bits: three of four gaps are bursts
        gap *= np.where((bits & np.uint64(3)) < 4 * BURST_SHARE, BURST_HOURS, PAUSE_HOURS)

        clock = np.cumsum(gap)  # (N,)
        # each user starts at a random moment of the first four weeks
        clock -= np.repeat(clock[first] - rng.uniform(0, 4 * HOURS, len(first)), length)

        week = clock // HOURS  # (N,)
        return week * HOURS + np.interp(
            clock - week * HOURS, self.world.clock, np.arange(HOURS + 1)
        )

    def _behaviors(
        self,
        rng: np.random.Generator,
        bits: np.ndarray,
        user: np.ndarray,
        first: np.ndarray,
        kind: np.ndarray,
    ) -> np.ndarray:
        """Behaviors (N,): first all that do not depend on the one before, then those that follow
        them, and so on."""
        world, chance = self.world, _take(bits, 30)
        group = rng.integers(0, len(world.preference), len(first))  # (users,)

        # habits as numbers below SHARES
        edge = np.cumsum(world.habit) * SHARES
        # (N,) 0 transition, 1 preference, 2 routine
        habit = np.searchsorted(edge[:2], _take(bits, 44), side="right")
        # a first event has none before it: the other two habits share its part
        habit[first] = np.where(
            rng.random(len(first)) < world.habit[1] / world.habit[1:].sum(), 1, 2
        )

        row = np.where(  # (N,) of the table of behaviors
            habit == 1,
            world.behaviors + group[user],
            world.behaviors + len(world.preference) + kind,
        )
        behavior = _pick(self.behavior, row, chance)  # (N,)

        # how many events ago the chain of behaviors began that each follows
        place = np.arange(len(user))
        depth = place - np.maximum.accumulate(np.where(habit > 0, place, 0))  # (N,)

        follow = np.flatnonzero(depth)
        # 16 bits: a radix sort
        follow = follow[np.argsort(depth[follow].astype(np.uint16), kind="stable")]

        for now in np.split(follow, np.cumsum(np.bincount(depth[follow]))[1:-1]):
            behavior[now] = _pick(self.behavior, behavior[now - 1], chance[now])

        return behavior

    def _places(self, rng: np.random.Generator, users: int) -> np.ndarray:
        """Home, work and HAUNTS places to go out to of each user (users, 2 + HAUNTS); low cells are
        busier."""
        start, stop = self.world.cells[:-1], self.world.cells[1:]
        kind = np.array([0, 1, *[OUT] * HAUNTS])
        offset = rng.random((users, len(kind))) ** 3 * (stop - start)[kind]
        return start[kind] + offset.astype(np.int64)


def _take(bits: np.ndarray, shift: int) -> np.ndarray:
    """Fourteen of the random bits as a number below SHARES."""
    return ((bits >> np.uint64(shift)) & np.uint64(SHARES - 1)).astype(np.int64)


def _pick(outcomes: np.ndarray, row: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return outcomes.take(row * SHARES + chance)


def _outcomes(probability: np.ndarray) -> np.ndarray:
    """(R * SHARES,) int32: in row r, outcome i stands P(i | r) * SHARES times."""
    counts = np.rint(probability * SHARES).astype(np.int64)
    outcomes = np.tile(np.arange(counts.shape[1], dtype=np.int32), len(counts))
    return np.repeat(outcomes, counts.ravel())


def _column(numbers: np.ndarray, labels: pa.StringArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), labels)
