"""prepare: the same bytes however the rows come, nothing half written, nothing of the future in the
vocabularies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.errors import ConfigError, DataError
from behavegpt.ingest import prepare as module
from behavegpt.ingest.prepare import prepare, preview

SCHEMA = EventSchema(
    user="user",
    time="time",
    event="event",
    location="place",
    behavior="kind",
    extra=("price",),
    tz="Europe/London",
)


def log(rows: int = 3000, seed: int = 0) -> pd.DataFrame:
    """A log with ties in time, nulls, equal rows and labels that only come late."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(0, 200, rows))
    event = np.minimum(rng.zipf(1.5, rows), 40) + (day > 150) * rng.integers(0, 2, rows) * 100
    frame = pd.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, 60, rows)],
            "time": pd.Timestamp("2020-02-01")
            + pd.to_timedelta(day * 1440 + rng.integers(0, 48, rows) * 30, "min"),
            "event": event.astype(str),
            "place": np.where(rng.random(rows) < 0.1, None, rng.integers(0, 9, rows).astype(str)),
            "kind": (event % 7).astype(str),
            "price": rng.integers(0, 5, rows),
        }
    )
    frame["time"] = frame["time"].dt.strftime("%Y-%m-%d %H:%M:%S")
    return pd.concat([frame, frame.iloc[:50]], ignore_index=True)


def files(folder: Path) -> dict[str, str]:
    """Digest of every file that is a result."""
    wanted = sorted(p for p in folder.rglob("*") if p.suffix in (".npy", ".parquet"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in wanted}


def split_files(frame: pd.DataFrame, folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        frame.iloc[i::3].to_parquet(folder / f"{i}.parquet")
    return folder


def saved(frame: pd.DataFrame, path: Path) -> Path:
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda p: frame.to_csv(p, index=False),
        ".jsonl": lambda p: frame.to_json(p, orient="records", lines=True),
        ".parquet": lambda p: frame.to_parquet(p, index=False),
    }
    writers[path.suffix](path)
    return path


BAD_NUMBERS: list[dict[str, Any]] = [
    *({"min_events": value} for value in (-1, 2.5, "3", None, True, float("nan"))),
    *({"min_count": value} for value in (-1, 0.5, "1", None)),
    *({"max_vocabulary": value} for value in (0, -5, 1.5, "9", True)),
    *({"max_reject_share": value} for value in (float("nan"), 2, -0.1, "0.5", None, float("inf"))),
    *({"threads": value} for value in (0, -1, 1.5, "2")),
]


@pytest.mark.parametrize("options", BAD_NUMBERS, ids=str)
def test_numbers_without_sense_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(options))
    for run in (
        lambda: prepare(log(), tmp_path / "out", SCHEMA, **options),
        lambda: preview(log(), SCHEMA, **options),
    ):
        with pytest.raises(ConfigError, match=f"prepare: {name} = "):
            run()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("reference")
    return prepare(saved(log(), folder / "log.parquet"), folder / "out", SCHEMA)


VARIANTS: dict[str, tuple[Callable[[Path], Path], dict[str, object]]] = {
    "shuffled": (lambda d: saved(log().sample(frac=1, random_state=1), d / "a.parquet"), {}),
    "three files": (lambda d: split_files(log(), d / "parts"), {}),
    "csv": (lambda d: saved(log().sample(frac=1, random_state=2), d / "a.csv"), {}),
    "jsonl": (lambda d: saved(log(), d / "a.jsonl"), {}),
    "one thread": (lambda d: saved(log(), d / "a.parquet"), {"threads": 1}),
    "two threads": (lambda d: saved(log(), d / "a.parquet"), {"threads": 2}),
    "little memory": (lambda d: saved(log(), d / "a.parquet"), {"memory": "256MiB"}),
    "small row groups": (lambda d: _row_groups(d / "a.parquet"), {}),
    "timestamps": (
        lambda d: saved(log().assign(time=pd.to_datetime(log()["time"])), d / "a.parquet"),
        {},
    ),
    "integers": (lambda d: saved(log().astype({"event": int, "kind": int}), d / "a.parquet"), {}),
    "floats": (lambda d: saved(log().astype({"place": float, "event": float}), d / "a.csv"), {}),
}


def _row_groups(path: Path) -> Path:
    log().to_parquet(path, row_group_size=100)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_same_rows_same_bytes(tmp_path: Path, reference: EventStore, name: str) -> None:
    write, settings = VARIANTS[name]
    store = prepare(write(tmp_path), tmp_path / "out", SCHEMA, **settings)  # type: ignore[arg-type]
    assert store.manifest.content_hash == reference.manifest.content_hash
    assert files(store.path) == files(reference.path)


