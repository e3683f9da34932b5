"""How to read logs: what is a label, a time, a bad row. The one implementation for prepare and
predict.

Every label column gets a dictionary (codes 1... in text order, 0 = null); events then travel as
integers. How values are written as labels is decided once, in labels.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.database import literal, one_row, quoted, reading
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import MICROS, instants, parse_date
from behavegpt.errors import DataError
from behavegpt.ingest.baskets import GROUP
from behavegpt.ingest.dictionaries import build_dictionary
from behavegpt.ingest.log_table import Source, open_source
from behavegpt.ingest.plan_columns import check_types, label_columns, needed_columns, reject_columns
from behavegpt.ingest.reasons import (
    BAD_ORDER,
    BAD_TIME,
    LATE,
    MALFORMED,
    NO_EVENT,
    NO_TIME,
    NO_USER,
    REASONS,
    WRONG_TYPE,
)
from behavegpt.ingest.sources import Logs
from behavegpt.ingest.survey import Survey, order_is_whole, survey_times
from behavegpt.ingest.time_columns import TimeColumn, time_column
from behavegpt.ingest.time_join import join_times, part_columns, time_parts

TIME_RANGE = ("1970-01-02", "2100-01-01")
_LONGEST = 2**32 - 4 * 86_400  # seconds that a stored time can hold, less what a zone may move it


class Rows(NamedTuple):
    """Accepted events of one batch as arrays of equal length."""

    columns: dict[str, np.ndarray]
    """user and label fields: codes in the smallest unsigned type; time: int64 microseconds; order:
    int64 or float64, only if the schema names it."""
    rejected: np.ndarray
    """Rows per reason (len(REASONS),) int64."""
    rejected_users: np.ndarray
    """User codes of the rejected rows."""


@dataclass(frozen=True)
class Plan:
    """How to read one source by one schema; dictionary i of `columns` is the table
    `dictionary_i`."""

    con: duckdb.DuckDBPyConnection
    source: Source
    schema: EventSchema  # with the time unit and the rules of labels resolved
    columns: dict[str, str]  # user, event, the other label fields and the group -> source column
    nulls: tuple[bool, ...]  # per dictionary: whether some rows have no label
    time: TimeColumn
    order: tuple[str, str] | None  # SQL of the order key and its value for null
    bounds: tuple[int, int]  # epoch seconds

    @property
    def fields(self) -> tuple[str, ...]:
        """Label fields, without the user and the group, which have no vocabulary."""
        return tuple(name for name in self.columns if name not in ("user", GROUP))

    @property
    def grouping(self) -> tuple[str, ...]:
        """The column that tells baskets apart, where there is one."""
        return (GROUP,) if self.schema.has_baskets else ()

    def dictionary(self, field: str) -> str:
        """Table of a field's labels: label, code, events (rows, bad ones included)."""
        return f"dictionary_{list(self.columns).index(field)}"

    def labels(self, field: str) -> pa.StringArray:
        """Labels (codes,) of a field by code; null for code 0."""
        column = self.con.sql(
            f"SELECT label FROM {self.dictionary(field)} ORDER BY code"
        ).to_arrow_table()["label"]
        return pa.concat_arrays([pa.nulls(1, pa.string()), *column.cast(pa.string()).chunks])

    def events(self, field: str) -> np.ndarray:
        """Rows (codes,) int64 of every label of a field, bad ones included; 0 for null."""
        query = f"SELECT events FROM {self.dictionary(field)} ORDER BY code"
        events = self.con.sql(query).fetchnumpy()["events"]
        return np.concatenate([np.zeros(1, np.int64), events])

    def hashes(self) -> dict[str, np.ndarray]:
        """A stable 64-bit hash (codes,) uint64 of every user and label by field; 0 for null."""
        hashes = {}
        for field in self.columns:
            query = (
                f"SELECT md5_number_lower(label) AS hash FROM {self.dictionary(field)} ORDER BY "
                "code"
            )
            hash_ = np.asarray(self.con.sql(query).fetchnumpy()["hash"], np.uint64)
            hashes[field] = np.concatenate([np.zeros(1, np.uint64), hash_])
        return hashes

    def batches(self, rows: int) -> Iterator[Rows]:
        """All accepted events as integers in batches of about `rows`, in no order."""
        # 0 for null, which no dictionary holds
        codes = ", ".join(f"coalesce(d{i}.code, 0) AS c{i}" for i in range(len(self.columns)))
        order = f", coalesce({', '.join(self.order)}) AS order_key" if self.order else ""
        select = (
            f"{codes}, behavegpt_stamp AS stamp, behavegpt_wall AS wall, {self._reason()} AS "
            f"reason{order}"
        )

        with reading(self.source.name, self.source.files):
            query = f"SELECT {select} FROM {self._joined()}"
            for batch in self.con.sql(query).to_arrow_reader(rows):
                yield self._rows(batch)

    def rejects(self) -> str:
        """SQL of the rejected rows: file, the original values as text by role, reason."""
        roles = needed_columns(self.schema, self.columns)
        names = reject_columns(self.schema, self.columns)[1:-1]
        values = ", ".join(
            f"s.{quoted(column)}::VARCHAR AS {quoted(name)}"
            for name, column in zip(names, roles.values(), strict=True)
        )
        texts = " ".join(f"WHEN {i} THEN {literal(text)}" for i, text in enumerate(REASONS))

        # the whole log is joined a second time, but only where rows were rejected
        query = (
            f"SELECT {self.source.file} AS file, {values}, CASE {self._reason()} {texts} END AS "
            f"reason FROM {self._joined()} WHERE {self._reason()} > 0"
        )

        if self.source.malformed:
            # a line that cannot be cut has no columns: it stands in the first one, whole
            rest = ", NULL" * (len(roles) - 1)
            query += (
                f" UNION ALL SELECT file, line{rest}, {literal(REASONS[MALFORMED])} FROM "
                f"{self.source.malformed}"
            )

        # in order of the values, so that the file does not depend on threads
        return f"SELECT * FROM ({query}) ORDER BY ALL"

    def malformed(self) -> int:
        """Number of CSV lines that could not be cut into columns; a record may have several."""
        if not self.source.malformed:
            return 0
        lines = one_row(self.con, f"SELECT sum(lines)::BIGINT FROM {self.source.malformed}")[0]
        return int(lines or 0)

    def _rows(self, batch: pa.RecordBatch) -> Rows:
        # no copies: a batch is used up before the next one is read
        reasons, users = np.from_dlpack(batch["reason"]), np.from_dlpack(batch["c0"])
        bad = reasons > 0
        rejected, rejected_users = np.bincount(reasons[bad], minlength=len(REASONS)), users[bad]
        # most batches have no bad row, and are not copied
        if len(rejected_users):
            batch = batch.filter(pc.equal(batch["reason"], 0))

        columns = {name: np.from_dlpack(batch[f"c{i}"]) for i, name in enumerate(self.columns)}

        stamps = np.from_dlpack(batch["stamp"])
        # most columns are all walls or all instants: they need no array of flags
        wall = {"true": True, "false": False}.get(self.time.wall)
        walls = np.from_dlpack(batch["wall"]).astype(bool) if wall is None else wall

        columns["time"] = instants(stamps, walls, self.schema)
        if self.order:
            columns["order"] = np.from_dlpack(batch["order_key"])

        return Rows(columns, rejected, rejected_users)

    def _joined(self) -> str:
        """SQL of the rows as `s`, with stamp and wall, and of the dictionaries as d0, d1, ..."""
        stamp = f"{self.time.stamp} AS behavegpt_stamp"
        wall = f"({self.time.wall})::UTINYINT AS behavegpt_wall"

        # The user's dictionary is the largest: joined last, so that the others still see the file's
        # own dictionaries.
        names = [quoted(column) for column in self.columns.values()]

        # An inner join is the same where every row has a label, and cheaper.
        kinds = ["LEFT JOIN" if nulls else "JOIN" for nulls in self.nulls]
        order = [*range(1, len(names)), 0]
        joins = " ".join(f"{kinds[i]} raw_{i} d{i} ON s.{names[i]} = d{i}.raw" for i in order)

        return f"(SELECT *, {stamp}, {wall} FROM {self.source.sql}) s {joins}"

    def _reason(self) -> str:
        """SQL of the index into REASONS; 0 for a good row."""
        time = f"s.{quoted(self.schema.time)}"
        low, high = self.bounds[0] * MICROS, self.bounds[1] * MICROS
        is_text = self.source.types[self.schema.time] == "VARCHAR"

        # in the order of CASE: the first that holds is the reason
        cases = {
            NO_USER: "d0.code IS NULL",
            NO_TIME: f"{time} IS NULL" + (f" OR trim({time}) = ''" if is_text else ""),
            BAD_TIME: "behavegpt_stamp IS NULL",
            LATE: f"behavegpt_stamp < {low} OR behavegpt_stamp >= {high}",
            NO_EVENT: "d1.code IS NULL",
        }

        if self.source.wrong:
            cases = {WRONG_TYPE: f"{self.source.wrong} IS NOT NULL", **cases}

        if self.order:
            name = f"s.{quoted(str(self.schema.order))}"
            cases[BAD_ORDER] = (
                f"{self.order[0]} IS NULL AND {name} IS NOT NULL AND {name}::VARCHAR <> ''"
            )

        whens = " ".join(f"WHEN {test} THEN {reason}" for reason, test in cases.items())
        return f"(CASE {whens} ELSE 0 END)::UTINYINT"


