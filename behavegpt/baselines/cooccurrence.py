"""Vectors of labels from what happens near what in the training split: a stand-in for text vectors,
without any text.

PPMI_ab = max(0, log (n_ab n / (n_a n_b)))
          n_ab: times a and b lie within `WINDOW` events of one user
vectors = U sqrt(S) of its truncated singular value decomposition

Shape letters: L labels, W width of a vector.
"""

from __future__ import annotations

import numpy as np
import torch

from behavegpt.data.store import TRAIN, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.ragged import owners

WINDOW = 5
SEED = 0  # of the randomized decomposition and the clusters


def pair_counts(store: EventStore, column: str, labels: int) -> torch.Tensor:
    """Symmetric sparse (labels, labels) float64: how often two labels lie within WINDOW events in
    training."""
    ids = store.column(column).astype(np.int64) - FIRST  # (E,), below 0 for unknown labels
    user = owners(np.diff(store.offsets))  # (E,)
    usable = (np.asarray(store.columns["split"]) == TRAIN) & (ids >= 0)

    keys = []
    for ago in range(1, WINDOW + 1):
        both = usable[ago:] & usable[:-ago] & (user[ago:] == user[:-ago])  # (E - ago,)
        a, b = ids[ago:][both], ids[:-ago][both]
        # both directions, so the table is symmetric
        keys += [a * labels + b, b * labels + a]

    key, count = np.unique(np.concatenate(keys), return_counts=True)  # each (pairs,)
    index = torch.from_numpy(np.stack([key // labels, key % labels]))  # (2, pairs)
    return torch.sparse_coo_tensor(
        index, torch.from_numpy(count).double(), (labels, labels), check_invariants=True
    ).coalesce()


def label_vectors(store: EventStore, column: str, width: int) -> torch.Tensor:
    """(labels, width) float32 vectors of a column's labels, by class (id - 2); zeros for those
    never seen near another.

    Columns beyond the number of labels are zeros.
    """
    labels = store.behaviors.classes if column == "behavior" else store.vocabulary[column].classes
    counts = pair_counts(store, column, labels)
    row, col = counts.indices()  # (pairs,) each
    margin = torch.zeros(labels, dtype=torch.float64).index_add(0, row, counts.values())  # (L,) n_a

    # PPMI: pairs that are rarer together than by chance count as unrelated
    pmi = (counts.values() * margin.sum() / (margin[row] * margin[col])).log().clamp(min=0)
    matrix = torch.sparse_coo_tensor(
        counts.indices(), pmi.float(), counts.shape, check_invariants=True
    )

    rank = min(width, labels)

    # the decomposition draws a random start: the same vectors for the same store
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        u, s, _ = torch.svd_lowrank(matrix, q=min(rank + 8, labels), niter=4)

    vectors = torch.zeros(labels, width)  # columns beyond the rank stay 0
    vectors[:, :rank] = u[:, :rank] * s[:rank].sqrt()
    return vectors


def clusters(vectors: torch.Tensor, count: int, rounds: int = 20) -> torch.Tensor:
    """(labels,) int64 in [0, count): Lloyd's k-means of (labels, width), begun at random labels."""
    generator = torch.Generator().manual_seed(SEED)
    # Forgy's start: centers are labels of the data
    centers = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()

    for _ in range(rounds):
        member = torch.cdist(vectors, centers).argmin(1)  # (L,)
        size = torch.bincount(member, minlength=len(centers))
        total = torch.zeros_like(centers).index_add(0, member, vectors)  # (clusters, W)
        # an empty cluster keeps its center
        centers = torch.where(size[:, None] > 0, total / size.clamp(min=1)[:, None], centers)

    return torch.cdist(vectors, centers).argmin(1)
