"""The same value has the same label: from every format, alone or in company, once the data are
prepared."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from behavegpt.data.label_texts import TEXT_RULES, infer_rules
from behavegpt.data.labels import RULES, choose_rule, common_rules
from behavegpt.data.schema import EventSchema
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import UNKNOWN, Vocabulary
from behavegpt.errors import DataError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.histories import encode_histories
from behavegpt.ingest.prepare import prepare

SCHEMA = EventSchema(user="u", time="t", event="e")
DAY = datetime.date(2024, 5, 1)
# kind -> values, their rule, their labels, and other spellings of the first value
KINDS: dict[str, tuple[list[Any], str, list[str], list[Any]]] = {
    "int": ([1, 7, 10], "integer", ["1", "7", "10"], [1.0, "1", "1.0"]),
    "float": ([1.0, 1.5, 2.0], "number", ["1.0", "1.5", "2.0"], [1, "1", "1.0", "1.00"]),
    "bool": ([True, False], "boolean", ["true", "false"], ["True", "TRUE", "true"]),
    "decimal": (
        [Decimal("1.50"), Decimal("2.00"), Decimal("2.25")],
        "decimal:2",
        ["1.50", "2.00", "2.25"],
        [1.5, "1.5", "1.500", Decimal("1.5")],
    ),
    "date": ([DAY, datetime.date(2024, 5, 2)], "date", ["2024-05-01", "2024-05-02"],
             ["2024-05-01T00:00:00", pd.Timestamp(DAY), "2024-05-01 00:00:00.000"]),
    "timestamp": ([pd.Timestamp("2024-05-01"), pd.Timestamp("2024-05-01 10:30")], "timestamp",
                  ["2024-05-01 00:00:00", "2024-05-01 10:30:00"],
                  [DAY, "2024-05-01T00:00:00.000", "2024-05-01"]),
    "categorical": (["a", "b", "7.0"], "text", ["a", "b", "7.0"], ["a"]),
    "numbers in a categorical": ([3, 4], "integer", ["3", "4"], [3.0, "3"]),
}  # fmt: skip
FORMATS = ("csv", "jsonl", "parquet", "frame", "dict", "rows")


def frame(kind: str, values: list[Any]) -> pd.DataFrame:
    events = pd.Categorical(values) if "categorical" in kind else values
    times = [f"2024-01-{day + 1:02} 10:00:00" for day in range(len(values))]
    return pd.DataFrame({"u": ["a"] * len(values), "t": times, "e": events})


def saved(table: pd.DataFrame, kind: str, folder: Path) -> Any:
    """The table in one of FORMATS."""
    folder.mkdir(exist_ok=True)
    columns = {name: table[name].tolist() for name in table.columns}
    if kind == "csv":
        table.to_csv(folder / "log.csv", index=False)
    elif kind == "jsonl":
        lines = [
            json.dumps(dict(zip(columns, row, strict=True)), default=_plain)
            for row in zip(*columns.values(), strict=True)
        ]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    elif kind == "parquet":
        table.to_parquet(folder / "log.parquet")
    elif kind == "frame":
        return table
    else:
        return columns
    return folder / f"log.{kind}"


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_labels_and_rule(kind: str, tmp_path: Path) -> None:
    values, rule, labels, _ = KINDS[kind]
    for form in ("csv", "parquet", "frame", "dict"):
        log = saved(frame(kind, values * 2), form, tmp_path / form)
        if form in ("frame", "dict"):
            assert read_events(log, SCHEMA).table["event"].to_pylist()[: len(labels)] == labels, (
                form
            )
            continue
        store = prepare(log, tmp_path / form / "out", SCHEMA, split="time:1,0,0")
        assert sorted(store.vocabulary["event"].values.to_pylist()) == sorted(labels), form
        assert store.schema.label_rules["event"] == rule, form


@pytest.mark.parametrize("trained", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_alone_has_the_label_it_has_in_company(
    kind: str, trained: str, tmp_path: Path
) -> None:
    values, _, _, spellings = KINDS[kind]
    if (kind, trained) in (("decimal", "jsonl"), ("timestamp", "jsonl")):
        spellings = spellings[:2]  # JSON has no decimals: 1.50 was 1.5 in training
    log = saved(frame(kind, values * 2), trained, tmp_path / "log")
    store = prepare(log, tmp_path / "out", SCHEMA, split="time:1,0,0")
    tokenizer = EventTokenizer.from_store(store, 9)
    # values are read by the stored rule alone: where it is parquet's, its case holds every format
    rule = KINDS[kind][1]
    whole = trained == "parquet" or store.schema.label_rules["event"] != rule
    for form in FORMATS if whole else ("csv", "rows"):
        together = ids(
            tokenizer, saved(frame(kind, values), form, tmp_path / f"{form} together"), form
        )
        assert UNKNOWN not in together, form
        asked = values if whole else values[:1]
        for value, expected in zip(asked, together, strict=False):
            alone = saved(frame(kind, [value]), form, tmp_path / f"{form} alone")
            assert ids(tokenizer, alone, form) == [expected], (form, value)
    for spelling in spellings:
        for form in ("csv", "frame", "rows") if whole else ("rows",):
            alone = saved(frame("", [spelling]), form, tmp_path / f"{form} other")
            assert ids(tokenizer, alone, form) == together[:1], (form, spelling)


def ids(tokenizer: EventTokenizer, log: Any, form: str) -> list[int]:
    if form == "rows":
        log = [dict(zip(log, row, strict=True)) for row in zip(*log.values(), strict=True)]
        return encode_histories(tokenizer, log).columns["event"].tolist()
    return tokenizer.encode(log).columns["event"].tolist()


def test_the_rule_travels_with_the_tokenizer_and_is_inferred_for_old_ones(tmp_path: Path) -> None:
    store = prepare(
        saved(frame("", [1.0, 1.5, 2.0]), "parquet", tmp_path / "log"),
        tmp_path / "out",
        SCHEMA,
        split="time:1,0,0",
    )
    tokenizer = EventTokenizer.from_store(store, 9)
    tokenizer.save(tmp_path / "model")
    again = EventTokenizer.from_pretrained(str(tmp_path / "model"))
    assert again.event_schema.label_rules == {"user": "text", "event": "number"}
    old = json.loads((tmp_path / "out" / "dataset.json").read_text())
    del old["event_schema"]["label_rules"]
    inferred = EventTokenizer(old["event_schema"], dict(store.vocabulary), 9)
    assert inferred.event_schema.label_rules["event"] == "number"
    assert inferred.hash == tokenizer.hash


@pytest.mark.parametrize(
    ("labels", "rule"),
    [(["1", "2"], "integer"), (["1.0", "1.5"], "number"), (["1", "1.5"], "text"),
     (["True"], "text"), ([], "text"), (["2024-01-01 00:00:00"], "timestamp"),
     (["a", "1.0"], "text"), (["1.10", "1.20"], "decimal:2")],
)  # fmt: skip
def test_old_labels_are_never_written_anew(labels: list[str], rule: str) -> None:
    assert infer_rules({"event": pa.array(labels, pa.string())}) == {"event": rule}


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["1", "1.0"], ["1", "1"]),  # two files of one column, one with nulls
        (["007", "7"], ["007", "7"]),
        (["1.10", "1.1"], ["1.10", "1.1"]),  # versions
        (["1.1", "1.10", "v2"], ["1.1", "1.10", "v2"]),
        (["1", "a", "1.0"], ["1", "a", "1.0"]),
        (["-0.0", "0"], ["0", "0"]),
        (["1e5", "x"], ["1e5", "x"]),
        (["9007199254740993", "1.5"], ["9007199254740993", "1.5"]),
        (["True", "maybe"], ["True", "maybe"]),
        (["inf", "1.5"], ["inf", "1.5"]),
    ],
)
def test_texts_keep_what_tells_them_apart(
    values: list[str], labels: list[str], tmp_path: Path
) -> None:
    for form in ("csv", "frame"):
        table = read_events(saved(frame("", values), form, tmp_path / form), SCHEMA).table
        assert table["event"].to_pylist() == labels


@pytest.mark.parametrize("column", ["u", "e"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "frame", "dict"])
def test_ids_beyond_the_precision_of_a_float_are_refused(
    column: str, form: str, tmp_path: Path
) -> None:
    table = frame("", ["x", "y", "z"]).assign(**{column: [2.0**53, 2.0**53 + 2, None]})
    with pytest.raises(
        DataError, match=f"column '{column}' holds 9[0-9.e+]* as a floating-point number"
    ):
        read_events(saved(table, form, tmp_path), SCHEMA)
    small = frame("", ["x", "y", "z"]).assign(**{column: [2.0**53 - 1, 4.0, None]})
    assert (
        str(2**53 - 1)
        in read_events(saved(small, form, tmp_path), SCHEMA).table[SCHEMA_FIELD[column]].to_pylist()
    )
    exact = frame("", ["x", "y"]).assign(**{column: [2**53, 2**53 + 1]})
    assert (
        len(
            set(
                read_events(saved(exact, form, tmp_path), SCHEMA)
                .table[SCHEMA_FIELD[column]]
                .to_pylist()
            )
        )
        == 2
    )


SCHEMA_FIELD = {"u": "user", "e": "event"}


def test_single_precision_is_refused_earlier() -> None:
    table = frame("", ["x", "y"]).assign(e=np.array([2**24, 5], np.float32))
    with pytest.raises(DataError, match=r"from 2\^24"):
        read_events(table, SCHEMA)


def test_rules_in_python_are_those_in_sql() -> None:
    """The reader of a few rows writes what SQL would write."""
    import duckdb

    texts = [
        "1", "1.0", "1.5", "1.50", "-0", "-0.0", "-1", "01", "1e5", "1e-5", "a", "", "true", "True",
        "2024-05-01", "2024-05-01 00:00:00", "2024-05-01 10:00:00", "2024-05-01T10:00:00.1200",
        "inf", "-inf", "nan", "NaN", "1.", ".5", "+1", "1.0\n", "x\ny", "123456789.5", "1e999",
        "9007199254740993", "12345678901234567890.50", "1e16", "TRUE ",
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    texts += ["".join(rng.choice([*"0123456789.-+eE"], 1 + i % 8)) for i in range(4000)]
    texts += [repr(value) for value in rng.normal(size=2000) * 10.0 ** rng.integers(-8, 20, 2000)]
    con = duckdb.connect()
    con.register("labels", pa.table({"label": texts}))
    assert list(TEXT_RULES) == list(RULES)
    for name, rule in RULES.items():
        in_sql = con.execute(f"SELECT {rule.sql}, {rule.fits} FROM labels").fetchall()
        in_python = [(TEXT_RULES[name].written(t), TEXT_RULES[name].fits(t)) for t in texts]
        assert in_python == in_sql, name


def test_parts_of_a_log_agree_on_a_rule() -> None:
    assert (
        choose_rule(common_rules([["integer", "number", "text"], None, ["number", "text"]]))
        == "number"
    )
    assert choose_rule(common_rules([None])) == choose_rule(None) == "text"


def test_a_given_rule_wins(tmp_path: Path) -> None:
    schema = SCHEMA.model_copy(update={"label_rules": {"event": "text"}})
    pq.write_table(
        pa.table({"u": ["a"] * 2, "t": ["2024-01-01", "2024-01-02"], "e": ["1.0", "2.0"]}),
        tmp_path / "a.parquet",
    )
    assert read_events(tmp_path / "a.parquet", schema).table["event"].to_pylist() == ["1.0", "2.0"]
    with pytest.raises(ValueError, match="not a label rule"):
        EventSchema(user="u", time="t", event="e", label_rules={"event": "textual"})


def test_vocabulary_takes_python_values_as_prepare_does() -> None:
    vocabulary = Vocabulary.from_counts(["7", "true", "1.5"], [3, 2, 1])
    assert vocabulary.encode([7, 7.0, "7", True, 1.5, float("nan"), None]).tolist() == [
        2,
        2,
        2,
        3,
        4,
        UNKNOWN,
        UNKNOWN,
    ]
