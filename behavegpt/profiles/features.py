"""Bags of weighted features of products and clients, for models that add up what each feature
means.

A feature is (family, value): a product's identity, category, price or a code of its name, a visited
URL, a code of a query. A code counts together with its position in the text, as quantized texts
mean something else in each place: raw codes as 16 numbers, which the public code of the paper uses,
span 16 dimensions at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import numpy as np

from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.profiles.events import among, columns, register
from behavegpt.profiles.fields import FieldSpec, parse_field
from behavegpt.ragged import ranges

POSITION = 2**16  # a code and its position in the text become position * POSITION + code
_CODE = f"(generate_subscripts({{0}}, 1) - 1) * {POSITION} + unnest({{0}})"
_PRODUCT = "SELECT number AS row, {} AS value FROM items JOIN properties USING (sku)"
_CLIENT = "SELECT row, {} AS value FROM events JOIN clients USING (client)"
ITEM_VALUES = {  # family -> SQL of row (number in the view `items`) and value
    "sku": "SELECT number AS row, sku AS value FROM items",
    "category": _PRODUCT.format("category"),
    "price": _PRODUCT.format("price"),
    "name": _PRODUCT.format(_CODE.format("name")),
}
CLIENT_VALUES = {  # family -> SQL of row (position of the client) and value
    "url": _CLIENT.format("url"),
    "query": _CLIENT.format(_CODE.format("query")),
}
FAMILIES = (*ITEM_VALUES, *CLIENT_VALUES)
Features = np.ndarray  # (K, 2) int64: family and value, ascending; the position is the feature's id


class Bags(NamedTuple):
    """R bags: bag r holds `items[offsets[r]:offsets[r + 1]]` with its weights."""

    offsets: np.ndarray  # (R + 1,) int64
    items: np.ndarray  # (N,) int64
    weight: np.ndarray  # (N,) float32

    def take(self, rows: np.ndarray) -> Bags:
        """The bags of `rows` (B,), in this order."""
        offsets, where = spans(self.offsets, rows)
        return Bags(offsets, self.items[where], self.weight[where])  # (B + 1,), (entries,)

    @property
    def totals(self) -> np.ndarray:
        """(R,) float32: sum of the weights of each bag."""
        # float64: in float32 the difference of two long sums would lose the small weights
        sums = np.concatenate([[0.0], np.cumsum(self.weight, dtype=np.float64)])
        return (sums[self.offsets[1:]] - sums[self.offsets[:-1]]).astype(np.float32)


def spans(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New offsets (B + 1,), and where the entries of `rows` (B,) lie in a flat column with these
    offsets (R + 1,)."""
    counts = np.diff(offsets)[rows]
    return np.concatenate([[0], np.cumsum(counts)]), ranges(offsets[rows], counts)


class Family(NamedTuple):
    """How often each value of a family occurs in each row, each pair once, sorted."""

    spec: FieldSpec
    row: np.ndarray  # (N,) int64
    value: np.ndarray  # (N,) int64
    times: np.ndarray  # (N,) int64


class Pairs(NamedTuple):
    """Client and product of each pair whose weights add up to more than 0, ascending; each (P,)."""

    key: np.ndarray  # int64: client * I + item
    client: np.ndarray  # int64
    item: np.ndarray  # int64
    weight: np.ndarray  # float32
    events: np.ndarray  # float32: how often the product is in the client's history


@dataclass(frozen=True)
class ClientFeatures:
    """What a history tells of U clients and I products."""

    clients: np.ndarray  # (U,) int64
    history: Bags  # of clients: products and how many events with a weight above 0 they had
    other: Bags  # of clients: features of searches and visits
    as_history: Bags  # of products: features in the clients' table
    as_item: Bags  # of products: features in the products' table
    pairs: Pairs  # what is ranked
    kept: tuple[Features, Features]  # the features of clients and of products


class _Counts(NamedTuple):
    """How often each product occurs with each client, each pair once, sorted; each (N,)."""

    row: np.ndarray  # int64: position of the client
    item: np.ndarray  # int64: number of the product
    weight: np.ndarray  # float32: of all its events
    events: np.ndarray  # int64: of a weight above 0


def read_features(
    con: duckdb.DuckDBPyConnection,
    weights: Mapping[EventName, float],
    names: tuple[Sequence[str], Sequence[str]],
    kept: tuple[Features, Features] | None = None,
) -> ClientFeatures:
    """Read the events of the view `clients`; `names` and `kept` are features of clients and of
    products.

    The features are chosen here unless they are given. A product that has none in the clients'
    table is in no history.
    """
    clients = columns(con, "SELECT client FROM clients ORDER BY row")["client"]
    skus = _number_products(con, weights)
    counts = _count_products(con, weights)

    of_clients = [parse_field(text) for text in names[0]]
    of_items = [parse_field(text) for text in names[1]]
    products = _read_families(con, [spec for spec in of_clients if spec.name in ITEM_VALUES])
    others = _read_families(con, [spec for spec in of_clients if spec.name in CLIENT_VALUES])
    items = _read_families(con, of_items)

    # a new client is embedded with the features of the fit, see `embed`
    if kept is None:
        events = np.bincount(counts.item, counts.events, minlength=len(skus))
        kept = (
            choose_features(_by_events(products, events) + others),
            choose_features(_by_events(items, events)),
        )

    # a product whose features were all dropped cannot be part of a history
    as_history = feature_bags(products, kept[0], len(skus))
    in_history = (counts.events > 0) & (np.diff(as_history.offsets) > 0)[counts.item]
    past = _Counts(*(column[in_history] for column in counts))

    return ClientFeatures(
        clients,
        bags(past.row, past.item, past.events, len(clients)),
        feature_bags(others, kept[0], len(clients)),
        as_history,
        feature_bags(items, kept[1], len(skus)),
        _pairs(counts, in_history, len(skus)),
        kept,
    )


