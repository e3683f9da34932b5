"""Metrics of generated futures, against scipy-free arithmetic, torchmetrics and loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from torchmetrics.functional.text import bleu_score

from behavegpt.metrics.generation import (
    Sequences,
    bleu,
    compare,
    distances,
    distinct,
    jsd,
    memorized,
    ngrams,
    transition_distance,
    user_jsd,
)


def sequences(lists, hours=None, gaps=None):
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    flat = np.concatenate([np.asarray(x, np.int64) for x in lists])
    return Sequences(
        offsets,
        flat,
        np.zeros(len(flat)) if hours is None else np.asarray(hours, float),
        np.zeros(len(flat)) if gaps is None else np.asarray(gaps, float),
    )


def random_lists(seed, users=30, classes=6, longest=25):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, classes, rng.integers(1, longest)).tolist() for _ in range(users)]


@pytest.mark.parametrize("seed", range(4))
def test_bleu_is_torchmetrics(seed):
    generated, real = random_lists(seed), random_lists(seed + 100)
    generated[3] = real[3] + [1, 2]
    expected = bleu_score(
        [" ".join(map(str, x)) for x in generated], [[" ".join(map(str, x))] for x in real]
    )
    assert bleu(sequences(generated), sequences(real)) == pytest.approx(float(expected), rel=1e-5)


def test_bleu_by_hand():
    """Papineni's clipping: 'the' seven times against 'the cat is on the mat' has a unigram
    precision of 2/7."""
    the, cat, is_, on, mat = range(5)
    real = sequences([[the, cat, is_, on, the, mat]])
    assert bleu(sequences([[the] * 7]), real, order=1) == pytest.approx(2 / 7)
    assert bleu(sequences([[the, cat]]), real, order=2) == pytest.approx(math.exp(1 - 6 / 2)), (
        "brevity penalty"
    )
    assert bleu(real, real) == pytest.approx(1)
    assert bleu(sequences([[mat, mat]]), real) == 0
    # an n-gram across two users is none
    assert bleu(sequences([[the], [cat]]), sequences([[cat], [the]]), order=1) == 0
    assert bleu(
        sequences([[the, cat], [is_, on]]), sequences([[the, cat], [is_, on]]), order=2
    ) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_ngrams_against_a_loop(n):
    parts = [random_lists(1), random_lists(2)]
    found = ngrams([sequences(p) for p in parts], n)
    names = {}
    for lists, (owner, code) in zip(parts, found, strict=True):
        expected = [
            (i, tuple(x[k : k + n])) for i, x in enumerate(lists) for k in range(len(x) - n + 1)
        ]
        assert len(expected) == len(owner)
        for (i, gram), o, c in zip(expected, owner, code, strict=True):
            assert i == o and names.setdefault(int(c), gram) == gram
    assert len(set(names.values())) == len(names)


def test_distinct_is_the_mean_share_of_different_pairs():
    lists = [[1, 2, 1, 2, 1], [3, 3, 3], [4]]
    assert distinct(sequences(lists)) == pytest.approx((2 / 4 + 1 / 2) / 2)


def test_jsd_and_distances_by_their_definitions():
    rng = np.random.default_rng(0)
    p, q = rng.integers(1, 50, 12), rng.integers(1, 50, 12)
    a, b = p / p.sum(), q / q.sum()
    m = (a + b) / 2
    expected = ((a * np.log2(a / m)).sum() + (b * np.log2(b / m)).sum()) / 2
    assert jsd(p, q) == pytest.approx(expected)
    assert jsd([1, 0], [0, 5]) == pytest.approx(1)
    x, y = rng.integers(0, 10, 400), rng.integers(2, 12, 300)
    found = distances(x, y, np.arange(13) - 0.5)
    grid = np.arange(13)
    cdf_x, cdf_y = ((v[:, None] <= grid).mean(0) for v in (x, y))
    assert found["ks"] == pytest.approx(np.abs(cdf_x - cdf_y).max())
    assert found["wd"] == pytest.approx(np.abs(cdf_x - cdf_y)[:-1].sum()), (
        "the area between the two"
    )


@pytest.mark.parametrize(
    ("real", "drawn", "distance"),
    [([[0, 0]], [[5, 5]], 1), ([[5, 5]], [[0, 0]], 1), ([[0, 0]], [[0, 0, 1]], 0.5),
     ([[0, 0, 1]], [[0, 0]], 0.5)],
)  # fmt: skip
def test_transitions_that_one_side_alone_has(real, drawn, distance):
    assert transition_distance(sequences(real), sequences(drawn)) == distance


def test_transitions_and_users():
    a, b = random_lists(5), random_lists(6)
    counts = []
    for lists in (a, b):
        table = np.zeros((6, 6))
        for x in lists:
            for left, right in itertools.pairwise(x):
                table[left, right] += 1
        counts.append(table / table.sum())
    assert transition_distance(sequences(a), sequences(b)) == pytest.approx(
        np.abs(counts[0] - counts[1]).sum() / 2
    )
    each = [
        jsd(np.bincount(x, minlength=6), np.bincount(y, minlength=6))
        for x, y in zip(a, b, strict=True)
    ]
    assert user_jsd(sequences(a), sequences(b), 6) == pytest.approx(np.mean(each))


def test_memorized_windows():
    training = sequences([[0, 1, 2, 3], [4, 5]])
    assert memorized(sequences([[0, 1, 2]]), training, 3) == 1
    assert memorized(sequences([[1, 2, 3, 4, 5]]), training, 3) == pytest.approx(1 / 3), (
        "not across training users"
    )
    assert memorized(sequences([[5, 4]]), training, 2) == 0


def test_the_real_future_is_perfect():
    rng = np.random.default_rng(3)
    lists = random_lists(7, longest=40)
    total = sum(len(x) for x in lists)
    real = sequences(lists, rng.random(total) * 24, rng.exponential(9000, total))
    figures = compare(real, real, 6)
    assert figures.pop("bleu") == pytest.approx(1)
    assert figures.pop("distinct2") == figures.pop("distinct2_real") > 0
    assert figures and all(value == pytest.approx(0, abs=1e-12) for value in figures.values())


def jsd_by_hand(ours: list[int], theirs: list[int], bins: int) -> float:
    p, q = (np.bincount(x, minlength=bins) / len(x) for x in (ours, theirs))
    assert len(p) == len(q) == bins
    m = np.maximum((p + q) / 2, 1e-300)
    terms = [x * np.log2(np.maximum(x, 1e-300) / m) for x in (p, q)]
    return float(sum(term.sum() for term in terms) / 2)


def test_each_quantity_has_its_unit_and_its_bins():
    """Classes; hours; doublings of 1 + seconds in halves, up to 2^28."""
    rng = np.random.default_rng(0)
    samples = []
    for high in (2, 1):
        lists = [rng.integers(0, 4 * high - 1, 60).tolist() for _ in range(3)]
        hours = np.r_[0.0, 23.99, 24 * rng.random(178) ** high]
        gaps = np.r_[0.0, 2**27.9, 2**0.5 - 1 + 1e-9, 2 ** (28 * rng.random(177) ** high) - 1]
        samples.append((lists, hours, gaps))
    real, generated = (sequences(*sample) for sample in samples)
    figures = compare(real, generated, 8)
    both = [
        (real.behavior, generated.behavior, 8, lambda x: x),
        (real.hour, generated.hour, 24, np.floor),
        (np.log2(1 + real.gap), np.log2(1 + generated.gap), 56, lambda x: np.floor(2 * x)),
    ]
    for name, (ours, theirs, bins, bin_of) in zip(("behavior", "hour", "gap"), both, strict=True):
        binned = [bin_of(x).astype(int).tolist() for x in (ours, theirs)]
        assert figures[f"{name}_jsd"] == pytest.approx(jsd_by_hand(*binned, bins)), name
        grid = np.unique(np.r_[ours, theirs])
        apart = np.abs(np.subtract(*((x[:, None] <= grid).mean(0) for x in (ours, theirs))))
        assert figures[f"{name}_ks"] == pytest.approx(apart.max())
        assert figures[f"{name}_wd"] == pytest.approx((apart[:-1] * np.diff(grid)).sum())
    assert figures["distinct2"] == distinct(generated) != figures["distinct2_real"]
    assert figures["distinct2_real"] == distinct(real)
    assert figures["bleu"] == bleu(generated, real)
    assert figures["transition_tv"] == transition_distance(real, generated) > 0


def test_users_without_events_are_left_out():
    real, generated = sequences([[0, 1], [], [0], [2]]), sequences([[1, 1], [0], [], [2]])
    half = jsd([1, 1], [0, 2])
    assert user_jsd(real, generated, 3) == pytest.approx((half + 0) / 2)
    assert len(real) == 4
    with_empty = sequences([[], [0, 1, 0, 1], [1]])
    assert distinct(with_empty) == pytest.approx(2 / 3)
    assert [len(owner) for owner, _ in ngrams([with_empty, with_empty], 2)] == [3, 3]


def test_longer_futures_pay_by_precision_alone_and_shorter_ones_by_brevity():
    real = sequences([[0, 1, 2, 3]])
    longer, shorter = sequences([[0, 1, 2, 3, 4, 4, 4, 4]]), sequences([[0, 1]])
    assert bleu(longer, real, order=1) == pytest.approx(4 / 8)
    assert bleu(longer, real, order=2) == pytest.approx((4 / 8 * 3 / 7) ** 0.5)
    assert bleu(shorter, real, order=1) == pytest.approx(math.exp(1 - 4 / 2))
    four = (4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25
    assert bleu(longer, real) == pytest.approx(four), "four orders by default"
    assert distinct(longer) == pytest.approx(5 / 7), "pairs by default"
