"""Training of members: batches are a function of the seed, the best state is kept, and the
objective decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behavegpt.devices import choose_device
from behavegpt.errors import ConfigError
from behavegpt.profiles import softmax
from behavegpt.profiles.training import (
    TrainingSettings,
    embed_rows,
    epoch_batches,
    load_network,
    mean_objective,
    save_network,
    seeded,
    train,
)


class Drift(nn.Module):
    """One number that training pushes up by the learning rate at each step; held-out rows want it
    at 0.35."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def loss(self, rows: np.ndarray, _: np.random.Generator) -> tuple[Tensor, float]:
        loss = -self.place if self.training else (self.place - 0.35) ** 2
        return loss * len(rows), len(rows)


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)  # type: ignore[arg-type]


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"batch": 10, "held_out": 0.5, **changes})


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(0).integers(1, 100, 1000)])
def test_an_epoch_has_every_row_once(lengths: np.ndarray | None) -> None:
    batches = list(epoch_batches(1000, 7, 3, 0, lengths))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert {len(batch) for batch in batches} == {7, 6}
    again = list(epoch_batches(1000, 7, 3, 0, lengths))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    for seed, epoch in ((4, 0), (3, 1)):
        assert not np.array_equal(
            np.concatenate(batches), np.concatenate(list(epoch_batches(1000, 7, seed, epoch)))
        )
    if lengths is not None:
        spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
        shuffled = np.mean([np.ptp(lengths[batch]) for batch in epoch_batches(1000, 7, 3, 0)])
        assert spread < shuffled / 10


def test_the_best_state_is_kept_and_training_stops() -> None:
    network = Drift()
    facts = train(
        network, network.loss, np.arange(20), settings(epochs=50, patience=4), 0, "drift", None, sgd
    )
    # one step of 0.1 an epoch: 0.3 and 0.4 are equally far from 0.35, so the first of them is the
    # best
    assert (
        facts["best_epoch"] in (3, 4)
        and abs(network.place.item() - 0.1 * facts["best_epoch"]) < 1e-6
    )
    assert facts["steps"] == facts["best_epoch"] + 4
    assert not network.training
    # without held-out rows the training loss decides, and it only falls
    network = Drift()
    facts = train(
        network, network.loss, np.arange(20), settings(held_out=0, epochs=6), 0, "drift", None, sgd
    )
    assert facts["best_epoch"] == 6 and facts["steps"] == 12


def test_held_out_rows_are_never_trained_on() -> None:
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    network = Drift()

    def objective(rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
        seen[network.training].update(rows.tolist())
        return network.loss(rows, rng)

    train(
        network,
        objective,
        np.arange(100, 140),
        settings(held_out=0.25, epochs=3),
        0,
        "drift",
        None,
        sgd,
    )
    assert (
        len(seen[True]) == 30
        and len(seen[False]) == 10
        and seen[True] | seen[False] == set(range(100, 140))
    )


def test_steps_are_counted_instead_of_epochs() -> None:
    network = Drift()
    facts = train(
        network, network.loss, np.arange(100), settings(held_out=0, steps=13), 0, "drift", None, sgd
    )
    assert facts["steps"] == 13 and [epoch["steps"] for epoch in facts["epochs"]] == [10, 13]
    facts = train(
        network, network.loss, np.arange(10), settings(held_out=0, steps=13), 0, "drift", None, sgd
    )
    # more than the 10 epochs that are the default
    assert facts["steps"] == len(facts["epochs"]) == 13


def test_the_same_seed_gives_the_same_weights_and_leaves_other_random_numbers_alone() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        with seeded(seed):
            network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        table = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

        def objective(
            rows: np.ndarray,
            rng: np.random.Generator,
            network: nn.Module = network,
            table: Tensor = table,
        ) -> tuple[Tensor, float]:
            noise = torch.from_numpy(rng.random((len(rows), 3), np.float32))
            return network(table[rows] + noise).square().sum(), len(rows)

        train(network, objective, np.arange(40), settings(epochs=2), seed, "net")
        found.append(
            torch.cat([p.detach().flatten() for p in network.parameters()]).numpy().tobytes()
        )
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(7)))
    assert found[0] == found[1] != found[2]


def test_the_mean_objective_does_not_depend_on_the_batches() -> None:
    network = nn.Linear(1, 1)
    table = torch.rand(50, 1)

    def objective(rows: np.ndarray, _: np.random.Generator) -> tuple[Tensor, float]:
        return network(table[rows]).square().sum(), len(rows)

    wanted = float(network(table).detach().square().mean())
    for batch in (1, 7, 50):
        assert abs(mean_objective(network, objective, np.arange(50), batch, 0) - wanted) < 1e-6


def test_warmup_and_clip() -> None:
    network = Drift()
    rates: list[float] = []

    def adam(parameters: object) -> torch.optim.Optimizer:
        optimizer = sgd(parameters)
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    train(
        network,
        network.loss,
        np.arange(60),
        settings(held_out=0, warmup=4, steps=6, clip=0.5),
        0,
        "d",
        None,
        adam,
    )
    assert np.allclose(rates, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert abs(network.place.item() - 0.5 * sum(rates)) < 1e-6  # the gradient of -1 is cut to -0.5


def test_mistakes_are_named() -> None:
    network = Drift()

    def broken(rows: np.ndarray, _: np.random.Generator) -> tuple[Tensor, float]:
        return network.place * float("nan"), len(rows)

    with pytest.raises(ConfigError, match="member: the loss became nan by step 1; lower"):
        train(network, broken, np.arange(20), settings(), 0, "member")
    with pytest.raises(ConfigError, match="device 'nonsense' cannot be used"):
        choose_device("nonsense")


def test_vectors_come_back_in_the_order_of_the_rows(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 23)
    vectors = embed_rows(
        lambda rows: torch.from_numpy(np.c_[rows, rows**2]), np.arange(23) + 5, lengths, 4, "v"
    )
    assert vectors.dtype == np.float32
    assert np.array_equal(
        vectors, np.c_[np.arange(23) + 5, (np.arange(23) + 5) ** 2].astype(np.float32)
    )
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    tied[1].weight = tied[0].weight
    save_network(tied, tmp_path)
    with seeded(1):
        other = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    load_network(other, tmp_path)
    assert torch.equal(other[1].weight, tied[0].weight) and not other.training


@pytest.mark.parametrize("logits_at_once", [1, 40, 1 << 21])
def test_cross_entropy_in_pieces_is_the_one_of_torch(
    logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(softmax.CHUNK, "cpu", logits_at_once)
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(13, (31,), generator=rng)
    start = torch.Generator().manual_seed(1)
    drawn = [
        torch.randn(shape, generator=start, dtype=torch.float64)
        for shape in ((31, 5), (13, 5), (13,))
    ]
    ours = [tensor.clone().requires_grad_() for tensor in drawn]
    theirs = [tensor.clone().requires_grad_() for tensor in drawn]
    loss = softmax.cross_entropy_sum(*ours, target)
    wanted = F.cross_entropy(theirs[0] @ theirs[1].T + theirs[2], target, reduction="sum")
    assert torch.allclose(loss, wanted)
    (3 * loss).backward()
    (3 * wanted).backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.allclose(softmax.cross_entropy_sum(*ours, target), wanted)
