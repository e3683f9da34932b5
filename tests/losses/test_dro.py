"""The supremum of eq. 4 against scipy's linear program, and the properties a robust loss must
have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch.nn import functional as F

from behavegpt.losses import Loss, LossSettings, build_loss, dro
from behavegpt.losses.dro import dual_value, worst_case

CAPS = [
    {"caps": "effective_number"},
    {"caps": "effective_number_beta", "beta": 0.99},
    {"caps": "power", "gamma": 0.5},
    {"caps": "power", "gamma": 1.0, "max_cap": 100.0},
    {"caps": "confidence", "c": 5.0},
    {"caps": "uniform", "epsilon": 0.25},
]


def zipf_counts(classes: int, seed: int = 0, empty: int = 0) -> torch.Tensor:
    """(K,) int64 training counts with a long tail; the last `empty` classes were never seen."""
    noise = torch.rand(classes, generator=torch.Generator().manual_seed(seed))
    counts = (5000 * noise / torch.arange(1, classes + 1)).long() + 1
    if empty:
        counts[-empty:] = 0
    return counts


def robust(counts: torch.Tensor, class_loss: torch.Tensor, **options: object) -> Loss:
    """A DRO loss in its last phase whose averaged class losses are exactly `class_loss`."""
    loss = build_loss(
        LossSettings(**{"name": "dro", "momentum": 1.0, "start": 0.0, **options}), counts
    )
    loss.set_progress(1.0)
    loss.update(class_loss, torch.ones(len(counts)))
    return loss


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Class losses with ties, a prior with empty classes, caps >= 1 (some 1, some huge) and a
    floor."""
    classes = int(rng.integers(1, 30))
    loss = rng.gamma(2.0, 2.0, classes)
    if rng.random() < 0.5:
        loss = np.round(loss)  # ties
    prior = rng.dirichlet(np.full(classes, rng.choice([0.1, 1.0, 10.0]))) + 1e-9
    prior[rng.random(classes) < 0.2] = 0
    prior[rng.integers(classes)] += 1e-3
    cap = 1 + rng.gamma(1.0, rng.choice([0.0, 0.3, 5.0, 1000.0]), classes) * (
        rng.random(classes) < 0.8
    )
    return loss, prior / prior.sum(), cap, float(rng.choice([0.0, 0.0, 0.3, 0.5, 0.9, 1.0]))


def test_worst_case_is_the_linear_program_and_its_dual() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        loss, prior, cap, floor = random_case(rng)
        p = worst_case(*map(torch.as_tensor, (loss, prior, cap)), floor).numpy()
        bounds = np.stack([floor * prior, cap * prior], axis=1)
        program = linprog(
            -loss, A_eq=np.ones((1, len(loss))), b_eq=[1.0], bounds=bounds, method="highs"
        )
        assert program.status == 0
        assert p.sum() == pytest.approx(1, abs=1e-9)
        assert (p >= bounds[:, 0] - 1e-12).all() and (p <= bounds[:, 1] + 1e-12).all()
        assert p @ loss == pytest.approx(-program.fun, abs=1e-7, rel=1e-7)
        dual = dual_value(*map(torch.as_tensor, (loss, prior, cap)), floor)
        assert float(dual) == pytest.approx(p @ loss, abs=1e-9, rel=1e-9)
        assert p @ loss >= prior @ loss - 1e-9  # never below cross-entropy


def test_worst_case_refuses_what_no_distribution_fits() -> None:
    loss, prior = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="no distribution fits"):
        worst_case(loss, prior, torch.tensor([0.9, 0.9]))
    with pytest.raises(ValueError, match="floor"):
        worst_case(loss, prior, torch.tensor([0.3, 4.0]), floor=0.5)


def test_worst_case_does_not_depend_on_the_order_of_classes() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        loss, prior, cap, floor = random_case(rng)
        order = torch.as_tensor(rng.permutation(len(loss)))
        tensors = [torch.as_tensor(x) for x in (loss, prior, cap)]
        there = worst_case(*tensors, floor)[order]
        torch.testing.assert_close(
            worst_case(*(x[order] for x in tensors), floor), there, atol=1e-12, rtol=1e-9
        )


