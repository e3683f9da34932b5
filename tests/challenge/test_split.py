"""The split writes the organizers' rows, whole or not at all."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from behavegpt.challenge import split as module
from behavegpt.challenge import tables
from behavegpt.challenge.split import boundaries, split
from behavegpt.cli import main
from behavegpt.datasets.challenge_files import EVENTS, open_directory
from behavegpt.errors import ConfigError, DataError
from behavegpt.signals import interrupting
from tests.challenge.makers import make_directory, peak_of_command, split_by_pandas


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def assert_same_rows(out: Path, expected: dict[str, pd.DataFrame]) -> None:
    for name, table in expected.items():
        ours = pd.read_parquet(out / name)
        pd.testing.assert_frame_equal(ours, table.astype({"timestamp": "datetime64[ns]"}), obj=name)


def test_the_organizers_rows(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    mini = shared_data("challenge_mini")
    facts = split(mini, tmp_path / "out")
    expected = json.loads((mini / "expected" / "split.json").read_text())
    assert set(facts["files"]) == set(expected)
    for name, wanted in expected.items():
        table = pd.read_parquet(tmp_path / "out" / name)
        assert list(table.columns) == wanted["columns"]
        assert table["timestamp"].dtype == "datetime64[ns]"
        assert [str(table["timestamp"].min()), str(table["timestamp"].max())] == [
            wanted["min"],
            wanted["max"],
        ]
        assert (len(table), table["client_id"].nunique()) == (wanted["rows"], wanted["clients"])
        assert table["client_id"].sum() == wanted["client_id_sum"]
        file = facts["files"][name]
        assert (file["rows"], file["first"], file["last"]) == (
            wanted["rows"],
            wanted["min"],
            wanted["max"],
        )
    assert facts["boundaries"]["train"] == "2022-10-13 00:00:00"


@pytest.mark.parametrize(
    "last", ["2022-11-09 23:33:24", "2022-03-28 00:00:00", "2022-11-09 23:33:24.250000"]
)
def test_every_row_in_its_order(tmp_path: Path, last: str) -> None:
    """Against the specification in pandas; a fraction of a second in the last purchase moves the
    boundaries."""
    data = make_directory(tmp_path / "data", last=last)
    if "." in last:
        table = pd.read_parquet(data / "product_buy.parquet")
        table["timestamp"] = pd.to_datetime(table["timestamp"], format="ISO8601")
        table.to_parquet(data / "product_buy.parquet", index=False)
    expected = split_by_pandas(data)
    split(data)
    assert_same_rows(data, expected)


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "zoned"])
def test_timestamps_of_any_type(tmp_path: Path, unit: str) -> None:
    data = make_directory(tmp_path / "data")
    expected = split_by_pandas(data)
    for event in EVENTS:
        table = pd.read_parquet(data / f"{event}.parquet")
        moments = pd.to_datetime(table["timestamp"])
        moments = (
            moments.dt.tz_localize("UTC")
            if unit == "zoned"
            else moments.astype(f"datetime64[{unit}]")
        )
        table.assign(timestamp=moments).to_parquet(data / f"{event}.parquet", index=False)
    split(data)
    assert_same_rows(data, expected)


@pytest.mark.parametrize("width", [3, 16, 20])
def test_codes_of_any_width_as_lists(tmp_path: Path, width: int) -> None:
    """The later release has 20 codes in a column `embedding`."""
    data = make_directory(tmp_path / "data")
    file = data / "search_query.parquet"
    table = pd.read_parquet(file).drop(columns="query")
    table["embedding"] = list(np.random.default_rng(0).integers(0, 256, (len(table), width)))
    table.to_parquet(file, index=False)
    split(data)
    kept = pd.read_parquet(data / "input" / "search_query.parquet")
    before = pd.to_datetime(table["timestamp"]) < pd.Timestamp("2022-10-13")
    assert np.array_equal(np.stack(kept["embedding"]), np.stack(table[before]["embedding"]))


def test_boundaries_count_back_from_midnight() -> None:
    assert boundaries(np.datetime64("2022-11-09T23:33:24")) == (
        np.datetime64("2022-10-13", "ns"),
        np.datetime64("2022-10-27", "ns"),
        np.datetime64("2022-11-09T23:33:24", "ns"),
    )
    assert boundaries(np.datetime64("2022-03-28T00:00:00.5", "ns")).train == np.datetime64(
        "2022-03-01T00:00:00.5"
    )


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda d: shutil.rmtree(d), "does not exist"),
        (lambda d: shutil.rmtree(d / "input"), "The 'input' subdirectory"),
        (lambda d: shutil.rmtree(d / "target"), "The 'target' subdirectory"),
        (
            lambda d: (d / "product_properties.parquet").unlink(),
            "product_properties.parquet file is missing",
        ),
        (lambda d: (d / "page_visit.parquet").unlink(), "page_visit.parquet is missing"),
        (
            lambda d: (d / "page_visit.parquet").write_bytes(b"PAR1"),
            "page_visit.parquet: no readable parquet",
        ),
        (
            lambda d: _change(d, "add_to_cart", lambda t: t.drop(columns="sku")),
            "needs one column 'sku'",
        ),
        (
            lambda d: _change(d, "add_to_cart", lambda t: t.astype({"sku": str})),
            "column 'sku' is .*string",
        ),
        (
            lambda d: _change(d, "page_visit", lambda t: t.assign(timestamp=1)),
            "column 'timestamp' is int64",
        ),
        (
            lambda d: _change(d, "search_query", lambda t: t.assign(query=1)),
            "column 'query' is int64",
        ),
        (
            lambda d: _change(d, "page_visit", _spoil("timestamp", "soon")),
            r"page_visit.*row 7 .*'soon'",
        ),
        (
            lambda d: _change(d, "product_buy", _spoil("timestamp", None)),
            r"product_buy.*1 rows.*row 7 ",
        ),
        (
            lambda d: _change(d, "product_buy", _spoil("timestamp", "infinity")),
            r"product_buy.*row 7 .*'infinity'",
        ),
        (lambda d: _change(d, "search_query", _no_client), r"search_query.*row 7 \(client_id None"),
        (lambda d: _change(d, "product_buy", lambda t: t.iloc[:0]), "holds no purchase"),
        (
            lambda d: _change(d, "product_properties", lambda t: pd.concat([t, t[:1]])),
            "sku 100 has 2 lines",
        ),
        (
            lambda d: _change(d, "product_properties", lambda t: t[1:]),
            r"'category' is missing for 1 products.*sku 100",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_changes(
    tmp_path: Path, break_it: Callable[[Path], None], says: str
) -> None:
    data = make_directory(tmp_path / "data")
    split(data)  # results of an earlier run must survive
    break_it(data)
    before = files_of(tmp_path)
    with pytest.raises(DataError, match=says):
        split(data)
    with pytest.raises(DataError, match=says):
        split(data, tmp_path / "elsewhere")
    assert files_of(tmp_path) == before
    assert not (tmp_path / "elsewhere").exists()


def _change(data: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    file = data / f"{name}.parquet"
    change(pd.read_parquet(file)).to_parquet(file, index=False)


def _spoil(column: str, value: str | None) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[7, column] = value
        return table

    return spoil


def _no_client(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(client_id=table["client_id"].astype("Int64").where(table.index != 7))


def test_an_interrupted_split_leaves_the_directory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_directory(tmp_path / "data")
    before = files_of(data)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        split(data)
    assert files_of(data) == before


def test_too_little_memory_or_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_directory(tmp_path / "data")
    before = files_of(data)
    with pytest.raises(DataError, match=r"not enough memory .*raise --memory"):
        split(data, memory="1MB")

    def full(*_: object) -> None:
        raise duckdb.IOException("Could not write file: No space left on device")

    monkeypatch.setattr(tables, "one_row", full)
    with pytest.raises(DataError, match=r"the disk is full .*--out"):
        split(data)
    assert files_of(data) == before


def test_unknown_products_can_be_kept(tmp_path: Path) -> None:
    data = make_directory(tmp_path / "data")
    _change(data, "product_properties", lambda t: t[10:])
    rows = {name: len(table) for name, table in split_by_pandas(data).items()}
    facts = split(data, unknown_skus=True)
    assert {name: file["rows"] for name, file in facts["files"].items()} == rows
    train = pd.read_parquet(data / "target" / "train_target.parquet")
    assert (train["category"].isna() == (train["sku"] < 110)).all()


def test_strict_looks_at_the_input_alone(tmp_path: Path) -> None:
    data = make_directory(tmp_path / "data")
    with pytest.raises(ConfigError, match="--out"):
        split(data, strict=True)
    before = files_of(data)
    split(data, tmp_path / "strict", strict=True)
    assert files_of(data) == before
    strict, theirs = open_directory(tmp_path / "strict"), open_directory(data)
    bought = split_by_pandas(data)["input/product_buy.parquet"]
    relevant = theirs.relevant_clients
    assert np.array_equal(strict.active_clients, relevant[np.isin(relevant, bought["client_id"])])
    counts = (
        bought["sku"]
        .value_counts()
        .reset_index()
        .sort_values(["count", "sku"], ascending=[False, True])
    )
    labels = np.load(strict.array("propensity_sku"))
    assert labels.tolist() == counts["sku"].head(20).tolist()
    shares = np.load(strict.array("popularity_propensity_sku"))
    np.testing.assert_allclose(shares, counts["count"].head(20) / len(bought))
    same = [np.load(d.array("propensity_new_sku")) for d in (strict, theirs)]
    assert np.array_equal(*same)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_directory(tmp_path / "data")
    assert main(["challenge", "split", str(data), "--out", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"]["target/train_target.parquet"]["rows"] == len(
        split_by_pandas(data)["target/train_target.parquet"]
    )
    for wrong in (["--memory", "much"], ["--threads", "0"]):
        assert main(["challenge", "split", str(data), *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Four million visits (a table of 300 MB in memory) under a limit of 200 MiB for the engine."""
    data = make_directory(tmp_path / "data")
    rng = np.random.default_rng(0)
    rows = 4_000_000
    moments = np.datetime64("2022-06-23") + rng.integers(0, 140 * 86_400, rows).astype(
        "timedelta64[s]"
    )
    text = np.char.replace(np.datetime_as_string(moments), "T", " ")
    visits = pd.DataFrame(
        {"client_id": rng.integers(0, 10**6, rows), "timestamp": text, "url": np.arange(rows)}
    )
    visits.to_parquet(data / "page_visit.parquet", index=False)
    peak = peak_of_command(
        ["challenge", "split", str(data), "--memory", "200MiB", "--threads", "2"]
    )
    assert peak < 500 * 2**20, f"{peak:,} bytes"
    kept = pd.read_parquet(data / "input" / "page_visit.parquet")
    assert np.array_equal(kept["url"], visits["url"][visits["timestamp"] < "2022-10-13"])


def test_a_query_is_over_when_a_stop_during_its_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it writes into the folder that is being removed."""
    started = threading.Thread.start

    def stopped(self: threading.Thread) -> None:
        started(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it
    try:
        _stop_a_query(tmp_path / "file")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def _stop_a_query(file: Path) -> None:
    with duckdb.connect() as con, interrupting(), pytest.raises(KeyboardInterrupt):
        pairs = "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
        tables.write_query(con, pairs, file)
