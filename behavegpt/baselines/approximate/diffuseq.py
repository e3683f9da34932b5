"""DiffuSeq (Gong et al., ICLR 2023, arXiv:2210.08933): the whole future at once, by diffusion of
its embeddings.

    forward    q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I),  x_0 = E[y] + N(0, (1 - a_1) I),
               a_t = 1 - sqrt(t / N + s)
    network    f(x_t, t, E[history]) -> x_0 of the future alone, both directions; the history is
               never noised
    loss       mean (f - x_0)^2  (at the first step against E[y])
               + CE(x_0 E^T, y)  + mean (sqrt(a_N) x_0)^2
    sampling   x ~ N(0, I), then q(x_s | x_t, x_0 = f) downwards over every (N / draws)-th t; the
               nearest embedding last

Written from the formulas. Ours: small (2 layers of width 64, embeddings of 16, 500 noise levels, 25
steps of sampling), uniform t for loss-aware t, no moving average of the weights (the budget is some
hundred updates), a final draw rounded once instead of clamped at every step.

Shapes: B rows, P past, T steps, E embedding, K classes, N noise levels, W width of the Transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.baselines.generators import Histories, blocks, dress, last_classes, seeded
from behavegpt.data.store import EventStore

OFFSET = 1e-4  # s of the schedule


@dataclass(frozen=True)
class DiffuSeqSettings:
    """`events` are training events in futures; futures filled to less than this share are left
    out."""

    events: int = 524_288
    filled: float = 0.5
    past: int = 50
    embedding: int = 16
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    levels: int = 500
    draws: int = 25
    batch: int = 32
    lr: float = 2e-3


def schedule(levels: int) -> torch.Tensor:
    """a_0 = 1, a_1 .. a_N (N + 1,): the square root schedule, which falls fast at first."""
    # float64 until the end: differences of neighboring levels are small
    a = 1 - torch.sqrt(torch.arange(1, levels + 1, dtype=torch.float64) / levels + OFFSET)
    return torch.cat([torch.ones(1, dtype=torch.float64), a.clamp_min(1e-5)]).float()


def posterior(
    x0: torch.Tensor, xt: torch.Tensor, a_t: torch.Tensor, a_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of q(x_s | x_t, x_0) for a lower noise level s, any number of levels
    away."""
    # q(x_s | x_t, x_0) of a Gaussian chain; s is several levels below t in sampling
    ratio = a_t / a_s
    mean = (a_s.sqrt() * (1 - ratio) * x0 + ratio.sqrt() * (1 - a_s) * xt) / (1 - a_t)
    return mean, (1 - a_s) * (1 - ratio) / (1 - a_t)


