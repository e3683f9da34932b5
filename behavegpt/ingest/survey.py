"""What has to be known of all rows before any row can be read: how times, order keys and labels are
written.

Parts of a log that are read in different places (spark.py) are surveyed apart and their findings
added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb

from behavegpt.data.database import one_row, quoted
from behavegpt.data.labels import check_exact, common_rules, create_values
from behavegpt.data.schema import EventSchema
from behavegpt.ingest.dictionaries import fitting_rules
from behavegpt.ingest.log_table import Source
from behavegpt.ingest.time_survey import INTEGERS, TimeSurvey, add_surveys, survey_column


class Survey(NamedTuple):
    """Findings that add up; None where there was nothing to look at."""

    rows: int
    times: TimeSurvey | None
    order: bool | None  # all order keys are integers
    # per label column, the user first: rules of labels.py that all labels fit
    rules: tuple[list[str] | None, ...]


def survey_rows(
    con: duckdb.DuckDBPyConnection, source: Source, schema: EventSchema, columns: dict[str, str]
) -> Survey:
    """The findings of an open source; `columns` are those of the labels."""
    order = order_is_whole(con, source, schema.order) if schema.order else None
    rules = tuple(
        _label_rules(con, source, column, field in schema.numeric)
        for field, column in columns.items()
    )
    # last, as it is the cheapest: a column that cannot be read has ended the survey before
    rows = one_row(con, f"SELECT count(*) FROM {source.sql}")[0]
    return Survey(rows, survey_times(con, source, schema), order, rules)


def add_up(surveys: Sequence[Survey]) -> Survey:
    """The findings of all parts (at least one) together."""
    return Survey(
        sum(survey.rows for survey in surveys),
        add_surveys([survey.times for survey in surveys]),
        _all([survey.order for survey in surveys]),
        tuple(map(common_rules, zip(*[survey.rules for survey in surveys], strict=True))),
    )


def survey_times(
    con: duckdb.DuckDBPyConnection, source: Source, schema: EventSchema
) -> TimeSurvey | None:
    """What `time_column` decides by; None where the type alone decides."""
    return survey_column(con, quoted(schema.time), source.types[schema.time], source.sql)


def order_is_whole(con: duckdb.DuckDBPyConnection, source: Source, column: str) -> bool | None:
    """Whether the keys of the order column are integers of 64 bits; None for text without any
    key."""
    name, kind = quoted(column), source.types[column]
    if kind != "VARCHAR":
        # of 64 bits and signed: what the columns of the buckets hold
        return kind in INTEGERS and kind not in ("HUGEINT", "UHUGEINT", "UBIGINT")

    # 18 digits: every such number is an integer of 64 bits
    test = f"bool_and(regexp_full_match(trim({name}), '[+-]?[0-9]{{1,18}}'))"
    whole: bool | None = one_row(con, f"SELECT {test} FROM {source.sql} WHERE {name} <> ''")[0]
    return whole


def _label_rules(
    con: duckdb.DuckDBPyConnection, source: Source, column: str, amounts: bool
) -> list[str] | None:
    """Rules that the labels of a column, or its `amounts`, fit; None without any."""
    kind = source.types[column]
    create_values(con, "behavegpt_values", source.sql, column, kind)
    # numbers too large for a float would be one label with their neighbors
    if not amounts:
        check_exact(con, source.name, column, "behavegpt_values", kind, None)
    rules = fitting_rules(con, "behavegpt_values", kind)
    # one column at a time: all of them together may not fit the memory
    con.execute("DROP TABLE behavegpt_values")
    return rules


def _all(answers: Sequence[bool | None]) -> bool | None:
    """Whether all that answer say yes; None where nobody does."""
    known = [answer for answer in answers if answer is not None]
    return all(known) if known else None
