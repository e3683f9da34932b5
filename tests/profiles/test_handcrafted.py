"""Handcrafted features against loops over a data frame."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from behavegpt.profiles import handcrafted
from behavegpt.profiles.handcrafted import HandcraftedSettings
from behavegpt.profiles.members import Context
from tests.profiles.makers import DAYS, FIRST_DAY, read_events

TYPES = ["buy", "cart", "remove", "visit", "search"]
NOW = FIRST_DAY + pd.Timedelta(days=DAYS)


def made(context: Context, folder: Path) -> tuple[dict[int, dict[str, float]], np.ndarray]:
    folder.mkdir(exist_ok=True)
    handcrafted.fit(context, HandcraftedSettings(), folder)
    embeddings = handcrafted.embed(context, HandcraftedSettings(), folder)
    names = list(json.loads((folder / "handcrafted.json").read_text())["fill"])
    rows = [dict(zip(names, row.tolist(), strict=True)) for row in embeddings.vectors]
    return dict(zip(embeddings.client_ids.tolist(), rows, strict=True)), embeddings.vectors


def rhythm(name: str, moments: pd.Series) -> dict[str, float]:
    """One type of events, as the paper says it."""
    ages = sorted((NOW - moments).dt.total_seconds() / 86_400)
    found: dict[str, float] = {f"count_{name}": len(ages)}
    for window, days in (("week", 7), ("month", 30)):
        now = sum(age <= days for age in ages)
        before = sum(days < age <= 2 * days for age in ages)
        found |= {f"{window}_{name}": now, f"{window}_change_{name}": now - before}
        found[f"{window}_relative_{name}"] = (now - before) / max(now + before, 1)
    gaps = np.diff(ages)
    found[f"days_between_{name}"] = float(np.mean(gaps)) if len(gaps) else DAYS
    found[f"days_since_last_{name}"] = ages[0] if ages else DAYS
    found[f"days_since_first_{name}"] = ages[-1] if ages else DAYS
    return found


def by_hand(mine: pd.DataFrame, everybody: pd.DataFrame) -> dict[str, float]:
    found = rhythm("all", mine["timestamp"])
    for number, name in enumerate(TYPES):
        found |= rhythm(name, mine.loc[mine["event"] == number, "timestamp"])
    days = {int((NOW - moment).total_seconds()) // 86_400 for moment in mine["timestamp"]}
    found |= {"active_days": len(days), "active_weeks": len({day // 7 for day in days})}
    found["active_months"] = len({day // 30 for day in days})
    for item in ("sku", "category", "url"):
        types = ["visit"] if item == "url" else TYPES[:3]
        popular = Counter(
            everybody.loc[everybody["event"].isin([TYPES.index(t) for t in types]), item].dropna()
        )
        values = {
            name: mine.loc[mine["event"] == TYPES.index(name), item].dropna().tolist()
            for name in types
        }
        for name, items in values.items():
            shares = np.array(list(Counter(items).values())) / max(len(items), 1)
            found[f"distinct_{item}_{name}"] = len(shares)
            if items:
                found[f"entropy_{item}_{name}"] = float(-(shares * np.log(shares)).sum())
                found[f"popularity_{item}_{name}"] = float(
                    np.mean([math.log(1 + popular[i]) for i in items])
                )
        if item != "url" and values["cart"]:
            carted = set(values["cart"])
            found[f"abandoned_{item}"] = len(carted - set(values["buy"])) / len(carted)
            found[f"removed_{item}"] = len(carted & set(values["remove"])) / len(carted)
    for number, name in enumerate(TYPES[:2]):
        prices = mine.loc[mine["event"] == number, "price"].dropna()
        found[f"price_{name}_total"] = float(prices.sum())
        if len(prices):
            found |= {
                f"price_{name}_mean": prices.mean(),
                f"price_{name}_deviation": prices.std(ddof=0),
            }
            found |= {f"price_{name}_lowest": prices.min(), f"price_{name}_highest": prices.max()}
    return found


def test_every_feature_is_what_a_loop_makes(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    ours, vectors = made(context(small), tmp_path / "state")
    table = read_events(small)
    relevant = np.load(small / "input" / "relevant_clients.npy")
    wanted = {
        int(client): by_hand(mine, table)
        for client, mine in table.groupby("client_id")
        if client in relevant
    }
    assert set(ours) == set(wanted)
    # two relevant clients have no event: absent, no row of zeros
    assert len(ours) == len(relevant) - 2
    undefined: dict[str, list[float]] = {}
    for client, features in ours.items():
        for name, value in features.items():
            if name in wanted[client]:
                assert value == pytest.approx(wanted[client][name], rel=1e-5, abs=2e-6), (
                    client,
                    name,
                )
            else:
                undefined.setdefault(name, []).append(value)
    # a client without such events gets the mean of the others, never 0
    assert len(undefined) > 5
    for name, values in undefined.items():
        others = [features[name] for features in wanted.values() if name in features]
        assert values == pytest.approx([np.mean(others)] * len(values), rel=1e-5, abs=2e-6), name
    assert vectors.dtype == np.float32


def test_threads_do_not_change_a_bit(
    mini: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    one, two = (
        made(context(mini, threads=threads), tmp_path / str(threads))[1] for threads in (1, 2)
    )
    assert one.shape == (8490, 98)
    assert one.tobytes() == two.tobytes()


def test_new_clients_get_the_vectors_of_fitted_ones(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """The same events under other ids, among fewer people: popularity, time frame and fills stay
    the fitted ones."""
    fitted, _ = made(context(small), tmp_path / "state")
    other = shutil.copytree(small, tmp_path / "new")
    some = np.array(sorted(fitted))[::3]
    for file in (other / "input").glob("*.parquet"):
        table = pd.read_parquet(file)
        table = table[table["client_id"].isin(some)]
        table.assign(client_id=table["client_id"] + 10**6).to_parquet(file, index=False)
    np.save(other / "input" / "relevant_clients.npy", some + 10**6)
    new = handcrafted.embed(context(other), HandcraftedSettings(), tmp_path / "state")
    names = list(next(iter(fitted.values())))
    for client, vector in zip(new.client_ids - 10**6, new.vectors, strict=True):
        assert vector.tolist() == [fitted[int(client)][name] for name in names]


def test_families_are_chosen(small: Path, tmp_path: Path, context: Callable[..., Context]) -> None:
    arguments: dict[str, Any] = {"families": ("prices", "url")}
    settings = HandcraftedSettings(**arguments)
    handcrafted.fit(context(small), settings, tmp_path)
    embeddings = handcrafted.embed(context(small), settings, tmp_path)
    names = list(json.loads((tmp_path / "handcrafted.json").read_text())["fill"])
    assert embeddings.vectors.shape[1] == len(names) == 13
    assert all("price" in name or "url" in name for name in names)
