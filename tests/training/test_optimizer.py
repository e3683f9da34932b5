"""The schedule at each of its corners, and which weights decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from behavegpt.training.optimizer import build_optimizer, learning_rate
from behavegpt.training.settings import TrainSettings

# steps 100, warm-up 10, peak 1, floor 0.1: (schedule, step) -> rate
RATES = {
    ("cosine", 0): 0.1,
    ("cosine", 8): 0.9,
    ("cosine", 9): 1.0,
    ("cosine", 10): 1.0,
    ("cosine", 55): 0.55,
    ("cosine", 99): 0.1 + 0.45 * (1 + math.cos(math.pi * 89 / 90)),
    ("linear", 55): 0.55,
    ("linear", 99): 0.1 + 0.9 / 90,
    ("constant", 5): 0.6,
    ("constant", 99): 1.0,
}


@pytest.mark.parametrize("schedule,step", RATES)
def test_the_learning_rate_of_a_step(schedule: str, step: int) -> None:
    found = learning_rate(step, 100, lr=1.0, warmup=0.1, floor=0.1, schedule=schedule)
    assert found == pytest.approx(RATES[schedule, step], rel=1e-12)


@pytest.mark.parametrize("steps,warmup", [(1, 0.0), (1, 0.5), (2, 0.0), (3, 0.9), (7, 0.05)])
def test_short_runs_start_above_zero_and_reach_the_peak(steps: int, warmup: float) -> None:
    rates = [
        learning_rate(s, steps, lr=0.5, warmup=warmup, floor=0.1, schedule="cosine")
        for s in range(steps)
    ]
    assert min(rates) > 0 and max(rates) == 0.5


def test_matrices_decay_by_the_setting_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    frozen = nn.Linear(4, 4).requires_grad_(False)
    model.append(frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, TrainSettings(lr=0.1, weight_decay=0.3), fused=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what moves, decay alone has moved
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.3 if parameter.ndim == 2 and parameter.requires_grad else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_the_mixer_of_a_memory_has_a_learning_rate_of_its_own() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "memory": nn.ModuleDict()})
    model["memory"]["mixer"] = nn.Linear(2, 2)  # type: ignore[index]
    for mixer_lr, scale in ((None, 1.0), (8e-3, 4.0)):
        settings = TrainSettings(lr=2e-3, mixer_lr=mixer_lr)
        groups = build_optimizer(model, settings, fused=False).param_groups
        found = {id(p): group["scale"] for group in groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            assert found[id(parameter)] == (scale if name.startswith("memory") else 1.0)
