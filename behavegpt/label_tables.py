"""Small tables that give each label a text, such as its group or a readable name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from behavegpt.errors import DataError
from behavegpt.paths import local_path


@dataclass(frozen=True)
class LabelTable:
    """What a table holds, in the words of its error messages."""

    plural: str
    columns: str  # both, in words
    conflict: str  # why a label cannot have two texts, with {first} and {second}


GROUPS = LabelTable(
    "groups",
    "two columns, the behavior's label and its group",
    "is in two groups, {first!r} and {second!r}; assign it to one.",
)
NAMES = LabelTable(
    "names",
    "two columns, a label and its readable name",
    "has two names, {first!r} and {second!r}; keep one.",
)


def read_label_table(path: str | Path, kind: LabelTable) -> dict[str, str]:
    """Label -> text, of the two columns of a CSV or parquet file; rows without either are skipped.
    Raises DataError for another table and for a label with two texts."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    path = local_path(path)
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            # all text: a column of numbers would lose how its labels are written
            names = csv.open_csv(path).schema.names
            types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            table = csv.read_csv(path, convert_options=types)
        columns = [column.cast(pa.string()).to_pylist() for column in table.columns]
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not a table of {kind.plural} ({error}); write a CSV or parquet file with "
            f"{kind.columns}."
        ) from None

    if len(columns) != 2:
        raise DataError(
            f"{path}: {len(columns)} columns ({', '.join(table.column_names)[:100]}); write "
            f"{kind.columns}."
        )

    texts: dict[str, str] = {}
    for label, text in zip(*columns, strict=True):
        if label in (None, "") or text in (None, ""):
            continue
        if texts.setdefault(label, text) != text:
            conflict = kind.conflict.format(first=texts[label], second=text)
            raise DataError(f"{path}: the label {label!r} {conflict}")
    return texts
