"""The key-value cache: the same logits as without, for ragged rows, any padding and every part of
the model."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from behavegpt.model import EventCache
from behavegpt.model.generation import next_event_logits
from tests.model.test_model import VARIANTS, histories, make, packed

LENGTHS = [3, 20, 1, 11]
UNDRAWN = ("behavior_ids", "time_ids")  # what transformers' generate does not draw


def padded(parts, side, width=None):
    width = width or max(p["input_ids"].shape[1] for p in parts)
    room = [width - p["input_ids"].shape[1] for p in parts]
    pad = [(r, 0) if side == "left" else (0, r) for r in room]
    fields = {
        n: torch.cat([F.pad(p[n], by, value=1) for p, by in zip(parts, pad, strict=True)])
        for n in parts[0]
    }
    mask = torch.cat(
        [F.pad(torch.ones_like(p["input_ids"]), by) for p, by in zip(parts, pad, strict=True)]
    )
    return fields, mask


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@torch.no_grad()
def test_cached_equals_whole(variant, side, backend):
    """Histories of different lengths, fed as a batch with padding and then event by event."""
    model = make(variant).eval()
    model.set_attn_implementation(backend)
    whole = histories([n + 9 for n in LENGTHS], seed=7)
    parts = [{n: v[:, :-9] for n, v in h.items()} for h in whole]
    fields, mask = padded(parts, side)
    cache = EventCache(model.config)
    found = [model(**fields, attention_mask=mask, past_key_values=cache)]
    for step in range(9):
        new = {
            n: torch.cat([h[n][:, k + step, None] for h, k in zip(whole, LENGTHS, strict=True)])
            for n in fields
        }
        found.append(model(**new, past_key_values=cache))
    assert cache.lengths.tolist() == [n + 9 for n in LENGTHS]
    for row, history in enumerate(whole):
        expected = model(**history)
        logits = torch.stack([out.logits[row, 0] for out in found])
        torch.testing.assert_close(
            logits, expected.logits[0, LENGTHS[row] - 1 :], atol=2e-5, rtol=1e-5
        )
        for name in model.config.next_heads:
            ours = torch.stack([out.next_logits[name][row] for out in found])
            places = expected.next_logits[name].view(1, len(history["input_ids"][0]), -1)
            torch.testing.assert_close(ours, places[0, LENGTHS[row] - 1 :], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_are_taken_and_put():
    model = make("both").eval()
    parts = histories([12, 5, 30], seed=4)
    fields, mask = padded(parts, "right")
    cache, other = EventCache(model.config), EventCache(model.config)
    model(**fields, attention_mask=mask, past_key_values=cache)
    cache.take(torch.tensor([2, 0]))
    [fresh] = histories([7], seed=9)
    model(**fresh, past_key_values=other)
    cache.put(torch.tensor([0]), other)
    [new] = histories([1], seed=11)
    out = model(**{n: v.expand(2, -1) for n, v in new.items()}, past_key_values=cache).logits
    for row, past in enumerate((fresh, parts[0])):
        expected = model(**{n: torch.cat([past[n], new[n]], 1) for n in new}).logits[0, -1]
        torch.testing.assert_close(out[row, 0], expected, atol=2e-5, rtol=1e-5)


def test_transformers_neither_compiles_nor_crops_the_cache():
    """Its slots are the histories' own, whatever the columns of the batches."""
    assert not EventCache.is_compileable and not EventCache.is_croppable
    cache = EventCache(make().config)
    fields, mask = padded(histories([3, 5]), "left", width=8)
    make().eval()(**fields, attention_mask=mask, past_key_values=cache)
    assert cache.get_seq_length() == 8 and cache.lengths.tolist() == [3, 5]


def test_packed_input_and_overfull_windows_are_refused():
    model = make().eval()
    inputs, document = packed(histories([5, 6]), 16)
    with pytest.raises(ValueError, match="packed"):
        model(**inputs, document=document, past_key_values=EventCache(model.config))
    with pytest.raises(ValueError, match="packed"):
        model(**inputs, document=document, use_cache=True)
    with pytest.raises(ValueError, match="EventCache"):
        model(**histories([5])[0], use_cache=True)
    # the body alone too
    with pytest.raises(ValueError, match="packed"):
        model.model(**inputs, document=document, past_key_values=EventCache(model.config))
    cache = EventCache(model.config)
    model(**histories([64])[0], past_key_values=cache)
    with pytest.raises(ValueError, match="window of 64"):
        model(**histories([1])[0], past_key_values=cache)


