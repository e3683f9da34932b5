"""Evaluation: each target once, the same on one rank and several, no future in any score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.batch import PackedBatch
from behavegpt.data.loader import Share
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TEST, VALID
from behavegpt.decision import log_frequency
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.training import evaluate as module
from behavegpt.training.evaluate import evaluate, hidden_states, score
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


def test_scores_are_those_of_evaluation_mode_which_is_left_again():
    store = random_store(3, users=6, longest=40)
    model = model_for(store)
    expected = scores_by_row(model, store, TEST)
    model.train()  # with dropout
    found = scores_by_row(model, store, TEST)
    assert model.training and all((found[row] == expected[row]).all() for row in expected)
    parts = score(model, store, TEST)
    next(parts)
    assert not model.training
    parts.close()
    assert model.training, "also after a loop that breaks off"
    assert list(hidden_states(model, [])) == [] and model.training
    model.eval()
    next(score(model, store, TEST))
    assert not model.training


@pytest.mark.parametrize(
    "positions,cells,rows",
    [(128, 10**9, 2), (191, 10**9, 2), (192, 10**9, 3), (10**6, 5 * 128, 2), (1, 10**9, 1)],
)
def test_a_batch_is_bounded_by_positions_and_by_cells(positions, cells, rows, monkeypatch):
    """Rows of 64 positions, 5 classes; one row at least."""
    store, asked = random_store(3, users=6), []
    monkeypatch.setattr(module, "LOGITS", cells)
    monkeypatch.setattr(
        module, "evaluation_batches", lambda *args, **options: asked.append(options) or []
    )
    model = model_for(store)
    assert not list(score(model, store, TEST, positions_per_batch=positions))
    assert [options["rows_per_batch"] for options in asked] == [rows]


def test_confusions_are_counted_up_to_a_number_of_classes(monkeypatch):
    store = random_store(3, users=6)
    model = model_for(store)
    for limit, kept in ((5, True), (4, False)):
        monkeypatch.setattr(module, "CONFUSION_CLASSES", limit)
        metrics, _ = evaluate(model, store, TEST)
        if kept:
            assert metrics.confusion(5)[1].sum() == metrics.rows
        else:
            with pytest.raises(ValueError, match="not kept"):
                metrics.confusion(5)


def test_progress_is_told_in_targets_and_the_loss_is_their_mean():
    store, told = random_store(3, users=20), []
    model = model_for(store)
    metrics, entropy = evaluate(model, store, TEST, on_batch=told.append)
    assert sum(len(part.target) for part in told) == metrics.rows == len(target_rows(store, TEST))
    parts = list(score(model, store, TEST))
    chances = torch.cat([part.logits.double().softmax(1) for part in parts])
    target = torch.cat([part.target for part in parts])
    assert entropy == pytest.approx(float(-chances[torch.arange(len(target)), target].log().mean()))
    store.columns["split"] = store.columns["split"] * 0
    assert evaluate(model, store, TEST)[1] == 0


def test_ranks_add_up_counts_losses_and_rows(monkeypatch):
    """The sums over ranks, with those of the other rank computed on the spot."""
    store = random_store(3, users=20)
    model = model_for(store)
    whole, entropy = evaluate(model, store, TEST)
    other = PredictionMetrics(store.behaviors.classes, confusion=True)
    sums = [torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)]
    for part in score(model, store, TEST, share=Share(1, 2)):
        other.update(part.logits, part.target)
        loss = torch.nn.functional.cross_entropy(part.logits, part.target, reduction="sum")
        sums[0] += torch.tensor([float(loss), len(part.target)])
        sums[1] += torch.tensor([len(part.row), int(part.row.sum())])
    rest = iter([other.state(), *sums])
    monkeypatch.setattr(module.dist, "all_reduce", lambda tensor: tensor.add_(next(rest)))
    metrics, both = evaluate(model, store, TEST, share=Share(0, 2))
    assert torch.equal(metrics.state(), whole.state())
    assert both == pytest.approx(entropy)


def test_all_of_a_batch_moves_to_the_device():
    tensor = torch.zeros(2, 3)
    for memory in (None, {"rest": tensor}):
        batch = PackedBatch({"input_ids": tensor}, *[tensor] * 4, {"gap": tensor}, memory)
        assert batch.to(torch.device("cpu")).document is tensor
        moved = batch.to(torch.device("meta"))
        told = [*moved.inputs.values(), *moved.next_fields.values(), *(moved.memory or {}).values()]
        for part in (moved.document, moved.position, moved.target, moved.row, *told):
            assert part.device.type == "meta"
        assert (moved.memory is None) == (memory is None) and len(told) == 2 + bool(memory)
