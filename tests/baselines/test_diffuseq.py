"""DiffuSeq: schedule and posterior against Gaussian algebra, loss by hand, history kept clean,
seeds, no future."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.baselines.approximate.diffuseq import (
    Denoiser,
    DiffuSeqSettings,
    diffuseq,
    diffusion_loss,
    learn,
    posterior,
    sample,
    schedule,
)
from tests.baselines.test_seqgan import check_seeds_and_leaks
from tests.helpers import random_store

TINY = DiffuSeqSettings(
    events=400, filled=0.2, past=12, embedding=4, hidden=8, layers=1, heads=2, levels=40, draws=5
)


def test_posterior_is_the_conditional_of_a_joint_gaussian():
    """Given x_0: (x_s, x_t) is Gaussian with x_t = r x_s + noise; condition it the textbook way."""
    a = schedule(100).double()
    assert a[0] == 1 and (a.diff() < 0).all()
    for t, s in ((1, 0), (50, 49), (100, 37), (99, 3)):
        a_t, a_s = a[t], a[s]
        ratio = (a_t / a_s).sqrt()
        x0, xt = 0.7, -1.3
        mean_s, var_s = a_s.sqrt() * x0, 1 - a_s
        var_t, cov = ratio**2 * var_s + (1 - ratio**2), ratio * var_s
        assert var_t.item() == pytest.approx((1 - a_t).item())
        mean = mean_s + cov / var_t * (xt - ratio * mean_s)
        found = posterior(
            torch.tensor(x0, dtype=a.dtype), torch.tensor(xt, dtype=a.dtype), a_t, a_s
        )
        assert found[0].item() == pytest.approx(mean.item(), rel=1e-9)
        assert found[1].item() == pytest.approx(
            (var_s - cov**2 / var_t).item(), rel=1e-9, abs=1e-12
        )


def test_sampling_with_the_true_denoiser_gives_the_data():
    """One step of two classes, p = .8: E[x_0 | x_t] is known, so the classes must come out at 80 to
    20."""

    class Exact(torch.nn.Module):
        embed = torch.nn.Embedding(2, 1, _weight=torch.tensor([[1.0], [-1.0]]))

        def forward(self, x, level, history):
            a_t = a[(level[0] * (len(a) - 1)).round().long()]
            log = 2 * a_t.sqrt() * x / (1 - a_t) + torch.tensor(0.8 / 0.2).log()
            return 2 * torch.sigmoid(log) - 1

    a = schedule(400)
    torch.manual_seed(0)
    drawn = sample(Exact(), torch.zeros(20_000, 1, dtype=torch.long), 1, a, draws=100)
    assert (drawn == 0).float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_loss_by_hand():
    torch.manual_seed(0)
    network, a = Denoiser(5, 6, TINY).eval(), schedule(40)
    history, future = torch.randint(5, (3, 12)), torch.randint(5, (3, 6))
    history[1, :5], future[2, 4:] = 5, 5
    t = torch.tensor([1, 7, 40])
    torch.manual_seed(3)
    found = diffusion_loss(network, history, future, a, t)
    torch.manual_seed(3)
    noises = torch.randn(3, 6, 4), torch.randn(3, 6, 4)
    squares, rounding, last, count = 0.0, 0.0, 0.0, 0
    for b in range(3):
        table = network.embed.weight.detach()
        real = [i for i in range(6) if future[b, i] < 5]
        clean = (
            table[future[b].clamp_max(4)]
            if len(real) == 6
            else table[future[b].where(future[b] < 5, 0)]
        )
        start = clean + (1 - a[1]) ** 0.5 * noises[0][b]
        noisy = a[t[b]] ** 0.5 * start + (1 - a[t[b]]) ** 0.5 * noises[1][b]
        mask = (future[b] < 5)[None]
        out = network(noisy[None], t[b : b + 1] / 40, history[b : b + 1], mask)[0].detach()
        for i in real:
            squares += (out[i] - (clean if t[b] == 1 else start)[i]).square().mean()
            rounding -= (table @ start[i]).log_softmax(0)[future[b, i]]
            last += a[40] * start[i].square().mean()
            count += 1
    assert found.item() == pytest.approx(((squares + rounding + last) / count).item(), rel=1e-5)


def test_padding_of_history_and_future_changes_nothing():
    torch.manual_seed(0)
    network = Denoiser(5, 6, TINY).eval()
    history, x = torch.randint(5, (1, 12)), torch.randn(1, 6, 4)
    history[0, :4] = 5
    real = torch.tensor([[True] * 4 + [False] * 2])
    out = network(x, torch.tensor([0.5]), history, real)
    moved = x.clone()
    moved[0, 4:] += 5
    assert torch.allclose(
        network(moved, torch.tensor([0.5]), history, real)[:, :4], out[:, :4], atol=1e-6
    )
    longer = history.clone()
    longer[0, 3] = 0
    assert not torch.allclose(network(x, torch.tensor([0.5]), longer, real), out, atol=1e-4)
    seen_later = x.clone()
    seen_later[0, 3] += 1
    changed = network(seen_later, torch.tensor([0.5]), history, real)
    assert not torch.allclose(changed[:, 0], out[:, 0], atol=1e-5), "both directions"


def test_it_learns_who_repeats():
    store = random_store(users=40, behaviors=None, events=4, split=(0.8, 0.9))
    store.columns["event"] = np.repeat(np.arange(40) % 4 + 2, np.diff(store.offsets)).astype(
        np.uint8
    )
    torch.manual_seed(0)
    settings = DiffuSeqSettings(events=15_000, past=8, hidden=32, layers=1, levels=100, lr=5e-3)
    network, a = learn(store, 8, settings, np.random.default_rng(0))
    classes = torch.arange(4).repeat(25)[:, None]
    drawn = sample(network, classes.expand(100, 8), 8, a, draws=25)
    assert (drawn == classes).float().mean() > 0.8


def test_seeds_and_no_look_at_the_future():
    check_seeds_and_leaks(diffuseq, TINY)