def test_buckets_change_nothing(
    tmp_path: Path, reference: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_batch_rows", lambda budget: 200)
    store = prepare(saved(log(), tmp_path / "a.parquet"), tmp_path / "out", SCHEMA)
    assert files(store.path) == files(reference.path)


def test_columns_agree_with_pandas(reference: EventStore) -> None:
    frame = log()
    wall = pd.to_datetime(frame["time"])
    frame["at"] = wall.dt.tz_localize(
        "Europe/London", nonexistent="shift_forward", ambiguous=np.ones(len(wall), bool)
    )
    frame = frame.sort_values(["user", "at"], kind="stable")
    assert reference.users().to_pylist() == sorted(frame["user"].unique())
    assert np.array_equal(np.diff(reference.offsets), frame.groupby("user").size())
    seconds = frame["at"].astype("int64").to_numpy() // 10 ** (
        9 if "[ns" in str(frame["at"].dtype) else 6
    )
    assert np.array_equal(
        reference.columns["time"] + np.int64(reference.manifest.time_origin), seconds
    )
    assert np.array_equal(reference.columns["weekday"], frame["at"].dt.weekday)
    assert np.array_equal(
        reference.columns["slot"], frame["at"].dt.hour * 2 + frame["at"].dt.minute // 30
    )
    # Within a tie our order differs from that of pandas: compare rows as a multiset.
    ours = pd.DataFrame(
        {f: reference.vocabulary[f].decode(reference.columns[f]) for f in reference.vocabulary}
    )
    ours["user"] = np.repeat(reference.users().to_pylist(), np.diff(reference.offsets))
    train = reference.columns["split"] == 0
    theirs = frame.rename(columns={"place": "location", "kind": "behavior"}).astype({"price": str})[
        list(ours)
    ]
    pairs = (table[train].fillna("-").to_numpy().tolist() for table in (ours, theirs))
    assert sorted(next(pairs)) == sorted(next(pairs))
    for field in reference.vocabulary:
        vocabulary = reference.vocabulary[field]
        counted = theirs[train][field].value_counts()
        assert (
            dict(zip(vocabulary.values.to_pylist(), vocabulary.counts.tolist(), strict=True))
            == counted.to_dict()
        )


def test_types_are_the_smallest(reference: EventStore) -> None:
    kinds = {name: str(column.dtype) for name, column in reference.columns.items()}
    assert kinds == {
        "event": "uint8", "location": "uint8", "behavior": "uint8", "price": "uint8",
        "weekday": "uint8", "slot": "uint8", "split": "uint8", "time": "uint32",
    }  # fmt: skip
    assert reference.offsets.dtype == np.int64


def test_wide_vocabularies(tmp_path: Path) -> None:
    events = [f"e{i}" for i in range(70_000)]
    frame = pd.DataFrame(
        {
            "user": "a",
            "time": "2020-01-01",
            "event": events,
            "place": [str(i % 300) for i in range(70_000)],
        }
    )
    schema = EventSchema(user="user", time="time", event="event", location="place", slot_minutes=1)
    store = prepare(
        saved(frame, tmp_path / "a.parquet"), tmp_path / "out", schema, split="user:1,0,0"
    )
    kinds = [str(store.columns[name].dtype) for name in ("event", "location", "slot")]
    assert kinds == ["uint32", "uint16", "uint16"]
    assert sorted(store.vocabulary["event"].decode(store.columns["event"])) == sorted(events)  # type: ignore[type-var]


def test_later_rows_do_not_leak(tmp_path: Path, reference: EventStore) -> None:
    frame = log()
    boundary = np.datetime64(int(reference.manifest.split["boundaries"][0]), "s")
    later = pd.to_datetime(frame["time"]).to_numpy() > boundary + np.timedelta64(3, "h")
    frame.loc[later, ["event", "place", "kind", "price"]] = ["never seen", "nowhere", "odd", 99]
    store = prepare(saved(frame, tmp_path / "a.parquet"), tmp_path / "out", SCHEMA)
    train = reference.columns["split"] == 0
    assert np.array_equal(store.columns["split"], reference.columns["split"])
    for field, vocabulary in reference.vocabulary.items():
        assert store.vocabulary[field].hash == vocabulary.hash
        assert np.array_equal(store.vocabulary[field].counts, vocabulary.counts)
        assert np.array_equal(store.columns[field][train], reference.columns[field][train])
        assert set(store.columns[field][store.columns["split"] == 2]) == {UNKNOWN}


