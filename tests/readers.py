"""Both readers of rows in memory, compared wherever a test reads some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from behavegpt.ingest import events, rows


@pytest.fixture(autouse=True)
def both_readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is read without a database must be what DuckDB reads, to the byte."""
    quick = rows.read_rows

    def compared(logs: Any, schema: Any, fields: Any, time_range: Any) -> Any:
        read = quick(logs, schema, fields, time_range)
        if read is not None:
            expected = events.read_with_duckdb(logs, schema, fields, time_range, threads=1)
            for found, other in zip(read, expected, strict=True):
                assert found.equals(other), (found.to_pydict(), other.to_pydict())
        return read

    monkeypatch.setattr(events, "read_rows", compared)
    yield
