"""The model on baskets: no order inside, nothing of the basket that is asked for, the same in any
packing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behavegpt.data.basket_batches import collate_baskets
from behavegpt.data.baskets import Baskets, baskets_of
from behavegpt.data.pack import Windows, pack_rows
from behavegpt.losses import build_loss
from behavegpt.losses.base import CrossEntropy
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction, chunks
from behavegpt.model.cache import EventCache

SIZES, CLASSES, ROW = [3, 1, 4, 2, 5], 6, 16
BEGIN = np.append(0, np.cumsum(SIZES))


def columns_of(seed: int = 0) -> dict[str, np.ndarray]:
    """One user's 15 events in 5 baskets."""
    rng = np.random.default_rng(seed)
    number = len(range(BEGIN[-1]))
    return {
        "event": rng.integers(2, 12, number),
        "behavior": rng.integers(2, 2 + CLASSES, number),
        "weekday": np.repeat(rng.integers(0, 7, len(SIZES)), SIZES),
        "slot": np.repeat(rng.integers(0, 48, len(SIZES)), SIZES),
        "basket": np.repeat(np.arange(len(SIZES)), SIZES),
    }


def model_of(**shape: Any) -> BehaveGPTForBehaviorPrediction:
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes={"weekday": 7, "slot": 48, "event": 12},
        num_behaviors=CLASSES,
        embedding_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_length=ROW,
        baskets=True,
        **shape,
    )
    return BehaveGPTForBehaviorPrediction(config).eval()


def batch_of(
    columns: dict[str, np.ndarray], starts: tuple[int, ...] = (0,), baskets: int = 4
) -> Any:
    """A row of one window or more of so many baskets, each from a basket on."""
    cut = baskets_of(columns, np.array([0, BEGIN[-1]]))
    count = len(starts)
    windows = Windows(np.array(starts), np.full(count, baskets), np.zeros(count, np.int64))
    plan = pack_rows(windows, ROW)
    return collate_baskets(
        columns, cut, plan, np.arange(plan.rows), ROW, ("event", "weekday", "slot")
    )


def logits_of(model: Any, batch: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**batch.arguments, **options).logits
    return found


def shuffled(columns: dict[str, np.ndarray], basket: int) -> dict[str, np.ndarray]:
    """The columns with the events of one basket the other way round."""
    index = np.arange(BEGIN[-1])
    part = slice(BEGIN[basket], BEGIN[basket + 1])
    index[part] = index[part][::-1]
    return {name: column[index] for name, column in columns.items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("encoding", ["rope", "learned", "none"])
def test_no_order_inside_a_basket(attention: str, encoding: str) -> None:
    model = model_of(position_encoding=encoding)
    model.set_attn_implementation(attention)
    columns = columns_of()
    every = torch.ones(1, ROW, dtype=torch.bool)
    expected = logits_of(model, batch_of(columns), select=every)[:4]
    for basket in range(4):
        found = logits_of(model, batch_of(shuffled(columns, basket)), select=every)[:4]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    # but baskets have one: it is told by the positions, without which those before are a set too
    if encoding != "none":
        swapped = {**columns, "event": np.roll(columns["event"], 3)}
        assert not torch.allclose(
            logits_of(model, batch_of(swapped), select=every)[:4], expected, atol=1e-4
        )


def test_nothing_of_a_basket_is_known_where_it_is_asked_for() -> None:
    model, columns = model_of(), columns_of()
    batch = batch_of(columns)
    expected = logits_of(model, batch)
    asked = batch.baskets["asked"]
    for basket in range(1, 4):
        changed = {name: column.copy() for name, column in columns.items()}
        part = slice(BEGIN[basket], BEGIN[basket + 1])
        for name, ids in (("event", 12), ("weekday", 7), ("slot", 48)):
            changed[name][part] = (changed[name][part] - 2 + 1) % (ids - 2) + 2
        found = logits_of(model, batch_of(changed))
        # position p asks for basket p + 1
        before, after = asked < basket, asked >= basket
        assert torch.equal(found[before], expected[before])
        # and whatever came before is seen, by everything behind it
        assert ((found - expected)[after].abs().amax(-1) > 1e-6).all()


def test_each_behavior_of_the_next_basket_is_asked_for_once() -> None:
    columns = columns_of()
    batch = batch_of(columns)
    for position in range(4):
        part = slice(BEGIN[position + 1], BEGIN[position + 2])
        here = batch.baskets["asked"] == position
        members = set((columns["behavior"][part] - 2).tolist())
        assert sorted(batch.target[here].tolist()) == sorted(members)
        assert batch.baskets["share"][here].sum() == pytest.approx(1)
        assert (
            columns["behavior"][batch.row[here].numpy()] - 2 == batch.target[here].numpy()
        ).all()


def test_histories_packed_side_by_side_do_not_see_each_other() -> None:
    model, columns = model_of(), columns_of()
    together = batch_of(columns, (0, 1, 2), 2)
    assert together.document.shape == (1, ROW)
    found = logits_of(model, together)
    for number, start in enumerate((0, 1, 2)):
        alone = logits_of(model, batch_of(columns, (start,), 2))
        place = torch.isin(together.baskets["asked"], torch.tensor([2 * number, 2 * number + 1]))
        torch.testing.assert_close(found[place], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "dro"])
