"""Features of users: a table with one row for each, joined to their events by the user's label.

A feature is a field that is the same at all events of a user. Users without a row, and values that
are missing, are unknown, as labels are that training never saw.

Shapes: N users of the table, U users of a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from behavegpt.config import closest
from behavegpt.data.database import connect, quoted, reading
from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError
from behavegpt.ingest.dictionaries import build_dictionary
from behavegpt.ingest.log_table import open_source
from behavegpt.ingest.plan_columns import check_type
from behavegpt.ingest.rows import read_labels
from behavegpt.ingest.sources import Logs, find_logs
from behavegpt.io import temporary_folder


@dataclass(frozen=True)
class UserTable:
    """Features of N users, as labels."""

    users: pa.StringArray  # (N,), none twice
    labels: dict[str, pa.StringArray]  # feature -> (N,), null where it is missing
    rules: dict[str, str]  # feature -> how its values are written as labels

    def of(self, users: pa.Array) -> dict[str, pa.StringArray]:
        """The features of users (U,), each (U,); null for those without a row."""
        # null where a user has no row, and `take` keeps nulls: unknown
        row = pc.index_in(users, value_set=self.users)
        return {name: labels.take(row) for name, labels in self.labels.items()}

    def has(self, users: pa.Array) -> np.ndarray:
        """Whether each of the users (U,) has a row: (U,) bool."""
        rows = pc.is_in(users, value_set=self.users)
        return np.asarray(rows.to_numpy(zero_copy_only=False), bool)

    def updated(self, other: UserTable) -> UserTable:
        """The table in which the rows of `other` stand in place of its users' own."""
        # whole rows are replaced: a feature that the new row leaves out is unknown from then on
        keep = pc.invert(pc.is_in(self.users, value_set=other.users))
        labels = {}
        for name, own in self.labels.items():
            labels[name] = pa.concat_arrays([own.filter(keep), other.labels[name]])
        users = pa.concat_arrays([self.users.filter(keep), other.users])
        return UserTable(users, labels, self.rules)


def with_features(schema: EventSchema, table: Any) -> EventSchema:
    """The schema with the features that it names, or else with all columns of the table beside the
    user's. Raises DataError for a table without them."""
    # read before, and its columns were chosen then
    if isinstance(table, UserTable):
        return schema

    logs = find_logs(table)
    if not schema.features:
        columns = tuple(column for column in logs.columns if column != schema.user)
        changed = {"user_features": columns}
        try:
            schema = EventSchema.model_validate(schema.model_dump() | changed)
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise DataError(
                f"{logs.name}: {why}; without --user-features and --user-numeric, all columns of "
                "the table of users are features: name those that are."
            ) from None
    _check(logs, schema)
    if not schema.features:
        raise DataError(
            f"{logs.name}: no column besides {schema.user!r}; name a table with user features."
        )
    return schema


def read_user_table(table: Any, schema: EventSchema) -> UserTable:
    """The features that a schema names, of files or a frame; columns of other names are not read.

    Labels are written by the schema's rules, which are found out where it has none. Raises
    DataError for a table without the columns, or with two rows for a user.
    """
    if isinstance(table, UserTable):
        return table
    logs = find_logs(table)
    _check(logs, schema)

    columns = {"user": schema.user} | {name: name for name in schema.features}
    texts, rules = _read(logs, columns, schema)
    # a row of nobody says nothing, and two of them would be two rows of one user
    texts = texts.filter(pc.is_valid(texts["user"]))

    users = texts["user"].combine_chunks()
    counts = pc.value_counts(users)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{logs.name}: {twice[0]['counts'].as_py()} rows for user "
            f"{str(twice[0]['values'].as_py())[:100]!r} (column {schema.user!r}); a user "
            "table needs one row per user."
        )

    labels = {name: texts[name].combine_chunks() for name in schema.features}
    return UserTable(users, labels, {name: rules[name] for name in schema.features})


def _check(logs: Logs, schema: EventSchema) -> None:
    """Raise DataError for a column that the table does not have."""
    for name in (schema.user, *schema.features):
        if name not in logs.columns:
            what = "the user" if name == schema.user else "a feature of the users"
            remedy = f"Rename it to {name!r}" if name == schema.user else "Name another"
            raise DataError(
                f"{logs.name}: no column {name!r} ({what}) in the table of users. "
                f"{closest(name, logs.columns).replace('Known', 'Columns')} {remedy}."
            )


def _read(
    logs: Logs, columns: Mapping[str, str], schema: EventSchema
) -> tuple[pa.Table, dict[str, str]]:
    """Columns as labels, by field, and the rule of each."""
    rules = schema.label_rules
    # a few rows of a request need no database, which takes tens of milliseconds to start
    few = read_labels(logs, columns, rules)
    if few is not None:
        return few, dict(rules)

    fields = list(columns)
    with temporary_folder() as folder, connect(folder) as con, reading(logs.name, logs.files):
        source = open_source(con, logs, list(columns.values()), folder)
        found = {}
        for number, (field, column) in enumerate(columns.items()):
            check_type(source, field, column)
            rule = rules.get(field)
            amounts = field in schema.user_numeric
            found[field] = build_dictionary(con, source, column, number, rule, amounts=amounts)[0]

        # a LEFT JOIN: a missing value is an unknown label, not a user less
        names = ", ".join(f"d{i}.label AS {quoted(field)}" for i, field in enumerate(fields))
        joins = " ".join(
            f"LEFT JOIN (SELECT r.raw, l.label FROM raw_{i} r JOIN dictionary_{i} l USING (code)) "
            f"d{i} ON s.{quoted(columns[field])} = d{i}.raw"
            for i, field in enumerate(fields)
        )
        table = con.sql(f"SELECT {names} FROM {source.sql} s {joins}").to_arrow_table()
    texts = {field: table[field].cast(pa.string()) for field in fields}
    return pa.table(texts), found
