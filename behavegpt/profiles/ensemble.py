"""The ensemble: each member's steps, outer join on the clients, imputation, concatenation, float16.

DIR/client_ids.npy, embeddings.npy, missing.npy, entry.json
                          the entry, see behavegpt.user_embeddings
DIR/ensemble.json         members, columns, row order, how many clients were imputed
DIR/state.safetensors     everything fitted, to embed new clients the same way
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from behavegpt.arrays import write_array
from behavegpt.config import Settings
from behavegpt.errors import ConfigError, DataError
from behavegpt.io import replacing
from behavegpt.profiles.members import Step
from behavegpt.profiles.transforms import BLOCK, State, fit_steps, transformed, width_after
from behavegpt.user_embeddings import CLIENT_IDS, EMBEDDINGS, MISSING, UserEmbeddings, seal

WIDEST = 2048  # columns the challenge takes
STATE, FACTS = "state.safetensors", "ensemble.json"


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

    def chosen(self, names: list[str]) -> list[str]:
        """The members by name. Raises ConfigError for one that is not there."""
        for name in (*(self.members or ()), *self.without):
            if name not in names:
                raise ConfigError(
                    f"ensembles: {name!r} is no member; there are {', '.join(names)}."
                )

        chosen = [name for name in self.members or names if name not in self.without]
        if not chosen:
            raise ConfigError("ensembles: no member is left; name at least one.")
        return chosen


# member -> steps, their states, imputed row (D,)
Fitted = dict[str, tuple[tuple[Step, ...], list[State], np.ndarray]]


def fit_ensemble(
    members: Mapping[str, tuple[tuple[Step, ...], UserEmbeddings]], impute: str
) -> Fitted:
    """Fit the steps of each member and the row that stands for clients without it, in the members'
    order.

    Raises ConfigError when the columns are more than the challenge takes.
    """
    widths = {
        name: width_after(steps, embeddings.vectors.shape[1])
        for name, (steps, embeddings) in members.items()
    }
    if sum(widths.values()) > WIDEST:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(
            f"{sum(widths.values())} columns ({listed}), at most {WIDEST}; reduce members with "
            f"{{pca: N}}."
        )

    fitted: Fitted = {}
    for name, (steps, embeddings) in members.items():
        states = fit_steps(steps, embeddings.vectors)
        # a second pass over the blocks: the imputed row is the mean after the steps, not before
        total = sum(block.sum(axis=0) for block in transformed(steps, states, embeddings.vectors))
        mean = np.asarray(total / len(embeddings.vectors))  # (D',)
        fitted[name] = (steps, states, mean if impute == "mean" else np.zeros_like(mean))

    return fitted


def write_ensemble(
    fitted: Fitted, members: Mapping[str, UserEmbeddings], order: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Write the entry of the clients `order` (U,), member by member; returns its facts.

    Raises DataError for values beyond float16. Clients that no member has are `missing`: all their
    columns are imputed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width = sum(len(row) for _, _, row in fitted.values())

    missing = np.ones(len(order), bool)
    columns: dict[str, Any] = {}
    start = 0

    # written beside its place and renamed: a reader never sees half an entry
    with replacing(folder / EMBEDDINGS) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(order), width))
        for name, embeddings in members.items():
            rows = rows_of(order, embeddings.client_ids)  # (M,)
            stop = start + len(fitted[name][2])
            _write_columns(out[:, start:stop], fitted[name], embeddings.vectors, rows, name)
            missing[rows[rows >= 0]] = False
            columns[name] = {
                "columns": [start, stop],
                "imputed_clients": len(order) - int(np.count_nonzero(rows >= 0)),
            }
            start = stop

        out.flush()
        del out  # closes the map: some systems do not rename an open file

        # of an earlier ensemble in this folder
        (folder / MISSING).unlink(missing_ok=True)
        write_array(folder / CLIENT_IDS, order)

    if missing.any():
        write_array(folder / MISSING, missing)

    seal(folder)
    return {
        "clients": len(order),
        "dimensions": width,
        "missing": int(missing.sum()),
        "members": columns,
    }


def _write_columns(
    out: np.ndarray,
    fitted: tuple[tuple[Step, ...], list[State], np.ndarray],
    vectors: np.ndarray,
    rows: np.ndarray,
    name: str,
) -> None:
    """Fill a member's columns (U, D'): its vectors (M, D) in `rows` (M,), elsewhere what stands for
    absent ones."""
    steps, states, imputed = fitted

    # every client starts with the imputed row; those that the member knows are overwritten
    out[:] = _half(imputed, name)
    for number, block in enumerate(transformed(steps, states, vectors)):
        part = rows[number * BLOCK :][: len(block)]  # (B,)
        out[part[part >= 0]] = _half(block[part >= 0], name)


def save_fitted(fitted: Fitted, folder: Path) -> None:
    """Write the fitted arrays; names are MEMBER/STEP/ARRAY and MEMBER/imputed."""
    from safetensors.numpy import save_file

    arrays = {f"{name}/imputed": row for name, (_, _, row) in fitted.items()}

    for name, (_, states, _) in fitted.items():
        for number, state in enumerate(states):
            arrays |= {f"{name}/{number}/{array}": values for array, values in state.items()}

    save_file(
        {name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / STATE
    )


def load_fitted(steps: Mapping[str, tuple[Step, ...]], folder: Path) -> Fitted:
    """Read what `save_fitted` wrote, for members in the order of `steps`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder / STATE}: cannot be read ({error}); build the ensemble again."
        ) from None

    fitted: Fitted = {}
    for name, post in steps.items():
        states: list[State] = [{} for _ in post]
        for path, values in arrays.items():
            # names of members hold no slash, see ProfileSettings
            member, *rest = path.split("/")
            if member == name and len(rest) == 2:
                number, array = int(rest[0]), rest[1]
                states[number] = {**states[number], array: values}
        fitted[name] = (post, states, arrays[f"{name}/imputed"])

    return fitted


def row_order(clients: np.ndarray, seed: int) -> np.ndarray:
    """The clients (U,) in an order that depends on the seed and on who they are, not on their
    order."""
    # sorted first: the same clients in another order must get the same rows
    return np.sort(clients)[np.random.default_rng(seed).permutation(len(clients))]


def rows_of(order: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Row (M,) in `order` (U,) of each id (M,); -1 for one that is not asked for."""
    by_id = np.argsort(order)  # (U,)

    place = np.searchsorted(order[by_id], ids).clip(max=len(order) - 1)  # (M,)
    rows = by_id[place]
    return np.where(order[rows] == ids, rows, -1)


def _half(values: np.ndarray, name: str) -> np.ndarray:
    """float16, the very last step. Raises DataError for what it cannot hold."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)

    if not np.isfinite(half).all():
        raise DataError(
            f"member {name!r} has values beyond float16 (65,504); end its `post` with l2 or "
            f"{{quantile: uniform}}."
        )

    return half
