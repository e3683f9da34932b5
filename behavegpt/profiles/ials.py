"""iALS (Hu, Koren and Volinsky 2008) on client x item counts, with the library `implicit`.

What is kept are the item factors Y (I, F). A client's vector solves the closed form for its own row
of confidences c (clicks times weights times alpha) and preferences p = [c > 0],

    (Y'Y + Y'(C - 1)Y + regularization 1) x = Y'C p
    C_ii = c_i, 1 where the client has no such item

so it depends on that client's events alone: new clients fold in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
from pydantic import Field, model_validator

from behavegpt.arrays import open_array, write_array
from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.errors import DataError, MissingExtraError
from behavegpt.profiles.events import among, ask_everybody, columns, register
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.user_embeddings import UserEmbeddings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BLOCK = 2**16  # clients solved in one go


class IalsSettings(MemberSettings):
    """Which items, and how much an event of each type says."""

    kind: Literal["ials"] = "ials"
    item: Literal["sku", "category", "url"] = Field(
        description="what the columns of the matrix are"
    )
    weights: dict[EventName, float] = Field(
        min_length=1, description="event type -> weight of one event, above 0"
    )
    clients: Literal["asked", "all"] = Field(
        "all", description="whose events the item factors are fitted on"
    )
    min_count: int = Field(
        1, ge=1, description="events below which an item is left out: factors take 4 F bytes each"
    )
    factors: int = Field(64, gt=0, description="width of the vectors")
    regularization: float = Field(0.01, ge=0)
    alpha: float = Field(1.0, gt=0, description="confidence of a weight of 1")
    iterations: int = Field(15, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> IalsSettings:
        wrong = [event for event in self.weights if (event == "page_visit") != (self.item == "url")]
        if wrong or "search_query" in self.weights:
            raise ValueError(f"{(wrong or ['search_query'])[0]} has no {self.item}")
        if min(self.weights.values()) <= 0:
            raise ValueError("weights must be above 0")
        return self


def fit(context: Context, settings: IalsSettings, folder: Path) -> None:
    """Fit the item factors; writes items.npy (I,) int64 and factors.npy (I, F) float32."""
    matrix, items = _matrix(context, settings, None, settings.clients == "asked")
    if not matrix.nnz:
        often = f" that {settings.min_count} events have" if settings.min_count > 1 else ""
        raise DataError(
            f"no event of {', '.join(settings.weights)} has a {settings.item}{often}; choose other "
            f"weights{' or a lower min_count' if often else ''}."
        )

    with _one_blas_thread():
        model = _model(settings, context.seed)
        model.fit(matrix, show_progress=False)

    write_array(folder / "items.npy", items)
    write_array(folder / "factors.npy", model.item_factors)


def embed(context: Context, settings: IalsSettings, folder: Path) -> UserEmbeddings:
    """(U, F) float32 for the clients with a known item, each solved exactly."""
    items = np.array(open_array(folder / "items.npy"))
    matrix, _ = _matrix(context, settings, items, True)  # (U, I)

    # a client without a known item would get a vector of zeros: it is left out
    present = np.flatnonzero(np.diff(matrix.indptr))
    vectors = np.empty((len(present), settings.factors), np.float32)

    with _one_blas_thread():
        model = _model(settings, context.seed)
        model.item_factors = np.array(open_array(folder / "factors.npy"))
        for start in range(0, len(present), BLOCK):
            rows = present[start : start + BLOCK]
            vectors[start : start + BLOCK] = model.recalculate_user(rows, matrix[rows])

    return UserEmbeddings(context.clients[present], vectors)


def _model(settings: IalsSettings, seed: int) -> Any:
    """The CPU model of `implicit`: the same bytes for the same seed, whatever the number of
    threads."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError:
        raise MissingExtraError("implicit", "profiles") from None

    return AlternatingLeastSquares(
        factors=settings.factors,
        regularization=settings.regularization,
        alpha=settings.alpha,
        iterations=settings.iterations,
        random_state=seed,
    )


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """`implicit` has threads of its own, which those of BLAS would slow down (it warns of them)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


def _matrix(
    context: Context, settings: IalsSettings, items: np.ndarray | None, asked: bool
) -> tuple[csr_matrix, np.ndarray]:
    """Weights (clients, I) and the items (I,) of its columns: those given, or all that occur,
    ascending.

    The rows are the asked clients in their order, or everybody.
    """
    from scipy.sparse import csr_matrix

    with context.connect() as con:
        if not asked:
            ask_everybody(con)

        rows = int(con.execute("SELECT count(*) FROM clients").fetchall()[0][0])
        table, items = _count_items(con, settings, items)

    # (entries,): a client and item's events, each with the weight of its type
    weight = sum(
        (table[event] * np.float32(value) for event, value in settings.weights.items()),
        np.float32(0),
    )

    shape = (rows, len(items))
    matrix = csr_matrix((np.asarray(weight, np.float32), (table["row"], table["number"])), shape)

    # SQL returns the groups in any order; the solver's sums should not depend on it
    matrix.sort_indices()

    return matrix, items


def _count_items(
    con: duckdb.DuckDBPyConnection, settings: IalsSettings, items: np.ndarray | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Row, number of the item and events of each type, once for each client and item that have
    some; and the items (I,) int64."""
    # counted by event type and weighted by the caller: adding up fractions in SQL would depend on
    # the order of its threads
    counts = ", ".join(
        f"count(*) FILTER (event = {EVENTS.index(event)}) AS {event}" for event in settings.weights
    )
    products = "JOIN properties USING (sku)" if settings.item == "category" else ""
    chosen = (
        f"events {products} WHERE event IN ({among(tuple(settings.weights))}) AND {settings.item} "
        "IS NOT NULL"
    )

    # in `embed` the items are given: columns must be those of the fit
    if items is None:
        known = f"SELECT client, {settings.item} AS item FROM {chosen}"
        known = f"SELECT item FROM ({known}) SEMI JOIN clients USING (client) GROUP BY item"
        known += f" HAVING count(*) >= {settings.min_count} ORDER BY item"
        items = columns(con, known)["item"].astype(np.int64)

    register(con, "items", item=items, number=np.arange(len(items), dtype=np.int32))
    table = columns(
        con,
        f"""
        SELECT row, number, {counts}
        FROM (SELECT client, event, {settings.item} AS item FROM {chosen})
        JOIN clients USING (client) JOIN items USING (item) GROUP BY row, number""",
    )
    return table, items
