"""Published logs: tiny downloads in each documented layout, read back with pandas."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from behavegpt.cli import main
from behavegpt.data.schema import read_schema
from behavegpt.datasets import converters
from behavegpt.datasets.published import PUBLISHED
from behavegpt.datasets.tables import convert_published
from behavegpt.errors import DataError
from tests.test_io import dead_name


def easytpp(folder: Path) -> None:
    for file, times in (("train", [0, 0.5, 2.5]), ("dev", [0.0, 1.0]), ("test", [0.25, 0.25])):
        row = {"dim_process": 22, "seq_idx": 0, "seq_len": len(times), "time_since_start": times}
        row |= {"time_since_last_event": times, "type_event": list(range(len(times)))}
        (folder / f"{file}.json").write_text(json.dumps([row, row | {"seq_idx": 1}]))


def hotpp(folder: Path) -> None:
    for file, times in (("train", [0, 0.5, 2.5]), ("val", [0.0, 1.0]), ("test", [0.25, 0.25])):
        frame = pd.DataFrame(
            {"id": [0, 1], "timestamps": [times] * 2, "labels": [list(range(len(times)))] * 2}
        )
        (folder / f"{file}.parquet").mkdir()
        frame.to_parquet(folder / f"{file}.parquet" / "part-0.parquet")


MBD = {
    "event_type": [1, 2],
    "event_subtype": [10, 20],
    "amount": [1.0, 1000.0],
    "currency": [11, 11],
}


def mbd_detail(folder: Path) -> None:
    (folder / "fold=0").mkdir()
    times = pd.to_datetime(["2021-05-01 10:00:00", "2021-05-02 11:00:00"])
    pd.DataFrame({"client_id": ["a", "a"], "event_time": times, **MBD}).to_parquet(
        folder / "fold=0" / "x.parquet"
    )


def mbd_lists(folder: Path) -> None:
    (folder / "fold=0").mkdir()
    row: dict[str, Any] = {name: [values] for name, values in MBD.items()}
    row |= {"client_id": ["a"], "event_time": [[1619863200, 1619953200]]}
    pd.DataFrame(row).to_parquet(folder / "fold=0" / "x.parquet")


def massive_steps(folder: Path) -> None:
    (folder / "jakarta_checkins.csv").write_text(
        "trail_id,user_id,venue_id,name,venue_category,venue_category_id,timestamp\n"
        '2013_1,7,42,"Café ""A"", old",Bakery,4bf5,2013-05-01 10:00:00\n'
        "2013_1,7,43,,,4bf6,2013-05-01 11:00:00\n"
    )


def massive_steps_tabular(folder: Path) -> None:
    massive_steps(folder)
    frame = pd.read_csv(folder / "jakarta_checkins.csv")
    (folder / "jakarta_checkins.csv").unlink()
    (folder / "tabular").mkdir()
    frame.to_parquet(folder / "tabular" / "train-0.parquet")


YAMBDA = {"uid": [100] * 3, "timestamp": [0, 5, 10], "item_id": [7, 8, 7], "is_organic": [1, 0, 1]}


def yambda(folder: Path) -> None:
    more = {
        "played_ratio_pct": [100, 10, None],
        "event_type": pd.Categorical(["listen", "listen", "like"]),
    }
    pd.DataFrame(YAMBDA | more).to_parquet(folder / "multi_event.parquet")


def yambda_listens(folder: Path) -> None:
    pd.DataFrame(YAMBDA | {"played_ratio_pct": [100, 10, 50]}).to_parquet(
        folder / "listens.parquet"
    )


def carat(folder: Path) -> None:
    def sample(timestamp: int, zone: str, **apps: str) -> str:
        listed = [{"processName": name, "priority": priority} for name, priority in apps.items()]
        return json.dumps(
            {
                "uuid": "u",
                "timestamp": timestamp,
                "timeZone": zone,
                "batteryLevel": 4,
                "apps": listed,
            }
        )

    front, back = "Foreground app", "Background process"
    lines = [
        sample(1443336825, "Europe/Helsinki", chrome=front, mail=back),
        sample(1443336900, "Europe/Helsinki", chrome=front, mail=front),
        sample(1443337000, "Nowhere/Land", mail=back, maps=front),
    ]
    (folder / "part-00000.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


EASYTPP_ROWS = [
    ("test:0", "2020-01-01 00:00:00.250000", "0", None),
    ("test:0", "2020-01-01 00:00:00.250000", "1", "0"),
    ("train:0", "2000-01-01 00:00:00.000000", "0", None),
    ("train:0", "2000-01-01 00:00:00.500000", "1", "17"),
    ("train:0", "2000-01-01 00:00:02.500000", "2", "21"),
    ("validation:0", "2010-01-01 00:00:00.000000", "0", None),
    ("validation:0", "2010-01-01 00:00:01.000000", "1", "19"),
]
MBD_ROWS = [
    ("a", "2021-05-01 10:00:00.000000", "1:10", "1", "1"),
    ("a", "2021-05-02 11:00:00.000000", "2:20", "2", "9"),
]
STEPS_ROWS = [
    ("7", "2013-05-01 10:00:00.000000", "Bakery", "42"),
    ("7", "2013-05-01 11:00:00.000000", "4bf6", "43"),
]
CASES: dict[Callable[[Path], None], tuple[str, list[str], list[tuple[str | None, ...]]]] = {
    easytpp: ("easytpp", ["gap"], EASYTPP_ROWS),
    hotpp: ("easytpp", ["gap"], EASYTPP_ROWS),
    mbd_detail: ("mbd", ["behavior", "amount"], MBD_ROWS),
    mbd_lists: ("mbd", ["behavior", "amount"], MBD_ROWS),
    massive_steps: ("massive_steps", ["location"], STEPS_ROWS),
    massive_steps_tabular: ("massive_steps", ["location"], STEPS_ROWS),
    yambda: (
        "yambda",
        ["behavior", "organic"],
        [
            ("100", "2024-01-01 00:00:00.000000", "listen:7", "listen", "1"),
            ("100", "2024-01-01 00:00:05.000000", "skip:8", "skip", "0"),
            ("100", "2024-01-01 00:00:10.000000", "like:7", "like", "1"),
        ],
    ),
    yambda_listens: (
        "yambda",
        ["behavior"],
        [
            ("100", "2024-01-01 00:00:00.000000", "listen:7", "listen"),
            ("100", "2024-01-01 00:00:05.000000", "skip:8", "skip"),
            ("100", "2024-01-01 00:00:10.000000", "listen:7", "listen"),
        ],
    ),
    carat: (
        "carat",
        [],
        [
            ("u", "2015-09-27 06:56:40.000000", "maps"),
            ("u", "2015-09-27 09:53:45.000000", "chrome"),
            ("u", "2015-09-27 09:55:00.000000", "mail"),
        ],
    ),
}


@pytest.mark.parametrize("download", list(CASES), ids=lambda download: download.__name__)
def test_layouts(download: Callable[[Path], None], tmp_path: Path) -> None:
    name, columns, rows = CASES[download]
    (tmp_path / "in").mkdir()
    download(tmp_path / "in")
    schema = convert_published(name, tmp_path / "in", tmp_path / "log.parquet")
    frame = pd.read_parquet(tmp_path / "log.parquet")
    assert read_schema(tmp_path / "log.schema.yaml") == schema
    assert {schema.user, schema.time, *schema.label_columns.values()} <= set(frame.columns)
    if name == "easytpp":
        frame = frame[frame["user_id"].str.endswith(":0")]
    frame["timestamp"] = frame["timestamp"].dt.strftime("%Y-%m-%d %H:%M:%S.%f")
    frame = frame.sort_values(["user_id", "timestamp", *([schema.order] if schema.order else [])])
    seen = frame[["user_id", "timestamp", "event", *columns]]
    assert (
        list(seen.astype(object).where(seen.notna(), None).itertuples(index=False, name=None))
        == rows
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in",
        "log.parquet",
        "log.schema.yaml",
    ]


def test_what_a_killed_conversion_left_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    easytpp(tmp_path / "in")
    dead_name(tmp_path / "log.parquet", "new").mkdir()
    convert_published("easytpp", tmp_path / "in", tmp_path / "log.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in",
        "log.parquet",
        "log.schema.yaml",
    ]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_wrong_downloads_are_refused(name: str, tmp_path: Path) -> None:
    """Nothing there, no such folder, files that are broken, columns of another log: one DataError,
    nothing left."""
    (tmp_path / "empty").mkdir()
    contents = {"broken": b"\x00no data", "columns": b'{"a": 1}'}
    for kind, content in contents.items():
        for names in PUBLISHED[name].files.values():
            path = tmp_path / kind / names[0].replace("*", "0")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    before = sorted(tmp_path.rglob("*"))
    for folder in ("empty", "missing", *contents):
        with pytest.raises(DataError, match=folder):
            convert_published(name, tmp_path / folder, tmp_path / "log.parquet")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_stands_for_a_log_in_one_part(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    yambda_listens(tmp_path / "in")
    (tmp_path / "in" / "listens.parquet").rename(tmp_path / "likes.parquet")
    convert_published("yambda", tmp_path / "likes.parquet", tmp_path / "log.parquet")
    assert set(pd.read_parquet(tmp_path / "log.parquet")["behavior"]) == {"like"}
    with pytest.raises(DataError, match="a file; give the folder it is in"):
        convert_published("easytpp", tmp_path / "likes.parquet", tmp_path / "log.parquet")


def test_lists_of_unequal_length_are_refused(tmp_path: Path) -> None:
    easytpp(tmp_path)
    row = {"seq_idx": 0, "time_since_start": [0.0, 1.0], "type_event": [1]}
    (tmp_path / "dev.json").write_text(json.dumps([row]))
    with pytest.raises(
        DataError, match=r"dev\.json: the lists of a row differ in length \(time 2, label 1\)"
    ):
        convert_published("easytpp", tmp_path, tmp_path / "log.parquet")


def test_the_published_parts_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The split that `convert` prints puts each part's sequences into its own split."""
    easytpp(tmp_path)
    log = tmp_path / "log.parquet"
    assert main(["convert", "easytpp", str(tmp_path), "--out", str(log)]) == 0
    printed = capsys.readouterr().err.split("prepare ")[-1].split()
    assert main(["prepare", *printed[:-1], str(tmp_path / "data")]) == 0
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert manifest["split"]["events"] == [6, 4, 4]


def test_every_name_is_known() -> None:
    assert set(converters.ELSEWHERE) == {"git", "web_log", *PUBLISHED}
