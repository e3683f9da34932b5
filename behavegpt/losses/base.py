"""What every loss offers: weights known before the forward pass, a sum over events, state frozen
within a step.

N events, K behavior classes. The training loop divides the sum by the total weight of the whole
step.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from behavegpt.batch import IGNORED
from behavegpt.errors import CheckpointError


class Loss:
    """Cross-entropy with a weight per class; subclasses change the weights, the loss of an event,
    or both.

    `class_weight` (K,) float32 is constant within an optimizer step, so `total` is additive over
    any split of a batch. `start` is the share of training after which the loss takes its final
    form; before it the weights are 1.
    """

    def __init__(self, counts: torch.Tensor, start: float = 0.0) -> None:
        self.start = start
        self.progress = 0.0
        # float64: sums over millions of events, and the worst case, must not lose a class to
        # rounding
        self.counts = counts.cpu().double()  # (K,) training events per class
        self.class_weight = torch.ones(len(counts))

    @property
    def active(self) -> bool:
        """Whether the deferred part has begun."""
        return self.progress >= self.start

    def to(self, device: torch.device | str) -> Self:
        """Move what an event's loss is computed from to the device of the logits."""
        self.class_weight = self.class_weight.to(device)
        return self

    def weight(self, target: torch.Tensor) -> torch.Tensor:
        """Weight of each event, float32: target (N,) -> (N,); 0 where the target is IGNORED."""
        # IGNORED is negative and no index; its weight is 0, so that padding adds nothing to a sum
        return self.class_weight[target.clamp(min=0)] * (target != IGNORED)

    def per_event(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Unweighted loss of each event in nats, float32: logits (N, K), target (N,) -> (N,); 0
        where IGNORED."""
        return cross_entropy(logits, target)

    def total(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Weighted sum over the events: logits (N, K), target (N,) -> ()."""
        return (self.weight(target) * self.per_event(logits, target)).sum()

    def set_progress(self, fraction: float) -> None:
        """Share of training done, in [0, 1]; called before each optimizer step."""
        # only the moment when the deferred part begins changes the weights; a subclass may do more
        was_active, self.progress = self.active, fraction
        if self.active != was_active:
            self._set_weights()

    def update(self, class_loss: torch.Tensor, class_count: torch.Tensor) -> None:
        """Learn from a finished step: summed loss (K,) and events (K,) per class over all
        micro-batches and ranks."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors that belong into a training checkpoint; never part of the model's weights."""
        # float64: the share must come back exactly, or a resumed run would cross `start` elsewhere
        return {"progress": torch.tensor(self.progress, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore `state_dict()`; CheckpointError if it is the state of another loss or of other
        classes."""
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}

        if shapes != expected:
            raise CheckpointError(
                f"the checkpoint holds the loss state {shapes}, {type(self).__name__} needs "
                f"{expected}; "
                "resume with the loss settings and the data of the first run, or start over."
            )

        self._load(state)
        # the weights follow from the state, and so are not saved
        self._set_weights()

    def inherit(self, state: dict[str, torch.Tensor], rows: torch.Tensor) -> None:
        """Start from another run's `state_dict()`: class k was class rows[k] (K,) there, or is new
        where that is -1."""

    def _load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state_dict` gave, of the same names and shapes."""
        self.progress = float(state["progress"])

    def _active_weight(self) -> torch.Tensor:
        """(K,) weights once the loss is active."""
        return torch.ones(len(self.counts))

    def _set_weights(self) -> None:
        # float32, as the logits' losses that they multiply
        weight = self._active_weight() if self.active else torch.ones(len(self.counts))
        self.class_weight = weight.float().to(self.class_weight.device)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target], float32: logits (N, K), target (N,) -> (N,); 0 where IGNORED.
    Differentiable once.

    torch's own makes three more (N, K) tensors by the end of the backward and takes twice as many
    exponentials.
    """
    # float32 also under autocast: bf16 keeps 8 bits of a logit, too few for a sum of exponentials
    loss: torch.Tensor = _CrossEntropy.apply(logits.float(), target)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """One exponential per logit: the loss is read off the probabilities, whose memory the gradient
    then takes.

    With m the largest logit and p its probability, -log softmax(x)[t] = m - x_t - log p; p >= 1/K
    cannot underflow.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        counted = target != IGNORED  # (N,) bool
        true = target.clamp(min=0)[:, None]  # (N, 1)
        probability = torch.softmax(logits, dim=1)  # (N, K)

        ctx.save_for_backward(probability, true, counted)
        # m - x_t - log p: the probability of the target itself may underflow, that of m cannot
        return (logits.amax(1) - logits.gather(1, true)[:, 0] - probability.amax(1).log()) * counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        # torch refuses a second backward: these have changed by then
        probability, true, counted = ctx.saved_tensors  # (N, K), (N, 1), (N,)
        # d loss / d logits = probability - onehot(target), in place of the probabilities
        scale = (gradient * counted)[:, None]
        return probability.mul_(scale).scatter_add_(1, true, -scale), None


class CrossEntropy(Loss):
    """Plain cross-entropy, every event counts alike: -log softmax(logits)[target], all weights 1;
    no state."""
