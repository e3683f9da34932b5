"""Odd numeric columns, tables of users and groups: refused with a remedy, or told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from behavegpt.cli import main
from tests.field_logs import COLUMNS, few_users, users, write_logs


@pytest.fixture(scope="module")
def work(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("odd"), shared_data)


class Odd(NamedTuple):
    """A log or a table of users that is changed, how it is prepared, and what is said of it."""

    log: Callable[[pd.DataFrame], pd.DataFrame] | None
    table: Callable[[pd.DataFrame], pd.DataFrame] | None
    words: tuple[str, ...]
    status: int
    told: str
    csv: bool = False


def amounts(values: Callable[[pd.DataFrame], object]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda log: log.assign(quantity=values(log))


def invoices(values: Callable[[pd.DataFrame], object]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda log: log.assign(invoice=values(log))


def late(log: pd.DataFrame) -> np.ndarray:
    return log["timestamp"].rank(pct=True).to_numpy() > 0.9


NUMERIC, GROUP, TABLE = ("--numeric", "quantity"), ("--group", "invoice"), ("--users", "TABLE")
ODD = {
    "text among numbers": Odd(
        amounts(lambda log: np.where(log.index % 3, log["quantity"].astype(str), "n/a")),
        *(None, NUMERIC, 0, "are no numbers, such as 'n/a'", True),
    ),
    "text alone": Odd(amounts(lambda log: "few"), None, NUMERIC, 2, "holds no number", True),
    "decimal commas": Odd(amounts(lambda log: "1,5"), None, NUMERIC, 2, "decimal point", True),
    "no number at all": Odd(amounts(lambda log: np.nan), None, NUMERIC, 0, "no value at all"),
    "infinite": Odd(
        amounts(lambda log: np.where(log.index % 3, log["quantity"], np.inf)),
        *(None, NUMERIC, 0, "such as 'inf': they count as missing"),
    ),
    "infinite alone": Odd(amounts(lambda log: np.inf), None, NUMERIC, 2, "holds no number"),
    "larger than a float's integers": Odd(
        amounts(lambda log: log["quantity"] * 1e17), None, NUMERIC, 0, "events of 12 users"
    ),
    "single precision": Odd(
        amounts(lambda log: (log["quantity"] * 1e8).astype("float32")),
        *(None, NUMERIC, 0, "events of 12 users"),
    ),
    "numbers in test alone": Odd(
        amounts(lambda log: np.where(late(log), log["quantity"], np.nan)),
        *(None, NUMERIC, 2, "only after the training split"),
    ),
    "truth values": Odd(
        amounts(lambda log: log["quantity"] > 2), None, NUMERIC, 2, "holds no number"
    ),
    "lists": Odd(amounts(lambda log: [[1]] * len(log)), None, NUMERIC, 2, "not a label"),
    "a numeric column that is none": Odd(
        *(None, None, ("--numeric", "quantiy"), 2, "--extra or --numeric COLUMN")
    ),
    "a numeric column that is the event": Odd(
        None, None, ("--numeric", "event"), 2, "reserved name"
    ),
    "a user twice": Odd(None, lambda t: pd.concat([t, t[:2]]), TABLE, 2, "2 rows for user"),
    "users as text": Odd(
        None, lambda t: t.assign(user_id="0" + t["user_id"].astype(str)), TABLE, 2, "in the log: '1"
    ),
    "users as floats": Odd(
        None, lambda t: t.assign(user_id=t["user_id"].astype(float)), TABLE, 0, "of 12 users are"
    ),
    "nobody of the log": Odd(
        None, lambda t: t.assign(user_id=t["user_id"] + 10**6), TABLE, 2, "write the users alike"
    ),
    "no rows of users": Odd(None, lambda t: t[:0], TABLE, 2, "In the table: none"),
    "nothing but users": Odd(None, lambda t: t[["user_id"]], TABLE, 2, "no column besides"),
    "a feature named as a field": Odd(
        None, lambda t: t.assign(slot=1), TABLE, 2, "'slot' has a reserved name"
    ),
    "a feature named as a column": Odd(
        None, lambda t: t.assign(timestamp="2011"), TABLE, 2, "also a column of the log"
    ),
    "features without a table": Odd(
        None, None, ("--user-features", "country"), 2, "pass it with --users TABLE"
    ),
    "an empty feature": Odd(
        None, lambda t: t.assign(country=None), TABLE, 0, "'country' has no value"
    ),
    "infinite ages": Odd(
        None, lambda t: t.assign(spend=np.inf), (*TABLE, "--user-numeric", "spend"), 2, "no number"
    ),
    "a prepared folder of users": Odd(None, None, ("--users", "DATA"), 2, "that `prepare` wrote"),
    "half the invoices": Odd(
        invoices(lambda log: np.where(log.index % 2, log["invoice"], np.nan)),
        *(None, GROUP, 0, "rows have no 'invoice'"),
    ),
    "no invoices": Odd(invoices(lambda log: None), None, GROUP, 0, "rows have no 'invoice'"),
    "one invoice": Odd(invoices(lambda log: 7), None, GROUP, 0, "no next one to predict"),
    "an invoice for each line": Odd(
        invoices(lambda log: np.arange(len(log))), None, GROUP, 0, "without --group"
    ),
    "the user as group": Odd(None, None, ("--group", "user_id"), 2, "is the user or the event"),
    "an order inside": Odd(None, None, (*GROUP, "--order", "quantity"), 2, "leave one of them out"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_columns_are_refused_or_told(
    case: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd, log = ODD[case], few_users(work)
    log = log if odd.log is None else odd.log(log)
    file = tmp_path / ("log.csv" if odd.csv else "log.parquet")
    log.to_csv(file, index=False) if odd.csv else log.to_parquet(file, index=False)
    if odd.table is not None:
        odd.table(users(work)).to_csv(tmp_path / "users.csv", index=False)
    if "DATA" in odd.words:
        assert main(["prepare", str(file), *COLUMNS, "--out", str(tmp_path / "data")]) == 0

    paths = {"TABLE": tmp_path / "users.csv", "DATA": tmp_path / "data"}
    words = [str(paths.get(word, word)) for word in odd.words]
    capsys.readouterr()
    status = main(["prepare", str(file), *COLUMNS, *words, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert status == odd.status, told
    assert odd.told in told
    assert (tmp_path / "out").exists() == (status == 0)
