"""Parquet and Arrow files: their schemas, and the batches of an Arrow file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.ingest.log_file import LogFile


def arrow_schema(file: LogFile) -> pa.Schema:
    """The Arrow schema of a parquet or Arrow file."""
    return pq.read_schema(file.path) if file.kind == "parquet" else _arrow_schema(file.path)


def ipc_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of an Arrow IPC (Feather) file or stream, of some columns."""
    # mapped: columns that nobody asks for are never read
    source = pa.memory_map(str(path))
    names = _arrow_schema(path).names
    fields = None if columns is None else [names.index(column) for column in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields)

    if _is_file(path):
        opened = pa.ipc.open_file(source, options=options)
        yield from (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        yield from pa.ipc.open_stream(source, options=options)


def _arrow_schema(path: Path) -> pa.Schema:
    opens = pa.ipc.open_file if _is_file(path) else pa.ipc.open_stream
    return opens(pa.memory_map(str(path))).schema


def _is_file(path: Path) -> bool:
    """Whether Arrow wrote a file, whose batches can be chosen, and no stream of them."""
    # a stream has no magic bytes at its beginning, a file has
    with path.open("rb") as opened:
        return opened.read(6) == b"ARROW1"
