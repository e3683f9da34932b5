"""Vocabulary of one field: labels <-> ids, with the training counts that the DRO loss needs.

Ids: 0 padding, 1 unknown (never seen in training, or null), 2... by falling training count, ties by
label. Ids are never renumbered; `grow` appends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from behavegpt.data.labels import EXACT
from behavegpt.errors import DataError

PAD, UNKNOWN, FIRST = 0, 1, 2
FEW = 1_000  # labels that are looked up one by one: Arrow would hash the whole vocabulary
MANY = 1_000_000  # labels; of a larger vocabulary no dict is kept


@dataclass(frozen=True)
class Vocabulary:
    """Labels of one field in id order (without padding and unknown) and how often each was seen in
    training."""

    values: pa.StringArray
    counts: np.ndarray = field(repr=False)  # (len(values),) int64

    @classmethod
    def from_counts(
        cls, values: Sequence[str] | pa.Array, counts: Sequence[int] | np.ndarray
    ) -> Vocabulary:
        """Order labels by falling count, ties by label."""
        table = pa.table(
            {"value": pa.array(values, pa.string()), "count": pa.array(counts, pa.int64())}
        )

        table = table.sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()
        return cls(_flat(table["value"]), table["count"].to_numpy())

    def __len__(self) -> int:
        """Number of ids, padding and unknown included: the rows of an embedding table."""
        return len(self.values) + FIRST

    @property
    def classes(self) -> int:
        """Number of labels that can be predicted: class = id - FIRST."""
        return len(self.values)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the labels in id order; equal hashes mean equal ids."""
        digest = hashlib.sha256()
        for value in self.values.to_pylist():
            # a separator, so that ("ab", "c") and ("a", "bc") differ; labels may hold lone
            # surrogates
            digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    def encode(self, labels: Iterable[object] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Ids (N,) int64 of N labels; null and unseen labels become UNKNOWN."""
        array = labels if isinstance(labels, (pa.Array, pa.ChunkedArray)) else as_text(labels)

        if len(array) <= FEW and len(self.values) <= MANY:
            return np.array(
                [self._ids.get(label, UNKNOWN) for label in array.cast(pa.string()).to_pylist()],
                np.int64,
            )

        # dictionary arrays and large strings, as DuckDB gives them
        if not pa.types.is_string(array.type):
            array = array.cast(pa.string())

        # index_in gives null for labels that it does not find
        index = pc.index_in(array, value_set=self.values, skip_nulls=True)  # (N,)
        index = pc.fill_null(index, UNKNOWN - FIRST)
        flat = index.to_numpy() if isinstance(index, pa.ChunkedArray) else index
        return np.asarray(flat, dtype=np.int64) + FIRST

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.values.to_pylist(), FIRST)}

    def decode(self, ids: np.ndarray) -> list[str | None]:
        """Labels of ids (N,); None for padding and unknown."""
        return self.decode_array(ids).to_pylist()

    def decode_array(self, ids: np.ndarray) -> pa.StringArray:
        """Labels of ids (N,) as an Arrow array; null for padding and unknown."""
        index = np.asarray(ids, dtype=np.int64) - FIRST  # (N,)
        return self.values.take(pa.array(index, mask=index < 0))

    def grow(self, labels: Iterable[str], counts: Iterable[int] | None = None) -> Vocabulary:
        """A vocabulary with the unseen ones of `labels` appended in the given order; known ids
        stay."""
        # each once, in the given order
        labels = list(dict.fromkeys(labels))

        known = set(self.values.to_pylist())
        given = dict(zip(labels, counts, strict=True)) if counts is not None else {}

        new = [label for label in labels if label not in known]

        values = pa.concat_arrays([self.values, pa.array(new, pa.string())])
        added = np.array([given.get(label, 0) for label in new], np.int64)
        return Vocabulary(values, np.concatenate([self.counts, added]))

    def save(self, path: Path) -> None:
        """Write as parquet with the columns `value` and `count`."""
        pq.write_table(
            pa.table({"value": self.values, "count": pa.array(self.counts, pa.int64())}), path
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises DataError naming the file."""
        try:
            table = pq.read_table(path, columns=["value", "count"])
            return cls(_flat(table["value"].cast(pa.string())), table["count"].to_numpy())
        except (OSError, ValueError, pa.ArrowException, KeyError) as error:
            raise DataError(
                f"{path}: not a vocabulary file ({error}); prepare the data again."
            ) from None


def as_text(labels: Iterable[object]) -> pa.StringArray:
    """Raw Python or numpy labels as text, the way `prepare` reads them: None and NaN become null,
    7.0 is 7."""
    return pa.array([_text(label) for label in labels], pa.string())


def _text(label: object) -> str | None:
    # pandas' own nulls by name, for pandas may be absent; a NaN is not equal to itself
    if label is None or type(label).__name__ in ("NAType", "NaTType") or bool(label != label):
        return None

    if isinstance(label, (bool, np.bool_)):
        return "true" if label else "false"

    if (
        isinstance(label, (float, np.floating))
        and abs(float(label)) < EXACT["DOUBLE"]
        and label == int(label)
    ):
        return str(int(label))
    return str(label)


def _flat(column: pa.ChunkedArray) -> pa.StringArray:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks or [pa.array([], pa.string())])
    )
