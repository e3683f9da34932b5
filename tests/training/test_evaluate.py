"""Evaluation: each target once, the same on one rank and several, no future in any score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.data.loader import Share
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TEST, VALID
from behavegpt.decision import log_frequency
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.training.evaluate import evaluate, score
from tests.helpers import random_store


def model_for(store, max_length: int = 16) -> BehaveGPTForBehaviorPrediction:
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        behavior_is_event=store.schema.behavior_is_event,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_length=max_length,
        history_head=True,
    )
    model = BehaveGPTForBehaviorPrediction(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def scores_by_row(model, store, split, **options) -> dict[int, np.ndarray]:
    parts = score(model, store, split, **options)
    return {int(r): x.numpy() for part in parts for r, x in zip(part.row, part.logits, strict=True)}


@pytest.mark.parametrize("users", [1, 2, 3, 7, 20, 50])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_count_what_one_counts(users, world):
    store = random_store(users, users=users, longest=40)
    model = model_for(store)
    merged = PredictionMetrics(store.behaviors.classes)
    rows: list[int] = []
    for rank in range(world):
        for part in score(model, store, TEST, positions_per_batch=128, share=Share(rank, world)):
            merged.update(part.logits, part.target)
            rows += part.row.tolist()
    assert sorted(rows) == target_rows(store, TEST).tolist()
    whole, _ = evaluate(model, store, TEST)
    assert torch.equal(whole.true_positive, merged.true_positive)
    assert torch.equal(whole.ranks, merged.ranks)


def test_perturbing_the_future_changes_no_earlier_score():
    """Every event after a target is replaced, position by position: the target's score stays, bit
    for bit."""
    store = random_store(3, users=12, longest=60)
    model = model_for(store)
    before = {split: scores_by_row(model, store, split) for split in (VALID, TEST)}
    rng = np.random.default_rng(0)
    checked = 0
    for split, scores in before.items():
        for row, expected in scores.items():
            later = slice(
                row, int(store.offsets[np.searchsorted(store.offsets, row, side="right")])
            )
            kept = {
                name: store.columns[name][later].copy() for name in ("event", "location", "slot")
            }
            for name, high in (("event", 14), ("location", 6), ("slot", 48)):
                store.columns[name][later] = rng.integers(2, high, later.stop - later.start)
            found = scores_by_row(model, store, split)[row]
            np.testing.assert_allclose(found, expected, atol=1e-6)
            for name, values in kept.items():
                store.columns[name][later] = values
            checked += 1
    assert checked > 70


def test_a_target_sees_its_past():
    store = random_store(3, users=6, longest=40)
    model = model_for(store)
    before = scores_by_row(model, store, TEST)
    row = next(iter(before))
    store.columns["event"][row - 1] = 2 + store.columns["event"][row - 1] % 11
    assert np.abs(scores_by_row(model, store, TEST)[row] - before[row]).max() > 1e-4


def test_prior_correction_lifts_rare_behaviors():
    store = random_store(5, users=40)
    model = model_for(store)
    plain, _ = evaluate(model, store, TEST)
    lifted, _ = evaluate(model, store, TEST, shift=log_frequency(store.behaviors.counts))
    rare = int(np.argmin(store.behaviors.counts))
    assert int(lifted.predicted[rare]) >= int(plain.predicted[rare])
    assert not torch.equal(plain.predicted, lifted.predicted)
