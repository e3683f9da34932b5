"""The data directory of the RecSys Challenge 2025: which file holds what, and checks that name the
file, the column and the remedy. Whoever reads such a directory reads it by this.

DIR/{product_buy,add_to_cart,remove_from_cart,page_visit,search_query}.parquet   the full history
DIR/product_properties.parquet
DIR/input/relevant_clients.npy                        and, after the split, the five event files
DIR/target/active_clients.npy, propensity_X.npy, popularity_propensity_X.npy
DIR/target/{train,validation}_target.parquet          after the split
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.arrays import open_array
from behavegpt.data.database import literal, reading
from behavegpt.errors import DataError
from behavegpt.paths import local_path

EventName = Literal["product_buy", "add_to_cart", "remove_from_cart", "page_visit", "search_query"]
EVENTS: tuple[EventName, ...] = get_args(EventName)
ITEMS: dict[EventName, str] = {  # event type -> the column beside client_id and timestamp
    "product_buy": "sku",
    "add_to_cart": "sku",
    "remove_from_cart": "sku",
    "page_visit": "url",
    "search_query": "query",
}
PROPERTIES = "product_properties.parquet"
WINDOWS = ("train", "validation")
CODES = ("query", "name")  # quantized embeddings: text "[ 1 22 ...]" or lists of any width
LATER_NAME = "embedding"  # what the later public release calls them

# what an error calls a type -> whether a column has it
TYPES = {
    "a whole number": pa.types.is_integer,
    "a time (text YYYY-MM-DD HH:MM:SS or timestamp)": lambda t: (
        _is_text(t) or pa.types.is_timestamp(t)
    ),
    "codes (text '[1 2 ...]' or a list of numbers)": lambda t: _is_text(t) or _is_list(t),
}
# in the order of TYPES
NUMBER, TIME, CODE = TYPES
EVENT_COLUMNS = {
    # the same three columns for all; only what was acted on differs
    name: {"client_id": NUMBER, "timestamp": TIME, column: NUMBER}
    for name, column in ITEMS.items()
}
# a query is no number but the codes of its embedding
EVENT_COLUMNS["search_query"]["query"] = CODE
PROPERTY_COLUMNS = {"sku": NUMBER, "category": NUMBER, "price": NUMBER, "name": CODE}
TARGET_COLUMNS = {
    "client_id": NUMBER,
    "timestamp": TIME,
    "sku": NUMBER,
    "category": NUMBER,
    "price": NUMBER,
}


@dataclass(frozen=True)
class ChallengeDirectory:
    """A data directory; arrays and tables are read when asked for."""

    path: Path

    @property
    def properties(self) -> Path:
        return self.path / PROPERTIES

    @property
    def relevant_clients(self) -> np.ndarray:
        """(N,) int64, without repetition."""
        return read_ids(self.path / "input" / "relevant_clients.npy")

    @property
    def active_clients(self) -> np.ndarray:
        """(A,) int64: clients that bought something in the history."""
        return read_ids(self.path / "target" / "active_clients.npy")

    def raw(self, event: str) -> Path:
        """The full history of an event type."""
        return self.path / f"{event}.parquet"

    def input(self, event: str) -> Path:
        """The part of an event type's history that vectors are made from (written by the split)."""
        return self.path / "input" / f"{event}.parquet"

    def target(self, window: str) -> Path:
        """Purchases in the window "train" or "validation" with their product's properties (written
        by the split)."""
        return self.path / "target" / f"{window}_target.parquet"

    def array(self, name: str) -> Path:
        """An array of the target folder, such as "propensity_sku"."""
        return self.path / "target" / f"{name}.npy"


def open_directory(path: str | Path) -> ChallengeDirectory:
    """Check that the layout is the challenge's; raises DataError naming what is missing."""
    path = local_path(path)
    if not path.is_dir():
        raise DataError(
            f"Directory '{path}' does not exist; give the folder that holds product_buy.parquet."
        )

    contents = {
        "input": "relevant_clients.npy",
        "target": "active_clients.npy and propensity_*.npy",
    }
    for name, holds in contents.items():
        if not (path / name).is_dir():
            raise DataError(
                f"The '{name}' subdirectory in '{path}' is missing; a directory with competition "
                f"data has one with {holds}."
            )

    if not (path / PROPERTIES).is_file():
        raise DataError(f"The {PROPERTIES} file is missing in '{path}'; copy it from the download.")

    return ChallengeDirectory(path)


