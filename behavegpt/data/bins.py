"""The vocabulary of a numeric field: its labels are ranges of numbers, named by the least number of
each.

Any number has a range, so nothing is unknown but what is missing or no number. The name of a range
is a number in it: ranges of one log are found in those of another, and what is generated can be
prepared again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from behavegpt.data.schema import EventSchema
from behavegpt.data.vocabulary import FIRST, UNKNOWN, Vocabulary, as_text

BINS = 16  # ranges of a field, about
# what labels.py writes of numbers, and what text columns hold of them
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


@dataclass(frozen=True)
class Bins(Vocabulary):
    """Ranges in ascending order; range i holds the numbers from `values[i]` up to the next one's,
    the first also what is less."""

    @classmethod
    def fit(cls, labels: pa.StringArray, counts: np.ndarray) -> Bins:
        """Ranges that hold about equally many events, negative numbers and 0 apart, of labels (L,)
        and their training counts (L,)."""
        # each distinct number once, with its events: a log has far fewer than events
        values, seen = numbers(labels), np.asarray(counts)
        used = ~np.isnan(values) & (seen > 0)
        order = np.argsort(values[used], kind="stable")
        values, seen = values[used][order], seen[used][order]

        parts = [values < 0, values == 0, values > 0]
        # a sign says more than an amount: a refund is no small purchase
        bins = [max(1, round(BINS * seen[part].sum() / max(1, seen.sum()))) for part in parts]
        edges = np.concatenate(
            [_quantiles(values[part], seen[part], n) for part, n in zip(parts, bins, strict=True)]
        )

        held = np.searchsorted(edges, values, "right") - 1
        totals = np.bincount(held, seen, len(edges)).astype(np.int64)
        return cls(pa.array([repr(float(edge)) for edge in edges], pa.string()), totals)

    @cached_property
    def edges(self) -> np.ndarray:
        """The least number (classes,) float64 of each range."""
        return numbers(self.values)

    def encode(self, labels: Iterable[object] | pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Ids (N,) int64 of N labels that are numbers; null and what is no number become
        UNKNOWN."""
        array = labels if isinstance(labels, (pa.Array, pa.ChunkedArray)) else as_text(labels)
        values = numbers(array)
        if not len(self.edges):
            return np.full(len(values), UNKNOWN, np.int64)
        # below the first edge is the first range: training saw nothing so small
        ids = np.maximum(np.searchsorted(self.edges, values, "right") - 1, 0) + FIRST
        return np.where(np.isnan(values), UNKNOWN, ids)

    def grow(self, labels: Iterable[str], counts: Iterable[int] | None = None) -> Bins:
        """The same: every number has a range already."""
        return self


def vocabulary_type(schema: EventSchema, field: str) -> type[Vocabulary]:
    """What the labels of a field are kept in."""
    return Bins if field in (*schema.numeric, *schema.user_numeric) else Vocabulary


def numbers(labels: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Labels (N,) as float64 (N,); nan for null and what is no finite number."""
    texts = labels.cast(pa.string())
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    legal = pc.fill_null(pc.match_substring_regex(texts, _NUMBER), False)
    texts = pc.utf8_trim_whitespace(pc.if_else(legal, texts, None))

    # Arrow's parser takes no leading plus
    values = pc.replace_substring_regex(texts, r"^\+", "").cast(pa.float64())
    found = np.array(values.to_numpy(zero_copy_only=False), np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _quantiles(values: np.ndarray, counts: np.ndarray, ranges: int) -> np.ndarray:
    """The least value of each of up to `ranges` ranges of ascending values (L,) with counts
    (L,)."""
    if not len(values):
        return values
    before = np.cumsum(counts) - counts  # (L,) events below each value
    wanted = np.arange(ranges) * counts.sum() / ranges
    # one value may be several quantiles: it is one range then
    return values[np.unique(np.searchsorted(before, wanted, "right") - 1)]


def load_vocabulary(schema: EventSchema, folder: Path, field: str) -> Vocabulary:
    """The vocabulary of a field that `Vocabulary.save` wrote to FOLDER/FIELD.parquet. Raises
    DataError."""
    return vocabulary_type(schema, field).load(folder / f"{field}.parquet")
