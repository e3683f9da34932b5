"""Dictionaries: tables that give each label of a column its code."""

from __future__ import annotations

import duckdb

from behavegpt.data.database import one_row
from behavegpt.data.labels import (
    RULES,
    TEXT,
    check_exact,
    choose_rule,
    create_values,
    fitting_rules,
)
from behavegpt.ingest.log_table import Source


def build_dictionary(
    con: duckdb.DuckDBPyConnection, source: Source, column: str, number: int, rule: str | None
) -> tuple[str, int]:
    """Make the tables `dictionary_{number}` (label, code, events) and `raw_{number}` (raw, code).

    Returns the column's rule, which is found out where none is given, and the number of rows with a
    label.
    """
    values, dictionary, kind = f"values_{number}", f"dictionary_{number}", source.types[column]
    create_values(con, values, source.sql, column, kind)

    check_exact(con, source.name, column, values, kind, rule)

    if rule is None:
        rule = choose_rule(fitting_rules(con, values, kind))

    # Where every value has a label of its own, one table is both.
    # integers of any width have one spelling; decimals and texts may have several
    own = rule == TEXT or (
        rule == "integer" and kind != "VARCHAR" and not kind.startswith("DECIMAL")
    )

    written = values if own else f"(SELECT raw, {RULES[rule].sql} AS label, events FROM {values})"
    labels = (
        written
        if own
        else f"(SELECT label, sum(events)::BIGINT AS events FROM {written} GROUP BY label)"
    )

    # codes in text order, so that they do not depend on the order of rows or files
    con.execute(
        f"CREATE TABLE {dictionary} AS SELECT {'raw, ' * own}label, (row_number() OVER (ORDER BY "
        f"label))::UINTEGER AS code, events FROM {labels} ORDER BY code"
    )

    count, rows = one_row(
        con, f"SELECT count(*), coalesce(sum(events), 0)::BIGINT FROM {dictionary}"
    )
    shrink_codes(con, number, count)

    if own:
        con.execute(f"CREATE VIEW raw_{number} AS SELECT raw, code FROM {dictionary}")
    else:
        con.execute(
            f"CREATE TABLE raw_{number} AS SELECT w.raw, d.code FROM {written} w JOIN "
            f"{dictionary} d USING (label)"
        )

    # as large as the dictionary, and the next column needs the room
    con.execute(f"DROP TABLE {values}")
    return rule, int(rows)


def shrink_codes(con: duckdb.DuckDBPyConnection, number: int, labels: int) -> None:
    """Codes of one or two bytes, 0 included: joined, kept and sorted by bucket for less."""
    # 255 labels and 0 for null fit one byte
    if labels < 1 << 16:
        con.execute(
            f"ALTER TABLE dictionary_{number} ALTER code TYPE "
            f"{'UTINYINT' if labels < 256 else 'USMALLINT'}"
        )
