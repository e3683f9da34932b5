"""Training losses on one switch: `build_loss(LossSettings(name="dro"), counts)`; the contract is
`Loss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from behavegpt.config import Settings
from behavegpt.errors import ConfigError, DataError
from behavegpt.losses import by_frequency, dro, long_tail, sampled
from behavegpt.losses.base import CrossEntropy, Loss

__all__ = ["Loss", "LossSettings", "build_loss"]

Name = Literal[
    "dro",
    "cross_entropy",
    "logit_adjustment",
    "balanced_softmax",
    "ldam",
    "class_balanced_focal",
    "class_balanced",
    "binary_negatives",
    "sampled_softmax",
    "tanh_frequency",
    "two_distributions",
]
Caps = Literal["effective_number", "effective_number_beta", "power", "confidence", "uniform"]


class LossSettings(Settings):
    """Which loss, and the options of all of them; an option of a loss that was not chosen must keep
    its default."""

    name: Name = Field("dro", description="the training loss; dro is eq. 4 of the paper")
    caps: Caps = Field(
        "effective_number", description="dro: how 1/eps follows from a class's training count"
    )
    # the defaults of dro were chosen on validation: docs/log.md
    floor: float = Field(
        0.8, ge=0, le=1, description="dro: share of the training distribution the worst case keeps"
    )
    start: float = Field(
        0.8,
        ge=0,
        le=1,
        description=(
            "dro, ldam, class_balanced: share of training after which classes are re-weighted"
        ),
    )
    momentum: float = Field(
        0.1, gt=0, le=1, description="dro: weight of one event in its class's averaged loss"
    )
    n0: float = Field(
        0.12, gt=0, description="caps effective_number: count, in mean counts, where eps is 0.63"
    )
    beta: float = Field(
        0.999,
        gt=0,
        lt=1,
        description=(
            "caps effective_number_beta, ldam, class_balanced, class_balanced_focal: effective "
            "number's beta"
        ),
    )
    gamma: float = Field(
        0.5, ge=0, description="caps power: exponent of the counts; class_balanced_focal: focusing"
    )
    max_cap: float = Field(20.0, ge=1, description="caps power: largest 1/eps")
    c: float = Field(10.0, ge=0, description="caps confidence: 1/eps = 1 + c / sqrt(count)")
    epsilon: float = Field(0.5, gt=0, le=1, description="caps uniform: eps of every class")
    tau: float = Field(
        1.0, ge=0, description="logit_adjustment: strength; its paper's 1 is balanced softmax"
    )
    max_m: float = Field(0.5, ge=0, description="ldam: margin of the rarest class, in logits")
    scale: float = Field(
        1.0, gt=0, description="ldam: factor of the logits; 30 in its paper, for cosine logits"
    )
    mix: float = Field(
        0.2, ge=0, le=1, description="class_balanced: share of the class-balanced weights"
    )
    negatives: int = Field(
        128, ge=1, description="binary_negatives, sampled_softmax: classes drawn for each event"
    )
    tanh_alpha: float = Field(
        1.2, gt=1, description="tanh_frequency: 1 + the weight of a frequent class"
    )
    tanh_beta: float = Field(
        0.99, gt=0, description="tanh_frequency: how fast the weight falls with the frequency"
    )
    tanh_unit: float = Field(
        0.0, ge=0, description="tanh_frequency: frequency 1, in mean counts; 0: one event"
    )
    spread: float = Field(
        2.0, gt=1, description="two_distributions: the balanced share ends at 1 / spread^2"
    )


# name -> its function and the settings that it takes, by the function's own names
_CAPS: dict[str, tuple[Callable[..., torch.Tensor], tuple[str, ...]]] = {
    "effective_number": (dro.effective_number_cap, ("n0",)),
    "effective_number_beta": (dro.effective_number_beta_cap, ("beta",)),
    "power": (dro.power_cap, ("gamma", "max_cap")),
    "confidence": (dro.confidence_cap, ("c",)),
    "uniform": (dro.uniform_cap, ("epsilon",)),
}
# name -> its class and the settings that it takes; DRO's cap function comes from _CAPS
_LOSSES: dict[str, tuple[Callable[..., Loss], tuple[str, ...]]] = {
    "cross_entropy": (CrossEntropy, ()),
    "dro": (dro.DROLoss, ("floor", "start", "momentum")),
    "logit_adjustment": (long_tail.LogitAdjustment, ("tau",)),
    "balanced_softmax": (long_tail.LogitAdjustment, ()),
    "ldam": (long_tail.LDAM, ("max_m", "scale", "beta", "start")),
    "class_balanced_focal": (long_tail.ClassBalancedFocal, ("beta", "gamma")),
    "class_balanced": (long_tail.ClassBalanced, ("beta", "mix", "start")),
    "binary_negatives": (sampled.BinaryNegatives, ("negatives",)),
    "sampled_softmax": (sampled.SampledSoftmax, ("negatives",)),
    "tanh_frequency": (by_frequency.TanhFrequency, ("tanh_alpha", "tanh_beta", "tanh_unit")),
    "two_distributions": (by_frequency.TwoDistributions, ("spread",)),
}


def build_loss(settings: LossSettings, counts: torch.Tensor) -> Loss:
    """The loss for K classes with training counts (K,) int64, on the CPU; move it with
    `.to(device)`.

    ConfigError names an option that the chosen loss does not have; DataError if no class has a
    training event.
    """
    # every weight and prior divides by the counts
    if not bool((counts > 0).any()):
        raise DataError(
            "the training split holds no known behavior; check the split and the behavior column."
        )

    make, names = _LOSSES[settings.name]
    chosen = {name: getattr(settings, name) for name in names}
    # the settings that have an effect: all others must keep their defaults
    used = {"name", *names}

    if settings.name == "dro":
        # caps are functions of the counts alone, so they are fixed before training
        make_cap, cap_names = _CAPS[settings.caps]
        used |= {"caps", *cap_names}
        chosen["cap"] = make_cap(
            # in double: the caps of rare classes are quotients of small differences
            counts.double(),
            **{name: getattr(settings, name) for name in cap_names},
        )

    _refuse_unused(settings, used)
    return make(counts, **chosen)


def _refuse_unused(settings: LossSettings, used: set[str]) -> None:
    """An option without effect is a misunderstanding: say which ones the chosen loss has."""
    for name, field in LossSettings.model_fields.items():
        if name in used or getattr(settings, name) == field.default:
            continue

        # an option at its default may stand in a file that is shared by several losses
        chosen: str = settings.name
        if settings.name == "dro":
            chosen = f"dro (caps {settings.caps})"  # the caps have options of their own
        known = ", ".join(sorted(used - {"name"})) or "none"
        raise ConfigError(
            f"loss.{name} = {getattr(settings, name)!r} has no effect on the loss {chosen}, "
            f"whose options are: {known}. Remove it, or choose a loss that uses it "
            f"({field.description})."
        )