class Denoiser(nn.Module):
    """f: a Transformer without causal mask over the embedded history and the noisy future."""

    def __init__(self, classes: int, steps: int, settings: DiffuSeqSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.embed = nn.Embedding(classes, settings.embedding)
        self.into = nn.Linear(settings.embedding, width)
        self.out = nn.Linear(width, settings.embedding)
        self.position = nn.Parameter(0.02 * torch.randn(settings.past + steps, width))
        self.noise = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False
        )

    def forward(
        self,
        x: torch.Tensor,
        level: torch.Tensor,
        history: torch.Tensor,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x_0 (B, T, E) from x_t (B, T, E), t / N (B,), histories (B, P) and which steps are no
        padding (B, T)."""
        before = history < self.embed.num_embeddings  # (B, P)
        known = self.embed(history.where(before, 0))  # (B, P, E), padding is masked below

        # sinusoids of the noise level, as for the Transformer's positions
        half = self.position.shape[1] // 2
        # (B, W / 2)
        angle = 1000 * level[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        time = self.noise(torch.cat([angle.sin(), angle.cos()], dim=1))  # (B, W)
        h = self.into(torch.cat([known, x], dim=1)) + self.position + time[:, None]  # (B, P + T, W)

        real = torch.ones(x.shape[:2], dtype=torch.bool) if real is None else real
        h = self.encoder(h, src_key_padding_mask=~torch.cat([before, real], dim=1))

        return self.out(h[:, history.shape[1] :])


def diffusion_loss(
    network: Denoiser, history: torch.Tensor, future: torch.Tensor, a: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """The three terms, means over the known events of futures (B, T), at the noise levels t (B,) of
    1 .. N."""
    real = future < network.embed.num_embeddings  # (B, T)
    embedded = network.embed(future.where(real, 0))  # (B, T, E)

    start = embedded + (1 - a[1]).sqrt() * torch.randn_like(embedded)
    level = a[t][:, None, None]  # (B, 1, 1)
    noisy = level.sqrt() * start + (1 - level).sqrt() * torch.randn_like(start)
    predicted = network(noisy, t / (len(a) - 1), history, real)

    # at the first level the target is the exact embedding, without the noise of x_0
    wanted = torch.where((t == 1)[:, None, None], embedded, start)
    rounding = F.cross_entropy((start @ network.embed.weight.T)[real], future[real])

    return (
        (predicted - wanted)[real].square().mean()
        + rounding
        # the noisiest level should hide x_0 altogether
        + (a[-1].sqrt() * start)[real].square().mean()
    )


@torch.no_grad()
def sample(
    network: Denoiser, history: torch.Tensor, steps: int, a: torch.Tensor, draws: int
) -> torch.Tensor:
    """Classes (B, steps) after histories (B, P), in `draws` steps of denoising."""
    levels = torch.linspace(len(a) - 1, 0, draws + 1).round().long()
    x = torch.randn(len(history), steps, network.embed.embedding_dim)  # (B, T, E)
    for t, s in pairwise(levels):
        x0 = network(x, (t / (len(a) - 1)).expand(len(x)), history)
        mean, variance = posterior(x0, x, a[t], a[s])
        x = mean + variance.sqrt() * torch.randn_like(x)

    return torch.cdist(x, network.embed.weight.expand(len(x), -1, -1)).argmin(2)


def learn(
    store: EventStore, steps: int, settings: DiffuSeqSettings, rng: np.random.Generator
) -> tuple[Denoiser, torch.Tensor]:
    """The network after the budget, in evaluation mode, and the schedule."""
    network, a = Denoiser(store.behaviors.classes, steps, settings), schedule(settings.levels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.0)
    seen, least = 0, math.ceil(settings.filled * steps)

    while seen < settings.events:
        history, future = blocks(store, settings.past, steps, rng, least)
        if not len(future):
            raise ValueError(
                f"no {least} training events with known behaviors stand in a row after another one"
            )

        for rows in torch.randperm(len(history)).split(settings.batch):
            done = min(seen / settings.events, 1)
            # linear warm-up over the first twentieth, then linearly down to a tenth
            rate = settings.lr * min(1, 20 * done + 0.05) * (1 - 0.9 * done)
            optimizer.param_groups[0]["lr"] = rate
            t = torch.randint(1, len(a), (len(rows),))

            diffusion_loss(network, history[rows], future[rows], a, t).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            seen += int((future[rows] < store.behaviors.classes).sum())
            if seen >= settings.events:
                break

    return network.eval(), a


def diffuseq(
    histories: Histories,
    store: EventStore,
    steps: int,
    rng: np.random.Generator,
    settings: DiffuSeqSettings | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Train on the training split and continue the histories: columns and gaps (N, steps), see
    `generators.dress`."""
    settings = settings or DiffuSeqSettings()
    with seeded(rng):
        network, a = learn(store, steps, settings, rng)
        history = last_classes(histories, settings.past, store.behaviors.classes)
        # in parts: the samples of all users at once would not fit in memory
        parts = [sample(network, part, steps, a, settings.draws) for part in history.split(64)]
        drawn = torch.cat(parts)

    return dress(drawn.numpy(), histories, store, rng)