# ---- transformers' generate


def naive(model, history, steps, choose=torch.argmax):
    """The whole prefix again for every event; time and place repeat their last values."""
    fields = dict(history)
    for _ in range(steps):
        out = model(**fields)
        following = {
            n: head.view(1, -1, head.shape[-1])[:, -1]
            for n, head in (out.next_logits or {}).items()
        }
        ids = next_event_logits(model.config, out.logits[:, -1], following)
        fields = {n: torch.cat([v, v[:, -1:]], 1) for n, v in fields.items()}
        fields["input_ids"][0, -1] = choose(ids[0])
    return fields["input_ids"]


@pytest.mark.parametrize("variant", ["tied", "both", "next"])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_generate_equals_a_naive_loop(variant, use_cache):
    model = make(variant).eval()
    parts = [{n: v for n, v in h.items() if n not in UNDRAWN} for h in histories(LENGTHS, seed=2)]
    fields, mask = padded(parts, "left")
    found = model.generate(
        **fields, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=use_cache
    )
    for row, history in enumerate(parts):
        assert torch.equal(found[row, -12:], naive(model, history, 12)[0, -12:])


class Never(LogitsProcessor):
    def __init__(self, event):
        self.event = event

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.event] = -torch.inf
        return scores


class Until(StoppingCriteria):
    def __init__(self, event):
        self.event = event

    def __call__(self, input_ids, scores, **_):
        return input_ids[:, -1] == self.event


@torch.no_grad()
def test_processors_stopping_and_observed_fields():
    model = make("tied").eval()
    [mine] = [{n: v for n, v in h.items() if n not in UNDRAWN} for h in histories([9], seed=3)]
    plain = model.generate(**mine, max_new_tokens=10, do_sample=False)[0, 9:]
    assert plain.min() >= 2, "neither padding nor unknown"
    banned = int(plain[0])
    found = model.generate(
        **mine,
        max_new_tokens=10,
        do_sample=False,
        logits_processor=LogitsProcessorList([Never(banned)]),
    )
    assert banned not in found[0, 9:]
    stop = StoppingCriteriaList([Until(int(plain[4]))])
    stopped = model.generate(**mine, max_new_tokens=10, do_sample=False, stopping_criteria=stop)
    end = plain.tolist().index(int(plain[4])) + 1
    assert torch.equal(stopped[0, 9:], plain[:end])
    longer = {n: torch.cat([v, (v + 3) % 7], 1) for n, v in mine.items() if n != "input_ids"}
    other = model.generate(
        input_ids=mine["input_ids"], **longer, max_new_tokens=10, do_sample=False
    )
    cut = model.generate(
        input_ids=mine["input_ids"],
        **{n: v[:, :12] for n, v in longer.items()},
        max_new_tokens=4,
        do_sample=False,
    )
    assert not torch.equal(other[0, 9:], plain)
    assert torch.equal(cut[0], other[0, :13]), "a field given for the future is used"
    samples = model.generate(**mine, max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert samples.shape == (3, 14)


def test_what_generate_refuses():
    [mine] = histories([9])
    events = {n: v for n, v in mine.items() if n not in UNDRAWN}
    with pytest.raises(ValueError, match="reads the time of each event"):
        make("elapsed time").generate(**events, max_new_tokens=2)
    with pytest.raises(ValueError, match="beam"):
        make("tied").generate(**events, max_new_tokens=2, num_beams=3)
    with pytest.raises(ValueError, match="behaviors, not events"):
        make("paper").generate(**events, max_new_tokens=2)
    with pytest.raises(ValueError, match="history head"):
        make("next", history_head=True).generate(**events, max_new_tokens=2)
    with pytest.raises(ValueError, match="window of 64"):
        make("tied").eval().generate(**events, max_new_tokens=80, do_sample=False)
    with pytest.raises(ValueError, match="wekday_ids"):
        make("tied").generate(**events, wekday_ids=mine["slot_ids"], max_new_tokens=2)
