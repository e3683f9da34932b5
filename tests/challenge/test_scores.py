"""Metrics against torchmetrics, sklearn, and sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics import AUROC

from behavegpt.challenge.scores import (
    auroc,
    diversity,
    floors,
    novelty,
    probabilities,
    score,
    weigh,
)
from behavegpt.errors import DataError


def drawn(
    clients: int, labels: int, seed: int = 0, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with many ties, and rare positives."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(clients, labels, generator=generator) * scale).mul(20).round() / 20
    return logits, (torch.rand(clients, labels, generator=generator) < 0.1).to(torch.uint8)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_auroc_is_sklearns(scale: float) -> None:
    logits, targets = drawn(1000, 7, scale=scale)
    ours = auroc(logits, targets).numpy()
    for label in range(7):
        assert ours[label] == pytest.approx(
            roc_auc_score(targets[:, label], logits[:, label]), abs=1e-12
        )


@pytest.mark.filterwarnings("ignore:No (positive|negative) samples:UserWarning")
@pytest.mark.parametrize(
    ("labels", "shift", "scale"), [(1, 0.5, 0.2), (5, 0.5, 0.13), (5, 0.0, 1.0), (3, 9.0, 12.0)]
)
def test_the_auroc_of_torchmetrics_fed_batches_of_128(
    labels: int, shift: float, scale: float
) -> None:
    """Around 0.5 some batches are squashed and others not; wide logits tie at 1 after the float32
    sigmoid."""
    logits, targets = drawn(1000, labels, scale=scale)
    logits += shift
    targets[:, 1:2] = 0  # a label that nobody has
    targets[:, 2:3] = 1  # and one that everybody has
    kind = {"task": "binary"} if labels == 1 else {"task": "multilabel", "num_labels": labels}
    metric = AUROC(**kind)
    for rows, truth in zip(logits.split(128), targets.split(128), strict=True):
        metric.update(rows.squeeze(1), truth.long().squeeze(1))
    ours = auroc(probabilities(logits), targets)
    assert ours.mean().item() == pytest.approx(metric.compute().item(), abs=1e-6)
    assert (ours[1:3] == 0).all()


def test_only_batches_with_a_value_outside_0_and_1_are_squashed() -> None:
    inside, edge = torch.full((128, 2), 0.25), torch.tensor([[0.0, 1.0]] * 128)
    outside = torch.cat([torch.full((127, 2), 0.25), torch.tensor([[0.25, -0.01]])])
    last = torch.tensor([[1.5, 0.25]])
    values = probabilities(torch.cat([inside, outside, edge, last]))
    assert torch.equal(values[:128], inside)
    assert torch.equal(values[128:256], outside.sigmoid())
    assert torch.equal(values[256:384], edge)
    assert torch.equal(values[384:], last.sigmoid())


def test_two_perfect_and_two_absent_labels_give_a_half() -> None:
    targets = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8)
    assert auroc(targets.float(), targets).mean() == 0.5


def test_diversity_by_hand() -> None:
    """Shares (.5, .5) have 1 bit, (.8, .2) 0.7219 bits; of at most log2(2) = 1."""
    p = torch.tensor([[0.4, 0.4], [0.8, 0.2]])
    entropy = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    assert diversity(torch.logit(p)) == pytest.approx((1 + entropy) / 2, abs=1e-6)
    assert diversity(torch.full((5, 100), -7.0)) == pytest.approx(1, abs=1e-6)
    one_label_each = torch.full((3, 4), -80.0).fill_diagonal_(80.0)
    assert diversity(one_label_each) == pytest.approx(0, abs=1e-6)


def test_novelty_by_hand() -> None:
    """Of twelve labels the ten strongest count; popularity is divided by the ten largest values,
    which add to 20."""
    popularity = np.array([5.0, 0, 0, 4, 3, 2, 1, 1, 1, 1, 1, 1])
    # 2 and 11 are left out
    first = np.array([0.1, 0.5, 0.01, 0.2, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.02])
    second = np.full(12, 1e-30)
    second[0] = 0.4
    of_first = (0.1 * 5 + 0.2 * 4 + 0.03 * 3 + 0.04 * 2 + 0.05 + 0.06 + 0.07 + 0.08 + 0.09) / 20
    logits = torch.logit(torch.tensor(np.stack([first, second]))).float()
    expected = (1 - (of_first + 0.4 * 5 / 20) / 2) ** 100
    assert novelty(logits, popularity) == pytest.approx(expected, rel=1e-4)
    assert novelty(logits, 1000 * popularity) == pytest.approx(expected, rel=1e-4)
    three = torch.logit(torch.tensor([[0.1, 0.2, 0.3]]))
    assert novelty(three, np.array([5.0, 3.0, 2.0])) == pytest.approx((1 - 0.17) ** 100, rel=1e-4)


def test_novelty_of_constant_logits() -> None:
    """sigmoid(0) is a half, sigmoid(-10) 4.54e-5, and ten of a hundred equally popular labels share
    1."""
    popularity = np.full(100, 3.0)
    assert novelty(torch.zeros(4, 100), popularity) == pytest.approx(0.5**100, rel=1e-3)
    assert novelty(torch.full((4, 100), -10.0), popularity) == pytest.approx(
        (1 - 4.53979e-5) ** 100, abs=1e-6
    )


def test_the_score_of_a_task() -> None:
    assert weigh({"auroc": 0.7}) == 0.7
    assert weigh({"auroc": 0.7, "diversity": 0.5, "novelty": 0.3}) == pytest.approx(0.64)
    logits, targets = drawn(300, 4)
    metrics = score(logits, targets, np.ones(4))
    assert metrics["score"] == weigh(metrics)
    assert set(score(logits[:, :1], targets[:, :1], None)) == {"auroc", "score"}


def test_floors_are_what_uninformed_logits_get() -> None:
    _, targets = drawn(2000, 40, seed=1)
    targets[:, :10] = 0
    popularity = np.arange(1.0, 41.0)
    found = floors(targets, popularity)
    assert found["constant"] == pytest.approx(
        score(torch.full((2000, 40), -20.0), targets, popularity)["score"]
    )
    assert found["constant"] == pytest.approx(0.8 * 0.5 * 30 / 40 + 0.2, abs=1e-5)
    assert found["ceiling"] == pytest.approx(0.8 * 30 / 40 + 0.2)
    assert (found["absent_labels"], found["labels"], found["clients"]) == (10, 40, 2000)
    assert found["positives"] == int(targets.sum())
    values = torch.rand(2000, 100 * 40, generator=torch.Generator().manual_seed(2))
    by_chance = auroc(values, targets.repeat(1, 100)).view(100, 40).mean(dim=1)
    assert found["chance_std"] == pytest.approx(0.8 * by_chance.std().item(), rel=0.2)
    alone = floors(targets[:, 10:11], None)
    assert (alone["constant"], alone["ceiling"]) == (0.5, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -200.0])
def test_what_cannot_be_scored_is_refused(value: float) -> None:
    """NaN would stay the best epoch in the organizers' program; -200 makes the diversity 0/0
    there."""
    logits, targets = drawn(300, 4)
    logits[5] = value
    with pytest.raises(DataError, match="scale them"):
        score(logits, targets, np.ones(4))
