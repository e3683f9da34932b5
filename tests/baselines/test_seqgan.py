"""SeqGAN: rewards and policy gradient against enumeration, blocks of the training split alone,
seeds, no future."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from behavegpt.baselines.approximate.seqgan import (
    Discriminator,
    Policy,
    SeqGANSettings,
    policy_loss,
    pretrain,
    rewards,
    seqgan,
)
from behavegpt.baselines.generators import blocks, known, last_classes
from tests.baselines.test_generators import setting
from tests.helpers import random_store

TINY = SeqGANSettings(
    events=600, past=12, hidden=8, batch=16, rounds=2, completions=2, policy_batch=4, judge_steps=2
)


def tiny_policy(classes=2):
    torch.manual_seed(0)
    policy = Policy(classes, 4, 6)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.8)
    return policy


def worth_of(future):
    """Some function (...) of sequences (..., 3) of two classes, no sum over the steps."""
    return ((future * torch.tensor([1, 2, 4])).sum(-1) * 0.37).sin() ** 2


def enumerate_futures(policy, history, steps, classes=2):
    """All futures (M, T) and their probabilities (M,), token by token with prefixes run anew."""
    futures = torch.tensor(list(product(range(classes), repeat=steps)))
    logs = []
    for future in futures:
        total = 0.0
        for step in range(steps):
            tokens = torch.cat([history[0], future[:step]])[None]
            total = total + policy.read(tokens)[0][0, -1, future[step]]
        logs.append(total)
    return futures, torch.stack(logs).exp()


def test_rewards_are_expected_values_of_completions():
    policy, history = tiny_policy(), torch.tensor([[2, 0, 1]])
    futures, p = enumerate_futures(policy, history, 3)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    found = rewards(
        policy, lambda h, f: worth_of(f), history, torch.tensor([[1, 0, 1]]), many=20_000
    )
    for step in range(3):
        same = (futures[:, : step + 1] == torch.tensor([1, 0, 1])[: step + 1]).all(1)
        expected = (p[same] * worth_of(futures[same])).sum() / p[same].sum()
        assert found[0, step].item() == pytest.approx(expected.item(), abs=0.012), step
    assert found[0, 2].item() == pytest.approx(worth_of(torch.tensor([1, 0, 1])).item(), abs=1e-6)


def test_policy_gradient_is_that_of_the_expected_reward():
    policy, history = tiny_policy(), torch.tensor([[2, 0, 1]])
    futures, p = enumerate_futures(policy, history, 3)
    exact = torch.autograd.grad((p * worth_of(futures)).sum(), policy.parameters())
    p, total = p.detach(), 0.0
    # the expectation over drawn futures, with exact Q
    for future, share in zip(futures, p, strict=True):
        q = []
        for step in range(3):
            same = (futures[:, : step + 1] == future[: step + 1]).all(1)
            q.append((p[same] * worth_of(futures[same])).sum() / p[same].sum())
        total = total + share * policy_loss(
            policy.score(history, future[None]), future[None], torch.stack(q)[None]
        )
    found = torch.autograd.grad(total, policy.parameters())
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.allclose(-ours, theirs, atol=2e-6)
        assert theirs.abs().max() > 1e-4


def test_gradient_of_the_loss_by_hand():
    logits = torch.tensor(
        [[[0.3, -1.0, 0.2], [1.0, 0.0, -0.5]], [[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]],
        requires_grad=True,
    )
    future, worth = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.5, -0.2], [1.0, 0.25]])
    policy_loss(logits.log_softmax(2), future, worth).backward()
    p = np.exp(logits.detach().numpy())
    p /= p.sum(2, keepdims=True)
    by_hand = -(np.eye(3)[future.numpy()] - p) * worth.numpy()[..., None] / 2
    assert np.allclose(logits.grad.numpy(), by_hand, atol=1e-6)


def test_draws_follow_the_scored_probabilities():
    policy, history = tiny_policy(), torch.tensor([[2, 0, 1]])
    futures, p = enumerate_futures(policy, history, 3)
    with torch.no_grad():
        scored = (
            policy.score(history.expand(8, -1), futures)
            .gather(2, futures[..., None])
            .sum((1, 2))
            .exp()
        )
        drawn = policy.draw(history.expand(20_000, -1), 3)
    assert torch.allclose(scored, p, atol=1e-6)
    share = torch.bincount((drawn * torch.tensor([4, 2, 1])).sum(1), minlength=8) / 20_000
    assert torch.allclose(share, p.detach(), atol=0.015)


def test_the_judge_sees_history_and_future():
    torch.manual_seed(0)
    judge = Discriminator(5).eval()
    history, futures = torch.randint(5, (3, 20)), torch.randint(5, (3, 4, 15))
    logits = judge(history, futures)
    alone = torch.stack([judge(history, futures[:, k : k + 1])[:, 0] for k in range(4)], dim=1)
    assert torch.allclose(logits, alone, atol=1e-5)
    assert not torch.allclose(judge(history.flip(0), futures), logits, atol=1e-4)


def test_pretraining_learns_who_repeats():
    store = random_store(users=30, behaviors=None, events=5, split=(0.8, 0.9))
    event = np.repeat(np.arange(30) % 5 + 2, np.diff(store.offsets)).astype(np.uint8)
    store.columns["event"] = event  # every user does one thing
    torch.manual_seed(0)
    settings = SeqGANSettings(events=4000, past=6, batch=16, lr=3e-2)
    policy = Policy(5, 8, 16)
    pretrain(policy, store, 10, settings, np.random.default_rng(0))
    history = torch.arange(5)[:, None].expand(5, 10)
    assert (policy.draw(history, 10) == torch.arange(5)[:, None]).float().mean() > 0.9


def test_blocks_hold_each_training_event_once_after_its_own_past():
    store = random_store(seed=4, users=25, split=(0.5, 0.6))
    behavior, split = (
        np.asarray(store.column("behavior")).astype(int),
        np.asarray(store.columns["split"]),
    )
    wanted = []
    for user in range(25):
        mine = np.arange(*store.offsets[user : user + 2])
        mine = behavior[mine[(split[mine] == 0) & (behavior[mine] >= 2)]] - 2
        wanted += [(tuple(mine[:p][-7:]), mine[p]) for p in range(1, len(mine))]
    history, future = blocks(store, 7, 6, np.random.default_rng(0))
    found = []
    for past, ahead in zip(history.tolist(), future.tolist(), strict=True):
        seen = [c for c in past if c < 5]
        for c in [c for c in ahead if c < 5]:
            found.append((tuple(seen[-7:]), c))
            seen.append(c)
    assert sorted(found) == sorted(wanted)
    whole = blocks(store, 7, 6, np.random.default_rng(0), least=6)[1]
    assert len(whole) == (future < 5).all(1).sum() > 0


def test_histories_are_padded_on_the_left():
    _, histories = setting()
    rows = last_classes(histories, 9, 5)
    for user, row in enumerate(rows.tolist()):
        mine = (histories.columns["behavior"][slice(*histories.offsets[user : user + 2])] - 2)[
            -9:
        ].tolist()
        assert row == [5] * (9 - len(mine)) + mine


def test_seeds_and_no_look_at_the_future():
    check_seeds_and_leaks(seqgan, TINY)


def check_seeds_and_leaks(generator, settings):
    """The same seed gives the same futures, another one others, and later splits change nothing."""
    store, histories = setting()
    histories = known(histories)
    before = torch.random.get_rng_state()
    columns, gap = generator(histories, store, 8, np.random.default_rng(5), settings)
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own state is left alone"
    assert gap.shape == columns["behavior"].shape == (len(histories.offsets) - 1, 8)
    assert (columns["behavior"] >= 2).all() and (gap >= 0).all()
    other, _ = generator(histories, store, 8, np.random.default_rng(6), settings)
    assert not np.array_equal(columns["event"], other["event"])
    rng, later = np.random.default_rng(0), np.asarray(store.columns["split"]) > 0
    for name in ("event", "behavior", "location", "slot"):
        column = np.array(store.columns[name])
        column[later] = rng.permutation(column[later])
        store.columns[name] = column
    again, gap_again = generator(histories, store, 8, np.random.default_rng(5), settings)
    assert all(np.array_equal(columns[name], again[name]) for name in columns)
    assert np.array_equal(gap, gap_again)
    events = set(
        zip(*(np.asarray(store.column(n)).tolist() for n in ("event", "behavior")), strict=True)
    )
    drawn = set(
        zip(columns["event"].ravel().tolist(), columns["behavior"].ravel().tolist(), strict=True)
    )
    assert drawn <= events | set(
        zip(*(histories.columns[n].tolist() for n in ("event", "behavior")), strict=True)
    )