def test_equal_losses_share_alike() -> None:
    counts = zipf_counts(20)
    weight = robust(counts, torch.ones(20), caps="uniform", epsilon=0.1).class_weight
    torch.testing.assert_close(weight, torch.ones(20))


def test_value_grows_with_the_caps_and_is_convex_in_the_losses() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        loss, prior, cap, floor = (torch.as_tensor(x) for x in random_case(rng))
        other = torch.as_tensor(rng.gamma(2.0, 2.0, len(loss)))
        low, high = (
            dual_value(loss, prior, cap, float(floor)),
            dual_value(loss, prior, cap * 1.5, float(floor)),
        )
        assert high >= low - 1e-9
        middle = dual_value(0.3 * loss + 0.7 * other, prior, cap, float(floor))
        assert middle <= 0.3 * low + 0.7 * dual_value(other, prior, cap, float(floor)) + 1e-9


def test_vanishing_uniform_epsilon_is_the_worst_class() -> None:
    counts, class_loss = zipf_counts(10), torch.rand(10)
    p = worst_case(class_loss, counts, dro.uniform_cap(counts.double(), 1e-9))
    assert p.argmax() == class_loss.argmax() and float(p.max()) == pytest.approx(1)


@pytest.mark.parametrize("caps", CAPS, ids=str)
@pytest.mark.parametrize("floor", [0.0, 0.5, 0.7])
def test_weights_average_to_one_and_stay_below_the_caps(
    caps: dict[str, object], floor: float
) -> None:
    counts = zipf_counts(291, empty=7)
    prior = counts / counts.sum()
    for seed in range(5):
        class_loss = torch.rand(291, generator=torch.Generator().manual_seed(seed)) * 9
        loss = robust(counts, class_loss, floor=floor, **caps)
        weight = loss.class_weight
        assert weight.dtype == torch.float32
        assert float((weight.double() * prior).sum()) == pytest.approx(1, abs=1e-6)
        assert bool((weight[counts > 0] >= floor - 1e-6).all())
        assert bool((weight <= loss.cap * (1 + 1e-6)).all())  # type: ignore[attr-defined]
        assert float(weight[-7:].abs().max()) == 0


@pytest.mark.parametrize("caps", CAPS, ids=str)
def test_rarer_classes_have_larger_caps(caps: dict[str, object]) -> None:
    counts = torch.tensor([100_000, 5000, 5000, 300, 20, 1, 0])
    cap = build_loss(LossSettings(name="dro", **caps), counts).cap  # type: ignore[attr-defined]
    assert bool((cap >= 1).all()) and bool((cap.diff() >= 0).all()) and bool(cap.isfinite().all())


def test_caps_follow_their_formulas() -> None:
    n = torch.tensor([900.0, 90.0, 10.0], dtype=torch.float64)
    mean = 1000 / 3
    expected = {
        "effective_number": [1 / (1 - math.exp(-x / (0.12 * mean))) for x in (900, 90, 10)],
        "effective_number_beta": [(1 - 0.999**900) / (1 - 0.999**x) for x in (900, 90, 10)],
        "power": [1.0, 10**0.5, 90**0.5],
        "confidence": [1 + 10 / math.sqrt(x) for x in (900, 90, 10)],
        "uniform": [2.0] * 3,
    }
    for caps, values in expected.items():
        cap = build_loss(LossSettings(name="dro", caps=caps), n.long()).cap  # type: ignore[arg-type,attr-defined]
        np.testing.assert_allclose(cap.numpy(), values, rtol=1e-12)


def test_epsilon_one_leaves_the_rarest_class_its_full_weight() -> None:
    """Rounding of the sum over the head must not be taken from a class with a ten-billionth of the
    mass."""
    for seed in range(50):
        counts = torch.cat([zipf_counts(500, seed) * 10_000_000, torch.tensor([1])])
        class_loss = torch.cat([1 + torch.rand(500), torch.zeros(1)])
        assert torch.equal(
            robust(counts, class_loss, caps="uniform", epsilon=1.0, floor=0.0).class_weight,
            torch.ones(501),
        )


