"""One log file and how to read it: what its first bytes say it is, and its text decoded.

Text files may be compressed (gzip, zstd, bzip2, xz) and in any encoding.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from behavegpt.errors import DataError
from behavegpt.ingest.csv_layout import CsvLayout

TEXT_FORMATS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
}  # fmt: skip
BINARY_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet",
    ".feather": "arrow", ".arrow": "arrow", ".ipc": "arrow",
}  # fmt: skip
MAGIC = {
    b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz",
}  # fmt: skip
# what people name by mistake: told apart from a log in an odd encoding
_REFUSED = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"FEA1": "a Feather file of version 1; write it again with a recent pyarrow",
    b"SQLite format 3": "an SQLite database; export the table as CSV or parquet",
    b"ORC": "an ORC file; write it as parquet",
    b"Obj\x01": "an Avro file; write it as parquet",
}
LONGEST_LINE = 1 << 24  # bytes
HEAD = 1 << 20  # characters that are looked at
_LINE_END = re.compile(r"\r\n|\r|\n")


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
        # DuckDB skips the mark of a CSV file, and takes that of JSON for text
        byte_order_mark = self.encoding == "utf-8-sig" and self.kind == "json"
        other = self.encoding not in ("utf-8", "utf-8-sig") or byte_order_mark
        return other or self.mixed or self.compression in ("bz2", "xz")


def content_of(path: Path) -> str:
    """What the first bytes of a file say it is."""
    with path.open("rb") as stream:
        head = stream.read(16)

    for magic, what in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(
                f"{path}: {what}. Known: {', '.join((*TEXT_FORMATS, *BINARY_FORMATS))}."
            )

    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "none")


def open_text(file: LogFile) -> io.TextIOWrapper:
    """The decoded text of a CSV or JSON file, without a byte order mark."""
    encoding = "utf-8-sig" if file.encoding == "utf-8" else file.encoding
    return io.TextIOWrapper(open_bytes(file.path, file.compression), encoding=encoding, newline="")


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
    # whether a quote is open, and a line end whose other half may come in the next piece
    quoted, held = False, ""
    for piece in pieces:
        piece = held + piece
        held = "\r" if piece.endswith("\r") else ""  # a \\n may follow

        # every second part is inside of quotes, where a line end belongs to the value
        parts = piece.removesuffix("\r").split('"')
        parts[quoted::2] = [_LINE_END.sub("\n", part) for part in parts[quoted::2]]
        quoted ^= len(parts) % 2 == 0

        yield '"'.join(parts)
    yield held


def is_mixed(head: str) -> bool:
    """Whether lines end in more than one way."""
    # outside of quotes only: a line end inside a value is the value's own
    return len(set(_LINE_END.findall("".join(head.removesuffix("\r").split('"')[::2])))) > 1


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
    with open_bytes(path, content_of(path)) as stream:
        sample = stream.read(HEAD)

    # UTF-16 of Western text: every second byte is 0
    zeros = [sample[i::2].count(0) for i in (0, 1)]
    if max(zeros) * 4 > len(sample):
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"

    # Codes 80 to 9f are control characters in Latin-1 and quotes, dashes and the euro in Windows'
    # superset of it.
    return "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"


def known_encoding(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), encoding=name)  # some are no encodings of text, as base64
        return name
    except LookupError:
        raise DataError(
            f"--encoding {encoding!r}: not known; try utf-8, latin-1, cp1252 or utf-16."
        ) from None


def open_bytes(path: Path, compression: str) -> Any:
    """The bytes of a file, decompressed."""
    if compression in ("gzip", "zstd"):
        return pa.input_stream(str(path), compression=compression)
    openers: dict[str, Any] = {"bz2": bz2.open, "xz": lzma.open}
    return openers.get(compression, open)(path, "rb")
