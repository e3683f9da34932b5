"""What a value is called: the rule by which a column's values become labels, fixed when the data
are prepared.

A number written as `1`, `1.0` or `1.50` is one value with three spellings, and which one arrives
depends on the format and on the rows beside it (one null makes a column of integers floats). The
rule is found once, from all labels of the log that is prepared, is stored in the schema
(`label_rules`), and holds for every later reader of the model: the same value has the same label
from CSV, JSONL, parquet, a frame and HTTP, alone or in company.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import duckdb

from behavegpt.data.database import literal, one_row, quoted
from behavegpt.errors import DataError

TEXT = "text"
EXACT = {"DOUBLE": 2**53, "FLOAT": 2**24}  # from here on, some integers share a float
INTEGER = "-?(0|[1-9][0-9]*)"
NUMBER = INTEGER + "([.][0-9]+)?([eE][+-]?[0-9]+)?"
FLOAT_TEXT = "-?[0-9]+[.]0|-?[0-9]([.][0-9]+)?[eE][+]?[0-9]+"  # a whole float, as text
DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
MIDNIGHT = DATE + "([ T]00:00:00([.]0+)?)?"
MOMENT = DATE + "([ T][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?)?"
SCALES = range(2, 19)  # decimals; a single one is a number
SAMPLE = 1000  # labels that rule out most rules before all labels are looked at


class Rule(NamedTuple):
    """SQL over a column `label`."""

    fits: str  # whether all labels of a column may be written by this rule
    applies: str  # whether the rule rewrites a label
    written: str  # what it writes instead

    @property
    def sql(self) -> str:
        """The label as the rule writes it; labels of another kind stay as they are."""
        return f"CASE WHEN {self.applies} THEN {self.written} ELSE label END"


def _full(pattern: str) -> str:
    return f"regexp_full_match(label, {literal(pattern)})"


def _decimal(scale: int) -> Rule:
    """A fixed number of decimals: 1.5 becomes 1.50. Text, for it may be longer than a double."""
    decimals = "rtrim(split_part(label, '.', 2), '0')"

    return Rule(
        _full(f"{INTEGER}[.][0-9]{{{scale}}}"),
        f"{_full(INTEGER + '([.][0-9]+)?')} AND length({decimals}) <= {scale}",
        f"split_part(label, '.', 1) || '.' || rpad({decimals}, {scale}, '0')",
    )


# every integer below 2^53 is a double of its own
_DOUBLE = "TRY_CAST(label AS DOUBLE)"
_SMALL = f"coalesce(abs({_DOUBLE}) < {EXACT['DOUBLE']}, false)"
_CUT = (
    r"regexp_replace(regexp_replace(replace(label, 'T', ' '), '([.][0-9]*[1-9])0+$', '\1'), "
    r"'[.]0+$', '')"
)
_WITH_CLOCK = f"CASE WHEN length(label) = 10 THEN label || ' 00:00:00' ELSE {_CUT} END"
# The narrowest first; a column follows the first rule that all its labels fit.
RULES: dict[str, Rule] = {
    "integer": Rule(
        _full(INTEGER + "([.]0)?"),
        _full("-?[0-9]+[.]0+|-0"),
        f"CASE WHEN {_full('-0([.]0+)?')} THEN '0' ELSE split_part(label, '.', 1) END",
    ),
    "number": Rule(
        f"({_full(INTEGER)} AND {_SMALL} OR coalesce(label = {_DOUBLE}::VARCHAR, false))",
        f"{_full(NUMBER)} AND {_SMALL}",
        f"({_DOUBLE} + 0)::VARCHAR",
    ),
    **{f"decimal:{scale}": _decimal(scale) for scale in SCALES},
    "boolean": Rule(
        "lower(label) IN ('true', 'false')", "lower(label) IN ('true', 'false')", "lower(label)",
    ),
    "date": Rule(_full(MIDNIGHT), _full(MIDNIGHT), "left(label, 10)"),
    "timestamp": Rule(_full(MOMENT), _full(MOMENT), _WITH_CLOCK),
    TEXT: Rule("true", "false", "label"),
}  # fmt: skip


def text_sql(value: str, kind: str) -> str:
    """SQL of the text of a value of a DuckDB type, before any rule; whole floats as integers."""
    if kind not in EXACT:
        return f"({value})::VARCHAR"
    # a column with one null arrives as floats: 7.0 is then the label 7 again
    whole = f"abs({value}) < {EXACT[kind]} AND {value} = trunc({value})"
    return f"CASE WHEN {whole} THEN ({value})::BIGINT::VARCHAR ELSE ({value})::VARCHAR END"


def common_rules(parts: Iterable[Sequence[str] | None]) -> list[str] | None:
    """Rules that fit all parts of a log, of those that fit each; None where no part has a label."""
    sets = [set(part) for part in parts if part is not None]
    if not sets:
        return None

    shared = set.intersection(*sets)
    return [name for name in RULES if name in shared]


def choose_rule(fitting: Collection[str] | None) -> str:
    """The rule of a column, of those that fit; text where there is nothing to tell it by."""
    return next((name for name in RULES if fitting is not None and name in fitting), TEXT)


def create_values(
    con: duckdb.DuckDBPyConnection, name: str, table: str, column: str, kind: str
) -> None:
    """Make the table `name` of the values of a column of a DuckDB type: raw, label (before any
    rule), events."""
    raw, where = quoted(column), ""
    if kind in EXACT:
        # -0.0 groups apart from 0.0 but joins with it, which would double rows; NaN is how pandas
        # writes null.
        raw, where = f"{raw} + 0::{kind}", f"WHERE NOT isnan({raw})"

    # Null is tested before the text is made: making text of every single number would take longer
    # than the rest.
    filled = "label <> ''" if kind == "VARCHAR" else "raw IS NOT NULL"

    con.execute(
        f"CREATE TABLE {name} AS SELECT raw, label, events FROM (SELECT raw, "
        f"{text_sql('raw', kind)} AS label, events FROM (SELECT {raw} AS raw, count(*) AS events "
        f"FROM {table} {where} GROUP BY ALL)) WHERE {filled}"
    )


def check_exact(
    con: duckdb.DuckDBPyConnection,
    where: str,
    column: str,
    values: str,
    kind: str,
    rule: str | None,
) -> None:
    """Raise DataError where an integer came through a float that cannot hold it: different ids
    would be one label.

    `values` is a table of `create_values`; `rule` is the stored one, None where there is none yet.
    """
    if kind in EXACT:
        test = f"isfinite(raw) AND abs(raw) >= {EXACT[kind]}"
    elif kind == "VARCHAR" and _is_numeric(con, values, rule):
        test = (
            f"{_full(FLOAT_TEXT)} AND isfinite({_DOUBLE}) AND abs({_DOUBLE}) >= {EXACT['DOUBLE']}"
        )
    else:
        return

    example = con.execute(f"SELECT label FROM {values} WHERE {test} LIMIT 1").fetchone()
    if example:
        bits = EXACT.get(kind, EXACT["DOUBLE"]).bit_length() - 1
        raise DataError(
            f"{where}: column {column!r} holds {example[0]} as a floating-point number; from "
            f"2^{bits} on different integers become the same float. Write the column as text or as "
            "64-bit integers (in pandas: dtype 'string' or 'Int64' when the file is read)."
        )


def _is_numeric(con: duckdb.DuckDBPyConnection, values: str, rule: str | None) -> bool:
    """Whether all texts are numbers: a text such as 12e45 beside others may be the name of
    anything."""
    if rule is not None:
        return rule in ("integer", "number")

    # the sample first: one text that is no number ends the test
    parts = (f"(SELECT label FROM {values} LIMIT {SAMPLE})", values)
    return all(one_row(con, f"SELECT bool_and({_full(NUMBER)}) FROM {part}")[0] for part in parts)
