"""A model with memory: the mixture is one distribution over all classes, in which no label matters
to the counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from behavegpt.batch import IGNORED, PackedBatch
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import TrainingBatches
from behavegpt.data.memory_counts import count_store
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.store import EventStore
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction, chunks
from behavegpt.model.mixer import Memory, Mixer, part_of
from tests.helpers import random_store


@pytest.fixture(scope="module")
def store() -> EventStore:
    return random_store(users=12, behaviors=7)


def network(store: EventStore, **shape: Any) -> BehaveGPTForBehaviorPrediction:
    """A model with memory whose weights are all random, so that every part matters."""
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        memory_experts=list(EXPERTS),
        **{"embedding_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "max_length": 16}
        | {"memory": True}
        | shape,
    )
    model = BehaveGPTForBehaviorPrediction(config)
    model.head.set_prior(torch.tensor(store.behaviors.counts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.counts = count_store(store)
    return model.eval()


def batch_of(store: EventStore, model: BehaveGPTForBehaviorPrediction) -> PackedBatch:
    fields = BatchFields(model.config.columns)
    batches = TrainingBatches(
        store, max_length=16, rows_per_step=3, seed=0, fields=fields, counts=model.counts
    )
    return next(batches.micro_batches(0))


def call(model: BehaveGPTForBehaviorPrediction, batch: PackedBatch, **options: Any) -> Any:
    layout = {"document": batch.document, "position": batch.position}
    return model(**batch.inputs, **layout, memory=batch.memory, **options)


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 0}])
def test_the_loss_is_that_of_one_distribution(store: EventStore, shape: dict[str, Any]) -> None:
    model = network(store, **shape)
    batch = batch_of(store, model)
    asked = batch.target != IGNORED
    criterion = build_loss(LossSettings(name="cross_entropy"), torch.tensor(store.behaviors.counts))
    with torch.no_grad():
        logits = call(model, batch, select=asked).logits
        total = call(model, batch, labels=batch.target, criterion=criterion).loss
    assert logits.shape == (int(asked.sum()), store.behaviors.classes) and bool(
        logits.isfinite().all()
    )
    by_class = torch.stack(
        [-logits.log_softmax(1)[torch.arange(len(logits)), c] for c in range(logits.shape[1])]
    )
    assert torch.allclose((-by_class).exp().sum(0), torch.ones(len(logits)), atol=1e-5)
    assert torch.allclose(
        by_class[batch.target[asked], torch.arange(len(logits))].sum(), total, rtol=1e-5
    )


def test_without_blocks_the_counts_are_alone(store: EventStore) -> None:
    model = network(store, num_hidden_layers=0)
    batch = batch_of(store, model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("head.memory.") for name in trained)
    with torch.no_grad():
        before = call(model, batch, select=batch.target != IGNORED).logits
        model.model.embedding.tables["event"].weight.zero_()
        assert torch.equal(before, call(model, batch, select=batch.target != IGNORED).logits)


def test_permuted_classes_permute_the_logits() -> None:
    """Classes, their prior and what the network says of each under other numbers."""
    rng, classes, rows = np.random.default_rng(0), 11, 6
    torch.manual_seed(0)
    mixer = Mixer(len(EXPERTS) + 1, hidden_size=8, summary_size=4, state_size=5).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    experts = len(EXPERTS) + 1
    owner = torch.arange(rows).repeat_interleave(4)
    held = torch.from_numpy(np.concatenate([rng.permutation(classes)[:4] for _ in range(rows)]))
    memory = Memory(
        owner=owner,
        classes=held,
        probability=torch.rand(len(owner), experts),
        age=torch.rand(len(owner), 2) * 9 - 1,
        rest=torch.rand(rows, experts),
        evidence=torch.rand(rows, experts - 1) * 9,
        reliability=-torch.rand(rows, experts),
        context=torch.rand(rows, 5) * 9,
    )
    log_prior, state, told = (
        torch.randn(classes).log_softmax(0),
        torch.randn(rows, 5),
        torch.randn(rows, classes),
    )
    order = torch.from_numpy(rng.permutation(classes))  # class c becomes order[c]
    renamed = memory._replace(classes=order[held])
    with torch.no_grad():
        one = mixer(memory, log_prior, state, told)
        other = mixer(renamed, log_prior[order.argsort()], state, told[:, order.argsort()])
    assert torch.allclose(other[:, order], one, atol=1e-5)


def test_a_part_of_the_positions_gets_its_own_logits(store: EventStore) -> None:
    model = network(store)
    batch = batch_of(store, model)
    memory = Memory(**batch.memory)
    hidden = torch.randn(len(memory.rest), model.config.hidden_size)
    with torch.no_grad():
        whole = model.head(hidden, memory)
        for rows in (slice(0, 3), slice(3, 10), slice(10, None)):
            assert torch.allclose(
                model.head(hidden[rows], part_of(memory, rows)), whole[rows], atol=1e-5
            )


def test_a_loss_in_pieces_has_the_same_gradient(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(store)
    batch = batch_of(store, model)
    criterion = build_loss(LossSettings(name="cross_entropy"), torch.tensor(store.behaviors.counts))
    found = []
    for cells in (1 << 20, 7 * 5):
        monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", cells)
        model.zero_grad()
        call(model, batch, labels=batch.target, criterion=criterion).loss.backward()
        found.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys() and "head.memory.mixer.weight" in found[0]
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


def test_counts_that_are_missing_are_asked_for(store: EventStore) -> None:
    model = network(store)
    batch = batch_of(store, model)
    with pytest.raises(ValueError, match=r"needs the counts .* behavegpt\.load"):
        model(**batch.inputs, document=batch.document, position=batch.position)
    with pytest.raises(ValueError, match="predicted positions"):
        call(model, batch)  # those of the targets, for all positions


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"history_head": True}, "memory replaces history_head"),
        ({"memory_experts": None}, "memory needs memory_experts"),
    ],
)
def test_contradictions(store: EventStore, shape: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        BehaveGPTConfig(**{"memory": True, "memory_experts": list(EXPERTS)} | shape)


def test_noise_trains_to_its_entropy_and_not_below() -> None:
    """Training positions, whose targets the tables hold, of places and events that hardly any other
    user has."""
    store = random_store(users=60, events=200, behaviors=5, locations=150)
    model = network(store, num_hidden_layers=0, dropout=0.0)
    fields, counts = BatchFields(model.config.columns), torch.tensor(store.behaviors.counts)
    batches = TrainingBatches(
        store, max_length=16, rows_per_step=6, seed=0, fields=fields, counts=model.counts
    )
    criterion = build_loss(LossSettings(name="cross_entropy"), counts)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    steps, last = 8 * batches.steps_per_epoch, torch.zeros(2)
    seen = torch.zeros(store.behaviors.classes)
    for step in range(steps):
        output = call(
            model,
            (batch := next(batches.micro_batches(step))),
            labels=batch.target,
            criterion=criterion,
        )
        (output.loss / output.class_count.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= steps - batches.steps_per_epoch:
            last += torch.stack([output.loss.detach(), output.class_count.sum()])
            seen += output.class_count
    entropy = torch.distributions.Categorical(seen).entropy()
    assert last[0] / last[1] > entropy - 0.01 and last[0] / last[1] < entropy + 0.1
