"""`prepare --group`: sets of events at one moment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt.cli import main
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.data.ties import reorder
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events, read_with_duckdb
from behavegpt.ingest.prepare import prepare, preview
from behavegpt.ingest.sources import find_logs
from tests.basket_logs import SCHEMA, SMALL, retail_log


def digests(folder: Path) -> dict[str, str]:
    """Digest of every column and the table of users."""
    files = sorted((folder / "columns").iterdir())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_rows_of_a_basket_in_any_order_give_the_same_bytes(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    log = retail_log(shared_data)
    first = prepare(log, tmp_path / "first", SCHEMA)
    index = np.random.default_rng(0).permutation(len(log))
    pq.write_table(log.take(index), tmp_path / "log.parquet")
    # from a file, and in buckets of few users
    again = prepare(tmp_path / "log.parquet", tmp_path / "again", SCHEMA, memory="256MiB")

    assert digests(first.path) == digests(again.path)
    assert first.manifest.content_hash == again.manifest.content_hash
    assert first.manifest.baskets == len(
        {(row["user_id"], row["invoice"]) for row in log.to_pylist()}
    )
    assert "baskets of" in (first.path / "data_card.md").read_text()


def test_a_basket_is_at_one_moment_and_in_one_split(tmp_path: Path) -> None:
    store = prepare(SMALL, tmp_path / "data", SCHEMA, split="date:2024-01-03,2024-01-05")
    baskets = store.baskets
    assert baskets is not None
    assert baskets.size.tolist() == [2, 2, 2, 2, 1, 2, 1, 1]
    assert baskets.offsets.tolist() == [0, 5, 8]
    # interleaved invoices stand apart, and each has the time of its earliest line
    hours = np.asarray(store.columns["time"])[baskets.begin[:-1]] / 60 + 8 * 60
    minutes = (hours - 24 * 60 * (hours // (24 * 60))).astype(int)
    assert minutes[:3].tolist() == [600, 601, 1439]
    for part in np.split(np.asarray(store.columns["time"]), baskets.begin[1:-1]):
        assert len(set(part.tolist())) == 1
    # invoice 3 begins on the last training day and ends on the first of validation
    assert baskets.columns["split"].tolist() == [0, 0, 0, 2, 2, 0, 1, 2]
    assert store.columns["basket"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 0, 0, 1, 2]
    with pytest.raises(DataError, match="no order"):
        reorder(store)


@pytest.mark.parametrize("read", [read_events, lambda *given: read_with_duckdb(*given)])
def test_logs_that_are_predicted_are_read_as_the_folder_was(
    read: Callable[..., Any], tmp_path: Path
) -> None:
    store = prepare(SMALL, tmp_path / "data", SCHEMA)
    table = read(find_logs(SMALL), SCHEMA).table
    assert table["basket"].to_pylist() == store.columns["basket"].tolist()
    assert "group" not in table.column_names
    times = np.asarray(store.columns["time"]).astype(np.int64) + store.manifest.time_origin
    assert (table["time"].to_numpy() // 1_000_000).tolist() == times.tolist()
    assert table["event"].to_pylist() == store.vocabulary["event"].decode(store.column("event"))


def test_dry_run_tells_the_baskets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "8 baskets of 1.6 events on average" in preview(SMALL, SCHEMA).remarks
    pq.write_table(SMALL, tmp_path / "log.parquet")
    columns = ["--user", "user_id", "--time", "timestamp", "--event", "event"]
    log = str(tmp_path / "log.parquet")
    assert main(["prepare", log, *columns, "--group", "invoice", "--dry-run"]) == 0
    assert "8 baskets" in capsys.readouterr().err


def test_a_folder_without_group_says_nothing_of_baskets(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"group": None})
    store = prepare(SMALL, tmp_path / "data", schema)
    manifest = json.loads((store.path / "dataset.json").read_text())
    assert "baskets" not in manifest
    assert "group" not in manifest["event_schema"]
    assert open_store(store.path).baskets is None


REFUSED = {
    "an order inside": ({"order": "family"}, "order 'family'"),
    "the user": ({"group": "user_id"}, "'user_id' is the user"),
    "a field's name": ({"extra": ("basket",)}, "reserved name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_schemas_that_contradict_a_group(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        EventSchema.model_validate({**SCHEMA.model_dump(), **changes})


def test_a_column_called_basket_may_be_a_field_without_a_group(tmp_path: Path) -> None:
    log = SMALL.append_column("basket", SMALL["invoice"])
    schema = EventSchema.model_validate(
        {**SCHEMA.model_dump(), "group": None, "extra": ("basket",)}
    )
    assert "basket" in prepare(log, tmp_path / "data", schema).vocabulary


def test_an_absent_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)'invoice'.*group"):
        prepare(SMALL.drop_columns(["invoice"]), tmp_path / "data", SCHEMA)


def test_many_users_in_many_buckets_are_numbered_alike(tmp_path: Path) -> None:
    parts = []
    for number in range(50):
        users = pa.array([f"{label}{number}" for label in SMALL["user_id"].to_pylist()])
        parts.append(SMALL.set_column(0, "user_id", users))
    whole = prepare(pa.concat_tables(parts), tmp_path / "whole", SCHEMA)
    small = prepare(SMALL, tmp_path / "small", SCHEMA)
    numbers = np.split(np.asarray(whole.columns["basket"]), whole.offsets[1:-1])
    expected = np.split(np.asarray(small.columns["basket"]), small.offsets[1:-1])
    for user, found in zip(whole.users().to_pylist(), numbers, strict=True):
        assert found.tolist() == expected["ab".index(user[0])].tolist()


def test_spark_makes_no_baskets(tmp_path: Path) -> None:
    pq.write_table(SMALL, tmp_path / "log.parquet")
    with pytest.raises(DataError, match="--engine local"):
        prepare(tmp_path / "log.parquet", tmp_path / "data", SCHEMA, engine="spark")
    assert not (tmp_path / "data").exists()