def _number_products(
    con: duckdb.DuckDBPyConnection, weights: Mapping[EventName, float]
) -> np.ndarray:
    """The products (I,) int64 of the clients' weighted events, ascending; makes the table `items`
    (number, sku)."""
    query = (
        f"SELECT DISTINCT sku FROM ({_weighted_events(weights)}) WHERE sku IS NOT NULL ORDER BY sku"
    )
    skus = columns(con, query)["sku"].astype(np.int64)
    register(con, "items", sku=skus, number=np.arange(len(skus), dtype=np.int64))
    return skus


def _count_products(con: duckdb.DuckDBPyConnection, weights: Mapping[EventName, float]) -> _Counts:
    """Count each client's events by product; needs the table `items`."""
    counts = ", ".join(
        f"count(*) FILTER (event = {EVENTS.index(event)}) AS {event}" for event in weights
    )
    table = columns(
        con,
        f"""SELECT row::BIGINT AS row, number, {counts}
        FROM ({_weighted_events(weights)}) JOIN items USING (sku)
        GROUP BY row, number ORDER BY row, number""",
    )

    weight = np.zeros(len(table["row"]), np.float32)
    events = np.zeros(len(table["row"]), np.int64)

    for event, value in weights.items():
        weight += table[event] * np.float32(value)
        events += table[event] if value > 0 else 0

    return _Counts(table["row"], table["number"], weight, events)


def _weighted_events(weights: Mapping[EventName, float]) -> str:
    """SQL: the clients' events that have a weight."""
    return (
        "SELECT row, event, sku FROM events JOIN clients USING (client) WHERE event IN "
        f"({among(tuple(weights))})"
    )


def _pairs(counts: _Counts, in_history: np.ndarray, products: int) -> Pairs:
    """The pairs of a positive weight."""
    # one sortable number for each (client, product): a pair is found by binary search
    key = counts.row * products + counts.item
    pairs = Pairs(
        key, counts.row, counts.item, counts.weight, (counts.events * in_history).astype(np.float32)
    )
    return Pairs(*(column[counts.weight > 0] for column in pairs))


def bags(rows: np.ndarray, index: np.ndarray, weight: np.ndarray, size: int) -> Bags:
    """`size` bags of the entries (N,): entry n lies in bag rows[n]. The order of the entries does
    not matter."""
    # by row, then by feature: float sums come out the same whatever order SQL returned
    order = np.lexsort((index, rows))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
    return Bags(offsets, index[order].astype(np.int64), weight[order].astype(np.float32))


def choose_features(families: Sequence[Family]) -> Features:
    """The features that are kept: all, the most frequent, or those seen often enough, as each
    family's spec says."""
    kept = [np.zeros((0, 2), np.int64)]
    for family in families:
        values, place = np.unique(family.value, return_inverse=True)
        total = np.bincount(place, family.times, minlength=len(values))  # (values,)
        # the most frequent first, ties by value
        order = np.lexsort((values, -total))[: family.spec.top]
        chosen = np.sort(values[order[total[order] >= family.spec.least]])
        kept.append(
            np.stack([np.full(len(chosen), FAMILIES.index(family.spec.name)), chosen], axis=1)
        )

    features = np.concatenate(kept)
    return features[np.lexsort(features.T[::-1])]  # by family, then by value


def feature_bags(families: Sequence[Family], features: Features, size: int) -> Bags:
    """`size` bags in which each family's known values have weights that add up to 1."""
    # an empty first part: concatenate needs one where there are no families
    rows, index, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for family in families:
        # features are sorted by family, so each family owns one stretch of them
        first, last = np.searchsorted(
            features[:, 0], FAMILIES.index(family.spec.name) + np.arange(2)
        )

        values = features[first:last, 1]
        # where each value would stand among the known ones; an unknown one stands beside them
        place = np.searchsorted(values, family.value)
        known = (place < len(values)) & (np.append(values, 0)[place] == family.value)

        total = np.bincount(family.row[known], family.times[known], minlength=size)
        rows.append(family.row[known])
        index.append(first + place[known])
        weights.append(family.times[known] / total[family.row[known]])

    return bags(np.concatenate(rows), np.concatenate(index), np.concatenate(weights), size)


def _read_families(con: duckdb.DuckDBPyConnection, specs: Sequence[FieldSpec]) -> list[Family]:
    """Count the values in the views `items` (number, sku), `events`, `clients` and `properties`."""
    families = []
    for spec in specs:
        query = f"""SELECT row::BIGINT AS row, value::BIGINT AS value, count(*) AS n
            FROM ({(ITEM_VALUES | CLIENT_VALUES)[spec.name]})
            WHERE value IS NOT NULL GROUP BY ALL ORDER BY ALL"""
        families.append(Family(spec, *columns(con, query).values()))
    return families


def _by_events(families: Sequence[Family], events: np.ndarray) -> list[Family]:
    """The same families counted by the events (I,) of the products instead of by products."""
    return [family._replace(times=family.times * events[family.row]) for family in families]