@pytest.mark.parametrize(
    "options", [{"caps": "uniform", "epsilon": 1.0, "floor": 0.0}, {"floor": 1.0}, {"floor": 0.3}]
)
def test_epsilon_one_is_cross_entropy_to_the_bit(options: dict[str, object]) -> None:
    options = (
        options if options.get("floor") == 1.0 else {"caps": "uniform", "epsilon": 1.0, **options}
    )
    torch.manual_seed(0)
    for seed in range(20):
        counts = zipf_counts(50, seed)
        logits, target = torch.randn(400, 50, requires_grad=True), torch.randint(0, 50, (400,))
        plain = build_loss(LossSettings(name="cross_entropy"), counts)
        loss = robust(counts, torch.rand(50) * 9, **options)
        results = []
        for each in (loss, plain):
            total = each.total(logits, target)
            results.append((total, *torch.autograd.grad(total, logits)))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_before_start_it_is_cross_entropy_but_tracks_class_losses() -> None:
    counts = zipf_counts(30, empty=2)
    loss = build_loss(LossSettings(name="dro", start=0.8, momentum=0.1), counts)
    torch.testing.assert_close(loss.class_loss, torch.full((30,), math.log(30)).double())  # type: ignore[attr-defined]
    for step in range(16):
        loss.set_progress(step / 20)
        assert torch.equal(loss.class_weight, torch.ones(30))
        count = torch.zeros(30)
        count[3], count[4] = 1, 1000
        loss.update(count * 2.0, count)
    known = loss.class_loss  # type: ignore[attr-defined]
    assert float(known[3]) == pytest.approx(2 + (math.log(30) - 2) * 0.9**16)
    assert float(known[4]) == pytest.approx(2, abs=1e-9)
    assert float(known[5]) == math.log(30)
    loss.set_progress(16 / 20)
    assert not torch.equal(loss.class_weight, torch.ones(30))
    assert bool((loss.class_weight[-2:] == 0).all())


def test_average_follows_faster_with_more_events_up_to_twenty() -> None:
    loss = build_loss(LossSettings(name="dro", momentum=0.1), torch.full((4,), 1000))
    loss.update(torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([0, 1, 20, 500]))
    expected = math.log(4) * np.array([1, 0.9, 0.9**20, 0.9**20])
    np.testing.assert_allclose(loss.class_loss.numpy(), expected)  # type: ignore[attr-defined]


def test_weights_are_frozen_until_the_update() -> None:
    counts = zipf_counts(12)
    loss = robust(counts, torch.rand(12))
    logits, target = torch.randn(40, 12), torch.randint(0, 12, (40,))
    before = loss.class_weight.clone()
    loss.total(logits, target)
    loss.set_progress(0.9)
    assert torch.equal(loss.class_weight, before)
    loss.update(torch.arange(12.0), torch.ones(12))
    assert not torch.equal(loss.class_weight, before)


def test_gradient_is_that_of_weighted_cross_entropy_and_of_the_supremum() -> None:
    """Envelope theorem: the derivative of the supremum itself, by finite differences, equals the
    weighted gradient."""
    torch.manual_seed(0)
    classes, rows = 6, 60
    target = torch.arange(rows) % classes
    counts = torch.bincount(target, minlength=classes)
    logits = torch.randn(rows, classes, dtype=torch.float64)
    cap = torch.tensor([1.0, 1.2, 1.5, 2.0, 3.0, 5.0], dtype=torch.float64)

    def class_losses(values: torch.Tensor) -> torch.Tensor:
        per_event = F.cross_entropy(values, target, reduction="none")
        return torch.zeros(classes, dtype=torch.float64).index_add(0, target, per_event) / counts

    loss = dro.DROLoss(counts, cap, floor=0.2, start=0.0, momentum=1.0)
    loss.update(class_losses(logits), torch.ones(classes))
    leaf = logits.float().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.total(leaf, target) / rows, leaf)

    again = logits.float().requires_grad_()
    weighted = (
        loss.class_weight[target] * F.cross_entropy(again, target, reduction="none")
    ).sum() / rows
    torch.testing.assert_close(
        gradient, torch.autograd.grad(weighted, again)[0], rtol=1e-6, atol=1e-8
    )

    direction, step = torch.randn_like(logits), 1e-6
    up, down = (
        dual_value(class_losses(logits + s * direction), counts, cap, 0.2) for s in (step, -step)
    )
    slope = float(up - down) / (2 * step)
    assert slope == pytest.approx(float((gradient.double() * direction).sum()), rel=1e-4)


