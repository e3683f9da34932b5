"""Spark's engine writes what the local engine writes, byte for byte."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import behavegpt.ingest.spark as module
from behavegpt.cli import main
from behavegpt.data.schema import EventSchema
from behavegpt.errors import DataError, MissingExtraError
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.spark_session import spark_session
from tests.ingest.test_prepare import SCHEMA, log, saved, split_files


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """One session for all tests, and more than one part for a small log."""
    pytest.importorskip("pyspark", reason="pyspark is not installed; pip install -e '.[spark]'")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java; install Java 17")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_ROWS", 700)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        with spark_session("local[2]") as session:
            yield session


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    return {
        str(p.relative_to(folder)): _digest(p) for p in sorted(folder.rglob("*")) if p.is_file()
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hostile() -> pd.DataFrame:
    """Null and odd labels, bad rows, an order key, ties."""
    frame = log().assign(order=lambda f: np.arange(len(f)) % 3)
    frame.loc[::200, "user"] = None
    frame.loc[1::300, "time"] = "never"
    frame.loc[2::50, "event"] = ['say "hi", now', "שלום", "two\nlines", "~", "007", "7"] * 10 + [
        "z"
    ] * 1
    frame.loc[3::500, "order"] = None
    return frame


WITH_ORDER = SCHEMA.model_copy(update={"order": "order"})
CASES: dict[str, tuple[Callable[[Path], Path], EventSchema | None, dict[str, Any]]] = {
    "three files": (lambda d: split_files(log(), d / "parts"), SCHEMA, {}),
    "csv with bad rows": (
        lambda d: saved(_hostile(), d / "a.csv"),
        WITH_ORDER,
        {"max_reject_share": 0.1},
    ),
    "users split": (
        lambda d: split_files(log(), d / "parts"),
        SCHEMA,
        {"split": "user:0.6,0.2,0.2", "min_events": 50},
    ),
    "types that differ between files": (
        lambda d: _mixed(d / "parts"),
        None,
        {"min_count": 2, "max_vocabulary": 9},
    ),
    "folders named after columns": (lambda d: partitioned(log(), d / "parts"), SCHEMA, {}),
    "folders named after columns, csv": (
        lambda d: partitioned(log(), d / "parts", "csv"),
        SCHEMA,
        {},
    ),
}


def partitioned(frame: pd.DataFrame, folder: Path, ending: str = "parquet") -> Path:
    """place=PLACE/kind=wrong/0.parquet: the place is in the path alone; the file's own kind
    wins."""
    for place, rows in frame.groupby("place", dropna=False):
        name = "__HIVE_DEFAULT_PARTITION__" if pd.isna(place) else str(place)
        part = folder / f"place={name}" / "kind=wrong" / f"0.{ending}"
        part.parent.mkdir(parents=True)
        saved(rows.drop(columns="place"), part)
    return folder


def _mixed(folder: Path) -> Path:
    """Integers in one file, floats with nulls in another; the guess of the time unit needs both."""
    frame = log()[["user", "time", "event"]].assign(
        time=lambda f: pd.to_datetime(f["time"]).astype("int64") // 10**9
    )
    folder.mkdir()
    half = len(frame) // 2
    frame.iloc[:half].astype({"event": int}).to_parquet(folder / "a.parquet")
    rest = frame.iloc[half:].astype({"event": float})
    rest.loc[rest.index[::40], "event"] = None
    rest.to_parquet(folder / "b.parquet")
    return folder


QUICK = "csv with bad rows"  # Spark takes seconds for each job, and ten to start


@pytest.mark.parametrize(
    "name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_same_bytes_as_the_local_engine(tmp_path: Path, name: str, spark: Any) -> None:
    write, schema, settings = CASES[name]
    logs = write(tmp_path)
    settings = {"max_reject_share": 0.05} | settings
    local = prepare(logs, tmp_path / "local", schema, **settings)
    told: list[str] = []
    there = prepare(
        logs, tmp_path / "spark", schema, engine="spark", progress=told.append, **settings
    )
    assert there.manifest.content_hash == local.manifest.content_hash
    assert everything(tmp_path / "spark") == everything(tmp_path / "local")
    assert "5 parts" in told  # rows / 700: the test is of several parts


@pytest.mark.slow
def test_what_spark_itself_partitions_is_the_flat_log(tmp_path: Path, spark: Any) -> None:
    """`partitionBy` leaves a column in the path alone, nulls under a name of its own, and files
    beside the data."""
    flat = prepare(saved(log(), tmp_path / "flat.parquet"), tmp_path / "flat", SCHEMA)
    rows = spark.read.parquet(str(tmp_path / "flat.parquet"))
    rows.write.partitionBy("place", "kind").parquet(str(tmp_path / "parts"))
    assert (tmp_path / "parts" / "_SUCCESS").exists()
    for engine in ("local", "spark"):
        store = prepare(tmp_path / "parts", tmp_path / engine, SCHEMA, engine=engine)
        assert store.manifest.content_hash == flat.manifest.content_hash, engine


def test_a_bad_file_is_one_clear_error(tmp_path: Path, spark: Any) -> None:
    folder = split_files(log(), tmp_path / "parts")
    data = bytearray((folder / "1.parquet").read_bytes())
    data[4:2000] = bytes(1996)
    (folder / "1.parquet").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"1\.parquet: cannot be read") as caught:
        prepare(folder, tmp_path / "out", SCHEMA, engine="spark")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["parts"]


@pytest.mark.slow
def test_what_spark_cannot_read_is_refused(tmp_path: Path, spark: Any) -> None:
    with pytest.raises(DataError, match="--engine local"):
        prepare({"user": ["a"], "time": [1], "event": ["b"]}, tmp_path / "out", engine="spark")
    with pytest.raises(DataError, match="cannot be used"):
        prepare(
            saved(_hostile(), tmp_path / "a.csv"),
            tmp_path / "out",
            WITH_ORDER,
            engine="spark",
            max_reject_share=0.001,
        )
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "out.rejects.parquet"}


@pytest.mark.slow
def test_the_command(tmp_path: Path, spark: Any) -> None:
    logs = split_files(log(), tmp_path / "parts")
    command = ["prepare", str(logs), "--user", "user", "--time", "time", "--event", "event"]
    assert main([*command, "--out", str(tmp_path / "local")]) == 0
    assert (
        main(
            [
                *command,
                "--out",
                str(tmp_path / "spark"),
                "--engine",
                "spark",
                "--spark-master",
                "local[2]",
            ]
        )
        == 0
    )
    assert everything(tmp_path / "spark") == everything(tmp_path / "local")


def test_without_pyspark_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(log(), tmp_path / "a.parquet")
    for name in ("pyspark", "pyspark.errors", "pyspark.sql"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[spark\]'"):
        prepare(file, tmp_path / "out", SCHEMA, engine="spark")
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
