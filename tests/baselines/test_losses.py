"""The losses that belong to baselines, under the contract of all losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from behavegpt.batch import IGNORED
from behavegpt.errors import ConfigError
from behavegpt.losses import Loss, LossSettings, build_loss

CLASSES = 9
COUNTS = torch.tensor([4000, 900, 300, 60, 12, 5, 2, 1, 0])
NAMES = ["binary_negatives", "sampled_softmax", "tanh_frequency", "two_distributions"]


def loss_of(name: str, **options: object) -> Loss:
    loss = build_loss(LossSettings(name=name, **options), COUNTS)  # type: ignore[arg-type]
    loss.set_progress(0.5)
    return loss


def batch(rows: int = 60, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(rows, CLASSES, generator=generator)).to(dtype).requires_grad_()
    return logits, torch.randint(0, CLASSES, (rows,), generator=generator)


def total(loss: Loss, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)
    return loss.total(logits, target)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_positions_behind_change_nothing(name: str) -> None:
    logits, target = batch()
    longer = torch.cat([logits.detach(), torch.randn(9, CLASSES)]).requires_grad_()
    loss = loss_of(name)
    first = total(loss, logits, target)
    second = total(loss, longer, torch.cat([target, torch.full((9,), IGNORED)]))
    torch.testing.assert_close(first, second)
    gradient = torch.autograd.grad(second, longer)[0]
    assert not gradient[60:].any()
    torch.testing.assert_close(torch.autograd.grad(first, logits)[0], gradient[:60])


@pytest.mark.parametrize("name", NAMES)
def test_additive_over_parts_of_a_batch(name: str) -> None:
    logits, target = batch()
    loss = loss_of(name)
    whole = total(loss, logits, target)
    torch.manual_seed(7)  # the draws of the parts, one after the other, are those of the whole
    parts = [
        loss.total(x, t)
        for x, t in zip(logits.split([1, 20, 39]), target.split([1, 20, 39]), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    weights = (loss.weight(target) * loss.per_event(logits, target)).sum()
    assert bool(weights.isfinite())
    assert (
        loss.per_event(logits.bfloat16(), target).dtype
        == loss.weight(target).dtype
        == torch.float32
    )


@pytest.mark.parametrize("name", ["binary_negatives", "sampled_softmax"])
def test_the_mean_over_draws_is_the_formula(name: str) -> None:
    """Expectation over one negative, drawn uniformly from the other classes."""
    logits, target = batch(3)
    loss = loss_of(name, negatives=1)
    torch.manual_seed(0)
    found = torch.stack([loss.per_event(logits, target) for _ in range(4000)]).mean(0)
    for row in range(3):
        own = float(logits.detach()[row, target[row]])
        each = []
        for other in range(CLASSES):
            if other == int(target[row]):
                continue
            s = float(logits.detach()[row, other])
            binary = math.log(1 + math.exp(-own)) + math.log(1 + math.exp(s))
            softmax = -math.log(math.exp(own) / (math.exp(own) + math.exp(s)))
            each.append(binary if name == "binary_negatives" else softmax)
        assert float(found.detach()[row]) == pytest.approx(np.mean(each), rel=0.05)


def test_a_negative_is_never_the_target() -> None:
    loss = loss_of("sampled_softmax", negatives=200)
    logits = torch.full((CLASSES, CLASSES), 0.0)
    # its own class as a negative would cost log 2
    logits[torch.arange(CLASSES), torch.arange(CLASSES)] = 50.0
    assert float(loss.per_event(logits, torch.arange(CLASSES)).max()) < 1e-6


def test_every_class_is_drawn_alike() -> None:
    loss = loss_of("sampled_softmax", negatives=20_000)
    _, drawn = loss.drawn(torch.arange(CLASSES, dtype=torch.float32)[None], torch.tensor([4]))  # type: ignore[attr-defined]
    share = np.bincount(drawn[0].long().numpy(), minlength=CLASSES) / 20_000
    np.testing.assert_allclose(share, np.where(np.arange(CLASSES) == 4, 0, 1 / 8), atol=0.01)


def test_tanh_weights_as_printed_and_free_of_scale() -> None:
    weight = loss_of("tanh_frequency").weight(torch.arange(CLASSES))
    wanted = [1.2 - math.tanh(0.99 * n - 0.99) for n in COUNTS.tolist()]
    np.testing.assert_allclose(weight.numpy(), wanted, rtol=1e-6)
    assert float(weight[7]) == pytest.approx(1.2) and float(weight[0]) == pytest.approx(0.2)
    mean = float(COUNTS.double().mean())
    scaled = loss_of("tanh_frequency", tanh_unit=0.5).weight(torch.arange(CLASSES))
    np.testing.assert_allclose(
        scaled.numpy(),
        [1.2 - math.tanh(0.99 * (n / (0.5 * mean) - 1)) for n in COUNTS.tolist()],
        rtol=1e-6,
    )
    logits, target = batch()
    loss = loss_of("tanh_frequency")
    torch.testing.assert_close(
        loss.per_event(logits, target), F.cross_entropy(logits, target, reduction="none")
    )


def test_two_distributions_move_from_the_data_to_balanced() -> None:
    loss = build_loss(LossSettings(name="two_distributions"), COUNTS)
    share = COUNTS / COUNTS.sum()
    for progress, own in ((0.0, 1.0), (0.5, 0.9375), (1.0, 0.75)):
        loss.set_progress(progress)
        mass = loss.class_weight.double() * share  # of each class in the loss
        np.testing.assert_allclose(
            mass[:8].numpy(), own * share[:8].numpy() + (1 - own) / 8, rtol=1e-5
        )
        assert float(mass.sum()) == pytest.approx(1, abs=1e-6), (
            "the scale of the loss does not change"
        )
    fresh = build_loss(LossSettings(name="two_distributions"), COUNTS)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.class_weight, loss.class_weight)


def test_an_option_of_another_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss\.negatives = 5 has no effect"):
        build_loss(LossSettings(name="cross_entropy", negatives=5), COUNTS)
