"""What the handcrafted features are computed from: activity, items and prices of each client, in
closed forms of DuckDB.

Shape letters: U clients, V items. Sums are sums of whole numbers (logarithms in millionths), so
that the order in which threads add them up cannot change a bit.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np

from behavegpt.arrays import open_array, write_array
from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.profiles.events import PRODUCT, among, columns, register

Features = dict[str, np.ndarray]  # name -> (U,) float64, NaN where undefined
DAY = 86_400
MILLION = 1_000_000  # logarithms are added up in millionths
SHORT = {
    "product_buy": "buy",
    "add_to_cart": "cart",
    "remove_from_cart": "remove",
    "page_visit": "visit",
    "search_query": "search",
}
# item -> event types that have one
ITEMS = {"sku": PRODUCT, "category": PRODUCT, "url": ("page_visit",)}


def activity(
    con: duckdb.DuckDBPyConnection, frame: dict[str, int], clients: int
) -> tuple[Features, np.ndarray]:
    """When and how often, by event type and for all together."""
    # name -> days before `now`: after the first, up to and with the second
    windows = {"week": (0, 7), "week_before": (7, 14), "month": (0, 30), "month_before": (30, 60)}
    counts = ", ".join(
        f"count(*) FILTER (age > {low * DAY} AND age <= {high * DAY}) AS {name}"
        for name, (low, high) in windows.items()
    )
    rows = columns(
        con,
        f"""
        SELECT row, event, count(*) AS ever, {counts}, min(age) AS newest, max(age) AS oldest
        FROM (SELECT row, event, {frame["now"]} - epoch(moment)::BIGINT AS age
              FROM events JOIN clients USING (client))
        GROUP BY row, event""",
    )

    names = ("ever", *windows)
    by_type = {name: np.zeros((clients, len(EVENTS))) for name in names}  # (U, event types)

    # NaN, not 0: a client without such an event has no age
    age = {name: np.full((clients, len(EVENTS)), np.nan) for name in ("newest", "oldest")}
    for name, matrix in (by_type | age).items():
        matrix[rows["row"], rows["event"]] = rows[name] if name in names else rows[name] / DAY

    features: Features = {}
    for number, event in enumerate(EVENTS):
        of_type = {name: matrix[:, number] for name, matrix in (by_type | age).items()}
        features |= _rhythm(SHORT[event], of_type)

    together = {name: matrix.sum(axis=1) for name, matrix in by_type.items()}  # (U,)
    # fmin and fmax pass over NaN, and give NaN where nothing ever happened
    together["newest"] = np.fmin.reduce(age["newest"], axis=1)
    together["oldest"] = np.fmax.reduce(age["oldest"], axis=1)
    features |= _rhythm("all", together) | _distinct_times(con, frame, clients)

    return features, together["ever"] > 0


def _rhythm(name: str, figures: Features) -> Features:
    """Windows, changes, interval and recency from counts and the ages (days) of the newest and the
    oldest event."""
    features = {f"count_{name}": figures["ever"]}
    for window in ("week", "month"):
        now, before = figures[window], figures[f"{window}_before"]
        features[f"{window}_{name}"] = now
        features[f"{window}_change_{name}"] = now - before
        # between -1 and 1; the maximum keeps 0 / 0 away
        features[f"{window}_relative_{name}"] = (now - before) / np.maximum(now + before, 1)

    span = figures["oldest"] - figures["newest"]
    features[f"days_between_{name}"] = np.where(
        figures["ever"] > 1, span / np.maximum(figures["ever"] - 1, 1), np.nan
    )
    features[f"days_since_last_{name}"] = figures["newest"]
    features[f"days_since_first_{name}"] = figures["oldest"]

    return features


def _distinct_times(
    con: duckdb.DuckDBPyConnection, frame: dict[str, int], clients: int
) -> Features:
    """Days, weeks and months with an event."""
    # counted back from `now`, so that weeks are those of the windows above
    rows = columns(
        con,
        f"""
        SELECT row, count(*) AS days, count(DISTINCT day // 7) AS weeks,
            count(DISTINCT day // 30) AS months
        FROM (SELECT DISTINCT row, ({frame["now"]} - epoch(moment)::BIGINT) // {DAY} AS day
              FROM events JOIN clients USING (client)) GROUP BY row""",
    )
    return {
        f"active_{name}": _spread(rows, rows[name], clients, 0.0)
        for name in ("days", "weeks", "months")
    }


def _item_sums(
    con: duckdb.DuckDBPyConnection, item: str, types: dict[str, int]
) -> dict[str, np.ndarray]:
    """Sums over each client's items, a row for each client that has some; needs popular_ITEM.

    `types`: short name -> number of the event types.
    """
    pairs = ", ".join(
        f"count(*) FILTER (event = {number}) AS {name}" for name, number in types.items()
    )

    sums = ", ".join(
        # entropy = ln n - sum(c ln c) / n: only sums of the counts c are needed
        f"""sum({name}) AS n_{name}, count(*) FILTER ({name} > 0) AS distinct_{name},
        sum(CASE WHEN {name} > 1 THEN round({MILLION} * {name} * ln({name}))::BIGINT ELSE 0 END)
            AS log_{name},
        sum({name} * coalesce(popularity, {_popularity(np.ones(1))[0]})) AS popularity_{name}"""
        for name in types
    )

    if "cart" in types:
        sums += (
            ", count(*) FILTER (cart > 0 AND buy = 0) AS left, count(*) FILTER (cart > 0 AND "
            "remove > 0) AS removed"
        )

    rows = columns(
        con,
        f"""
        SELECT row, {sums} FROM (
            SELECT row, {item} AS item, {pairs}
            FROM {_with_item(item)} JOIN clients USING (client) GROUP BY row, item)
        LEFT JOIN popular_{item} USING (item) GROUP BY row""",
    )
    return {
        name: np.asarray(column, np.float64) if name != "row" else column
        for name, column in rows.items()
    }


def item_statistics(
    con: duckdb.DuckDBPyConnection, item: str, folder: Path, clients: int
) -> Features:
    """Distinct items, entropy and popularity by event type; for carts the share that was never
    bought, or removed."""
    types = {SHORT[event]: EVENTS.index(event) for event in ITEMS[item]}
    _register_popularity(con, item, folder)
    rows = _item_sums(con, item, types)

    features: Features = {}
    # a client without events of a type has no entropy, and no popularity either
    for name in types:
        n = np.where(rows[f"n_{name}"] > 0, rows[f"n_{name}"], np.nan)
        features[f"distinct_{item}_{name}"] = _spread(rows, rows[f"distinct_{name}"], clients, 0.0)
        entropy = np.log(n) - rows[f"log_{name}"] / MILLION / n
        features[f"entropy_{item}_{name}"] = _spread(rows, entropy, clients)
        features[f"popularity_{item}_{name}"] = _spread(
            rows, rows[f"popularity_{name}"] / MILLION / n, clients
        )

    if "cart" in types:
        carted = np.where(rows["distinct_cart"] > 0, rows["distinct_cart"], np.nan)
        features[f"abandoned_{item}"] = _spread(rows, rows["left"] / carted, clients)
        features[f"removed_{item}"] = _spread(rows, rows["removed"] / carted, clients)

    return features


def prices(con: duckdb.DuckDBPyConnection, clients: int) -> Features:
    """Price buckets of what was bought and carted."""
    features: Features = {}
    for event in ("product_buy", "add_to_cart"):
        rows = columns(
            con,
            f"""
            SELECT row, count(*) AS n, sum(price)::BIGINT AS total,
                sum(price * price)::BIGINT AS squares, min(price) AS lowest, max(price) AS highest
            FROM events JOIN properties USING (sku) JOIN clients USING (client)
            WHERE event = {EVENTS.index(event)} AND price IS NOT NULL GROUP BY row""",
        )

        name = f"price_{SHORT[event]}"
        mean = rows["total"] / rows["n"]
        features[f"{name}_total"] = _spread(rows, rows["total"], clients, 0.0)
        features[f"{name}_mean"] = _spread(rows, mean, clients)

        deviation = np.sqrt(np.maximum(rows["squares"] / rows["n"] - mean**2, 0))
        features[f"{name}_deviation"] = _spread(rows, deviation, clients)
        features[f"{name}_lowest"] = _spread(rows, rows["lowest"], clients)
        features[f"{name}_highest"] = _spread(rows, rows["highest"], clients)

    return features


def _with_item(item: str) -> str:
    """SQL: events that have such an item."""
    products = "JOIN properties USING (sku)" if item == "category" else ""
    chosen = f"event IN ({among(ITEMS[item])}) AND {item} IS NOT NULL"
    return f"(SELECT client, event, {item} FROM events {products} WHERE {chosen})"


def fit_popularity(con: duckdb.DuckDBPyConnection, item: str, folder: Path) -> None:
    """Items (V,) and how often all clients interact with them; what occurs once is not kept, it is
    the default."""
    query = (
        f"SELECT {item} AS item, count(*) AS n FROM {_with_item(item)} GROUP BY 1 HAVING n > 1 "
        "ORDER BY 1"
    )
    rows = columns(con, query)
    write_array(folder / f"{item}_items.npy", rows["item"].astype(np.int64))
    write_array(folder / f"{item}_counts.npy", rows["n"].astype(np.int64))


def _register_popularity(con: duckdb.DuckDBPyConnection, item: str, folder: Path) -> None:
    items = np.array(open_array(folder / f"{item}_items.npy"))
    counts = np.array(open_array(folder / f"{item}_counts.npy"))
    register(con, f"popular_{item}", item=items, popularity=_popularity(counts))


def _popularity(counts: np.ndarray) -> np.ndarray:
    """ln(1 + count) in millionths (N,) int64."""
    return np.rint(MILLION * np.log1p(counts)).astype(np.int64)


def _spread(
    rows: dict[str, np.ndarray], values: np.ndarray, clients: int, absent: float = np.nan
) -> np.ndarray:
    """Values of the rows of a query as one for each client (U,)."""
    column = np.full(clients, absent)  # (U,)
    column[rows["row"]] = values
    return column
