"""Prediction metrics against sklearn and torchmetrics, on random and on tied scores."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    ndcg_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torchmetrics.classification import MulticlassPrecision, MulticlassRecall
from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG

from behavegpt.errors import BehaveGPTError
from behavegpt.metrics.prediction import PredictionMetrics, predicted_and_rank

KINDS = ["random", "tied", "constant", "infinite", "bfloat16"]


def case(
    kind: str, rows: int = 600, classes: int = 23, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, K) and long-tailed targets (N,); the last classes have no rows."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, classes, generator=generator)
    share = 1.0 / torch.arange(1, classes - 2)
    target = torch.multinomial(share, rows, replacement=True, generator=generator)
    scores[torch.arange(rows), target] += 1.0
    scores = {
        "random": scores,
        "tied": scores.round(),
        "constant": torch.zeros_like(scores),
        "infinite": scores.masked_fill(scores < 0, -torch.inf),
        "bfloat16": scores.bfloat16(),
    }[kind]
    return scores, target


def reference_order(scores: torch.Tensor) -> np.ndarray:
    """(N, K) classes from best to worst, equal scores by class index: numpy's stable lexicographic
    sort."""
    values = scores.double().numpy()
    return np.lexsort((np.broadcast_to(np.arange(values.shape[1]), values.shape), -values), axis=1)


def without_ties(scores: torch.Tensor) -> np.ndarray:
    """Scores (N, K) in the same order as `reference_order`, all different."""
    order = reference_order(scores)
    distinct = np.empty(order.shape)
    np.put_along_axis(distinct, order, np.arange(order.shape[1], 0, -1.0)[None], axis=1)
    return distinct


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_and_rank_equal_a_full_sort(kind: str) -> None:
    scores, target = case(kind)
    best, rank = predicted_and_rank(scores, target)
    order = reference_order(scores)
    assert best.tolist() == order[:, 0].tolist()
    assert rank.tolist() == (order == target.numpy()[:, None]).argmax(1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_figures_equal_sklearn(kind: str) -> None:
    scores, target = case(kind)
    classes = scores.shape[1]
    metrics = PredictionMetrics(classes)
    for part in range(0, len(target), 97):
        metrics.update(scores[part : part + 97], target[part : part + 97])
    found = metrics.compute()
    truth, predicted = target.numpy(), reference_order(scores)[:, 0]
    present = np.unique(truth)
    for average, suffix, labels in (
        ("weighted", "w", None),
        ("macro", "m", present),
        ("macro", "m_all", np.arange(classes)),
    ):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, predicted, labels=labels, average=average, zero_division=0
        )
        if suffix in ("w", "m"):
            assert found[f"f1_{suffix}"] == pytest.approx(f1, abs=1e-12)
        assert found[f"prec_{suffix}"] == pytest.approx(precision, abs=1e-12)
        assert found[f"rec_{suffix}"] == pytest.approx(recall, abs=1e-12)
    distinct = without_ties(scores)
    relevant = np.eye(classes)[truth]
    assert metrics.hit_rate(1) == pytest.approx(found["rec_w"])
    assert {name for name in found if "@" in name} == {"hr@3", "hr@5", "ndcg@3", "ndcg@5"}
    for k in (3, 5):
        hits = top_k_accuracy_score(truth, distinct, k=k, labels=np.arange(classes))
        assert found[f"hr@{k}"] == pytest.approx(hits, abs=1e-12)
        assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevant, distinct, k=k), abs=1e-12)


@pytest.mark.parametrize("unseen", [0, 1, 400])
def test_unseen_labels_are_what_sklearn_makes_of_a_class_that_nobody_predicts(unseen: int) -> None:
    scores, target = case("random")
    found = (
        PredictionMetrics(23)
        .update(scores, target)
        .with_unseen(unseen)
        .compute(np.arange(23 + bool(unseen))[::-1])
    )
    truth = np.append(target.numpy(), np.full(unseen, 23))
    predicted = np.append(reference_order(scores)[:, 0], np.zeros(unseen, int))
    # what the model would have said of the others costs no precision
    answered = np.arange(len(truth)) < len(target)
    for average, suffix in (("weighted", "w"), ("macro", "m")):
        options = {"labels": np.unique(truth), "average": average, "zero_division": 0}
        recall = precision_recall_fscore_support(truth, predicted, **options)[1]
        assert found[f"rec_{suffix}"] == pytest.approx(recall, abs=1e-12)
        precision = precision_recall_fscore_support(
            truth, np.where(answered, predicted, -1), **options
        )[0]
        assert found[f"prec_{suffix}"] == pytest.approx(precision, abs=1e-12)
    plain = PredictionMetrics(23).update(scores, target).compute()
    for name in ("hr@3", "hr@5", "ndcg@3", "ndcg@5", "rec_w", "prec_w_eq6", "rec_w_eq7"):
        assert found[name] == pytest.approx(plain[name] * len(target) / len(truth), abs=1e-12), name
    assert found["tail"] <= found["head"]


def test_per_class_equals_sklearn() -> None:
    scores, target = case("tied")
    table = PredictionMetrics(23).update(scores, target).per_class()
    truth, predicted = target.numpy(), reference_order(scores)[:, 0]
    labels = np.arange(23)
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=labels, zero_division=0
    )
    for name, values in (
        ("precision", precision),
        ("recall", recall),
        ("f1", f1),
        ("support", support),
    ):
        np.testing.assert_allclose(table[name], values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(table["predicted"], np.bincount(predicted, minlength=23))
    assert f1_score(truth, predicted, average="micro") == pytest.approx(
        table["true_positive"].sum() / len(truth)
    )


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_figures_equal_torchmetrics(kind: str) -> None:
    scores, target = case(kind)
    classes = scores.shape[1]
    found = PredictionMetrics(classes).update(scores, target)
    figures, table = found.compute(), found.per_class()
    for name, short, metric in (
        ("recall", "rec", MulticlassRecall),
        ("precision", "prec", MulticlassPrecision),
    ):
        each = metric(num_classes=classes, average="none")(scores, target)
        np.testing.assert_allclose(table[name], each.numpy(), atol=1e-6)
        weighted = metric(num_classes=classes, average="weighted")(scores, target)
        assert figures[f"{short}_w"] == pytest.approx(float(weighted), abs=1e-6)
    distinct = torch.as_tensor(without_ties(scores))
    queries = torch.arange(len(target))[:, None].expand_as(distinct)
    relevant = torch.nn.functional.one_hot(target, classes)
    for k in (3, 5):
        ndcg = RetrievalNormalizedDCG(top_k=k)(
            distinct.flatten(), relevant.flatten(), indexes=queries.flatten()
        )
        hits = RetrievalHitRate(top_k=k)(
            distinct.flatten(), relevant.flatten(), indexes=queries.flatten()
        )
        assert figures[f"ndcg@{k}"] == pytest.approx(float(ndcg), abs=1e-6)
        assert figures[f"hr@{k}"] == pytest.approx(float(hits), abs=1e-6)


def test_equations_6_and_7_as_printed() -> None:
    scores, target = case("random")
    found = PredictionMetrics(23).update(scores, target).compute()
    predicted = scores.argmax(1)
    numerators = [0.0, 0.0]
    for b in range(23):
        hit = int(((predicted == b) & (target == b)).sum())
        numerators[0] += hit * hit / max(int((predicted == b).sum()), 1)
        numerators[1] += hit * hit / max(int((target == b).sum()), 1)
    assert found["prec_w_eq6"] == pytest.approx(numerators[0] / len(target))
    assert found["rec_w_eq7"] == pytest.approx(numerators[1] / len(target))


def test_frequency_groups_by_hand() -> None:
    """Seven classes; 6 and 2 are the most frequent in training, 4 has no rows."""
    counts = torch.tensor([5, 4, 90, 3, 2, 1, 100])
    target = torch.tensor([6, 6, 2, 0, 1, 3, 5, 5])
    scores = torch.eye(7)[[6, 2, 2, 0, 0, 3, 5, 0]]
    found = PredictionMetrics(7).update(scores, target).compute(counts)
    # by frequency: 6 2 | 0 1 | 3 4 5, recalls .5 1 | 1 0 | 1 - .5
    assert (found["head"], found["mid"], found["tail"]) == (0.75, 0.5, 0.75)
    # ten groups of seven classes: positions 0 0 1 2 2 3 4 4 5 6
    assert found["recall_by_decile"] == [0.5, 0.5, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, None, 0.5]


def test_deciles_cut_the_classes_evenly() -> None:
    scores, target = case("random", rows=4000, classes=40)
    counts = np.random.default_rng(0).permutation(40)
    found = PredictionMetrics(40).update(scores, target).compute(counts)
    table = PredictionMetrics(40).update(scores, target).per_class()
    ordered = np.argsort(-counts)
    for decile, members in enumerate(np.array_split(ordered, 10)):
        scored = members[table["support"][members] > 0]
        assert found["recall_by_decile"][decile] == pytest.approx(table["recall"][scored].mean())


def test_confusion_equals_sklearn() -> None:
    scores, target = case("random")
    metrics = PredictionMetrics(23, confusion=True).update(scores[:200], target[:200])
    metrics.update(scores[200:], target[200:])
    full = confusion_matrix(target, scores.argmax(1), labels=np.arange(23))
    labels, counts = metrics.confusion(top=23)
    np.testing.assert_array_equal(counts, full[np.ix_(labels, labels)])
    labels, counts = metrics.confusion(top=4)
    rest = np.setdiff1d(np.arange(23), labels)
    np.testing.assert_array_equal(counts[:4, :4], full[np.ix_(labels, labels)])
    np.testing.assert_array_equal(counts[4, :4], full[np.ix_(rest, labels)].sum(0))
    np.testing.assert_array_equal(counts[:4, 4], full[np.ix_(labels, rest)].sum(1))
    assert counts.sum() == len(target) and (full.sum(1)[labels].min() >= full.sum(1)[rest]).all()
    with pytest.raises(ValueError, match="confusion=True"):
        PredictionMetrics(23).confusion(3)


def test_what_a_class_is_taken_for_most_often() -> None:
    target = torch.tensor([0] * 6 + [1] * 3 + [2])
    predicted = torch.tensor([0, 1, 1, 2, 2, 2, 1, 0, 0, 2])
    metrics = PredictionMetrics(3, confusion=True).update(torch.eye(3)[predicted], target)
    place, number = metrics.taken_for(2)
    assert place[0].tolist() == [2, 1] and number[0].tolist() == [3, 2]
    assert (place[1, 0], number[1].tolist(), number[2].tolist()) == (0, [2, 0], [0, 0])


@pytest.mark.parametrize("confusion", [False, True])
def test_parts_in_any_order_equal_one_pass(confusion: bool) -> None:
    scores, target = case("tied")
    whole = PredictionMetrics(23, confusion=confusion).update(scores, target)
    rng = np.random.default_rng(0)
    for _ in range(5):
        shuffled = torch.as_tensor(rng.permutation(len(target)))
        bounds = [0, *sorted(rng.integers(0, len(target), 6)), len(target)]
        parts = []
        for low, high in pairwise(bounds):
            rows = shuffled[low:high]
            parts.append(
                PredictionMetrics(23, confusion=confusion).update(scores[rows], target[rows])
            )
        merged = PredictionMetrics(23, confusion=confusion)
        for part in rng.permutation(len(parts)):
            merged.merge(parts[part])
        assert torch.equal(merged.state(), whole.state())
        assert merged.compute(np.arange(23)) == whole.compute(np.arange(23))
        # what an all-reduce over ranks gives
        reduced = torch.stack([part.state() for part in parts]).sum(0)
        assert torch.equal(
            PredictionMetrics(23, confusion=confusion).load_state(reduced).state(), whole.state()
        )
    with pytest.raises(ValueError, match="counts is needed"):
        whole.load_state(torch.zeros(3, dtype=torch.int64))


def test_state_is_a_copy_and_holds_nothing_per_row() -> None:
    metrics = PredictionMetrics(23)
    state = metrics.state()
    metrics.update(*case("random"))
    assert int(state.sum()) == 0 and state.dtype == torch.int64
    assert metrics.state().shape == (3 * 23 + 6,)
    assert metrics.rows == 600


def test_one_class() -> None:
    found = (
        PredictionMetrics(1)
        .update(torch.randn(9, 1), torch.zeros(9, dtype=torch.long))
        .compute([9])
    )
    assert (
        found["rec_w"]
        == found["prec_m"]
        == found["hr@3"]
        == found["ndcg@5"]
        == found["tail"]
        == 1.0
    )
    assert found["recall_by_decile"] == [1.0] * 10


def test_empty_input() -> None:
    metrics = PredictionMetrics(5).update(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    found = metrics.compute(np.arange(5))
    groups = {"head", "mid", "tail", "recall_by_decile"}
    assert all(value == 0.0 for name, value in found.items() if name not in groups)
    assert found["head"] is None and found["recall_by_decile"] == [None] * 10


def test_scores_that_are_not_numbers_are_refused() -> None:
    scores, target = case("random")
    scores[3, 7] = torch.nan
    with pytest.raises(BehaveGPTError, match="1 of 600 rows"):
        PredictionMetrics(23).update(scores, target)


def test_target_out_of_range_is_refused() -> None:
    for wrong in (-100, 23):
        with pytest.raises((RuntimeError, IndexError)):
            PredictionMetrics(23).update(torch.randn(2, 23), torch.tensor([0, wrong]))
