"""Numeric fields: ranges of numbers that are fitted, kept, found again, trained on and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import behavegpt
from behavegpt.cli import main
from behavegpt.data.bins import BINS, Bins, numbers
from behavegpt.data.reencode import fit_store, reencode
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST, UNKNOWN
from behavegpt.embeddings.export import ExportSettings, export
from behavegpt.errors import DataError
from behavegpt.ingest.prepare import prepare
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.training.model_folder import open_model
from tests.runs import tiny_settings

SCHEMA = EventSchema(user="user", time="time", event="event", numeric=("amount",))


def purchases(rows: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Amounts are refunds, free of charge, missing or prices that depend on the event."""
    rng = np.random.default_rng(seed)
    event = rng.integers(0, 8, rows)
    amount = np.round(rng.lognormal(event / 2, 0.2), 2) * rng.choice([1, 1, 1, -1], rows)
    amount[::50], amount[::77] = 0, np.nan
    return pd.DataFrame(
        {
            "user": rng.integers(0, 60, rows),
            "time": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows), "h"),
            "event": [f"e{number}" for number in event],
            "amount": amount,
        }
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), (" -1.5 ", -1.5), ("+.5", 0.5), ("1e3", 1000), ("2.", 2), ("-0", 0), ("1e999", None)]
    + [(text, None) for text in ("", "1,5", "12 EUR", "nan", "inf", "0x1f", "1_000", None)],
)
def test_a_label_is_a_number_or_missing(text: str | None, number: float | None) -> None:
    assert numbers(pa.array([text], pa.string())).tolist() == pytest.approx(
        [np.nan if number is None else number], nan_ok=True
    )


def test_ranges_hold_about_equally_many_events_with_signs_apart() -> None:
    values = np.concatenate([-np.arange(1, 101), np.zeros(50), np.arange(1, 851)])
    bins = Bins.fit(pa.array([str(value) for value in values]), np.ones(len(values), np.int64))

    assert (np.diff(bins.edges) > 0).all() and 0 in bins.edges
    assert BINS - 1 <= bins.classes <= BINS + 1 and bins.counts.sum() == len(values)
    assert bins.counts.max() < 2 * len(values) / BINS
    for low, high in ((-1, 0), (0, 1)):  # no range holds numbers of two signs
        assert bins.encode([low])[0] != bins.encode([high])[0]


def test_every_number_has_a_range_and_the_ranges_name_is_in_it() -> None:
    bins = Bins.fit(pa.array(["1", "2", "4", "8"]), np.array([5, 5, 5, 5]))
    assert bins.encode([-100, 1, 3.99, 4, 1e9]).tolist() == [
        FIRST, FIRST, FIRST + 1, FIRST + 2, FIRST + 3,
    ]  # fmt: skip
    assert bins.encode(bins.values).tolist() == list(range(FIRST, len(bins)))
    assert bins.encode([None, float("nan"), "two"]).tolist() == [UNKNOWN] * 3
    assert bins.grow(["77"]) is bins


def test_one_value_and_none_at_all_are_legal() -> None:
    one = Bins.fit(pa.array(["3", "x"]), np.array([4, 2]))
    assert one.encode([3, -3, 99]).tolist() == [FIRST] * 3
    none = Bins.fit(pa.array([], pa.string()), np.zeros(0, np.int64))
    assert none.encode([3]).tolist() == [UNKNOWN]


def test_csv_parquet_and_a_frame_give_the_same_folder(tmp_path: Path) -> None:
    frame = purchases()
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet")
    stores = [
        prepare([tmp_path / name], tmp_path / name.replace(".", "_"), SCHEMA)
        for name in ("log.csv", "log.parquet")
    ]
    assert len({store.manifest.content_hash for store in stores}) == 1
    assert isinstance(open_store(stores[0].path).vocabulary["amount"], Bins)

    tokenizer = EventTokenizer.from_store(stores[0], 20)
    encoded = tokenizer.encode(frame).columns["amount"]
    assert (encoded == UNKNOWN).sum() == frame["amount"].isna().sum()
    assert len(np.unique(encoded)) == len(stores[0].vocabulary["amount"].values) + 1