def test_statistics_summed_over_parts_give_the_same_state() -> None:
    """1 x 8 = 8 x 1 = two ranks: the state depends on the sums of the step alone."""
    counts = zipf_counts(15)
    target, per_event = torch.randint(0, 15, (512,)), torch.rand(512)
    whole, parts = (build_loss(LossSettings(start=0.0), counts) for _ in range(2))
    sums = [
        torch.zeros(15).index_add(0, t, x)
        for t, x in zip(target.chunk(8), per_event.chunk(8), strict=True)
    ]
    whole.update(
        torch.zeros(15).index_add(0, target, per_event), torch.bincount(target, minlength=15)
    )
    parts.update(torch.stack(sums).sum(0), torch.bincount(target, minlength=15))
    torch.testing.assert_close(whole.class_weight, parts.class_weight, rtol=1e-6, atol=1e-7)


def test_one_class_and_one_event() -> None:
    loss = robust(torch.tensor([1]), torch.tensor([3.0]))
    assert loss.class_weight.tolist() == [1.0]
    assert float(loss.total(torch.randn(4, 1), torch.zeros(4, dtype=torch.long))) == 0


@pytest.mark.parametrize(
    "cap,lowest",
    [
        (lambda n: dro.effective_number_cap(n, 0.1), 1 / -math.expm1(-1 / (0.1 * 25))),
        (lambda n: dro.effective_number_beta_cap(n, 0.9), (1 - 0.9**99) / (1 - 0.9)),
        (lambda n: dro.power_cap(n, 0.5, 50.0), 99**0.5),
        (lambda n: dro.confidence_cap(n, 3.0), 4.0),
    ],
)
def test_a_class_without_events_has_the_cap_of_one_event(cap, lowest):
    found = cap(torch.tensor([99.0, 0.0, 1.0, 0.0]).double())
    assert found[1:].tolist() == pytest.approx([lowest] * 3)
    assert found[0] < found[1]


def test_class_losses_are_inherited_by_class() -> None:
    """Class 0 was class 2 of the other run, 2 was its class 0, and 1 is new."""
    other = build_loss(LossSettings(name="dro", start=0.0), torch.tensor([50, 30, 20]))
    other.update(torch.tensor([5.0, 14.0, 27.0]) * 100, torch.full((3,), 100.0))
    known = other.state_dict()["class_loss"]
    assert len(set(known.tolist())) == 3
    loss = build_loss(LossSettings(name="dro", start=0.0), torch.tensor([40, 5, 60]))
    before = loss.class_weight.clone()
    loss.inherit(other.state_dict(), torch.tensor([2, -1, 0]))
    expected = [known[2], math.log(3), known[0]]
    np.testing.assert_allclose(loss.class_loss.numpy(), expected)  # type: ignore[attr-defined]
    assert not torch.equal(loss.class_weight, before), "the weights follow at once"
    plain = build_loss(LossSettings(name="cross_entropy"), torch.tensor([50, 30, 20]))
    again = build_loss(LossSettings(name="dro", start=0.0), torch.tensor([40, 5, 60]))
    again.inherit(plain.state_dict(), torch.tensor([2, -1, 0]))
    assert torch.equal(again.class_weight, before), "cross-entropy leaves none to inherit"