def raw_rows(path: str | Path) -> int:
    """Number of events in the raw files, from their footers; checks their columns and types."""
    directory = open_directory(path)
    for event, columns in EVENT_COLUMNS.items():
        check_table(directory.raw(event), columns)
    # after all were checked: the first wrong file is named, not the first missing footer
    return sum(pq.read_metadata(directory.raw(event)).num_rows for event in EVENTS)


def check_table(path: Path, columns: Mapping[str, str]) -> pa.Schema:
    """Check a parquet file's columns and types by its footer; raises DataError naming the first
    wrong one."""
    if not path.is_file():
        remedy = (
            "run `behavegpt challenge split` first"
            if path.parent.name in ("input", "target")
            else "download it"
        )
        raise DataError(f"{path} is missing; {remedy}.")

    schema = read_columns(path)
    for name, kind in columns.items():
        stored = stored_name(schema, name)
        # twice is as wrong as never: which one would be read?
        if schema.names.count(stored) != 1:
            has = ", ".join(schema.names)
            raise DataError(
                f"{path}: needs one column {name!r} ({kind}); it has {has}. Rename or add the "
                "column."
            )

        value = schema.field(stored).type
        if not TYPES[kind](value):
            raise DataError(f"{path}: column {name!r} is {value}, expected {kind}; convert it.")

    return schema


def read_columns(path: Path) -> pa.Schema:
    """Names and types of a parquet file's columns. Raises DataError when it is none."""
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: no readable parquet file ({error}); write or download it again."
        ) from None


def stored_name(schema: pa.Schema, name: str) -> str:
    """What a file calls a column: codes may have their later name."""
    later = name in CODES and name not in schema.names and LATER_NAME in schema.names
    return LATER_NAME if later else name


def check_products(con: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Each product has one line in the properties: a second one would count its events twice."""
    lines = f"SELECT sku, count(*) AS n FROM read_parquet({literal(file)}) GROUP BY sku"
    with reading(str(file), [file]):
        wrong = con.execute(f"{lines} HAVING n > 1 OR sku IS NULL LIMIT 1").fetchall()
    if wrong:
        raise DataError(
            f"{file}: sku {wrong[0][0]} has {wrong[0][1]} lines; keep one line for each product."
        )


def read_ids(path: Path) -> np.ndarray:
    """A file of client ids (N,) as int64; raises DataError for another type or shape, or an id that
    occurs twice."""
    ids = read_whole_numbers(path)

    # ids in any order: they are that of the vectors
    unique, first, count = np.unique(ids, return_index=True, return_counts=True)
    if len(unique) != len(ids):
        # the earliest, for the error
        again = int(first[count > 1].min())
        raise DataError(
            f"{path}: client {ids[again]} (index {again}) occurs more than once; keep one of each."
        )
    return ids


def read_whole_numbers(path: Path) -> np.ndarray:
    """A one-dimensional array of whole numbers (N,) as int64; floats are accepted when they are
    whole."""
    # a copy: ids are read often, and a mapped file may change meanwhile
    values = np.array(open_array(path))
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: holds {values.dtype} of shape {values.shape}; expected int64 in one "
            "dimension."
        )

    # NaN and infinity become some integer, which then differs from them
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)

    wrong = np.flatnonzero(whole != values)
    if len(wrong):
        raise DataError(
            f"{path}: index {wrong[0]} is {values[wrong[0]]}, no whole number; save the ids as "
            "int64."
        )

    return whole


def _is_text(type_: pa.DataType) -> bool:
    # some exports store texts as categories
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    return (
        pa.types.is_string(plain)
        or pa.types.is_large_string(plain)
        or pa.types.is_string_view(plain)
    )


def _is_list(type_: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)

    return any(test(type_) for test in lists) and (
        pa.types.is_integer(type_.value_type) or pa.types.is_floating(type_.value_type)
    )
