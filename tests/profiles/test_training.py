"""Training of members: batches are a function of the seed, the best state is kept, and the
objective decides."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from behavegpt.devices import choose_device
from behavegpt.errors import ConfigError
from behavegpt.profiles import training
from behavegpt.profiles.networks import embed_rows, load_network, save_network
from behavegpt.profiles.task import (
    Task,
    TrainingSettings,
    epoch_batches,
    mean_objective,
    seeded,
)
from behavegpt.profiles.training import train


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
    return torch.optim.SGD(parameters, lr=0.0)  # type: ignore[arg-type] # the rate is the settings'


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"batch": 10, "held_out": 0.5, "lr": 0.1, **changes})


def drift(network: Drift, rows: int) -> Task:
    return Task("drift", np.arange(rows), network.loss, make_optimizer=sgd)


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
    facts = train(network, drift(network, 20), settings(epochs=50, patience=4), 0)
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
    facts = train(network, drift(network, 20), settings(held_out=0, epochs=6), 0)
    assert facts["best_epoch"] == 6 and facts["steps"] == 12


def test_held_out_rows_are_never_trained_on() -> None:
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    network = Drift()

    def objective(rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
        seen[network.training].update(rows.tolist())
        return network.loss(rows, rng)

    task = Task("drift", np.arange(100, 140), objective, make_optimizer=sgd)
    train(network, task, settings(held_out=0.25, epochs=3), 0)
    assert (
        len(seen[True]) == 30
        and len(seen[False]) == 10
        and seen[True] | seen[False] == set(range(100, 140))
    )


def test_steps_are_counted_instead_of_epochs() -> None:
    network = Drift()
    facts = train(network, drift(network, 100), settings(held_out=0, steps=13), 0)
    assert facts["steps"] == 13 and [epoch["steps"] for epoch in facts["epochs"]] == [10, 13]
    facts = train(network, drift(network, 10), settings(held_out=0, steps=13), 0)
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

        train(network, Task("net", np.arange(40), objective), settings(epochs=2), seed)
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

    task = Task("d", np.arange(60), network.loss, make_optimizer=adam)
    train(network, task, settings(held_out=0, warmup=4, steps=6, clip=0.5), 0)
    assert np.allclose(rates, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert abs(network.place.item() - 0.5 * sum(rates)) < 1e-6  # the gradient of -1 is cut to -0.5


def test_mistakes_are_named() -> None:
    network = Drift()

    def broken(rows: np.ndarray, _: np.random.Generator) -> tuple[Tensor, float]:
        return network.place * float("nan"), len(rows)

    with pytest.raises(ConfigError, match="member: the loss became nan by step 1; lower"):
        train(network, Task("member", np.arange(20), broken), settings(), 0)
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


class Noisy(nn.Module):
    """Dropout, draws of torch's generator in the objective, and tied weights: all that a checkpoint
    must bring back."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 4)
        self.out = nn.Linear(4, 12, bias=False)
        self.out.weight = self.table.weight
        self.dropout = nn.Dropout(0.5)

    def loss(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
        ids = torch.from_numpy(rows % 12)
        drawn = torch.randperm(12)[: len(rows)] + int(rng.integers(3))
        logits = self.out(self.dropout(self.table(ids)))
        return nn.functional.cross_entropy(logits, drawn % 12, reduction="sum"), len(rows)


# 30 of 40 rows in batches of 10: three steps an epoch, a mean over the others after it
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("optimizer", [None, torch.optim.Adagrad])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    steps: int, optimizer: type | None, tmp_path: Path
) -> None:
    chosen = settings(epochs=5, held_out=0.25, patience=9)

    def run(work: Path | None, stop_after: int | None = None) -> tuple[bytes, dict[str, object]]:
        with seeded(1):
            network, calls = Noisy(), []

        def objective(rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float]:
            calls.append(network.training)
            if sum(calls) == stop_after and network.training:
                signal.raise_signal(signal.SIGINT)
            return network.loss(rows, rng)

        task = Task("noisy", np.arange(40), objective, make_optimizer=optimizer)
        facts = train(network, task, chosen, 3, work)
        taken.append(sum(calls))
        return network.table.weight.detach().numpy().tobytes(), facts

    taken: list[int] = []
    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "work", stop_after=steps)
    assert run(tmp_path / "work") == whole
    assert taken == [15, 15 - steps]  # nothing is trained twice


def test_checkpoints_come_with_time_and_a_damaged_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Noisy()
    task = Task("noisy", np.arange(40), network.loss)
    train(network, task, settings(epochs=2), 0, tmp_path / "short")
    assert not (tmp_path / "short").exists()  # what takes seconds is not worth one
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    train(network, task, settings(epochs=2), 0, tmp_path / "work")
    [checkpoint] = (tmp_path / "work").iterdir()
    assert checkpoint.name == "step_00000004"
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    assert train(network, task, settings(epochs=2), 0, tmp_path / "work")["steps"] == 4
