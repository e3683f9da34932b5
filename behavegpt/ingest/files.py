"""One log file looked at: what it is by its content, how it is written, and the names of its
columns.

Text files may be compressed (gzip, zstd, bzip2, xz) and in any encoding; the ending only tells CSV
from JSON.
"""

from __future__ import annotations

import bz2
import codecs
import io
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.database import reading
from behavegpt.errors import DataError
from behavegpt.ingest.csv_layout import CsvLayout, csv_layout
from behavegpt.ingest.nested import arrow_paths, value_paths

TEXT_FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
BINARY_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet",
    ".feather": "arrow", ".arrow": "arrow", ".ipc": "arrow",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
_MAGIC = {
    b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz",
}  # fmt: skip
_REFUSED = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"FEA1": "a Feather file of version 1; write it again with a recent pyarrow",
    b"SQLite format 3": "an SQLite database; export the table as CSV or parquet",
    b"ORC": "an ORC file; write it as parquet",
    b"Obj\x01": "an Avro file; write it as parquet",
}
LONGEST_LINE = 1 << 24  # bytes
_HEAD = 1 << 20  # characters that are looked at
_JSON_HEAD = 1000  # objects whose keys name the columns
_BOMS = {  # UTF-32 before UTF-16, whose mark begins alike
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_LINE_END = re.compile(r"\r\n|\r|\n")
_PART = re.compile(r"([^=]+)=(.*)")


@dataclass(frozen=True)
class LogFile:
    """A file and how to read it."""

    path: Path
    kind: str  # csv, json, parquet or arrow
    names: tuple[str, ...] = ()  # its columns
    nested: tuple[str, ...] = ()  # dotted paths below them, those that are seen
    # columns that its folders' names tell: (date, 2024-03-01)
    parts: tuple[tuple[str, str], ...] = ()
    compression: str = "none"
    encoding: str = "utf-8"
    # lines that the encoding cannot read are an error, not a reject: nobody named the encoding
    strict: bool = True
    csv: CsvLayout = field(default_factory=CsvLayout)
    mixed: bool = False  # lines of a CSV file end in more than one way, which DuckDB refuses
    layout: str = "newline_delimited"  # of JSON: as DuckDB's read_json names it

    @property
    def converted(self) -> bool:
        """Whether DuckDB can only read a copy in plain UTF-8."""
        byte_order_mark = self.encoding == "utf-8-sig" and self.kind == "json"
        other = self.encoding not in ("utf-8", "utf-8-sig") or byte_order_mark
        return other or self.mixed or self.compression in ("bz2", "xz")


def look_at(path: Path, encoding: str | None = None) -> LogFile:
    """The kind, layout and columns of a file; `encoding` of its text, by default UTF-8. Raises
    DataError."""
    with reading(str(path), [path]):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes); remove it or write it again.")
        content = _content(path)
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


def arrow_schema(file: LogFile) -> pa.Schema:
    """The Arrow schema of a parquet or Arrow file."""
    return pq.read_schema(file.path) if file.kind == "parquet" else _arrow_schema(file.path)


def open_text(file: LogFile) -> io.TextIOWrapper:
    """The decoded text of a CSV or JSON file, without a byte order mark."""
    encoding = "utf-8-sig" if file.encoding == "utf-8" else file.encoding
    return io.TextIOWrapper(_open_bytes(file.path, file.compression), encoding=encoding, newline="")


def write_utf8(file: LogFile, target: Path) -> None:
    """A copy of a text file that DuckDB reads: not compressed, UTF-8, one kind of line end. Raises
    DataError."""
    try:
        with open_text(file) as source, target.open("w", encoding="utf-8", newline="") as copy:
            pieces = iter(partial(source.read, 1 << 22), "")
            copy.writelines(_one_line_end(pieces) if file.mixed else pieces)
    except UnicodeError as error:
        raise DataError(
            f"{file.path}: cannot be read as {file.encoding} ({error}); name the right one with "
            "--encoding."
        ) from None


def _one_line_end(pieces: Iterable[str]) -> Iterator[str]:
    """The text with \\n for every line end outside of quotes."""
    quoted, held = False, ""
    for piece in pieces:
        piece = held + piece
        held = "\r" if piece.endswith("\r") else ""  # a \\n may follow
        parts = piece.removesuffix("\r").split('"')
        parts[quoted::2] = [_LINE_END.sub("\n", part) for part in parts[quoted::2]]
        quoted ^= len(parts) % 2 == 0
        yield '"'.join(parts)
    yield held


def _is_mixed(head: str) -> bool:
    """Whether lines end in more than one way."""
    return len(set(_LINE_END.findall("".join(head.removesuffix("\r").split('"')[::2])))) > 1


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


