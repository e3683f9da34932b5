"""The event files of the RecSys Challenge 2025 as one SQL table; works on the download and on its
`input` folder."""

from __future__ import annotations

from pathlib import Path

import duckdb

from behavegpt.data.database import literal, one_row, quoted
from behavegpt.datasets.challenge_files import (
    CODES,
    EVENTS,
    ITEMS,
    PROPERTIES,
    read_columns,
    stored_name,
)
from behavegpt.errors import DataError

NO_CODES = "null::varchar[]"


def shop_table(con: duckdb.DuckDBPyConnection, folder: Path) -> tuple[str, int]:
    """SQL of all events as text columns client_id, timestamp, kind, sku, url, category, price and a
    list `codes`.

    Products get what product_properties.parquet, in the folder or the one above it, knows of them.
    Also returns the number of codes of a query or name. Raises DataError.
    """
    missing = [f"{kind}.parquet" for kind in EVENTS if not (folder / f"{kind}.parquet").is_file()]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing; give the folder with all five event files."
        )

    places = (folder / PROPERTIES, folder.parent / PROPERTIES)
    products = next((place for place in places if place.is_file()), None)
    if products is not None:
        _need(products, {"sku", "category", "price"})

    parts = [
        _events(folder / f"{kind}.parquet", kind, column, products)
        for kind, column in ITEMS.items()
    ]

    # a thousand queries tell how many codes there are: all have the same number
    codes = _codes(folder / "search_query.parquet", "query")
    first = f"(select * from read_parquet({literal(folder / 'search_query.parquet')}) limit 1000)"
    width = one_row(con, f"select max(len({codes})) from {first}")[0]

    return f"({' union all by name '.join(parts)})", width or 0


def _events(path: Path, kind: str, column: str, products: Path | None) -> str:
    """One event file as SQL."""
    # the codes have two names, and are looked up when they are read
    _need(path, {"client_id", "timestamp"} | ({column} - set(CODES)))
    log, files, codes = "log", f"read_parquet({literal(path)}) as log", NO_CODES

    columns = {"sku": "null", "url": "null", "category": "null", "price": "null"}

    if column in CODES:  # the text of a query is no label, but its codes are
        codes = _codes(path, column, log)
    else:
        columns[column] = f"{log}.{column}::varchar"

    if column == "sku" and products is not None:
        files += f" left join read_parquet({literal(products)}) as product on log.sku = product.sku"
        # a product without a line in the properties is unknown, not null: null would be the bare
        # kind
        columns |= {
            "category": "coalesce(product.category::varchar, 'unknown')",
            "price": "product.price::varchar",
        }
        codes = _codes(products, "name", "product")

    texts = ", ".join(f"({sql})::varchar as {name}" for name, sql in columns.items())

    return (
        "select log.client_id::varchar as client_id, log.timestamp::varchar as timestamp, "
        f"{literal(kind)} as kind, {texts}, {codes} as codes from {files}"
    )


def _codes(path: Path, column: str, table: str | None = None) -> str:
    """SQL of the codes of a file, a list of texts; they are stored as text "[ 1 22 ...]" or as a
    list."""
    schema = read_columns(path)
    stored, prefix = stored_name(schema, column), f"{table}." if table else ""
    if stored not in schema.names:
        return NO_CODES
    return f"regexp_extract_all({prefix}{quoted(stored)}::varchar, '[0-9]+')"


def _need(path: Path, columns: set[str]) -> None:
    missing = sorted(columns - set(read_columns(path).names))
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; give the file as it was downloaded."
        )