def plan_events(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    schema: EventSchema,
    folder: Path,
    fields: Collection[str] | None = None,
    time_range: tuple[str, str] = TIME_RANGE,
) -> Plan:
    """Open the logs, decide how to read them, and build the dictionaries.

    `fields` limits the label fields (the event is always read); `folder` takes temporary files.
    Raises DataError.
    """
    columns = label_columns(schema, fields)
    needed = needed_columns(schema, columns)

    bounds = parse_range(time_range)
    source = open_source(
        con, logs, part_columns(logs, needed), folder, time_parts(schema.time, logs)[0]
    )

    return make_plan(con, join_times(source, logs, schema.time), schema, columns, bounds)


def make_plan(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    schema: EventSchema,
    columns: dict[str, str],
    bounds: tuple[int, int],
    survey: Survey | None = None,
) -> Plan:
    """The plan of an open source; `survey` is what was found of all rows where the source is only a
    part of them."""
    check_types(source, schema, columns)
    with reading(source.name, source.files):
        time, kind = quoted(schema.time), source.types[schema.time]
        times = survey.times if survey else survey_times(con, source, schema)
        read = time_column(time, kind, schema, times, bounds, source.name, source.wall)

        order = None
        if schema.order:
            # keys as floats would make neighbors equal beyond 2^53
            whole = survey.order if survey else order_is_whole(con, source, schema.order)
            order = _order_key(source, schema.order, bool(whole))

        # an inner join must lose no row: labels are counted against all rows
        rows = one_row(con, f"SELECT count(*) FROM {source.sql}")[0]
        rules, nulls = dict(schema.label_rules), []
        for i, (field, column) in enumerate(columns.items()):
            rules[field], labeled = build_dictionary(
                con, source, column, i, rules.get(field), amounts=field in schema.numeric
            )
            nulls.append(labeled < rows)

    # what was found out is part of the model: logs that come later are read the same way
    schema = schema.model_copy(
        update={"time_unit": read.unit, "time_format": read.formats, "label_rules": rules}
    )
    return Plan(con, source, schema, columns, tuple(nulls), read, order, bounds)


def parse_range(time_range: tuple[str, str]) -> tuple[int, int]:
    """Epoch seconds of the two dates. Raises DataError."""
    bounds = (parse_date(time_range[0]), parse_date(time_range[1]))
    if not 0 < bounds[1] - bounds[0] <= _LONGEST:
        raise DataError(
            f"time range {time_range[0]} to {time_range[1]}: must be ascending and at most 136 "
            "years."
        )
    return bounds


def _order_key(source: Source, column: str, whole: bool) -> tuple[str, str]:
    """SQL of the order key and of the smallest key (for null): exact for integers, else DOUBLE."""
    name = quoted(column)
    value = f"trim(s.{name})" if source.types[column] == "VARCHAR" else f"s.{name}"

    if whole:
        return f"TRY_CAST({value} AS BIGINT)", f"({1 - 2**63})::BIGINT"

    # NaN would sort behind all numbers, and is no place in an order
    number = f"TRY_CAST({value} AS DOUBLE)"
    return f"(CASE WHEN NOT isnan({number}) THEN {number} END)", "'-inf'::DOUBLE"
