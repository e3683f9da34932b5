"""Published benchmark logs in parquet or JSON: how each download looks, what becomes of it, terms
and paper.

None of these data sets comes with the package. `tables.convert_published` does what this table
says.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from behavegpt.data.schema import EventSchema
from behavegpt.datasets.clock import gap_sql

WHOLE = "all"  # the part of a log that is published in one


@dataclass(frozen=True)
class PublishedLog:
    """One data set. A column that holds lists, one row per user, becomes one row per event."""

    about: str  # format, terms, citation
    # part -> names inside the download; the first that match are read
    files: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]  # name used in `select` -> names that it has in the files
    select: dict[
        str, str
        # output column -> SQL over `columns`, `part`, `file` and `line`, the place in the list or
        # file
    ]
    schema: EventSchema
    optional: tuple[str, ...] = ()  # columns that may be absent, then null
    # SQL that makes rows of the table with `columns`, where `columns` are no events yet
    rows: str = "{table}"
    # of JSON columns, where guessing would not do
    types: dict[str, str] = field(default_factory=dict)
    split: str | None = None  # --split that keeps the published parts apart


EASYTPP_START = (
    "case part when 'train' then timestamp '2000-01-01' when 'validation' then timestamp "
    "'2010-01-01' "
    "else timestamp '2020-01-01' end"
)
MBD_LABELS = ("currency", "src_type11", "dst_type11", "src_type21", "src_type31")
# The action is `event_type` or, where a file holds one kind only, the file's name in the singular.
YAMBDA_ROWS = r"""(
  select * replace (if(action = 'listen' and played < 50, 'skip', action) as action) from (
    select *, coalesce(kind::varchar, rtrim(regexp_extract(file, '([a-z]+)\.parquet$', 1), 's'))
      as action
    from {table}))"""
# An app opens when it is in the foreground and was not in the user's previous sample.
CARAT_ROWS = """(
  select * from (select uuid, timestamp, zone, unnest(apps) as app, before from (
    select uuid, timestamp, apps,
      if(timezone in (select name from pg_timezone_names()), timezone, 'UTC') as zone,
      coalesce(lag(apps) over (partition by uuid order by timestamp), []) as before
    from (select uuid, timestamp, timezone, list_distinct(
      [app.processName for app in apps if app.priority = 'Foreground app']) as apps from {table})))
  where not list_contains(before, app))"""


def _schema(
    event: str = "event", slot_minutes: int = 30, **columns: str | tuple[str, ...]
) -> EventSchema:
    return EventSchema(
        user="user_id", time="timestamp", event=event, slot_minutes=slot_minutes, **columns
    )


PUBLISHED = {
    "easytpp": PublishedLog(
        about="EasyTPP and HoTPP, for example Stack Overflow: the folder with train, dev (or "
        "validation, val) and test as JSON (time_since_start, type_event, seq_idx) or parquet "
        "(also HoTPP's timestamps, labels, id), one row and lists per sequence. Times are "
        "relative: training starts in 2000, validation in 2010, test in 2020, a second to the "
        "unit; weekday and slot say nothing and `gap` holds half octaves of a thousandth of the "
        "time between events. Cite Xue et al., EasyTPP, ICLR 2024, and Karpukhin et al., HoTPP, "
        "2024.",
        files={
            "train": ("train*.json", "train*.parquet", "train.parquet/*.parquet"),
            "validation": (
                "dev*.json",
                "validation*.json",
                "val*.json",
                "dev*.parquet",
                "val*.parquet",
                "val.parquet/*",
            ),
            "test": ("test*.json", "test*.parquet", "test.parquet/*.parquet"),
        },
        columns={
            "sequence": ("seq_idx", "id"),
            "time": ("time_since_start", "timestamps"),
            "label": ("type_event", "labels"),
        },
        select={
            "user_id": "part || ':' || sequence",
            "timestamp": f"{EASYTPP_START} + to_microseconds((time * 1000000)::bigint)",
            "event": "label::varchar",
            "gap": gap_sql(
                "1000 * abs(time - lag(time) over (partition by part, sequence order by line))"
            ),
            "line": "line",
        },
        schema=_schema(slot_minutes=1440, extra=("gap",), order="line"),
        split="date:2010-01-01,2020-01-01",
    ),
    "mbd": PublishedLog(
        about="MBD and MBD-mini, transactions of bank clients: the folder detail/trx (one row per "
        "transaction) or ptls/trx (lists per client), with parquet files below fold=0 … 4. The "
        "event is type:subtype, the behavior the type; `amount` is the octave. For research, see "
        "its card; cite Mollaev et al., MBD, 2024.",
        files={WHOLE: ("fold=*/*.parquet", "*.parquet")},
        columns={
            "client": ("client_id",),
            "time": ("event_time",),
            "event_type": ("event_type",),
            "event_subtype": ("event_subtype",),
            "amount": ("amount",),
            **{label: (label,) for label in MBD_LABELS},
        },
        optional=MBD_LABELS,
        select={
            "user_id": "client::varchar",
            "timestamp": "{time}",
            "event": "concat_ws(':', event_type::varchar, event_subtype::varchar)",
            "behavior": "event_type::varchar",
            "amount": "floor(log2(1 + abs(amount)))::integer::varchar",
            **{label: f"{label}::varchar" for label in MBD_LABELS},
            "line": "line",
        },
        schema=_schema(behavior="behavior", extra=("amount", *MBD_LABELS), order="line"),
    ),
    "massive_steps": PublishedLog(
        about="Massive-STEPS, check-ins of one city: the folder with CITY_checkins.csv, or the "
        "parquet files of the configuration `tabular`. The event is the venue's category, the "
        "location the venue; times are local. Apache 2.0; cite Wongso, Xue, Salim, Massive-STEPS, "
        "2025.",
        files={WHOLE: ("*_checkins.csv", "tabular/*.parquet", "*.parquet")},
        columns={
            "user": ("user_id",),
            "venue": ("venue_id",),
            "category": ("venue_category",),
            "category_id": ("venue_category_id",),
            "time": ("timestamp",),
            "trail": ("trail_id",),
        },
        optional=("category_id",),
        select={
            "user_id": '"user"::varchar',
            "timestamp": "{time}",
            "event": "coalesce(nullif(category, ''), category_id::varchar)",
            "location": "venue::varchar",
            "trail": "trail::varchar",
            "line": "line",
        },
        schema=_schema(location="location", order="line"),
    ),
    "yambda": PublishedLog(
        about="Yambda, music: flat/50m (or 500m, 5b) with multi_event.parquet, or one of its files "
        "alone. The behavior is the action, a listen below half of the track is a `skip`; the "
        "event is action:track. Times count from an unpublished start, here 2024: the clock is "
        "shifted. Apache 2.0; cite Ploshkin et al., Yambda-5B, 2025.",
        files={WHOLE: ("multi_event.parquet", "listens.parquet")},
        columns={
            "user": ("uid",),
            "time": ("timestamp",),
            "track": ("item_id",),
            "organic": ("is_organic",),
            "played": ("played_ratio_pct",),
            "kind": ("event_type",),
        },
        optional=("played", "kind"),
        select={
            "user_id": '"user"::varchar',
            "timestamp": "timestamp '2024-01-01' + to_microseconds((time * 1000000)::bigint)",
            "event": "action || ':' || track",
            "behavior": "action",
            "item": "track::varchar",
            "organic": "organic::integer::varchar",
            "line": "line",
        },
        rows=YAMBDA_ROWS,
        schema=_schema(behavior="behavior", extra=("organic",), order="line"),
    ),
    "carat": PublishedLog(
        about="Carat Top 1000 Users Long-Term App Usage: the folder with part-*.gz, unpacked from "
        "the zip; a JSON object per line with uuid, timestamp (epoch seconds), timeZone and apps "
        "(processName, priority). An event is an app that is in the foreground and was not in the "
        "user's previous sample; times are told in the sample's zone. For research only; name the "
        "data set and cite Oliner et al., Carat, SenSys 2013.",
        files={WHOLE: ("*/part-*.gz", "part-*.gz", "part-*")},
        columns={
            "uuid": ("uuid",),
            "timestamp": ("timestamp",),
            "timezone": ("timeZone",),
            "apps": ("apps",),
        },
        types={
            "uuid": "VARCHAR",
            "timestamp": "BIGINT",
            "timeZone": "VARCHAR",
            "apps": "STRUCT(processName VARCHAR, priority VARCHAR)[]",
        },
        rows=CARAT_ROWS,
        select={
            "user_id": "uuid",
            "timestamp": "timezone(zone, to_timestamp(timestamp))",
            "event": "app",
        },
        schema=_schema(),
    ),
}
