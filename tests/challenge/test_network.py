"""The network and its training step against the same in plain torch, written from the
specification."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.challenge import network
from behavegpt.challenge.network import UniversalModel, flops
from behavegpt.challenge.step import _PieceWiseAdamW, _update_after_backward, loss_of, training_step


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same network, small enough for many steps; its pieces of a weight are of unequal size."""
    monkeypatch.setattr(network, "WIDTH", 80)
    monkeypatch.setattr(network, "BOTTLENECK", 300)
    yield


def reference(dimensions: int, outputs: int, width: int, wide: int, seed: int) -> list[nn.Module]:
    """Layers in the order in which the specification creates them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(dimensions, width), nn.LayerNorm(width)]
    layers += [nn.LayerNorm(width) for _ in range(3)]
    for _ in range(3):
        layers += [nn.Linear(width, wide), nn.Linear(wide, width)]
    return [*layers, nn.LayerNorm(width), nn.Linear(width, outputs)]


def forward(layers: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    first, norm, *rest, norm_out, last = layers
    x = norm(first(x))
    for index in range(3):
        x = x + rest[4 + 2 * index](nn.GELU()(rest[3 + 2 * index](rest[index](x))))
    return last(norm_out(x))


def batches(
    dimensions: int, outputs: int, sizes: list[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for size in sizes:
        vectors = torch.randn(size, dimensions, generator=generator)
        yield vectors, (torch.rand(size, outputs, generator=generator) < 0.2).float()


def same_bits(model: UniversalModel, layers: list[nn.Module]) -> bool:
    theirs = [p for layer in layers for p in layer.parameters()]
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs, strict=True))


def test_parameters_and_initial_weights_are_the_organizers() -> None:
    model = UniversalModel(315, 100)
    assert sum(p.numel() for p in model.parameters()) == 51_222_628
    assert same_bits(model, reference(315, 100, 2048, 4096, 1278))
    names = [name for name, _ in model.named_parameters()]
    assert names[:4] == [
        "input_projection.weight",
        "input_projection.bias",
        "ln_input.weight",
        "ln_input.bias",
    ]
    assert names[-2:] == ["linear_output.weight", "linear_output.bias"]


def test_building_leaves_the_callers_random_numbers_alone(narrow: None) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    UniversalModel(4, 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("outputs", [1, 7])
def test_training_on_a_cpu_is_plain_adamw(narrow: None, outputs: int) -> None:
    """Weights after steps with a short last batch: bit for bit where torch's products come from
    MKL, else closely."""
    layers = reference(10, outputs, 80, 300, 4)
    model = UniversalModel(10, outputs, seed=4)
    step = training_step(model)
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=1e-3)
    for vectors, targets in batches(10, outputs, [128, 128, 44]):
        expected = F.binary_cross_entropy_with_logits(forward(layers, vectors), targets)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        loss = step(vectors, targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert same_bits(model, layers) or not torch.backends.mkl.is_available()
    for ours, theirs in zip(
        model.parameters(), (p for layer in layers for p in layer.parameters()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-4)
        assert ours.grad is None


def test_the_step_of_other_devices_learns_the_same(narrow: None) -> None:
    """The way of GPUs, run on the CPU: AdamW after the backward pass; its fused form rounds
    differently."""
    here, there = UniversalModel(10, 3), UniversalModel(10, 3)
    steps = training_step(here), _update_after_backward(there)
    for vectors, targets in batches(10, 3, [128, 44]):
        losses = [step(vectors, targets).item() for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(
        here.linear_output.weight, there.linear_output.weight, rtol=0, atol=1e-4
    )


def test_a_piece_is_updated_as_torch_updates_the_whole() -> None:
    """Given the gradient there is no room for rounding: equal bits after many steps, gradients of
    zero included."""
    weight = nn.Linear(33, 700)
    copy = nn.Linear(33, 700)
    copy.load_state_dict(weight.state_dict())
    optimizer = torch.optim.AdamW([copy.weight], lr=1e-3)
    adam = _PieceWiseAdamW(weight)
    identity = torch.eye(33)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(700, 33, generator=generator) * torch.logspace(-12, 2, 33)
        gradient[:, ::5] = 0
        copy.weight.grad = gradient
        optimizer.step()
        adam.steps += 1
        with torch.no_grad():
            # g' x with x = 1: the gradient itself
            adam.update_weight(weight.weight, gradient.t(), identity)
        assert torch.equal(weight.weight, copy.weight)


def test_the_network_with_updates_predicts_as_without(narrow: None) -> None:
    model = UniversalModel(10, 3)
    vectors, targets = next(batches(10, 3, [50]))
    expected = loss_of(model(vectors), targets).item()
    assert training_step(model)(vectors, targets).item() == expected


def test_operations_are_counted_once_per_product(narrow: None) -> None:
    """Against torch's own counter, for one batch trained and two predicted."""
    from torch.utils.flop_counter import FlopCounterMode

    model = UniversalModel(10, 3)
    vectors, targets = next(batches(10, 3, [32]))
    with FlopCounterMode(display=False) as counter:
        loss_of(model(vectors), targets).backward()
        with torch.no_grad():
            model(torch.cat([vectors, vectors]))
    assert flops(10, 3, 32, 64) == counter.get_total_flops()


def test_a_narrower_network_keeps_the_shape() -> None:
    model = UniversalModel(10, 3, seed=1, width=16)
    assert [tuple(p.shape) for p in model.bottlenecks[0].parameters()] == [
        (32, 16),
        (32,),
        (16, 32),
        (16,),
    ]
    assert model(torch.zeros(4, 10)).shape == (4, 3)
