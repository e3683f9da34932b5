"""The network the organizers train on user vectors: three inverted bottlenecks, nothing to tune.

B clients, D dimensions of their vectors, O outputs: 1 for churn and conversion, else the number of
labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# the organizers': nothing is tuned for an entry
WIDTH, BOTTLENECK, BLOCKS = 2048, 4096, 3
SEED = 1278  # the organizers' only one

Linear = Callable[[Tensor, nn.Linear], Tensor]  # (B, in), layer -> (B, out)


def plain_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """x W' + b: (B, in) -> (B, out)."""
    return F.linear(x, layer.weight, layer.bias)


class Bottleneck(nn.Module):
    """The two layers of a block; named as the organizers name them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = BOTTLENECK * width // WIDTH
        self.l1 = nn.Linear(width, hidden)
        self.l2 = nn.Linear(hidden, width)


class UniversalModel(nn.Module):
    """(B, D) float32 -> logits (B, O). Equal seeds give the organizers' initial weights bit for
    bit, at their width."""

    def __init__(
        self, dimensions: int, outputs: int, seed: int = SEED, width: int | None = None
    ) -> None:
        super().__init__()
        width = width or WIDTH
        # the caller's random numbers go on as if no network had been made
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The order of creation is the order in which random numbers are drawn: it must stay.
            self.input_projection = nn.Linear(dimensions, width)
            self.ln_input = nn.LayerNorm(width)
            self.layernorms = nn.ModuleList(nn.LayerNorm(width) for _ in range(BLOCKS))
            self.bottlenecks = nn.ModuleList(Bottleneck(width) for _ in range(BLOCKS))
            self.ln_output = nn.LayerNorm(width)
            self.linear_output = nn.Linear(width, outputs)

    def forward(self, vectors: Tensor, linear: Linear = plain_linear) -> Tensor:
        """(B, D) -> (B, O); `linear` says how a layer is applied (training on a CPU has its own
        way)."""
        # (B, WIDTH)
        x = self.ln_input(linear(vectors, self.input_projection))
        for norm, block in zip(self.layernorms, self.bottlenecks, strict=True):
            assert isinstance(block, Bottleneck)
            x = x + linear(F.gelu(linear(norm(x), block.l1)), block.l2)

        return linear(self.ln_output(x), self.linear_output)


def flops(dimensions: int, outputs: int, trained: int, predicted: int) -> int:
    """Floating point operations of the matrix products: `trained` and `predicted` clients, counted
    once per epoch.

    Per client 2 for each weight forward, and twice that backward, less the gradient of the vectors
    themselves.
    """
    first = dimensions * WIDTH
    weights = first + 2 * BLOCKS * WIDTH * BOTTLENECK + WIDTH * outputs
    return trained * (6 * weights - 2 * first) + predicted * 2 * weights
