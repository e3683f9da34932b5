"""The event files of the RecSys Challenge 2025 as one SQL table; works on the download and on its
`input` folder."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.database import literal, one_row, quoted
from behavegpt.errors import DataError, first_line

SHOP_FILES: dict[str, str | None] = {
    "product_buy": "sku",
    "add_to_cart": "sku",
    "remove_from_cart": "sku",
    "page_visit": "url",
    "search_query": None,  # the text of a query is no label, but its codes are
}
PROPERTIES = "product_properties.parquet"
NO_CODES = "null::varchar[]"
LATER_NAME = "embedding"  # of the columns `query` and `name` in the later public release


def shop_table(con: duckdb.DuckDBPyConnection, folder: Path) -> tuple[str, int]:
    """SQL of all events as text columns client_id, timestamp, kind, sku, url, category, price and a
    list `codes`.

    Products get what product_properties.parquet, in the folder or the one above it, knows of them.
    Also returns the number of codes of a query or name. Raises DataError.
    """
    missing = [
        f"{kind}.parquet" for kind in SHOP_FILES if not (folder / f"{kind}.parquet").is_file()
    ]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing; give the folder with all five event files."
        )
    products = next(
        (p for p in (folder / PROPERTIES, folder.parent / PROPERTIES) if p.is_file()), None
    )
    if products is not None:
        _need(products, {"sku", "category", "price"})
    parts = [
        _events(folder / f"{kind}.parquet", kind, column, products)
        for kind, column in SHOP_FILES.items()
    ]
    codes = _codes(folder / "search_query.parquet", "query")
    first = f"(select * from read_parquet({literal(folder / 'search_query.parquet')}) limit 1000)"
    width = one_row(con, f"select max(len({codes})) from {first}")[0]
    return f"({' union all by name '.join(parts)})", width or 0


def _events(path: Path, kind: str, column: str | None, products: Path | None) -> str:
    """One event file as SQL."""
    _need(path, {"client_id", "timestamp"} | ({column} if column else set()))
    log, files, codes = "log", f"read_parquet({literal(path)}) as log", NO_CODES
    columns = {"sku": "null", "url": "null", "category": "null", "price": "null"}
    if column:
        columns[column] = f"{log}.{column}::varchar"
    else:
        codes = _codes(path, "query", log)
    if column == "sku" and products is not None:
        files += f" left join read_parquet({literal(products)}) as product on log.sku = product.sku"
        columns |= {
            "category": "coalesce(product.category::varchar, 'unknown')",
            "price": "product.price::varchar",
        }
        codes = _codes(products, "name", "product")
    told = ", ".join(f"({sql})::varchar as {name}" for name, sql in columns.items())
    return (
        "select log.client_id::varchar as client_id, log.timestamp::varchar as timestamp, "
        f"{literal(kind)} as kind, {told}, {codes} as codes from {files}"
    )


def _codes(path: Path, column: str, table: str | None = None) -> str:
    """SQL of the codes of a file, a list of texts; they are stored as text "[ 1 22 ...]" or as a
    list."""
    names = pq.read_schema(path).names
    found = next((name for name in (column, LATER_NAME) if name in names), None)
    where = f"{table}." if table else ""
    return f"regexp_extract_all({where}{quoted(found)}::varchar, '[0-9]+')" if found else NO_CODES


def _need(path: Path, columns: set[str]) -> None:
    try:
        missing = sorted(columns - set(pq.read_schema(path).names))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not a parquet file ({first_line(error)}); download it again."
        ) from None
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; give the file as it was downloaded."
        )
