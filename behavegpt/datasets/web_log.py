"""An event log from the access logs of web servers: which visitor opened which page when, without
addresses.

Apache's and nginx's `common` and `combined` formats, rotated and compressed files too. A visitor is
a salted hash of the user that logged in, or else of address and browser; an event is a page that
was served. Failed requests, the files that a page is made of, and crawlers are left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb

from behavegpt.config import dump_settings
from behavegpt.console import say
from behavegpt.data.database import connect, literal, one_row
from behavegpt.data.schema import EventSchema
from behavegpt.datasets.clock import add_clock
from behavegpt.datasets.git import checked_salt
from behavegpt.errors import DataError, first_line
from behavegpt.io import workspace, write_text
from behavegpt.paths import local_path, target

SCHEMA = EventSchema(user="user_id", time="timestamp", event="page", order="line")
MAX_UNREAD = 0.01  # share of lines that are no requests above which the file is something else
FIELDS = ("host", "login", "stamp", "request", "status", "bytes", "referer", "agent")
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
# `vhost_combined` puts the server's name first
LINE = (
    rf"^(?:\S+:\d+ )?(\S+) \S+ (.+?) \[([^\]]+)\] {_QUOTED} (\d\d\d) (\d+|-)"
    rf"(?: {_QUOTED} {_QUOTED})?"
)
STAMP = "%d/%b/%Y:%H:%M:%S %z"
# without the query string, which may hold anything about the visitor
REQUEST = r"^([A-Z]+) (?:https?://[^/ ]+)?(/[^ ?#]*)\S* HTTP/"
# what a browser asks for by itself, not a visitor
PARTS_OF_PAGES = (
    r"(?i)\.(?:avif|bmp|css|eot|gif|ico|jpe?g|js|json|map|mjs|mp4|otf|png|svg|ttf|txt|webm|webp|"
    r"woff2?|xml)$"
)
CRAWLERS = r"(?i)bot\b|crawl|spider|slurp|curl/|wget/|python-|go-http|monitor|uptime|feedfetcher"

# The server's wall clock: weekdays and hours as they were there, also over the change of clocks.
READ = f"""
create table requests as
select file, line, found.*, strptime(found.stamp, '{STAMP}') as instant,
  try_strptime(left(found.stamp, 20), '{STAMP[:-3]}') as clock,
  regexp_extract(found.request, {literal(REQUEST)}, 1) as method,
  nullif(regexp_extract(found.request, {literal(REQUEST)}, 2), '') as page
from (select file, line, regexp_extract(text, {literal(LINE)}, {list(FIELDS)}) as found
  from lines) where found.host <> ''
"""
LEFT_OUT = {
    "failed or not readable": "page is null or status >= '400'",
    "parts of pages": f"regexp_matches(page, {literal(PARTS_OF_PAGES)})",
    "crawlers": f"regexp_matches(agent, {literal(CRAWLERS)})",
}


def convert_web_log(
    sources: Sequence[str | Path],
    out: str | Path,
    salt: str | None = None,
    clock: float | None = None,
) -> EventSchema:
    """Write the access logs `sources` as one parquet log to `out`; return its schema.

    The schema also goes beside it as NAME.schema.yaml. `salt`: visitors have the same hash in every
    log made with it; a random one by default. `clock`: days between the ticks of
    `datasets/clock.py`, none without it. Raises DataError.
    """
    files, out = [local_path(source) for source in sources], local_path(out)
    secret = checked_salt(salt)

    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: no such file; name access logs, for example access.log*.")

    with workspace(out) as work, connect(work) as con:
        # or line numbers would not follow the files
        con.execute("SET preserve_insertion_order = true")
        _read(con, files)

        part, schema = work / "log.parquet", SCHEMA
        con.execute(
            f"copy ({_events(secret)}) to {literal(part)} (format parquet, compression zstd)"
        )

        _tell(con, part, files)

        if clock is not None:
            plain, part = part, work / "ticking.parquet"
            schema = add_clock(con, plain, part, schema, clock)

        os.replace(part, target(out))
        write_text(out.with_suffix(".schema.yaml"), dump_settings(schema))
    return schema


def _read(con: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """The tables `lines` and `requests`. Raises DataError for files that are no access logs."""
    listed = "[" + ", ".join(literal(file) for file in files) + "]"
    try:
        # one column of whole lines: a delimiter that no line holds, latin-1 so that every byte is
        # read
        con.execute(
            "create view lines as select filename as file, row_number() over () as line, text from "
            f"read_csv({listed}, columns = {{'text': 'VARCHAR'}}, auto_detect = false, delim = "
            "'\x01', quote = '', escape = '', header = false, encoding = 'latin-1', filename = "
            "true, strict_mode = false) where trim(text) <> ''"
        )
        con.execute(READ)
        rows = one_row(con, "select count(*) from lines")[0]
    except duckdb.Error as error:
        raise DataError(f"{files[0]}: cannot be read as text ({first_line(error)}).") from None

    read = one_row(con, "select count(*) from requests")[0]
    if not rows or rows - read > MAX_UNREAD * rows:
        other = con.execute(
            "select file, line, text from lines anti join requests using (line) limit 1"
        ).fetchone()
        where = (
            f"{other[0]}, line {other[1]}: {other[2][:120]!r}" if other else f"{files[0]}: empty"
        )

        raise DataError(
            f"{where} is no request in Apache's common or combined format; {rows - read:,} of "
            f"{rows:,} lines are not. A log in a format of its own: write it as CSV with a line of "
            "column names, and prepare that."
        )


def _events(salt: str) -> str:
    """SQL of the log: one row for each page that was served."""
    # an address alone is shared by a household, with its browsers less so
    visitor = "case when login <> '-' then login else host || ' ' || agent end"
    hashed = f"left(sha256({literal(salt)} || ' ' || {visitor}), 16)"

    kept = " and ".join(f"not coalesce({test}, false)" for test in LEFT_OUT.values())

    return (
        f"select {hashed} as user_id, clock as timestamp, page, method, "
        "'/' || split_part(page, '/', 2) as section, status, nullif(nullif(referer, '-'), '') as "
        f"referer, row_number() over (order by instant, line) as line from requests "
        f"where {kept} order by instant, line"
    )


def _tell(con: duckdb.DuckDBPyConnection, part: Path, files: Sequence[Path]) -> None:
    """Say what was kept and what was not. Raises DataError where nothing was."""
    tests = ", ".join(f"count(*) filter ({test})" for test in LEFT_OUT.values())
    counts = one_row(con, f"select {tests} from requests")
    left_out = ", ".join(f"{name} {n:,}" for name, n in zip(LEFT_OUT, counts, strict=True))

    pages, visitors = one_row(
        con, f"select count(*), count(distinct user_id) from read_parquet({literal(part)})"
    )

    if not pages:
        raise DataError(f"{files[0]}: no page was served to a visitor; left out: {left_out}.")
    say(f"{pages:,} pages of {visitors:,} visitors; left out: {left_out}")
