"""The sequence store against pandas, and the faults of id vocabularies it must not have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.errors import DataError
from behavegpt.profiles.events import PRODUCT, DataSettings, open_events
from behavegpt.profiles.fields import (
    END,
    FIRST,
    MISSING,
    PAD,
    RARE,
    START,
    SequenceSettings,
    Vocabularies,
)
from behavegpt.profiles.members import Context
from tests.profiles.makers import FIRST_DAY, read_events

ALL = SequenceSettings(fields=("week", "event", "category", "price", "sku:5", "url:min4"))


def by_hand(
    path: Path, settings: SequenceSettings
) -> tuple[dict[int, list[tuple[int, ...]]], dict[str, list[int]]]:
    """Client -> list of id tuples in order, and the values of each vocabulary; loops over a data
    frame."""
    table = read_events(path)
    relevant = set(np.load(path / "input" / "relevant_clients.npy"))
    table = table[table["client_id"].isin(relevant)]
    days = (table["timestamp"].dt.normalize() - FIRST_DAY.normalize()).dt.days
    table = table.assign(day=days, week=days // 7)
    known: dict[str, list[int]] = {
        "event": list(range(5)),
        "week": list(range(int(days.max()) // 7 + 1)),
    }
    for name, top, least in (
        ("category", None, 1),
        ("price", None, 1),
        ("sku", 5, 1),
        ("url", None, 4),
    ):
        counts = table[name].dropna().astype(int).value_counts()
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        known[name] = [int(value) for value, count in ranked if count >= least][:top]
    sequences: dict[int, list[tuple[int, ...]]] = {}
    names = [spec.name for spec in settings.specs]
    for client, group in table.groupby("client_id"):
        rows = []
        for row in group.to_dict("records"):
            ids = []
            for name in names:
                value = row[name]
                if pd.isna(value):
                    ids.append(MISSING)
                else:
                    ids.append(
                        FIRST + known[name].index(int(value)) if int(value) in known[name] else RARE
                    )
            mixed = (int(client) % 2**31) * 0x9E3779B1 + sum(
                value * pow(0x9E3779B1, power, 2**32) for power, value in enumerate(ids, 2)
            )
            rows.append((row["timestamp"], row["event"], mixed % 2**32, tuple(ids)))
        sequences[int(client)] = [ids for *_, ids in sorted(rows)]
    return sequences, known


def test_the_store_is_what_pandas_makes(small: Path, context: Callable[..., Context]) -> None:
    ours = context(small)
    vocabularies = ours.vocabularies(ALL)
    store = ours.sequences(ALL, vocabularies)
    sequences, known = by_hand(small, ALL)
    assert {name: values.tolist() for name, values in vocabularies.values.items()} == known
    assert store.clients.tolist() == sorted(sequences)
    for row, client in enumerate(store.clients):
        inside = slice(store.offsets[row], store.offsets[row + 1])
        ids = np.stack([store.columns[spec.name][inside] for spec in ALL.specs], axis=1)
        assert [tuple(line) for line in ids.tolist()] == sequences[int(client)]


def test_values_never_share_an_id_with_missing_or_rare(
    small: Path, context: Callable[..., Context]
) -> None:
    ours = context(small)
    store = ours.sequences(ALL, ours.vocabularies(ALL))
    table = read_events(small)
    table = table[table["client_id"].isin(store.clients)]
    columns = {name: np.asarray(column) for name, column in store.columns.items()}
    visits = columns["event"] == FIRST + 3
    assert (columns["sku"][visits] == MISSING).all()
    assert (columns["url"][~visits] == MISSING).all()
    assert (columns["url"][visits] != MISSING).all()
    # url 0 and sku 0 are values of their own, and `top` counts real values only
    zero = {
        name: store.vocabularies.values[name].tolist().index(0) + FIRST for name in ("url", "sku")
    }
    for name, column in zero.items():
        assert np.count_nonzero(columns[name] == column) == np.count_nonzero(table[name] == 0)
    assert store.sizes["sku"] == FIRST + 5
    assert np.count_nonzero(columns["sku"] == RARE) > 0
    assert all(column.min() >= MISSING for column in columns.values())


def test_the_order_of_rows_and_threads_do_not_matter(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    other = shutil.copytree(small, tmp_path / "shuffled")
    for file in (other / "input").glob("*.parquet"):
        pd.read_parquet(file).sample(frac=1, random_state=3).to_parquet(file, index=False)
    settings = [
        ALL,
        SequenceSettings(fields=("name", "event"), events=PRODUCT),
        SequenceSettings(fields=("query",)),
    ]
    for setting in settings:
        stores = []
        for path, threads in ((small, 2), (other, 1)):
            ours = context(path, threads=threads)
            stores.append(ours.sequences(setting, ours.vocabularies(setting)))
        assert stores[0].path != stores[1].path
        for name in stores[0].columns:
            assert np.array_equal(stores[0].columns[name], stores[1].columns[name])


def test_codes_are_tokens_in_their_order(small: Path, context: Callable[..., Context]) -> None:
    settings = SequenceSettings(fields=("event", "name"), events=PRODUCT, last=6)
    ours = context(small)
    store = ours.sequences(settings, ours.vocabularies(settings))
    table = read_events(small)
    table = table[table["event"] < 3]
    table["parsed"] = [
        [-1] if pd.isna(text) else [int(code) for code in text.strip("[]").split()]
        for text in table["name"]
    ]
    values = store.vocabularies.values["name"].tolist()
    for row, client in enumerate(store.clients):
        mine = table[table["client_id"] == client]
        ids = store.columns["name"][store.offsets[row] : store.offsets[row + 1]].tolist()
        tokens = [-1 if token == MISSING else values[token - FIRST] for token in ids]
        # at equal times by event type, then by the list of codes; a product without properties is
        # one token
        records = sorted(
            mine.to_dict("records"),
            key=lambda r: (r["timestamp"], r["event"], _nulls_last(r["parsed"])),
        )
        assert tokens == [code for record in records for code in record["parsed"]][-6:]


def _nulls_last(codes: list[int]) -> list[int]:
    return [10**6 if code < 0 else code for code in codes]


def test_padding_is_pure_and_the_same_in_any_batch(
    small: Path, context: Callable[..., Context]
) -> None:
    ours = context(small)
    store = ours.sequences(ALL, ours.vocabularies(ALL))
    longest = np.argsort(store.lengths)[::-1]
    rows = np.r_[longest[-3:], longest[:2]]
    batch, lengths = store.padded(rows, 16)
    again, _ = store.padded(rows, 16)
    for name, ids in batch.items():
        assert np.array_equal(ids, again[name])  # asking twice adds no second start and end
        assert ids.shape == (5, lengths.max())
        for number, row in enumerate(rows):
            alone = store.padded(np.array([row]), 16)[0][name][0]
            assert np.array_equal(ids[number, : lengths[number]], alone)
            assert (ids[number, lengths[number] :] == PAD).all()
            assert (alone[0], alone[-1]) == (START, END)
            column = store.columns[name][store.offsets[row] : store.offsets[row + 1]]
            assert np.array_equal(alone[1:-1], column[-14:])
    assert lengths.max() == 16


def test_a_history_ends_where_it_is_cut(small: Path, context: Callable[..., Context]) -> None:
    settings = SequenceSettings(fields=("event", "time"))
    ours = context(small)
    store = ours.sequences(settings, ours.vocabularies(settings))
    moment = int(np.median(store.columns["time"]))
    stops = store.stops_before(moment)
    for row in range(len(store.clients)):
        times = np.asarray(store.columns["time"][store.offsets[row] : store.offsets[row + 1]])
        past = store.columns["time"][store.offsets[row] : stops[row]]
        assert past.tolist() == times[times < moment].tolist()
    assert 0 < (stops - store.offsets[:-1]).sum() < store.offsets[-1]


def test_weeks_go_on_over_the_new_year(small: Path, context: Callable[..., Context]) -> None:
    settings = SequenceSettings(fields=("week", "time"))
    ours = context(small)
    store = ours.sequences(settings, ours.vocabularies(settings))
    seconds = store.columns["time"].astype(int) - int(FIRST_DAY.timestamp())
    assert np.array_equal(store.columns["week"].astype(int) - FIRST, seconds // (7 * 86_400))
    assert store.columns["time"].dtype == np.uint32


def test_new_data_is_read_with_the_old_vocabulary(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    fitted = context(small).vocabularies(ALL)
    fitted.save(tmp_path / "vocabularies.safetensors")
    loaded = Vocabularies.load(tmp_path / "vocabularies.safetensors")
    assert (loaded.digest, list(loaded.values)) == (fitted.digest, list(fitted.values))
    other = shutil.copytree(small, tmp_path / "later")
    visits = pd.read_parquet(other / "input" / "page_visit.parquet")
    visits = visits.assign(
        url=visits["url"] + 1000, timestamp=visits["timestamp"] + pd.Timedelta(days=300)
    )
    visits.to_parquet(other / "input" / "page_visit.parquet", index=False)
    store = context(other).sequences(ALL, loaded)
    visited = np.asarray(store.columns["event"]) == FIRST + 3
    for name in ("url", "week"):  # never seen, never renumbered
        assert (np.asarray(store.columns[name])[visited] == RARE).all()
    assert store.sizes == fitted.sizes


def test_training_on_all_and_embedding_the_asked(
    small: Path, context: Callable[..., Context]
) -> None:
    settings = SequenceSettings(fields=("event", "sku"), clients="all")
    ours = context(small)
    vocabularies = ours.vocabularies(settings)
    everybody, asked = (
        ours.sequences(settings, vocabularies),
        ours.sequences(settings, vocabularies, asked=True),
    )
    assert set(everybody.clients) == set(read_events(small)["client_id"])
    assert set(asked.clients) == set(everybody.clients) & set(ours.clients)
    assert len(asked.clients) < len(everybody.clients)
    rows = np.searchsorted(everybody.clients, asked.clients)
    ids = [
        store.padded(r, 50)[0]["sku"]
        for store, r in ((everybody, rows), (asked, np.arange(len(rows))))
    ]
    assert np.array_equal(*ids)


def test_codes_of_the_later_release_are_read_alike(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """Lists in a column `embedding` in place of text in `query` and `name`."""
    other = shutil.copytree(small, tmp_path / "later")
    for file, name in (
        ("input/search_query.parquet", "query"),
        ("product_properties.parquet", "name"),
    ):
        table = pd.read_parquet(other / file)
        table["embedding"] = [
            [int(code) for code in text.strip("[]").split()] for text in table.pop(name)
        ]
        table.to_parquet(other / file, index=False)
    for field in ("query", "name"):
        settings = SequenceSettings(fields=(field,))
        stores = [
            c.sequences(settings, c.vocabularies(settings))
            for c in (context(small), context(other))
        ]
        assert stores[0].path != stores[1].path
        assert np.array_equal(stores[0].columns[field], stores[1].columns[field])


def test_a_store_takes_few_bytes_and_is_built_once(
    mini: Path, context: Callable[..., Context]
) -> None:
    settings = SequenceSettings(
        fields=("week", "event", "category", "price", "sku:5000", "url:5000"), last=126
    )
    ours = context(mini)
    vocabularies = ours.vocabularies(settings)
    store = ours.sequences(settings, vocabularies)
    size = sum(file.stat().st_size for file in store.path.glob("*.npy"))
    assert size / len(store.columns["sku"]) <= 12
    # the relevant clients with an event, by the organizers' baseline
    assert len(store.clients) == 8490
    written = (store.path / "store.json").stat().st_mtime_ns
    assert ours.sequences(settings, vocabularies).path == store.path
    assert (store.path / "store.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "fields,message",
    [
        (("sku", "skuu"), "Did you mean 'sku'"),
        (("sku", "sku:5"), "each once"),
        (("sku:0",), "write sku:5000"),
        (("name", "query"), "cannot be tokens of one"),
        ((), "at least one field"),
    ],
)
def test_wrong_fields_are_named(fields: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceSettings(fields=fields)


def test_wrong_directories_are_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="challenge split"):
        open_events(DataSettings(path=str(tmp_path)))
    other = shutil.copytree(small, tmp_path / "other")
    pd.read_parquet(small / "input" / "page_visit.parquet").rename(
        columns={"url": "page"}
    ).to_parquet(other / "input" / "page_visit.parquet")
    with pytest.raises(DataError, match=r"page_visit.parquet: column 'url' is missing"):
        open_events(DataSettings(path=str(other)))
    (other / "input" / "page_visit.parquet").unlink()  # a log without visits is fine
    assert len(open_events(DataSettings(path=str(other))).files) == 4
    properties = pd.read_parquet(other / "product_properties.parquet")
    pd.concat([properties, properties[:1]]).to_parquet(other / "product_properties.parquet")
    with pytest.raises(DataError, match="sku 0 has 2 lines"):
        open_events(DataSettings(path=str(other)))
