"""Dictionaries: tables that give each label of a column its code."""

from __future__ import annotations

import duckdb

from behavegpt.data.database import one_row
from behavegpt.data.label_texts import TEXT_RULES
from behavegpt.data.labels import RULES, SAMPLE, TEXT, check_exact, choose_rule, create_values
from behavegpt.ingest.log_table import Source


def build_dictionary(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    column: str,
    number: int,
    rule: str | None,
    *,
    amounts: bool = False,
) -> tuple[str, int]:
    """Make the tables `dictionary_{number}` (label, code, events) and `raw_{number}` (raw, code).

    Returns the column's rule, which is found out where none is given, and the number of rows with a
    label. Of `amounts` a float is as good as any: only ids must be exact.
    """
    values, dictionary, kind = f"values_{number}", f"dictionary_{number}", source.types[column]
    create_values(con, values, source.sql, column, kind)

    if not amounts:
        check_exact(con, source.name, column, values, kind, rule)

    if rule is None:
        rule = choose_rule(fitting_rules(con, values, kind))

    # then one table is both
    own = _one_label_each(rule, kind)
    written = labels = values
    if not own:
        written = f"(SELECT raw, {RULES[rule].sql} AS label, events FROM {values})"
        labels = f"(SELECT label, sum(events)::BIGINT AS events FROM {written} GROUP BY label)"

    # codes in text order, so that they do not depend on the order of rows or files
    con.execute(
        f"CREATE TABLE {dictionary} AS SELECT {'raw, ' * own}label, (row_number() OVER (ORDER BY "
        f"label))::UINTEGER AS code, events FROM {labels} ORDER BY code"
    )

    count, rows = one_row(
        con, f"SELECT count(*), coalesce(sum(events), 0)::BIGINT FROM {dictionary}"
    )
    shrink_codes(con, number, count)

    codes = f"VIEW raw_{number} AS SELECT raw, code FROM {dictionary}"
    if not own:
        joined = f"{written} w JOIN {dictionary} d USING (label)"
        codes = f"TABLE raw_{number} AS SELECT w.raw, d.code FROM {joined}"
    con.execute(f"CREATE {codes}")

    # as large as the dictionary, and the next column needs the room
    con.execute(f"DROP TABLE {values}")
    return rule, int(rows)


def _one_label_each(rule: str, kind: str) -> bool:
    """Whether no two values of a column of this type can have the same label."""
    # integers of any width have one spelling; decimals and texts may have several
    one_spelling = kind != "VARCHAR" and not kind.startswith("DECIMAL")
    return rule == TEXT or (rule == "integer" and one_spelling)


def fitting_rules(con: duckdb.DuckDBPyConnection, table: str, kind: str) -> list[str] | None:
    """Rules that all labels of a table (column `label`) of values of a DuckDB type fit; None
    without any label."""
    if kind.endswith(("INT", "INTEGER")):
        return ["integer", TEXT] if one_row(con, f"SELECT count(*) FROM {table}")[0] else None

    sample = con.execute(f"SELECT label FROM {table} LIMIT {SAMPLE}").fetchall()
    if not sample:
        return None

    # in Python, where a rule ends at its first label: SQL would compile two dozen patterns
    rules = [
        name for name, rule in TEXT_RULES.items() if all(rule.fits(label) for (label,) in sample)
    ]
    # text always does; what else is left is tested on every label
    tests = ", ".join(f"bool_and({RULES[name].fits})" for name in rules)
    if rules == [TEXT] or len(sample) < SAMPLE:
        return rules
    fits = one_row(con, f"SELECT {tests} FROM {table}")
    return [name for name, fit in zip(rules, fits, strict=True) if fit]


def shrink_codes(con: duckdb.DuckDBPyConnection, number: int, labels: int) -> None:
    """Codes of one or two bytes, 0 included: joined, kept and sorted by bucket for less."""
    # 255 labels and 0 for null fit one byte
    if labels < 1 << 16:
        con.execute(
            f"ALTER TABLE dictionary_{number} ALTER code TYPE "
            f"{'UTINYINT' if labels < 256 else 'USMALLINT'}"
        )
