"""A log that lets a model see time pass: an event `tick` at regular moments, and the time since the
previous event.

Weekday and slot alone do not tell how long ago something was. With ticks, silence is an event like
any other: what follows a tick tells how active a user still is, and the last tick of every user
stands at the end of the log.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from behavegpt.data.database import literal, quoted
from behavegpt.data.schema import EventSchema

TICK = "tick"
GAP = "gap"


def gap_sql(time: str) -> str:
    """SQL: the half octave of 1 + a time, as text: what data/collate.py's `half_octaves` gives."""
    return f"floor(2 * log2(1 + {time}))::integer::varchar"


def add_clock(
    con: duckdb.DuckDBPyConnection,
    log: Path,
    out: Path,
    schema: EventSchema,
    days: float,
    end: str | None = None,
) -> EventSchema:
    """Write the parquet `log` with ticks every `days` days, and the column `gap`, to `out`; the
    schema with `gap`.

    Ticks stand at the end of the log (a second after its last event, or after the moment `end`) and
    whole periods before it, for each user as far back as the first event. `gap`: half octaves of 1
    + seconds since the user's previous moment; null for the first. Events of one moment have the
    same gap, whatever their order.
    """
    user, time = quoted(schema.user), quoted(schema.time)

    # a tick is an event and a behavior: what follows it is predicted as after any other
    labels = ", ".join(
        f"{literal(TICK)} as {quoted(c)}" for c in {schema.event, schema.behavior or schema.event}
    )

    period = f"to_seconds({days * 86400})"
    last = f"max({time})" if end is None else f"timestamp {literal(end)}"
    # from the end backwards: the last tick of every user is the last event of the log
    ticks = (
        f"select {user}, stop - i * {period} as {time}, {labels} from (select {user}, min({time}) "
        f"as start from {literal(log)} where {user} is not null group by {user}), (select {last} + "
        f"interval 1 second as stop, ceil(epoch({last} - min({time})) / epoch({period}))::bigint "
        f"as most from {literal(log)}), lateral (select unnest(range(most + 1)) as i) where stop - "
        f"i * {period} > start"
    )

    # strictly earlier moments: events of one moment have one gap
    before = (
        f"max({time}) over (partition by {user} order by {time} "
        "range between unbounded preceding and interval 1 microsecond preceding)"
    )
    gap = f"{gap_sql(f'epoch({time} - {before})')} as {GAP}"

    con.execute(
        f"copy (select *, {gap} from (select * from {literal(log)} union all by name ({ticks})) "
        f"order by all) "  # a window's rows come out in any order: the same log, the same bytes
        f"to {literal(out)} (format parquet, compression zstd)"
    )

    return schema.model_copy(update={"extra": (*schema.extra, GAP)})
