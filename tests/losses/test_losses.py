"""The loss contract, for every loss; and each loss against a direct formula."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from behavegpt.batch import IGNORED
from behavegpt.config import read_settings
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.losses import _LOSSES, Loss, LossSettings, build_loss
from behavegpt.losses.base import cross_entropy

CLASSES = 13
COUNTS = torch.tensor([4000, 2500, 900, 400, 300, 120, 60, 30, 12, 5, 2, 1, 0])
NAMES = [
    "cross_entropy",
    "dro",
    "logit_adjustment",
    "balanced_softmax",
    "ldam",
    "class_balanced_focal",
    "class_balanced",
]


def late(name: str, **options: object) -> Loss:
    """A loss in its last phase, after some steps of statistics."""
    loss = build_loss(LossSettings(name=name, **options), COUNTS)  # type: ignore[arg-type]
    for step in (0.9, 1.0):
        loss.set_progress(step)
        loss.update(torch.linspace(1, 9, CLASSES) * 3, torch.full((CLASSES,), 3.0))
    return loss


def batch(
    rows: int = 300, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, CLASSES, generator=generator)).to(dtype).requires_grad_()
    target = torch.randint(0, CLASSES, (rows,), generator=generator)
    return logits, target


def value_and_gradient(
    loss: Loss, logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    total = loss.total(logits, target)
    return total.detach(), torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("name", NAMES)
def test_ignored_positions_change_nothing(name: str) -> None:
    loss = late(name)
    logits, target = batch()
    total, gradient = value_and_gradient(loss, logits, target)
    extra, _ = batch(50, seed=1)
    longer = torch.cat([logits.detach(), extra.detach()]).requires_grad_()
    padded, padded_gradient = value_and_gradient(
        loss, longer, torch.cat([target, torch.full((50,), IGNORED)])
    )
    torch.testing.assert_close(padded, total, rtol=1e-6, atol=0)
    assert torch.equal(padded_gradient[:300], gradient)
    assert float(padded_gradient[300:].abs().max()) == 0
    ignored = torch.full((50,), IGNORED)
    assert float(loss.weight(ignored).abs().max()) == 0
    assert float(loss.total(extra.detach(), ignored)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_additive_over_any_split_of_a_batch(name: str) -> None:
    loss = late(name)
    logits, target = batch()
    total, gradient = value_and_gradient(loss, logits, target)
    parts = [
        value_and_gradient(loss, x.detach().requires_grad_(), t)
        for x, t in zip(logits.split([1, 7, 92, 200]), target.split([1, 7, 92, 200]), strict=True)
    ]
    torch.testing.assert_close(
        torch.stack([value for value, _ in parts]).sum(), total, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(torch.cat([g for _, g in parts]), gradient)
    weights = torch.cat([loss.weight(part) for part in target.split([1, 7, 92, 200])])
    assert torch.equal(weights, loss.weight(target))
    torch.testing.assert_close((loss.weight(target) * loss.per_event(logits, target)).sum(), total)


@pytest.mark.parametrize("name", NAMES)
def test_finite_for_unseen_classes_extreme_logits_and_no_rows(name: str) -> None:
    loss = late(name)
    logits = torch.zeros(4, CLASSES)
    logits[0, 12], logits[1, 0], logits[2, 12] = 80.0, 80.0, -80.0
    logits.requires_grad_()
    total, gradient = value_and_gradient(loss, logits, torch.tensor([12, 0, 12, 12]))
    assert bool(total.isfinite()) and bool(gradient.isfinite().all())
    assert float(loss.total(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.long))) == 0


@pytest.mark.parametrize("name", ["dro", "class_balanced_focal", "ldam"])
def test_unseen_class_has_no_weight_and_weights_average_to_one(name: str) -> None:
    weight = late(name).class_weight.double()
    assert float(weight[12]) == 0 and bool((weight[:12] > 0).all())
    assert float((weight * COUNTS).sum() / COUNTS.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_logits_are_computed_in_float32(name: str) -> None:
    loss = late(name)
    logits, target = batch(dtype=torch.bfloat16)
    per_event = loss.per_event(logits, target)
    assert per_event.dtype == loss.weight(target).dtype == torch.float32
    assert torch.equal(per_event, loss.per_event(logits.float(), target))
    _, gradient = value_and_gradient(loss, logits, target)
    assert gradient.dtype == torch.bfloat16 and bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name: str) -> None:
    loss = late(name)
    fresh = build_loss(LossSettings(name=name), COUNTS)  # type: ignore[arg-type]
    fresh.load_state_dict({key: value.clone() for key, value in loss.state_dict().items()})
    assert torch.equal(fresh.class_weight, loss.class_weight)
    for each in (loss, fresh):  # and both go on alike
        each.set_progress(0.95)
        each.update(torch.arange(CLASSES).float(), torch.ones(CLASSES))
    assert torch.equal(fresh.class_weight, loss.class_weight)
    for key, value in loss.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])


def test_state_of_another_loss_or_other_classes_is_refused() -> None:
    state = late("dro").state_dict()
    with pytest.raises(CheckpointError, match="CrossEntropy"):
        build_loss(LossSettings(name="cross_entropy"), COUNTS).load_state_dict(state)
    with pytest.raises(CheckpointError, match="resume with"):
        build_loss(LossSettings(name="dro"), COUNTS[:5]).load_state_dict(state)


def test_cross_entropy_is_that_of_torch() -> None:
    logits, target = batch()
    expected = F.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(late("cross_entropy").total(logits, target), expected)


def test_cross_entropy_has_the_gradient_of_torch_once() -> None:
    logits, target = batch()
    logits = (30 * logits).detach().requires_grad_()  # where probabilities underflow too
    target[::7] = IGNORED
    weight = torch.linspace(-1, 2, len(target))
    expected = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
    loss = cross_entropy(logits, target)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    [slope] = torch.autograd.grad((weight * expected).sum(), logits)
    mine = (weight * loss).sum()
    torch.testing.assert_close(
        torch.autograd.grad(mine, logits, retain_graph=True)[0], slope, atol=1e-6, rtol=1e-6
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(mine, logits)


def softmax_loss(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """-log softmax in float64: (N, K), (N,) -> (N,)."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(target)), target]