def test_splits(tmp_path: Path) -> None:
    file = saved(log(), tmp_path / "a.parquet")
    # London is an hour ahead
    day = {"date:2020-05-01,2020-06-01": ["2020-04-30T23:00:00", "2020-05-31T23:00:00"]}
    for i, rule in enumerate(["time:0.6,0.1,0.3", "span:0.6,0.1,0.3", *day, "user:0.6,0.1,0.3"]):
        store = prepare(file, tmp_path / str(i), SCHEMA, split=rule)
        split, seconds = (
            store.columns["split"],
            store.columns["time"] + np.int64(store.manifest.time_origin),
        )
        assert np.array_equal(np.bincount(split, minlength=3), store.manifest.split["events"])
        if rule.startswith("user"):
            users = np.repeat(np.arange(store.manifest.users), np.diff(store.offsets))
            assert len(np.unique(np.stack([users, split]), axis=1).T) == store.manifest.users
            continue
        boundaries = [int(b) for b in store.manifest.split["boundaries"]]
        assert np.array_equal(split, np.searchsorted(boundaries, seconds, side="right"))
        if rule in day:
            assert [str(np.datetime64(b, "s")) for b in boundaries] == day[rule]


def test_few_events_and_rare_labels(tmp_path: Path) -> None:
    frame = log().assign(
        user=lambda f: np.where(np.arange(len(f)) % 100 == 0, "rare" + f["event"], f["user"])
    )
    file = saved(frame, tmp_path / "a.parquet")
    sizes = frame.groupby("user").size()
    store = prepare(file, tmp_path / "a", SCHEMA, min_events=20, min_count=5, max_vocabulary=10)
    assert store.users().to_pylist() == sorted(sizes[sizes >= 20].index)
    assert all(v.classes <= 10 and v.counts.min() >= 5 for v in store.vocabulary.values())
    kept = frame[frame["user"].map(sizes) >= 20]
    alone = prepare(
        saved(kept, tmp_path / "b.parquet"), tmp_path / "b", SCHEMA, min_count=5, max_vocabulary=10
    )
    assert alone.manifest.content_hash == store.manifest.content_hash
    with pytest.raises(DataError, match="min-events"):
        prepare(file, tmp_path / "c", SCHEMA, min_events=10**6)
    with pytest.raises(DataError, match="min-count"):
        prepare(file, tmp_path / "c", SCHEMA, min_count=10**6)


def test_users_of_one_event_and_of_a_hundred_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_batch_rows", lambda budget: 10_000)
    rng = np.random.default_rng(0)
    users = np.array(["big"] * 100_000 + [f"one{i}" for i in range(2000)])
    frame = pd.DataFrame(
        {"user": users, "time": rng.integers(1_500_000_000, 1_500_100_000, len(users))}
    )
    frame["event"] = rng.integers(0, 50, len(users)).astype(str)
    store = prepare(
        saved(frame.sample(frac=1, random_state=0), tmp_path / "a.parquet"), tmp_path / "out"
    )
    assert store.manifest.users == 2001 and np.diff(store.offsets).max() == 100_000
    assert (np.diff(store.columns["time"][:100_000].astype(np.int64)) >= 0).all()
    assert store.schema.time_unit == "s"


def test_rejects_are_written_counted_and_limited(tmp_path: Path) -> None:
    frame = log()
    frame.loc[:4, "user"] = None
    frame.loc[10:12, "time"] = ["", "never", "1901-01-01 00:00:00"]
    file = saved(frame, tmp_path / "a.csv")
    store = prepare(file, tmp_path / "out", SCHEMA)
    expected = {
        "user is null": 5,
        "time is null": 1,
        "time cannot be read": 1,
        "time is out of range": 1,
    }
    assert store.manifest.rejected == expected
    assert store.manifest.events == len(frame) - 8
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pandas()
    assert rejects["reason"].value_counts().to_dict() == expected
    assert set(rejects["file"]) == {str(file)}
    assert "never" in set(rejects["time"])
    with pytest.raises(
        DataError,
        match=r" = null.*time cannot be read: 1 rows.*'never'.*--max-reject-share 0\.\d\d",
    ):
        prepare(file, tmp_path / "strict", SCHEMA, max_reject_share=0.001)
    assert not (tmp_path / "strict").exists()
    assert pq.read_table(tmp_path / "strict.rejects.parquet").num_rows == 8