def ipc_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of an Arrow IPC (Feather) file or stream, of some columns."""
    source = pa.memory_map(str(path))
    names = _arrow_schema(path).names
    fields = None if columns is None else [names.index(column) for column in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    with path.open("rb") as stream:
        is_file = stream.read(6) == b"ARROW1"
    if is_file:
        opened = pa.ipc.open_file(source, options=options)
        yield from (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        yield from pa.ipc.open_stream(source, options=options)


def encoding_error(path: Path, where: str = "") -> DataError:
    """The error for text that is not UTF-8, with the likeliest encoding by what the first bytes
    look like."""
    guess = _guess_encoding(path)
    return DataError(
        f"{path}{where}: cannot be read as UTF-8; it looks like {guess}. Pass --encoding {guess} "
        "if that is right, "
        "write the file again in UTF-8, or pass --encoding utf-8 to reject such lines."
    )


def _guess_encoding(path: Path) -> str:
    with _open_bytes(path, _content(path)) as stream:
        sample = stream.read(_HEAD)
    zeros = [sample[i::2].count(0) for i in (0, 1)]
    if max(zeros) * 4 > len(sample):
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    # Codes 80 to 9f are control characters in Latin-1 and quotes, dashes and the euro in Windows'
    # superset of it.
    return "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"


def _open_bytes(path: Path, compression: str) -> Any:
    """The bytes of a file, decompressed."""
    if compression in ("gzip", "zstd"):
        return pa.input_stream(str(path), compression=compression)
    openers: dict[str, Any] = {"bz2": bz2.open, "xz": lzma.open}
    return openers.get(compression, open)(path, "rb")


def _content(path: Path) -> str:
    """What the first bytes of a file say it is."""
    with path.open("rb") as stream:
        head = stream.read(16)
    for magic, what in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path}: {what}. Known: {', '.join((*TEXT_FORMATS, *BINARY_FORMATS))}."
            )
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "none")


def _kind(path: Path, content: str) -> str:
    """csv, json, parquet or arrow. Raises DataError for an ending that is not known."""
    if content in ("parquet", "arrow"):
        return content
    name = path.name.lower()
    ending = next((e for e in COMPRESSED if name.endswith(e)), "")
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


def _arrow_schema(path: Path) -> pa.Schema:
    source = pa.memory_map(str(path))
    with path.open("rb") as stream:
        is_file = stream.read(6) == b"ARROW1"
    return pa.ipc.open_file(source).schema if is_file else pa.ipc.open_stream(source).schema


def _look_at_text(file: LogFile, encoding: str | None) -> LogFile:
    with _open_bytes(file.path, file.compression) as stream:
        start = stream.read(16)
    inside = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if file.compression != "none" and inside and inside != "arrow":
        raise DataError(
            f"{file.path}: {inside} inside {file.compression}; unpack it once, and name what is "
            "in it."
        )
    if encoding is None:
        marked = next((name for mark, name in _BOMS.items() if start.startswith(mark)), "utf-8")
        file = replace(file, encoding=marked)
    else:
        file = replace(file, encoding=_known_encoding(encoding), strict=False)
    try:
        with open_text(file) as text:
            head = text.read(_HEAD)
            while "\n" not in head and len(head) < LONGEST_LINE and (more := text.read(_HEAD)):
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
        return replace(file, csv=layout, names=layout.names, mixed=_is_mixed(head))
    written = _json_layout(file.path, head)
    rows = list(json_objects(str(file.path), head, written, whole))
    names = dict.fromkeys(name for row in rows for name in row)
    return replace(file, layout=written, names=tuple(names), nested=value_paths(rows))


def _known_encoding(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), encoding=name)  # some are no encodings of text, as base64
        return name
    except LookupError:
        raise DataError(
            f"--encoding {encoding!r}: not known; try utf-8, latin-1, cp1252 or utf-16."
        ) from None


def _json_layout(path: Path, head: str) -> str:
    start = head.lstrip()
    if start.startswith("["):
        return "array"
    if ".json" not in path.suffixes and path.suffix != ".json":
        return "newline_delimited"
    try:
        json.loads(start.partition("\n")[0])
        return "newline_delimited"
    except (ValueError, RecursionError):
        return "unstructured"  # one object, or several, over many lines


def json_objects(where: str, head: str, layout: str, whole: bool) -> Iterator[dict[str, Any]]:
    """The first objects of the text of a JSON file. Raises DataError for what is no object, or has
    a key twice."""

    def keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if twice:
            raise DataError(f"{where}: the key {twice[0]!r} occurs twice in one object; keep one.")
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=keys)
    place, separators = (head.index("[") + 1, " \t\r\n,") if layout == "array" else (0, " \t\r\n")
    for _ in range(_JSON_HEAD):
        while place < len(head) and head[place] in separators:
            place += 1
        if place >= len(head) or (layout == "array" and head[place] == "]"):
            return
        line = head.count("\n", 0, place) + 1
        try:
            value, place = decoder.raw_decode(head, place)
        except (ValueError, RecursionError) as error:
            if not whole and (layout != "newline_delimited" or "\n" not in head[place:]):
                return  # the object goes on behind what was looked at
            raise DataError(
                f"{where}, line {line}: not JSON ({error}); write one object per line."
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f"{where}, line {line}: {type(value).__name__} found; write one object per line."
            )
        yield value
