"""Matching of new behaviors: the recurrence, and that meta-training carries over to classes it
never saw."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from behavegpt.baselines.approximate import mecos
from behavegpt.baselines.approximate.mecos import MatchingHead, MecosSettings, meta_train
from behavegpt.errors import DataError


def test_matching_pair_by_pair(monkeypatch):
    torch.manual_seed(0)
    head = MatchingHead(6, MecosSettings(width=5, steps=3))
    examples, member = torch.randn(7, 6), torch.tensor([0, 2, 2, 0, 1, 2, 0])
    queries = torch.randn(4, 6)
    supports = head.supports(examples, member, 4)
    assert not supports[3].any()
    for c in range(3):
        own = torch.stack(
            [head.project(x) for x, m in zip(examples, member, strict=True) if m == c]
        )
        torch.testing.assert_close(supports[c], own.mean(0))
    w, b, u, v = (
        head.of_query.weight,
        head.of_query.bias,
        head.of_memory.weight,
        head.of_support.weight,
    )
    wanted = torch.zeros(4, 3)
    for i, query in enumerate(queries):
        for c in range(3):
            q = head.project(query)
            h, cell = q, torch.zeros(5)
            for _ in range(3):
                gates = w @ q + b + u @ h + v @ supports[c]
                forget, write, read, new = gates[:5], gates[5:10], gates[10:15], gates[15:]
                cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
                h = read.sigmoid() * cell.tanh() + q
            wanted[i, c] = (
                head.log_scale.exp() * (h @ supports[c]) / (h.norm() * supports[c].norm())
            )
    torch.testing.assert_close(head(queries, supports[:3]), wanted, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(mecos, "PAIRS", 3)  # one query at a time
    torch.testing.assert_close(head(queries, supports[:3]), wanted, atol=1e-5, rtol=1e-4)


def test_it_learns_to_match_classes_it_never_saw():
    """States are a class's direction in 4 of 32 dimensions under noise in the others."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(40, 4, generator=generator), dim=-1)

    def draw(classes: torch.Tensor) -> torch.Tensor:
        signal = directions[classes] + 0.2 * torch.randn(len(classes), 4, generator=generator)
        return torch.cat([signal, 1.5 * torch.randn(len(classes), 28, generator=generator)], dim=1)

    known = torch.arange(30).repeat(40)
    head = meta_train(draw(known), known, MecosSettings(width=16, episodes=250, ways=15, lr=3e-3))
    new = torch.arange(10)
    examples, queries = draw(30 + new.repeat(5)), draw(30 + new.repeat(30))
    with torch.no_grad():
        found = head(queries, head.supports(examples, new.repeat(5), 10)).argmax(1)
    means = torch.zeros(10, 32).index_add(0, new.repeat(5), F.normalize(examples, dim=-1))
    nearest = (F.normalize(queries, dim=-1) @ F.normalize(means, dim=-1).T).argmax(1)
    right, by_mean = ((guess == new.repeat(30)).float().mean() for guess in (found, nearest))
    assert right > by_mean + 0.1, (right, by_mean)
    batches = [(queries[at : at + 90], new.repeat(30)[at : at + 90]) for at in range(0, 300, 90)]
    # two of them without examples
    metrics = mecos.match(head, examples, new.repeat(5), batches, classes=12)
    assert (
        metrics.compute()["rec_w"] == pytest.approx(float(right))
        and not metrics.per_class()["predicted"][10:].any()
    )
    again = meta_train(draw(known), known, MecosSettings(episodes=1, seed=3))
    assert not torch.equal(
        again.project.weight,
        meta_train(draw(known), known, MecosSettings(episodes=1)).project.weight,
    )


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match="only 1 behaviors have more than 3 examples"):
        meta_train(torch.randn(8, 4), torch.tensor([0] * 5 + [1] * 3), MecosSettings())
