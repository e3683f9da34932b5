"""Frames in memory and `datasets` names as Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from behavegpt.data.vocabulary import as_text
from behavegpt.errors import DataError, first_line

HUB = "hf:"


def as_table(frame: Any) -> pa.Table:
    """A pandas or polars DataFrame, a pyarrow Table or a mapping of columns as an Arrow table. Raises DataError."""
    if isinstance(frame, pa.Table):
        table = frame
    elif isinstance(frame, Mapping):
        table = _from_columns([(str(name), values) for name, values in frame.items()])
    elif hasattr(frame, "to_arrow"):
        table = frame.to_arrow()
    elif hasattr(frame, "iloc"):
        table = _from_columns([(str(name), frame.iloc[:, i]) for i, name in enumerate(frame.columns)])
    else:
        raise DataError(f"a {type(frame).__name__} holds no logs; pass a file, a DataFrame or a dict of columns.")
    return _plain(table)


def hub_table(names: Sequence[str]) -> pa.Table:
    """The table of `hf:NAME[:split]` (split `train` by default), loaded by `datasets`. Raises DataError."""
    if len(names) > 1:
        raise DataError(f"{names[1]}: a {HUB} data set cannot be mixed with other logs; name it alone.")
    import datasets

    name, _, split = names[0].removeprefix(HUB).partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train").with_format("arrow")[:]
    except Exception as error:  # the library raises whatever its back ends raise
        raise DataError(f"{names[0]}: datasets cannot load it ({first_line(error)}); check name and split.") from None
    return _plain(table)


def _plain(table: pa.Table) -> pa.Table:
    """Dictionaries (pandas categories) and null columns as their values: DuckDB's joins want one plain type."""
    for i, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_null(kind):
            kind = pa.string()
        if kind != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(kind))
    return table


def _from_columns(columns: Sequence[tuple[str, Any]]) -> pa.Table:
    arrays = [_array(name, values) for name, values in columns]
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise DataError(f"the columns differ in length ({sorted(lengths)}); pass one value per event in each.")
    return pa.Table.from_arrays(arrays, names=[name for name, _ in columns])


def _array(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise DataError(f"column {name!r}: a {type(values).__name__} is not a column; pass one value per event.")
    try:
        array = pa.array(values, from_pandas=True)
        array.validate(full=True)
        return array
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        kinds = {type(value).__name__ for value in values}
    try:
        # A column of ints and strings is common after joins in pandas; labels are text anyway.
        if kinds <= {"str", "int", "float", "NoneType"}:
            return as_text(values)
    except (pa.ArrowException, ValueError):
        kinds.add("text that is not Unicode")
    raise DataError(f"column {name!r}: values of the types {', '.join(sorted(kinds))}; make them all text.")
