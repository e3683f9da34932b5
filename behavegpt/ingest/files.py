"""A log file looked at: its kind by its content, how it is written, and the names of its columns.

The ending only tells CSV from JSON.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from behavegpt.data.database import reading
from behavegpt.errors import DataError
from behavegpt.ingest.arrow_files import arrow_schema
from behavegpt.ingest.csv_layout import csv_layout
from behavegpt.ingest.json_layout import json_layout, json_objects
from behavegpt.ingest.log_file import (
    BINARY_FORMATS,
    HEAD,
    LONGEST_LINE,
    MAGIC,
    TEXT_FORMATS,
    LogFile,
    content_of,
    encoding_error,
    is_mixed,
    known_encoding,
    open_bytes,
    open_text,
)
from behavegpt.ingest.nested import arrow_paths, value_paths

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_BOMS = {  # UTF-32 before UTF-16, whose mark begins alike
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# KEY=VALUE, the name of a folder of a partitioned table
_PART = re.compile(r"([^=]+)=(.*)")


def look_at(path: Path, encoding: str | None = None) -> LogFile:
    """The kind, layout and columns of a file; `encoding` of its text, by default UTF-8. Raises
    DataError."""
    with reading(str(path), [path]):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes); remove it or write it again.")
        # by its first bytes: endings are often wrong, or lost on a download
        content = content_of(path)
        # what the folders say of every row is a column too
        file = LogFile(path, _kind(path, content), parts=_parts(path))
        if file.kind in ("parquet", "arrow"):
            schema = arrow_schema(file)
            file = replace(file, names=tuple(schema.names), nested=arrow_paths(schema))
        else:
            file = _look_at_text(replace(file, compression=content), encoding)

    if not file.names:
        raise DataError(
            f"{path}: no column names; a CSV file begins with a line of names, a JSONL file with "
            "an object."
        )

    check_distinct(str(path), file.names)
    return file


def check_distinct(where: str, names: tuple[str, ...] | list[str]) -> None:
    """Raise DataError for a name that occurs twice; DuckDB takes names that differ only in case for
    the same."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.get(name.lower())
        if first is not None:
            twice = "twice" if first == name else f"beside {first!r}, which differs only in case"
            raise DataError(f"{where}: column {name!r} occurs {twice}; rename one of them.")
        seen[name.lower()] = name


def _kind(path: Path, content: str) -> str:
    """csv, json, parquet or arrow. Raises DataError for an ending that is not known."""
    if content in ("parquet", "arrow"):
        return content

    name = path.name.lower()
    ending = next((e for e in COMPRESSED if name.endswith(e)), "")

    # inside of a compression only text is expected: parquet compresses by itself
    kinds = TEXT_FORMATS if content != "none" else TEXT_FORMATS | BINARY_FORMATS
    kind = next((kind for e, kind in kinds.items() if name.removesuffix(ending).endswith(e)), None)
    if kind is None:
        known = ", ".join((*TEXT_FORMATS, *BINARY_FORMATS))
        raise DataError(
            f"{path}: unknown extension; rename or convert the file. Known: {known}; text also "
            f"with {', '.join(COMPRESSED)} behind it. A web server's access log: behavegpt convert "
            "web_log."
        )
    return kind


def _parts(path: Path) -> tuple[tuple[str, str], ...]:
    """Columns that folders name as KEY=VALUE, the way Hive and Spark write them; the innermost
    wins."""
    matches = (_PART.fullmatch(folder) for folder in path.parent.parts)
    return tuple({unquote(match[1]): match[2] for match in matches if match}.items())


def _look_at_text(file: LogFile, encoding: str | None) -> LogFile:
    with open_bytes(file.path, file.compression) as stream:
        # enough for every mark and every magic number
        start = stream.read(16)

    # tables compress their columns themselves; whatever else is packed twice is a mistake
    inside = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    if file.compression != "none" and inside and inside != "arrow":
        raise DataError(
            f"{file.path}: {inside} inside {file.compression}; unpack it once, and name what is "
            "in it."
        )

    if encoding is None:
        marked = next((name for mark, name in _BOMS.items() if start.startswith(mark)), "utf-8")
        file = replace(file, encoding=marked)
    else:
        file = replace(file, encoding=known_encoding(encoding), strict=False)

    try:
        with open_text(file) as text:
            head = text.read(HEAD)
            # the first line must be whole: it names the columns
            while "\n" not in head and len(head) < LONGEST_LINE and (more := text.read(HEAD)):
                head += more
            whole = not text.read(1)
    except UnicodeError as error:
        if encoding is None:
            raise encoding_error(file.path) from None
        raise DataError(
            f"{file.path}: cannot be read as {file.encoding} ({error}); name another --encoding."
        ) from None

    if file.kind == "csv":
        layout = csv_layout(str(file.path), head, whole)
        return replace(file, csv=layout, names=layout.names, mixed=is_mixed(head))

    written = json_layout(file.path, head)
    rows = list(json_objects(str(file.path), head, written, whole))
    names = dict.fromkeys(name for row in rows for name in row)

    return replace(file, layout=written, names=tuple(names), nested=value_paths(rows))
