"""Converters: tiny files in each documented format, read back with pandas."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from behavegpt.data.schema import read_schema
from behavegpt.datasets.challenge_files import ITEMS
from behavegpt.datasets.converters import convert
from behavegpt.datasets.public_logs import CONVERTERS
from behavegpt.errors import DataError

LOGS = {
    "tsinghua_app": (
        "App_usage_trace.txt",
        "1 20160420093015 BS7 12 345.5\n1 20160420093015 BS7 3 0\n2 20160426235959 BS1 12 9\n",
    ),
    "lsapp": (
        "lsapp.tsv",
        "user_id\tsession_id\ttimestamp\tapp_name\tevent_type\n"
        "0\t1\t2018-01-16 06:01:05\tMinesweeper Classic (Mines)\tOpened\n"
        "0\t1\t2018-01-16 06:01:05\tMinesweeper Classic (Mines)\tClosed\n"
        '0\t1\t2018-01-16 06:02:05\t"Quoted" App\tOpened\n',
    ),
    "foursquare_tsmc": (
        "dataset_TSMC2014_NYC.txt",
        "470\t49bbd6c0f964a520f4531fe3\t4bf58dd8d48988d127951735\tArts & Crafts "
        "Store\t40.7\t-74.0\t-240\tTue Apr 03 18:00:09 +0000 2012\n"
        "979\t4a43c0aef964a520c6a61fe3\t4bf58dd8d48988d1df941735\tCaf\xe9\t40.6\t-74.0\t-240\tWed "
        "Apr 04 01:00:25 +0000 2012\n",
    ),
    "gowalla": (
        "loc-gowalla_totalCheckins.txt",
        "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315\n",
    ),
    "retailrocket": (
        "events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n1433222276276,599528,transaction,356475,4000\n",
    ),
    "taobao": (
        "UserBehavior.csv",
        "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,cart,1511561733\n",
    ),
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    file, text = LOGS[name]
    path = folder / file
    path.write_bytes(text.encode(CONVERTERS[name].encoding))
    return path


def converted(folder: Path, name: str) -> pd.DataFrame:
    schema = convert(name, write(folder, name), folder / "log.parquet")
    assert read_schema(folder / "log.schema.yaml") == schema
    frame = pd.read_parquet(folder / "log.parquet")
    assert set(schema.label_columns.values()) | {schema.user, schema.time} <= set(frame.columns)
    assert schema.order is None or frame[schema.order].is_unique
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [LOGS[name][0], "log.parquet", "log.schema.yaml"]
    )
    return frame


def test_tsinghua_app(tmp_path: Path) -> None:
    frame = converted(tmp_path, "tsinghua_app")
    assert frame["user_id"].tolist() == ["1", "1", "2"]
    assert frame["timestamp"].tolist() == [pd.Timestamp("2016-04-20 09:30:15")] * 2 + [
        pd.Timestamp("2016-04-26 23:59:59")
    ]
    assert frame["location"].tolist() == ["BS7", "BS7", "BS1"]
    assert frame["event"].tolist() == ["12", "3", "12"] and frame["line"].tolist() == [1, 2, 3]


def test_tsinghua_app_with_categories_and_tabs(tmp_path: Path) -> None:
    text = LOGS["tsinghua_app"][1].replace(" ", "\t")
    (tmp_path / "App_usage_trace.txt").write_text(text)
    (tmp_path / "App2Category.txt").write_text("12\t4\n12\t4\n99\t1\n")
    schema = convert("tsinghua_app", tmp_path, tmp_path / "log.parquet")
    frame = pd.read_parquet(tmp_path / "log.parquet").sort_values("line")
    assert schema.behavior == "behavior" and schema.tz == "Asia/Shanghai"
    assert frame["event"].tolist() == ["12", "3", "12"] and frame["behavior"].fillna(
        "?"
    ).tolist() == ["4", "?", "4"]


def test_lsapp_keeps_opened_apps(tmp_path: Path) -> None:
    frame = converted(tmp_path, "lsapp")
    assert frame["event"].tolist() == ["Minesweeper Classic (Mines)", '"Quoted" App']
    assert frame["timestamp"].tolist() == [
        pd.Timestamp("2018-01-16 06:01:05"),
        pd.Timestamp("2018-01-16 06:02:05"),
    ]


def test_foursquare_tsmc_is_local_and_latin_1(tmp_path: Path) -> None:
    frame = converted(tmp_path, "foursquare_tsmc")
    assert frame["event"].tolist() == ["Arts & Crafts Store", "Café"]
    assert frame["timestamp"].tolist() == [
        pd.Timestamp("2012-04-03 14:00:09"),
        pd.Timestamp("2012-04-03 21:00:25"),
    ]
    assert frame["location"].iloc[0] == "49bbd6c0f964a520f4531fe3"


def test_gowalla_is_newest_first(tmp_path: Path) -> None:
    frame = converted(tmp_path, "gowalla")
    assert (
        frame["event"].tolist() == ["22847", "420315"]
        and frame["location"].iloc[0] == "30.24,-97.80"
    )
    assert frame.sort_values("line")["timestamp"].is_monotonic_increasing
    assert frame["timestamp"].iloc[0] == pd.Timestamp("2010-10-19 23:55:27")


def test_gowalla_gzip(tmp_path: Path) -> None:
    path = tmp_path / "loc-gowalla_totalCheckins.txt.gz"
    path.write_bytes(gzip.compress(LOGS["gowalla"][1].encode()))
    convert("gowalla", tmp_path, tmp_path / "log.parquet")
    assert len(pd.read_parquet(tmp_path / "log.parquet")) == 2


def test_retailrocket(tmp_path: Path) -> None:
    frame = converted(tmp_path, "retailrocket")
    assert frame["event"].tolist() == ["view:355908", "transaction:356475"]
    assert frame["behavior"].tolist() == ["view", "transaction"]
    assert frame["timestamp"].iloc[0] == pd.Timestamp(1433221332117, unit="ms")


def test_taobao_is_utc_told_in_shanghai(tmp_path: Path) -> None:
    frame = converted(tmp_path, "taobao")
    assert frame["event"].tolist() == ["pv:2520377", "cart:2520771"] and frame["item"].tolist() == [
        "2268318",
        "2333346",
    ]
    assert frame["timestamp"].tolist() == [
        pd.Timestamp(s, unit="s") for s in (1511544070, 1511561733)
    ]
    assert read_schema(tmp_path / "log.schema.yaml").naive_time == "utc"


def shop(folder: Path) -> Path:
    rows = {"client_id": [1, 2], "timestamp": ["2022-06-23 00:33:11", "2022-06-23 00:34:25"]}
    for kind in ("product_buy", "add_to_cart", "remove_from_cart"):
        pd.DataFrame(rows | {"sku": [10, 11]}).to_parquet(folder / f"{kind}.parquet")
    pd.DataFrame(rows | {"url": [7, 8]}).to_parquet(folder / "page_visit.parquet")
    pd.DataFrame(rows | {"query": ["[1 2]", "[3 4]"]}).to_parquet(folder / "search_query.parquet")
    return folder


def test_recsys2025_without_and_with_properties(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    convert("recsys2025", shop(folder), tmp_path / "plain.parquet")
    plain = pd.read_parquet(tmp_path / "plain.parquet")
    assert len(plain) == 10 and set(plain["event"]) >= {
        "product_buy:10",
        "page_visit",
        "search_query",
    }
    properties = {"sku": [10], "category": [5], "price": [42], "name": ["[1]"]}
    pd.DataFrame(properties).to_parquet(folder / "product_properties.parquet")
    convert("recsys2025", folder, tmp_path / "log.parquet")
    frame = pd.read_parquet(tmp_path / "log.parquet")
    assert len(frame) == 10 and set(frame["kind"]) == set(ITEMS)
    assert {"page_visit:7", "page_visit:8", "search_query", "product_buy:5"} <= set(
        frame["behavior"]
    )
    assert {"add_to_cart:5", "add_to_cart:unknown", "page_visit", "search_query"} <= set(
        frame["event"]
    )
    assert frame.loc[frame["event"] == "product_buy:5", ["item", "price"]].to_numpy().tolist() == [
        ["10", "42"]
    ]


def test_recsys2025_on_the_challenge_layout(tmp_path: Path, shared_data) -> None:  # type: ignore[no-untyped-def]
    source = shared_data("challenge_mini")
    convert("recsys2025", source, tmp_path / "log.parquet")
    frame = pd.read_parquet(tmp_path / "log.parquet", columns=["timestamp", "kind"])
    for kind in ITEMS:
        assert (frame["kind"] == kind).sum() == len(
            pd.read_parquet(source / f"{kind}.parquet", columns=["client_id"])
        )
    assert frame["timestamp"].notna().all()


@pytest.mark.parametrize("name", list(LOGS))
def test_wrong_files_are_refused(name: str, tmp_path: Path) -> None:
    """Another log's file, an empty one, a binary one, columns in another order, a cell missing:
    DataError."""
    other = "taobao" if name != "taobao" else "gowalla"
    file, text = LOGS[name]
    lines = text.splitlines()
    separator = next(s for s in CONVERTERS[name].separators if s in lines[0])
    swapped = [separator.join((cells := line.split(separator))[1:] + cells[:1]) for line in lines]
    contents = {
        "other": LOGS[other][1].encode(),
        "empty": b"",
        "binary": b"\x00\x01\x02\xff" * 100,
        "swapped": "\n".join(swapped).encode(CONVERTERS[name].encoding),
        "short": "\n".join([*lines, lines[-1].rsplit(separator, 1)[0]]).encode(
            CONVERTERS[name].encoding
        ),
    }
    for kind, content in contents.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / file).write_bytes(content)
        with pytest.raises(DataError, match=file.split(".")[0]):
            convert(name, folder / file, folder / "log.parquet")
        assert [p.name for p in folder.iterdir()] == [file]


def test_few_bad_cells_pass_as_null_and_many_do_not(tmp_path: Path) -> None:
    good, bad = "1,2,3,pv,1511544070\n", "1,2,3,pv,yesterday\n"
    (tmp_path / "UserBehavior.csv").write_text(good * 199 + bad)
    convert("taobao", tmp_path, tmp_path / "log.parquet")
    assert pd.read_parquet(tmp_path / "log.parquet")["timestamp"].isna().sum() == 1
    (tmp_path / "UserBehavior.csv").write_text(good * 9 + bad)
    with pytest.raises(DataError, match=r"timestamp cannot be read in 10% .* 'time': 'yesterday'"):
        convert("taobao", tmp_path, tmp_path / "log.parquet")


def test_archive_folder_and_name_mistakes(tmp_path: Path) -> None:
    text = LOGS["lsapp"][1].encode()
    with tarfile.open(tmp_path / "lsapp.tsv.gz", "w:gz") as archive:
        member = tarfile.TarInfo("lsapp.tsv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    with pytest.raises(DataError, match="an archive"):
        convert("lsapp", tmp_path / "lsapp.tsv.gz", tmp_path / "log.parquet")
    with pytest.raises(DataError, match="no such file"):
        convert("lsapp", tmp_path / "missing.tsv", tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"0 files with the name events\.csv"):
        convert("retailrocket", tmp_path, tmp_path / "log.parquet")
    with pytest.raises(DataError, match="a folder; give the name of the parquet file"):
        convert("lsapp", write(tmp_path, "lsapp"), tmp_path)
    with pytest.raises(DataError, match="Did you mean 'gowalla'"):
        convert("gowala", tmp_path, tmp_path / "log.parquet")


def test_recsys2025_mistakes(tmp_path: Path) -> None:
    folder = shop(tmp_path)
    (folder / "page_visit.parquet").unlink()
    with pytest.raises(DataError, match=r"page_visit\.parquet missing"):
        convert("recsys2025", folder, tmp_path / "log.parquet")
    pd.DataFrame({"client_id": [1], "timestamp": ["2022-06-23 00:33:11"]}).to_parquet(
        folder / "page_visit.parquet"
    )
    with pytest.raises(DataError, match=r"page_visit\.parquet: column 'url'"):
        convert("recsys2025", folder, tmp_path / "log.parquet")
    (folder / "page_visit.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        convert("recsys2025", folder, tmp_path / "log.parquet")