def test_ranges_come_from_the_training_split_alone(tmp_path: Path) -> None:
    frame = purchases()
    later = frame.copy()
    later.loc[len(frame) * 9 // 10 :, "amount"] *= 1000
    stores = []
    for name, log in (("a", frame), ("b", later)):
        log.to_parquet(tmp_path / f"{name}.parquet")
        stores.append(prepare([tmp_path / f"{name}.parquet"], tmp_path / name, SCHEMA))
    assert stores[0].vocabulary["amount"].hash == stores[1].vocabulary["amount"].hash


def test_another_logs_ranges_are_found_in_a_models(tmp_path: Path) -> None:
    stores = []
    for name, factor in (("a", 1.0), ("b", 3.0)):
        frame = purchases().assign(amount=lambda log, factor=factor: log["amount"] * factor)
        frame.to_parquet(tmp_path / f"{name}.parquet")
        stores.append(prepare([tmp_path / f"{name}.parquet"], tmp_path / name, SCHEMA))
    ours, theirs = stores
    fitted = fit_store(theirs, EventTokenizer.from_store(ours, 20))  # no label is unknown to it
    assert fitted.vocabulary["amount"].hash == ours.vocabulary["amount"].hash

    again = reencode(fitted, ours.vocabulary).vocabulary["amount"]
    assert isinstance(again, Bins)
    middle = theirs.vocabulary["amount"].encode([30.0])[0]
    column = np.asarray(theirs.columns["amount"])
    moved = np.unique(np.asarray(fitted.columns["amount"])[column == middle])
    low = theirs.vocabulary["amount"].values[middle - FIRST].as_py()
    assert moved.tolist() == ours.vocabulary["amount"].encode([low]).tolist()


def test_text_among_the_numbers_is_told_and_text_alone_is_refused(tmp_path: Path) -> None:
    frame = purchases()
    frame["amount"] = frame["amount"].astype(str).where(frame.index % 10 > 0, "n/a EUR")
    told: list[str] = []
    frame.to_csv(tmp_path / "some.csv", index=False)
    prepare([tmp_path / "some.csv"], tmp_path / "some", SCHEMA, progress=told.append)
    assert any("300 values of 'amount' are no numbers, such as 'n/a EUR'" in line for line in told)

    frame.assign(amount="12,50 EUR").to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(DataError, match=r"'amount' \(numeric\) holds no number.*'12,50 EUR'"):
        prepare([tmp_path / "all.csv"], tmp_path / "all", SCHEMA)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"numeric": ("slot",)}, "reserved name"),
        ({"numeric": ("a", "a")}, "listed twice"),
        ({"numeric": ("a",), "extra": ("a",)}, "listed twice"),
        ({"numeric": ("../a",)}, "name of a file"),
    ],
)
def test_columns_that_cannot_be_numeric_are_refused(
    columns: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EventSchema(user="user", time="time", event="event", **columns)


def test_folders_without_numeric_columns_are_described_as_before() -> None:
    assert "numeric" not in EventSchema(user="u", time="t", event="e").model_dump(mode="json")


def test_quantity_and_price_are_read_predicted_and_drawn(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Online Retail: what was bought for how much; drawn futures can be prepared again."""
    log = pq.read_table(shared_data("online_retail.parquet")).slice(0, 30_000)
    pq.write_table(log, tmp_path / "log.parquet")
    columns = "--user user_id --time timestamp --event event --numeric quantity unit_price"
    arguments = [str(tmp_path / "log.parquet"), "--out", str(tmp_path / "data"), *columns.split()]
    assert main(["prepare", *arguments]) == 0

    settings = tiny_settings(tmp_path / "data", tmp_path / "run", steps=3)
    settings["model"] |= {"next_heads": ["event", "location", "gap", "quantity", "unit_price"]}
    pretrain(PretrainSettings.model_validate(settings))
    model = behavegpt.load(tmp_path / "run" / "model", "cpu")
    assert model.model.config.columns[-2:] == ("quantity", "unit_price")

    given = log.slice(0, 500)
    plain = model.predict(given).probabilities
    dearer = given.set_column(
        given.schema.get_field_index("unit_price"),
        "unit_price",
        pa.array(given["unit_price"].to_numpy() * 100),
    )
    assert not np.allclose(model.predict(dearer).probabilities, plain)

    # vectors of raw logs too are those of the model's ranges, not of ranges of the log's own
    pq.write_table(given, tmp_path / "given.parquet")
    asked = ExportSettings(scale="none", dtype="float32")
    trained = open_model(tmp_path / "run" / "model")
    export(trained, [tmp_path / "given.parquet"], tmp_path / "out", asked)
    found = np.load(tmp_path / "out" / "embeddings.npy")
    wanted = model.embed(given, pool=("last", "mean")).vectors
    np.testing.assert_allclose(found, wanted, atol=1e-5)

    drawn = model.generate(given, steps=6, time="head")
    assert (
        drawn.policies["unit_price"]
        == "head, weighed by how often it goes with the behavior in training"
    )
    table = drawn.to_table()
    assert table["unit_price"].type == pa.float64() and table["unit_price"].null_count < len(table)
    assert len(table["unit_price"].unique()) > 3
    assert len(EventTokenizer.from_store(open_store(tmp_path / "data"), 20).encode(table).users) > 1


def test_a_drawn_number_fits_the_drawn_behavior(tmp_path: Path) -> None:
    """Purchases are dear and refunds negative: a head that knows the past alone mixes them up."""
    rng = np.random.default_rng(0)
    event = rng.choice(["buy", "refund"], 6000)
    log = pa.table(
        {
            "user": [f"u{n % 40}" for n in range(6000)],
            "time": np.datetime64("2024-01-01T00:00:00")
            + np.arange(6000) * np.timedelta64(600, "s"),
            "event": event,
            "amount.paid": np.where(event == "buy", 1, -1) * rng.integers(1, 100, 6000),
        }
    )
    schema = EventSchema(user="user", time="time", event="event", numeric=("amount.paid",))
    behavegpt.prepare(log, tmp_path / "data", schema)
    settings = tiny_settings(tmp_path / "data", tmp_path / "run", steps=3)
    settings["model"] |= {"next_heads": ["gap", "amount.paid"]}
    pretrain(PretrainSettings.model_validate(settings))
    model = behavegpt.load(tmp_path / "run" / "model", "cpu")
    drawn = model.generate(log, steps=20).to_pandas()
    fits = (drawn["amount.paid"] > 0) == (drawn["event"] == "buy")
    assert len(drawn) == 800 and set(drawn["event"]) == {"buy", "refund"} and fits.mean() > 0.98
    # without what training saw together, the two are drawn apart
    apart = behavegpt.Predictor(model.model, model.tokenizer).generate(log, steps=20).to_pandas()
    assert ((apart["amount.paid"] > 0) == (apart["event"] == "buy")).mean() < 0.7