def test_rejected_rows_do_not_count_for_a_user(tmp_path: Path) -> None:
    frame = log().assign(user=lambda f: np.where(np.arange(len(f)) % 200 == 0, "few", f["user"]))
    few = np.flatnonzero(frame["user"] == "few")
    frame.loc[few[:3], "time"] = "never"
    file = saved(frame, tmp_path / "a.csv")
    assert (
        "few" in prepare(file, tmp_path / "a", SCHEMA, min_events=len(few) - 3).users().to_pylist()
    )
    store = prepare(file, tmp_path / "b", SCHEMA, min_events=len(few) - 2)
    assert "few" not in store.users().to_pylist()
    sizes = frame[frame["time"] != "never"].groupby("user").size()
    assert np.array_equal(np.diff(store.offsets), sizes[sizes >= len(few) - 2])


@pytest.mark.parametrize("labels", [255, 256, 65_535, 65_536])
def test_any_number_of_labels(tmp_path: Path, labels: int) -> None:
    event = np.random.default_rng(0).permutation(labels)
    columns = {
        "user": event,
        "time": 1_500_000_000 + event,
        "event": event,
        "place": np.where(event % 9, event, None),
    }
    store = prepare(
        pa.table(columns),
        tmp_path / "out",
        SCHEMA.model_copy(update={"behavior": None, "extra": ()}),
    )
    users = [int(user) for user in store.users().to_pylist()]
    assert sorted(users) == list(range(labels))
    assert np.array_equal(store.columns["time"], np.array(users))
    train = store.columns["split"] == 0
    for field, known in (("event", train), ("location", train & (np.array(users) % 9 > 0))):
        decoded = store.vocabulary[field].decode(store.columns[field])
        assert decoded == [
            str(user) if seen else None for user, seen in zip(users, known, strict=True)
        ]


def test_an_empty_category_is_no_label(tmp_path: Path) -> None:
    frame = log().assign(place=lambda f: f["place"].fillna("").astype("category"))
    store = prepare(frame, tmp_path / "out", SCHEMA)
    assert "" not in store.vocabulary["location"].values.to_pylist()
    assert (
        store.manifest.content_hash
        == prepare(log(), tmp_path / "text", SCHEMA).manifest.content_hash
    )


