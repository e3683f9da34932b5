"""How close generated futures are to real ones (appendix B), and whether they are copies.

Distributions are pooled over all events of all sequences, for three quantities: the behavior (by
class, most frequent in training first), the hour of the day, and the time gap in doublings,
log2(1 + seconds).

    ks              greatest distance of the cumulative distributions; 0: equal
    wd              Wasserstein distance, in classes, hours, doublings; 0: equal
    jsd             Jensen-Shannon divergence in bits, of classes, hours, half doublings; 0: equal,
                    1: disjoint
    user_jsd        mean over users of the jsd of their own behaviors
    bleu            corpus BLEU-4 of generated sequences, the user's real future as reference
                    (Papineni et al. 2002)
    distinct2       different pairs of neighbors / pairs, mean over sequences: to be compared with
                    the real one
    transition_tv   total variation distance of the distributions of neighboring behaviors

Shapes: R events of S sequences, M n-grams, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOURS = 24
GAP_BINS = 56  # half doublings, as the model's gap buckets


@dataclass(frozen=True)
class Sequences:
    """S sequences; the events of sequence s are offsets[s] : offsets[s + 1] of the columns (R,)."""

    offsets: np.ndarray  # (S + 1,) int64
    behavior: np.ndarray  # (R,) int64 classes
    hour: np.ndarray  # (R,) float64 local hour of the day in [0, 24)
    gap: np.ndarray  # (R,) seconds since the event before

    def __len__(self) -> int:
        return len(self.offsets) - 1


def compare(real: Sequences, generated: Sequences, classes: int) -> dict[str, float]:
    """All metrics but memorization; sequence s of both belongs to the same user."""
    figures: dict[str, float] = {}
    parts = {
        "behavior": (real.behavior, generated.behavior, np.arange(classes + 1) - 0.5),
        "hour": (real.hour, generated.hour, np.arange(HOURS + 1)),
        "gap": (doublings(real.gap), doublings(generated.gap), np.arange(GAP_BINS + 1) / 2),
    }
    for name, (ours, theirs, edges) in parts.items():
        for measure, value in distances(ours, theirs, edges).items():
            figures[f"{name}_{measure}"] = value

    figures["user_jsd"] = user_jsd(real, generated, classes)
    figures["bleu"] = bleu(generated, real)
    figures["distinct2"], figures["distinct2_real"] = distinct(generated), distinct(real)
    figures["transition_tv"] = transition_distance(real, generated)
    return figures


def doublings(gap: np.ndarray) -> np.ndarray:
    """log2(1 + seconds)"""
    return np.log2(1.0 + gap)


def distances(real: np.ndarray, generated: np.ndarray, edges: np.ndarray) -> dict[str, float]:
    """ks, wd and jsd of two samples (R,) and (G,) of a number; jsd over the bins between
    `edges`."""
    from scipy.stats import ks_2samp, wasserstein_distance

    # ks and wd of the values themselves; for the jsd values that differ at all would be disjoint
    p, q = np.histogram(real, edges)[0], np.histogram(generated, edges)[0]
    return {
        "ks": float(ks_2samp(real, generated, method="asymp").statistic),
        "wd": float(wasserstein_distance(real, generated)),
        "jsd": jsd(p, q),
    }


def jsd(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits of two histograms (K,), which need not sum to 1."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(p, q, base=2) ** 2)


def user_jsd(real: Sequences, generated: Sequences, classes: int) -> float:
    """Mean over sequences of the jsd of their behaviors."""
    ours, theirs = np.zeros((len(real), classes)), np.zeros((len(real), classes))  # (S, K)
    np.add.at(ours, (_owners(real), real.behavior), 1)
    np.add.at(theirs, (_owners(generated), generated.behavior), 1)

    both = (ours.sum(1) > 0) & (theirs.sum(1) > 0)  # an empty sequence has no distribution
    return float(np.mean([jsd(p, q) for p, q in zip(ours[both], theirs[both], strict=True)]))


def bleu(generated: Sequences, real: Sequences, order: int = 4) -> float:
    """Corpus BLEU without smoothing: geometric mean of clipped n-gram precisions times the brevity
    penalty."""
    logs = []
    for n in range(1, order + 1):
        theirs, ours = ngrams([generated, real], n)
        # a number for each (sequence, n-gram): counted, and matched within a sequence alone
        span = max((int(part[1].max()) + 1 for part in (theirs, ours) if len(part[1])), default=1)
        keys, counts = np.unique(theirs[0] * span + theirs[1], return_counts=True)
        known, limits = np.unique(ours[0] * span + ours[1], return_counts=True)

        # clipped: an n-gram counts at most as often as the reference has it
        _, at, where = np.intersect1d(keys, known, assume_unique=True, return_indices=True)
        matched = int(np.minimum(counts[at], limits[where]).sum())
        if not matched:
            return 0.0
        logs.append(np.log(matched / counts.sum()))

    reference, length = len(real.behavior), len(generated.behavior)
    brevity = min(0.0, 1 - reference / length)
    return float(np.exp(np.mean(logs) + brevity))


def distinct(sequences: Sequences, n: int = 2) -> float:
    """Share of different n-grams among the n-grams of a sequence, mean over those that have one (Li
    et al. 2016)."""
    [(owner, code)] = ngrams([sequences], n)
    total = np.bincount(owner, minlength=len(sequences))
    pairs = np.unique(np.stack([owner, code]), axis=1)
    different = np.bincount(pairs[0], minlength=len(sequences))
    return float((different[total > 0] / total[total > 0]).mean())


def transition_distance(real: Sequences, generated: Sequences) -> float:
    """Half the summed difference of the shares of neighboring pairs: 0 equal, 1 disjoint."""
    (_, ours), (_, theirs) = ngrams([real, generated], 2)
    size = max(ours.max(), theirs.max()) + 1
    p = np.bincount(ours, minlength=size) / len(ours)
    q = np.bincount(theirs, minlength=size) / len(theirs)
    return float(np.abs(p - q).sum() / 2)


def memorized(generated: Sequences, training: Sequences, n: int) -> float:
    """Share of the generated windows of n behaviors that stand somewhere in the training data."""
    (_, ours), (_, known) = ngrams([generated, training], n)
    return float(np.isin(ours, np.unique(known)).mean())


def ngrams(parts: Sequence[Sequences], n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each part: the sequence (M,) of every n-gram inside one, and its code (M,), the same in
    all parts."""
    # all parts one after the other, so that one numbering serves them all
    owners = np.concatenate([_owners(part) for part in parts])
    source = np.repeat(np.arange(len(parts)), [len(part.behavior) for part in parts])
    behavior = np.concatenate([part.behavior for part in parts]).astype(np.int64)
    classes = int(behavior.max(initial=0)) + 1

    # an n-gram's code is that of its first n - 1 behaviors and the next one, numbered anew at each
    # length: n behaviors as digits would overflow
    code, begin = behavior, np.arange(len(behavior))
    for step in range(1, n):
        inside = begin + step < len(behavior)
        same_owner = owners[begin[inside] + step] == owners[begin[inside]]
        same_source = source[begin[inside] + step] == source[begin[inside]]
        inside[inside] = same_owner & same_source
        begin = begin[inside]
        longer = code[inside] * classes + behavior[begin + step]
        code = np.unique(longer, return_inverse=True)[1].ravel()

    part_of, owner_of = source[begin], owners[begin]
    return [(owner_of[part_of == k], code[part_of == k]) for k in range(len(parts))]


def _owners(sequences: Sequences) -> np.ndarray:
    """The sequence (R,) of each event."""
    return np.repeat(np.arange(len(sequences)), np.diff(sequences.offsets))