def test_the_loss_is_the_mean_over_each_baskets_members(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model_of(dropout=0.0), batch_of(columns_of())
    criterion = CrossEntropy(torch.ones(CLASSES))
    if name == "dro":
        from behavegpt.losses import LossSettings

        criterion = build_loss(LossSettings(name="dro", start=0.0), torch.arange(1, CLASSES + 1))
        criterion.update(torch.arange(CLASSES).float(), torch.ones(CLASSES))
        assert len(set(criterion.class_weight.tolist())) > 1

    logits = logits_of(model, batch)
    weight = criterion.weight(batch.target)
    expected = 0.0
    for position in range(4):
        here = batch.baskets["asked"] == position
        each = weight[here] * torch.nn.functional.cross_entropy(
            logits[here], batch.target[here], reduction="none"
        )
        expected += float(each.mean())

    # whole, and in chunks whose gradients are made in the forward pass
    gradients = []
    for elements in (1 << 20, 2 * CLASSES):
        monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", elements)
        model.zero_grad()
        loss = model(**batch.arguments, labels=batch.target, criterion=criterion).loss
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=1e-4)


def test_a_batch_without_targets_has_no_loss() -> None:
    model, columns = model_of(), columns_of()
    columns["behavior"][:] = 1  # unknown
    batch = batch_of(columns)
    output = model(**batch.arguments, labels=batch.target, criterion=CrossEntropy(torch.ones(6)))
    assert len(batch.target) == 0
    assert float(output.loss) == 0


CONTRADICTIONS = [
    {"gap": True},
    {"position_encoding": "time"},
    {"history_head": True},
    {"next_heads": ["event"]},
    {"given": ["time"]},
]


@pytest.mark.parametrize("shape", CONTRADICTIONS, ids=lambda shape: next(iter(shape)))
def test_what_a_set_at_one_moment_does_not_have_is_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="a basket is a set"):
        model_of(**shape)


def calls() -> Iterator[tuple[str, dict[str, Any]]]:
    arguments = batch_of(columns_of()).arguments
    yield "baskets=", {k: v for k, v in arguments.items() if k != "baskets"}
    yield "baskets=", {k: v for k, v in arguments.items() if k != "document"}
    yield "no key-value cache", {**arguments, "past_key_values": EventCache(model_of().config)}


@pytest.mark.parametrize("number", range(3))
def test_calls_that_tell_no_baskets_are_refused(number: int) -> None:
    message, arguments = list(calls())[number]
    with pytest.raises(ValueError, match=message):
        model_of()(**arguments)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model, batch = model_of(), batch_of(columns_of())
    model.save_pretrained(tmp_path)
    again = BehaveGPTForBehaviorPrediction.from_pretrained(tmp_path).eval()
    assert again.config.baskets
    assert torch.equal(logits_of(again, batch), logits_of(model, batch))


def test_a_basket_of_one_event_is_that_event() -> None:
    """Singletons give what a model of events gives."""
    columns = columns_of() | {"basket": np.arange(BEGIN[-1])}
    cut: Baskets = baskets_of(columns, np.array([0, BEGIN[-1]]))
    plan = pack_rows(Windows(np.array([0]), np.array([14]), np.array([0])), ROW)
    batch = collate_baskets(columns, cut, plan, np.arange(1), ROW, ("event", "weekday", "slot"))
    model = model_of()
    plain = BehaveGPTForBehaviorPrediction(
        BehaveGPTConfig(**{**model.config.to_dict(), "baskets": False})
    ).eval()
    plain.load_state_dict(model.state_dict())
    ids = {name: ids[None] for name, ids in batch.inputs.items()}
    with torch.no_grad():
        expected = plain(**ids).logits[0]
    torch.testing.assert_close(logits_of(model, batch), expected, atol=1e-5, rtol=1e-5)
