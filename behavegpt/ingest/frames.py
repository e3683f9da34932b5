"""Frames in memory and `datasets` names: columns that are made Arrow arrays only when they are
asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.vocabulary import as_text
from behavegpt.errors import DataError, first_line

HUB = "hf:"
Array: TypeAlias = pa.Array | pa.ChunkedArray
Maker = Callable[[int | None], Array]  # the first rows of a column, None for all
_SHOWN = (
    pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    pa.types.is_temporal, pa.types.is_decimal128, pa.types.is_float32, pa.types.is_float64,
    pa.types.is_integer, pa.types.is_struct, pa.types.is_map, pa.types.is_list,
    pa.types.is_large_list, pa.types.is_fixed_size_list,
)  # fmt: skip
_TEXTS = {"str", "int", "float", "bool", "NoneType", "NAType"}


class Frame:
    """A table by columns. Those that nobody asks for are never converted, so that nothing in them
    can be wrong."""

    def __init__(self, columns: Mapping[str, Maker]) -> None:
        self._columns = dict(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(self._columns)

    def select(self, names: Sequence[str], rows: int | None = None) -> pa.Table:
        """Some columns as an Arrow table, of the first `rows` or all. Raises DataError for values
        without a type in common."""
        arrays = [plain_array(name, self._columns[name](rows)) for name in names]

        # looked at here: Arrow would tell of a length without the columns
        lengths = {len(array) for array in arrays}
        if len(lengths) > 1:
            raise DataError(
                f"the columns differ in length ({sorted(lengths)}); pass one value per event in "
                "each."
            )

        return pa.Table.from_arrays(arrays, names=list(names))

    def sample(self, rows: int) -> pa.Table:
        """The first rows of all columns; those that cannot be converted as text, to be shown."""
        arrays: dict[str, Array] = {}
        for name, maker in self._columns.items():
            try:
                arrays[name] = _shown(name, maker(rows))
            # shown to people as the column's first value, so that they see what is wrong
            except DataError as error:
                arrays[name] = pa.array([str(error)])

        length = max((len(array) for array in arrays.values()), default=0)
        return pa.table({name: _filled(array, length) for name, array in arrays.items()})


def as_frame(frame: Any) -> Frame:
    """A pandas, polars or Arrow table, a `datasets.Dataset`, or a mapping of columns. Raises
    DataError."""
    if isinstance(frame, Frame):
        return frame
    if isinstance(frame, pa.Table):
        _check_names(frame.column_names)
        return Frame({name: _sliced(frame.column(i)) for i, name in enumerate(frame.column_names)})

    # by name of the module: neither library is imported to look at its objects
    if type(frame).__module__.startswith("datasets."):
        return as_frame(_dataset_table(frame))
    if isinstance(frame, Mapping):
        # a mapping: each value is a column, named as text
        return Frame({str(name): _made(str(name), values) for name, values in frame.items()})
    if hasattr(frame, "get_column") and hasattr(frame, "to_arrow"):  # polars
        return Frame({name: _polars(name, frame.get_column(name)) for name in frame.columns})

    if hasattr(frame, "to_arrow"):
        return as_frame(frame.to_arrow())

    if hasattr(frame, "iloc") and hasattr(frame, "columns"):  # no Series
        _check_names([str(name) for name in frame.columns])
        return Frame(
            {str(name): _made(str(name), frame.iloc[:, i]) for i, name in enumerate(frame.columns)}
        )

    raise DataError(
        f"a {type(frame).__name__} holds no logs; pass a file, a DataFrame or a dict of columns."
    )


def _dataset_table(dataset: Any) -> pa.Table:
    """The table of a `datasets.Dataset`. Raises DataError for a DatasetDict, which holds
    several."""
    if isinstance(dataset, Mapping):
        raise DataError(
            f"a DatasetDict holds several data sets ({', '.join(dataset)}); pass one of them."
        )
    return dataset.with_format("arrow")[:]


def hub_table(names: Sequence[str]) -> pa.Table:
    """The table of `hf:NAME[:split]` (split `train` by default), loaded by `datasets`. Raises
    DataError."""
    if len(names) > 1:
        raise DataError(
            f"{names[1]}: a {HUB} data set cannot be mixed with other logs; name it alone."
        )
    import datasets

    name, _, split = names[0].removeprefix(HUB).partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train").with_format("arrow")[:]
    except Exception as error:  # the library raises whatever its back ends raise
        raise DataError(
            f"{names[0]}: datasets cannot load it ({first_line(error)}); check name and split."
        ) from None


def _check_names(names: Sequence[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"frame: column {twice!r} occurs twice; rename one of them.")


def _sliced(column: pa.ChunkedArray) -> Maker:
    return lambda rows: column if rows is None else column.slice(0, rows)


def _made(name: str, values: Any) -> Maker:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):

        def refuse(rows: int | None) -> Array:
            raise DataError(
                f"column {name!r}: a {type(values).__name__} is not a column; pass one value per "
                "event."
            )

        return refuse
    return lambda rows: _array(name, values if rows is None else values[:rows])


def _polars(name: str, series: Any) -> Maker:
    def make(rows: int | None) -> Array:
        try:
            return (series if rows is None else series.head(rows)).to_arrow()
        except Exception as error:  # a column of Python objects
            raise DataError(f"column {name!r}: {first_line(error)}; make it text.") from None

    return make


def _array(name: str, values: Any) -> Array:
    dtype = str(getattr(values, "dtype", ""))
    if dtype.startswith(("period", "interval")):
        raise DataError(
            f"column {name!r}: a pandas {dtype.split('[')[0]} is a span, not a moment or a label; "
            "convert it with .dt.start_time or .astype(str)."
        )

    try:
        # from_pandas: NaN in a column of objects is a missing value, as pandas means it
        array = pa.array(values, from_pandas=True)
        # in full: text that is not UTF-8 is found here, by column, not later in DuckDB
        array.validate(full=True)
        if pa.types.is_temporal(array.type) and dtype in ("", "object"):
            _check_moments(name, values)
        return array
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        # by name: numpy's and pandas' types need not be imported
        kinds = {type(value).__name__ for value in values}
    try:
        # A column of ints and strings is common after joins in pandas; labels are text anyway.
        if kinds <= _TEXTS or all(_is_scalar(value) for value in values):
            return as_text(values)
        # objects whose fields differ in type, as in JSON
        if kinds <= {"dict", "list", "NoneType", "float"}:
            return pa.array(
                [
                    json.dumps(v, ensure_ascii=False, default=str)
                    if isinstance(v, (dict, list))
                    else None
                    for v in values
                ]
            )
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        kinds.add("text that is not Unicode")

    raise DataError(
        f"column {name!r}: values of the types {', '.join(sorted(kinds))}; make them all text."
    )


def _check_moments(name: str, values: Any) -> None:
    """Raise DataError for Python times of two kinds, which Arrow makes one: the hour of some would
    be another."""
    # kind of a time -> the first row that is of it
    rows: dict[str, int] = {}
    for row, value in enumerate(values, 1):
        # a datetime is a date too
        if isinstance(value, date) and value == value:  # NaT is neither
            kind = (
                "a date"
                if not isinstance(value, datetime)
                else "with a zone"
                if value.tzinfo
                else "without a zone"
            )
            rows.setdefault(kind, row)

    if len(rows) > 1:
        (one, first), (two, second) = list(rows.items())[:2]
        raise DataError(
            f"column {name!r}: the time in row {first} is {one}, in row {second} it is {two}; make "
            "them all alike, for example with pd.to_datetime(..., utc=True)."
        )


def _is_scalar(value: Any) -> bool:
    """Whether a value is text, a number, a truth value or missing, Python's or numpy's."""
    item = getattr(value, "item", None)
    plain = item() if callable(item) and getattr(value, "ndim", 1) == 0 else value
    return type(plain).__name__ in _TEXTS


def plain_array(name: str, array: Array) -> Array:
    """The array in a type that DuckDB reads and joins: categories as their values, null columns as
    text."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name.startswith("pandas."):
            raise DataError(
                f"column {name!r}: {kind.extension_name} is a span, not a moment or a label; make "
                "it text."
            )
        # DuckDB reads it as its own type
        if kind.extension_name == "arrow.uuid":
            return array
        array = array.cast(kind.storage_type)
        kind = array.type

    if pa.types.is_run_end_encoded(kind):
        array = pc.run_end_decode(array)
    elif pa.types.is_dictionary(kind):
        return plain_array(name, array.cast(kind.value_type))
    elif pa.types.is_null(kind):
        return array.cast(pa.string())
    # DuckDB has none of 16 bits
    elif pa.types.is_float16(kind):
        return array.cast(pa.float32())
    # DuckDB has decimals of 38 digits at most
    elif pa.types.is_decimal256(kind):
        return array.cast(pa.string())
    return array


def _filled(array: Array, length: int) -> Array:
    """An array of the length of the others, nulls behind it."""
    pieces = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    return pa.chunked_array([*pieces, pa.nulls(length - len(array), array.type)], array.type)


def _shown(name: str, array: Array) -> Array:
    array = plain_array(name, array)
    if any(test(array.type) for test in _SHOWN):
        return array

    return pa.array(
        [None if value is None else str(value)[:200] for value in array.to_pylist()], pa.string()
    )
