"""The ensemble: each member's steps, outer join on the clients, imputation, concatenation, a
learned projection if it is asked for (`stack`), steps after it, float16.

DIR/client_ids.npy, embeddings.npy, missing.npy, entry.json
                          the entry, see behavegpt.user_embeddings
DIR/ensemble.json         members, columns, row order, how many clients were imputed
DIR/state.safetensors     everything fitted, to embed new clients the same way
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from behavegpt.arrays import write_array
from behavegpt.config import Settings
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import replacing
from behavegpt.profiles.choice import WIDEST, ChoiceSettings
from behavegpt.profiles.fitted import Fitted, FittedMember, Steps
from behavegpt.profiles.members import Pca, Step
from behavegpt.profiles.stack import StackSettings, project
from behavegpt.profiles.transforms import State, fit_steps, transformed, width_after
from behavegpt.user_embeddings import CLIENT_IDS, EMBEDDINGS, MISSING, UserEmbeddings, seal


class EnsembleSettings(Settings):
    """Which members are put together, and how."""

    members: tuple[str, ...] | None = Field(None, description="in this order; all by default")
    without: tuple[str, ...] = Field((), description="members left out, for ablations")
    impute: Literal["mean", "zero"] = Field(
        "mean", description="columns of a member that has no vector of a client"
    )
    post: tuple[Step, ...] | None = Field(
        None, description="steps for every member instead of its own"
    )
    stack: StackSettings | None = Field(
        None, description="a projection of all columns, trained on a later window of the input"
    )
    after: tuple[Step, ...] | Literal["auto"] = Field(
        (),
        description=(
            "steps on all columns together: center, {pca: N, whiten: true}, zscore, ...; auto: "
            "chosen on the training window"
        ),
    )
    choose: ChoiceSettings | None = Field(None, description="what `after: auto` compares, and how")

    @model_validator(mode="after")
    def _used(self) -> EnsembleSettings:
        if self.choose is not None and self.after != "auto":
            raise ValueError("choose is for `after: auto`; set that, or leave choose out")
        return self

    def chosen(self, names: list[str]) -> list[str]:
        """The members by name. Raises ConfigError for one that is not there."""
        for name in (*(self.members or ()), *self.without):
            if name not in names:
                raise ConfigError(
                    f"ensembles: {name!r} is not a member; there are {', '.join(names)}."
                )

        chosen = [name for name in self.members or names if name not in self.without]
        if not chosen:
            raise ConfigError("ensembles: no member is left; name at least one.")
        return chosen


class Joined:
    """The members' columns side by side (U, D) for the clients `order` (U,), or what `stack` makes
    of them; block by block when they are asked for: all of them would not fit into memory."""

    def __init__(
        self,
        fitted: Mapping[str, FittedMember],
        members: Mapping[str, UserEmbeddings],
        order: np.ndarray,
        stack: State | None = None,
    ) -> None:
        self.stack = stack
        self.rows = {name: rows_of(members[name].client_ids, order) for name in fitted}  # (U,) each
        self._parts = [
            (fitted[name], members[name].vectors, rows) for name, rows in self.rows.items()
        ]
        self._length = len(order)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, block: slice | np.ndarray) -> np.ndarray:
        columns = np.hstack([_columns(*part, block) for part in self._parts])
        return columns if self.stack is None else project(self.stack, columns)


def _columns(
    fitted: FittedMember, vectors: np.ndarray, rows: np.ndarray, block: slice | np.ndarray
) -> np.ndarray:
    """A member's columns (B, D') of a block of clients: its vectors (M, D) after its steps, and
    the imputed row where it has none (`rows` -1)."""
    place = rows[block]
    known = place >= 0

    out = np.repeat(fitted.imputed[None].astype(np.float64), len(place), axis=0)
    for part in transformed(*fitted.post, vectors[place[known]]):  # one: no more than a block
        out[known] = part

    return out


def fit_ensemble(
    members: Mapping[str, tuple[tuple[Step, ...], UserEmbeddings]],
    impute: str,
    after: tuple[Step, ...] | Callable[[Joined], tuple[Step, ...]] = (),
    order: np.ndarray | None = None,
    stack: Callable[[dict[str, FittedMember]], State] | None = None,
) -> Fitted:
    """Fit the steps of each member, the row that stands for clients without it, the projection by
    `stack`, and the steps `after`, or those that it chooses, on the columns of all members for the
    clients `order` (all that a member has, by default).

    Raises ConfigError when the columns are more than the challenge takes.
    """
    widths = {
        name: width_after(steps, embeddings.vectors.shape[1])
        for name, (steps, embeddings) in members.items()
    }
    given = () if callable(after) else after
    learned = stack is not None or callable(after)  # their width is known later
    if not learned and width_after(given, sum(widths.values())) > WIDEST:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(
            f"{sum(widths.values())} columns ({listed}), at most {WIDEST}; reduce members, or the "
            f"ensemble by `stack`, or by `after` with {{pca: N}}."
        )

    fitted: dict[str, FittedMember] = {}
    for name, (steps, embeddings) in members.items():
        states = fit_steps(steps, embeddings.vectors)
        # a second pass over the blocks: the imputed row is the mean after the steps, not before
        total = sum(block.sum(axis=0) for block in transformed(steps, states, embeddings.vectors))
        mean = np.asarray(total / len(embeddings.vectors))  # (D',)
        imputed = mean if impute == "mean" else np.zeros_like(mean)
        fitted[name] = FittedMember(Steps(steps, states), imputed)

    vectors = {name: embeddings for name, (_, embeddings) in members.items()}
    if order is None:
        order = np.unique(np.concatenate([of.client_ids for of in vectors.values()]))
    projection = None if stack is None else stack(fitted)
    joined = Joined(fitted, vectors, order, projection)
    steps = after(joined) if callable(after) else given
    return Fitted(fitted, Steps(steps, fit_steps(steps, joined)), projection)


def write_ensemble(
    fitted: Fitted, members: Mapping[str, UserEmbeddings], order: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Write the entry of the clients `order` (U,); returns its facts.

    Raises DataError for values beyond float16. Clients that no member has are `missing`: all their
    columns are imputed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    joined = Joined(fitted.members, members, order, fitted.stack)
    columns, width = _places(fitted), fitted.width

    # written beside its place and renamed: a reader never sees half an entry
    with replacing(folder / EMBEDDINGS) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(order), width))
        start = 0
        for block in transformed(*fitted.after, joined):
            out[start : start + len(block)] = _half(block, columns)
            start += len(block)

        out.flush()
        del out  # closes the map: some systems do not rename an open file

        # of an earlier ensemble in this folder
        (folder / MISSING).unlink(missing_ok=True)
        write_array(folder / CLIENT_IDS, order)

    missing = np.all([rows < 0 for rows in joined.rows.values()], axis=0)  # (U,)
    if missing.any():
        write_array(folder / MISSING, missing)

    seal(folder)
    return {
        "clients": len(order),
        "dimensions": width,
        "missing": int(missing.sum()),
        "members": {
            name: ({"columns": columns[name]} if columns else {})
            | {"imputed_clients": int(np.count_nonzero(rows < 0))}
            for name, rows in joined.rows.items()
        },
    }


def _places(fitted: Fitted) -> dict[str, list[int]]:
    """First column and the one after the last of each member; empty where `stack` or `after` mixes
    them."""
    if fitted.stack or any(isinstance(step, Pca) for step in fitted.after.steps):
        return {}

    stops = np.cumsum([len(one.imputed) for one in fitted.members.values()]).tolist()
    return {
        name: [start, stop]
        for name, start, stop in zip(fitted.members, [0, *stops[:-1]], stops, strict=True)
    }


def row_order(clients: np.ndarray, seed: int) -> np.ndarray:
    """The clients (U,) in an order that depends on the seed and on who they are, not on their
    order."""
    # sorted first: the same clients in another order must get the same rows
    return np.sort(clients)[np.random.default_rng(seed).permutation(len(clients))]


def rows_of(order: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Row (M,) in `order` (U,) of each id (M,); -1 for one that is not asked for."""
    if not len(order):
        return np.full(len(ids), -1)
    by_id = np.argsort(order)  # (U,)

    place = np.searchsorted(order[by_id], ids).clip(max=len(order) - 1)  # (M,)
    rows = by_id[place]
    return np.where(order[rows] == ids, rows, -1)


def _half(block: np.ndarray, columns: Mapping[str, list[int]]) -> np.ndarray:
    """float16, the very last step. Raises DataError for what it cannot hold."""
    with np.errstate(over="ignore"):
        half = block.astype(np.float16)

    beyond = ~np.isfinite(half).all(axis=0)  # (D,)
    if beyond.any():
        first = int(beyond.argmax())
        names = [name for name, (start, stop) in columns.items() if start <= first < stop]
        what = f"member {names[0]!r} has" if names else "the ensemble has"
        raise DataError(
            f"{what} values beyond float16 (65,504); end its `{'post' if names else 'after'}` with "
            f"l2 or {{quantile: uniform}}."
        )

    return half