def in_float64(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets and training counts with 0 read as 1."""
    return logits.detach().double().numpy(), target.numpy(), COUNTS.clamp(min=1).double().numpy()


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_logit_adjustment(tau: float) -> None:
    logits, target = batch()
    z, y, n = in_float64(logits, target)
    expected = softmax_loss(z + tau * np.log(n / n.sum()), y)
    found = late("logit_adjustment", tau=tau).per_event(logits, target)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_balanced_softmax() -> None:
    """-log(n_y exp(z_y) / sum_j n_j exp(z_j))."""
    logits, target = batch()
    z, y, n = in_float64(logits, target)
    odds = n * np.exp(z)
    expected = -np.log(odds[np.arange(len(y)), y] / odds.sum(1))
    found = late("balanced_softmax").per_event(logits, target)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_margin(scale: float) -> None:
    logits, target = batch()
    z, y, n = in_float64(logits, target)
    margin = 0.5 * n**-0.25 / (n**-0.25).max()
    z[np.arange(len(y)), y] -= margin[y]
    found = late("ldam", scale=scale).per_event(logits, target)
    np.testing.assert_allclose(
        found.detach().numpy(), softmax_loss(scale * z, y), rtol=2e-5, atol=1e-4
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma: float) -> None:
    logits, target = batch()
    z, y, _ = in_float64(logits, target)
    loss = softmax_loss(z, y)
    found = late("class_balanced_focal", gamma=gamma).per_event(logits, target)
    np.testing.assert_allclose(
        found.detach().numpy(), (1 - np.exp(-loss)) ** gamma * loss, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "mix"), [("class_balanced", 0.2), ("class_balanced", 1.0), ("ldam", None)]
)
def test_deferred_class_balanced_weights(name: str, mix: float | None) -> None:
    options = {} if mix is None else {"mix": mix}
    loss = build_loss(LossSettings(name=name, beta=0.99, start=0.5, **options), COUNTS)  # type: ignore[arg-type]
    loss.set_progress(0.49)
    assert torch.equal(loss.class_weight, torch.ones(CLASSES))
    loss.set_progress(0.5)
    n = COUNTS[:12].double().numpy()
    effective = 1 / (1 - 0.99**n)
    balanced = np.append(effective * n.sum() / (effective * n).sum(), 0)
    share = 1.0 if mix is None else mix
    np.testing.assert_allclose(loss.class_weight.numpy(), 1 - share + share * balanced, rtol=1e-6)
    # with nothing to wait for they are there from the start
    at_once = LossSettings(name=name, beta=0.99, start=0.0, **options)  # type: ignore[arg-type]
    assert torch.equal(build_loss(at_once, COUNTS).class_weight, loss.class_weight)


def test_the_default_is_the_recommended_loss() -> None:
    settings = LossSettings()
    assert (
        settings.name,
        settings.caps,
        settings.n0,
        settings.floor,
        settings.start,
        settings.momentum,
    ) == (
        "dro",
        "effective_number",
        0.12,
        0.8,
        0.8,
        0.1,
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "cross_entropy", "tau": 0.5}, "loss.tau = 0.5"),
        (
            {"name": "dro", "epsilon": 0.1},
            "loss.epsilon = 0.1 .* loss dro (caps effective_number),",
        ),
        ({"name": "dro", "caps": "power", "n0": 1.0}, "loss.n0 = 1.0 .* loss dro (caps power),"),
        ({"name": "ldam", "floor": 0.1}, "loss.floor = 0.1 .* loss ldam,"),
        ({"name": "balanced_softmax", "tau": 0.5}, "loss.tau = 0.5"),
        ({"name": "class_balanced_focal", "start": 0.1}, "loss.start = 0.1"),
        ({"name": "logit_adjustment", "caps": "uniform"}, "loss.caps = 'uniform'"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, object], named: str) -> None:
    pattern = re.escape(named).replace(r"\ \.\*\ ", " .* ")
    with pytest.raises(ConfigError, match=pattern):
        build_loss(LossSettings(**options), COUNTS)  # type: ignore[arg-type]


def test_settings_check_names_and_ranges() -> None:
    with pytest.raises(ConfigError, match="cross_entropy"):
        read_settings(LossSettings, None, ["name=crossentropy"])
    for override in ("epsilon=0", "epsilon=1.5", "floor=-0.1", "beta=1", "momentum=0", "start=2"):
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            read_settings(LossSettings, None, [override])
    assert all(field.description for field in LossSettings.model_fields.values())


def test_no_training_events_is_refused() -> None:
    with pytest.raises(DataError, match="no known behavior"):
        build_loss(LossSettings(), torch.zeros(4, dtype=torch.long))


def test_start_is_known_to_the_training_loop() -> None:
    assert [build_loss(LossSettings(name=name), COUNTS).start for name in NAMES] == [
        0,
        0.8,
        0,
        0,
        0.8,
        0,
        0.8,
    ]  # type: ignore[arg-type]
    assert math.isclose(build_loss(LossSettings(start=0.3), COUNTS).start, 0.3)


def test_losses_have_the_same_defaults_alone_as_in_settings() -> None:
    settings = {name: field.default for name, field in LossSettings.model_fields.items()}
    compared = set()
    for make, names in _LOSSES.values():
        for name, parameter in inspect.signature(make).parameters.items():
            if parameter.default is not inspect.Parameter.empty and name in names:
                assert parameter.default == settings[name], (make, name)
                compared.add(name)
    assert compared >= {"floor", "start", "momentum", "tau", "max_m", "scale", "beta", "mix"}
