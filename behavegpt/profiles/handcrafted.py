"""Handcrafted features (section 3.2.5 of the paper): closed forms in DuckDB, one row of numbers for
each client.

    activity      events ever, in the last week and month; changes against the week and month
                  before; mean interval (last - first) / (n - 1); days since the first and the last
                  event; distinct days, weeks, months
    sku, category, url
                  diversity (distinct, entropy), popularity of what is interacted with, abandonment
                  of carts
    prices        sum, mean, spread, lowest and highest price bucket of what was bought and carted

`now` is the midnight after the fitted history, for clients of a later one the midnight after that;
a month is 30 days. What is undefined is not 0: the
mean price of a client without purchases is the fitted mean, a time that never came the length of
the history. The queries are in `statistics`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import duckdb
import numpy as np
from pydantic import Field

from behavegpt.io import write_json
from behavegpt.profiles.members import Context, MemberSettings, Quantile, Step
from behavegpt.profiles.statistics import (
    DAY,
    ITEMS,
    Features,
    activity,
    fit_popularity,
    item_statistics,
    prices,
)
from behavegpt.user_embeddings import UserEmbeddings

Family = Literal["activity", "sku", "category", "url", "prices"]
STATE = "handcrafted.json"


class HandcraftedSettings(MemberSettings):
    """Quantiles by default: counts have long tails."""

    kind: Literal["handcrafted"] = "handcrafted"
    post: tuple[Step, ...] = (Quantile(quantile="uniform"),)
    families: tuple[Family, ...] = Field(
        get_args(Family), min_length=1, description="groups of features"
    )


def fit(context: Context, settings: HandcraftedSettings, folder: Path) -> None:
    """Fit the time frame, how often each item occurs among all clients, and what undefined values
    become."""
    with context.connect() as con:
        first, last = con.execute(
            "SELECT epoch(min(moment))::BIGINT, epoch(max(moment))::BIGINT FROM events"
        ).fetchall()[0]
        # whole days: windows then begin and end at midnight, whatever the last event's hour
        frame = {"start": first // DAY * DAY, "now": (last // DAY + 1) * DAY}
        for item in ITEMS:
            if item in settings.families:
                fit_popularity(con, item, folder)
        features, present = _features(con, settings, frame, folder, len(context.clients))

    length = (frame["now"] - frame["start"]) / DAY
    # means over the clients with an event: the others get no vector
    fill = {name: _fill(name, values[present], length) for name, values in features.items()}
    write_json(folder / STATE, {"frame": frame, "fill": fill})


def embed(context: Context, settings: HandcraftedSettings, folder: Path) -> UserEmbeddings:
    """(U, D) float32 for the clients with an event; the columns are named by the keys of `fill` in
    handcrafted.json."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    frame = state["frame"] | ({} if context.at is None else {"now": context.at})
    with context.connect() as con:
        features, present = _features(con, settings, frame, folder, len(context.clients))

    vectors = np.empty((int(present.sum()), len(state["fill"])), np.float32)
    for number, (name, value) in enumerate(state["fill"].items()):
        vectors[:, number] = np.nan_to_num(features[name][present], nan=value)
    return UserEmbeddings(context.clients[present], vectors)


def _features(
    con: duckdb.DuckDBPyConnection,
    settings: HandcraftedSettings,
    frame: dict[str, int],
    folder: Path,
    clients: int,
) -> tuple[Features, np.ndarray]:
    """The features of the chosen families, and which clients (U,) have an event at all."""
    rhythm, present = activity(con, frame, clients)
    features = rhythm if "activity" in settings.families else {}

    for item in ITEMS:
        if item in settings.families:
            features |= item_statistics(con, item, folder, clients)

    if "prices" in settings.families:
        features |= prices(con, clients)
    return features, present


def _fill(name: str, values: np.ndarray, length: float) -> float:
    """What NaN becomes: for days the length of the history, else the mean of the clients that have
    a value."""
    # a time that never came is at least as long ago as the history reaches
    if name.startswith("days_"):
        return float(length)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