def test_all_rows_rejected_and_no_rows(tmp_path: Path) -> None:
    frame = log(10).assign(event=None)
    with pytest.raises(DataError, match="event is null: 20 rows"):
        prepare(
            saved(frame, tmp_path / "a.parquet"), tmp_path / "out", SCHEMA, max_reject_share=1.0
        )
    with pytest.raises(DataError, match="no rows"):
        prepare(saved(log().iloc[:0], tmp_path / "b.parquet"), tmp_path / "out", SCHEMA)
    with pytest.raises(DataError, match="training split"):
        prepare(
            saved(log(), tmp_path / "c.parquet"),
            tmp_path / "out",
            SCHEMA,
            split="date:2000-01-01,2000-02-01",
        )
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out") and p.is_dir()]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(log(), tmp_path / "a.parquet")

    def interrupt(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    for name in ("encode", "fit_vocabularies", "write_folder", "write_card"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(file, tmp_path / "out", SCHEMA)
        assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(log(), tmp_path / "a.parquet")
    first = prepare(file, tmp_path / "out", SCHEMA).manifest
    with pytest.raises(DataError, match="--overwrite"):
        prepare(file, tmp_path / "out", SCHEMA)
    with pytest.raises(DataError, match="share"):
        prepare(file, tmp_path / "out", SCHEMA, split="time:9,9,9", overwrite=True)
    assert (
        json.loads((tmp_path / "out" / "dataset.json").read_text())["content_hash"]
        == first.content_hash
    )
    second = prepare(
        file, tmp_path / "out", SCHEMA, split="user:0.5,0.5,0", overwrite=True
    ).manifest
    assert second.content_hash != first.content_hash
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not a prepared folder"):
        prepare(file, tmp_path / "mine", SCHEMA, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "mine", "out"]


def test_preview_writes_nothing(tmp_path: Path, reference: EventStore) -> None:
    frame = log()
    file = saved(frame, tmp_path / "a.parquet")
    seen = preview(file, SCHEMA)
    assert list(seen.split.values()) == reference.manifest.split["events"]
    assert (seen.rows, seen.users, seen.rejected) == (len(frame), reference.manifest.users, {})
    assert list(seen.boundaries) == reference.manifest.split["boundaries"]
    assert {guess.column: guess.role for guess in seen.guesses}["place"] == "location"
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_data_card(reference: EventStore) -> None:
    card = (reference.path / "data_card.md").read_text()
    for text in (
        "3,050 events",
        reference.manifest.content_hash,
        "Gini",
        "effective",
        "unknown in test",
        "gap",
        "time:0.7",
    ):
        assert text in card


def test_the_data_card_says_what_helps_with_new_events(tmp_path: Path) -> None:
    frame = log()
    new = frame.assign(event=frame.index.astype(str))
    for name, rows, said in (("known", frame, False), ("new", new, True)):
        prepare(saved(rows, tmp_path / f"{name}.parquet"), tmp_path / name, SCHEMA)
        card = (tmp_path / name / "data_card.md").read_text()
        assert (
            "100% of the test events" in card and "`model.inputs=with_behavior`" in card
        ) is said


def test_the_data_card_counts_behaviors_that_training_never_saw(tmp_path: Path) -> None:
    frame = log()
    frame.loc[frame["time"] > sorted(frame["time"])[-300], "kind"] = "new"
    store = prepare(saved(frame, tmp_path / "log.parquet"), tmp_path / "out", SCHEMA)
    unknown, split = (
        np.asarray(store.column("behavior")) == UNKNOWN,
        np.asarray(store.columns["split"]),
    )
    card = (tmp_path / "out" / "data_card.md").read_text()
    for name, number in (("Test", 2), ("Validation", 1)):
        missed, events = int(unknown[split == number].sum()), int((split == number).sum())
        assert (f"{name}: the behavior of {missed:,} of {events:,} events" in card) == bool(
            missed
        ), name
    assert unknown[split == 2].any()


def test_imbalance() -> None:
    from behavegpt.ingest.card import imbalance

    even, single = imbalance(np.full(10, 7)), imbalance(np.array([5]))
    assert (round(even.gini, 9), round(even.effective, 9), even.top5, even.rarest) == (
        0,
        10,
        0.5,
        7,
    )
    assert (single.gini, single.effective, single.top5) == (0, 1, 1)
    counts = np.random.default_rng(0).zipf(1.6, 50)
    pairs = np.abs(counts[:, None] - counts[None]).sum() / (2 * len(counts) ** 2 * counts.mean())
    assert imbalance(counts).gini == pytest.approx(pairs)


@pytest.mark.parametrize("memory", ["", "lots", "1", "128MiB", "-2GiB"])
def test_memory_setting(tmp_path: Path, memory: str) -> None:
    with pytest.raises(DataError, match="256MiB"):
        prepare(saved(log(), tmp_path / "a.parquet"), tmp_path / "out", SCHEMA, memory=memory)


def test_damaged_parquet_is_one_clear_error(tmp_path: Path) -> None:
    whole = saved(log(), tmp_path / "whole.parquet").read_bytes()
    file = tmp_path / "bad.parquet"
    for cut in np.linspace(0, len(whole) - 1, 10).astype(int):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cannot be read|is empty"):
            prepare(file, tmp_path / "out", SCHEMA)
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole) - 3000, len(whole), 12):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(flipped))
        try:
            prepare(file, tmp_path / "out", SCHEMA, overwrite=True)
        except DataError as error:
            assert "bad.parquet" in str(error)
    assert {p.name for p in tmp_path.iterdir()} <= {
        "whole.parquet",
        "bad.parquet",
        "out",
        "out.rejects.parquet",
    }


def test_a_corrupt_file_among_many_is_named(tmp_path: Path) -> None:
    folder = split_files(log(), tmp_path / "parts")
    data = bytearray((folder / "1.parquet").read_bytes())
    data[4:2000] = bytes(1996)
    (folder / "1.parquet").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"1\.parquet: cannot be read"):
        prepare(folder, tmp_path / "out", SCHEMA)


def test_real_logs(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    store = prepare(shared_data("foursquare_jakarta.parquet"), tmp_path / "out", min_events=10)
    frame = pd.read_parquet(shared_data("foursquare_jakarta.parquet"))
    sizes = frame.groupby("user_id").size()
    assert store.manifest.users == (sizes >= 10).sum()
    assert store.manifest.events == sizes[sizes >= 10].sum()
    assert store.behaviors.classes == 9
    assert isinstance(store.users(), pa.StringArray)
