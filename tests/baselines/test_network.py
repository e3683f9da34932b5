"""Every baseline: packed = one history at a time, nothing from the future, saved = loaded, all of
it learns."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForTokenClassification

from behavegpt.baselines.architectures import ARCHITECTURES, baseline_config
from behavegpt.baselines.network import BaselineForBehaviorPrediction, BaselineModel, start_baseline
from behavegpt.batch import IGNORED
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import ConfigError
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction, EventCache, chunks
from behavegpt.model.size import count_parameters
from behavegpt.training.model_folder import open_model, save_model
from tests.baselines.makers import FREE, SHAPE, STORES, histories, make, packed

VARIANTS = {name: {"architecture": name} for name in FREE} | {
    "gru, own history": {"architecture": "gru", "history_head": True},
    "gru, event only": {"architecture": "gru", "inputs": "event_only"},
    "hstu, known": {"architecture": "hstu", "options": {"target_time": "known"}},
    "tailnet, add": {"architecture": "tailnet", "options": {"gate": "add"}},
    "lift": {"architecture": "lift"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A BehaveGPT for each store, as LIFT's base."""
    folders = {}
    for is_event, store in STORES.items():
        config = BehaveGPTConfig(
            field_sizes=store.field_sizes(),
            num_behaviors=store.behaviors.classes,
            behavior_is_event=is_event,
            tokenizer_hash=EventTokenizer.from_store(store, 1).hash,
            **SHAPE,
        )
        folders[is_event] = tmp_path_factory.mktemp("base") / "model"
        save_model(
            BehaveGPTForBehaviorPrediction(config),
            EventTokenizer.from_store(store, 64),
            folders[is_event],
        )
    return folders


@pytest.fixture
def build(bases):
    def of(variant: str, is_event: bool = True) -> BaselineForBehaviorPrediction:
        settings = dict(VARIANTS[variant])
        if settings["architecture"] == "lift":
            settings["options"] = {"base": str(bases[is_event]), "branch": 4}
        return make(is_event=is_event, **settings)

    return of


def test_every_architecture_is_tested():
    assert {variant["architecture"] for variant in VARIANTS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("is_event", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_one_history_at_a_time(build, variant, is_event):
    model = build(variant, is_event)
    parts = histories([1, 17, 25, 2, 11], is_event=is_event)
    inputs, document = packed(parts, 64)
    together = model(**inputs, document=document).logits[:, :56]
    alone = torch.cat([model(**p).logits for p in parts], 1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    said = alone.detach()
    assert float(said.std(-1).min()) > 1e-3 and float(said.std(1).max()) > 1e-3, (
        "the scores must say something"
    )
    probe = torch.randn_like(alone)
    named = [
        (n, p) for n, p in model.named_parameters() if p.requires_grad and "next_heads" not in n
    ]
    first, second = (
        torch.autograd.grad((logits * probe).sum(), [p for _, p in named])
        for logits in (together, alone)
    )
    for (name, _), a, b in zip(named, first, second, strict=True):
        assert (a - b).abs().max() <= 2e-5 * (1 + b.abs().max()), name


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "hstu, known"])
def test_the_future_changes_no_past_logit(build, variant):
    """A later event, its time included, changes nothing before it; and it does change what comes
    after."""
    model = build(variant, is_event=False)
    [mine] = histories([30], seed=3, is_event=False)
    before = model(**mine).logits
    for position in range(1, 30):
        changed = {n: v.clone() for n, v in mine.items()}
        for n, v in histories([30], seed=100 + position, is_event=False)[0].items():
            changed[n][:, position:] = v[:, position:]
        after = model(**changed).logits
        # not bit for bit: how many different behaviors a row shows decides the shape of the history
        # head's products
        torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=0)
        assert (after[:, position:] - before[:, position:]).abs().max() > 1e-3


def test_the_known_target_time_leaks_the_next_events_time_and_nothing_else(build):
    model = build("hstu, known")
    [mine] = histories([30], seed=3)
    before = model(**mine).logits
    for position in range(1, 30):
        [other] = histories([30], seed=100 + position)
        changed = {
            n: torch.cat([v[:, :position], other[n][:, position:]], 1) for n, v in mine.items()
        }
        after = model(**changed).logits
        assert torch.equal(after[:, : position - 1], before[:, : position - 1])
        changed["time_ids"] = mine["time_ids"]
        assert torch.equal(model(**changed).logits[:, :position], before[:, :position])
    assert not torch.equal(after[:, position - 1], before[:, position - 1]), (
        "the option has an effect"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_on_the_left_changes_nothing(build, variant):
    model = build(variant, is_event=False)
    [mine] = histories([20], seed=1, is_event=False)
    padded = {n: F.pad(v, (6, 0), value=1) for n, v in mine.items()}
    mask = F.pad(torch.ones_like(mine["input_ids"]), (6, 0))
    found = model(**padded, attention_mask=mask).logits[:, 6:]
    torch.testing.assert_close(found, model(**mine).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_is_the_same_class_and_number(build, variant, tmp_path):
    model = build(variant)
    save_model(model, EventTokenizer.from_store(STORES[True], 64), tmp_path / "model")
    again, _ = open_model(tmp_path / "model")
    assert type(again) is BaselineForBehaviorPrediction
    for (name, a), (other, b) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(a, b), name
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())
    [mine] = histories([20])
    torch.testing.assert_close(
        model(**mine).logits, again.eval()(**mine).logits, atol=1e-5, rtol=1e-5
    )
    body = AutoModel.from_pretrained(tmp_path / "model").eval()
    assert isinstance(body, BaselineModel)
    torch.testing.assert_close(
        body(**mine).last_hidden_state, model(**mine).last_hidden_state, atol=1e-5, rtol=1e-5
    )
    assert "/" not in json.dumps(model.config.options), "no path of the base stays in the config"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_reaches_every_parameter(build, variant):
    model = build(variant, is_event=False).train()
    parts = histories([30, 20, 12], is_event=False)
    inputs, document = packed(parts, 64)
    classes = model.config.num_behaviors
    labels = torch.where(document >= 0, torch.randint(classes, document.shape), IGNORED)
    sizes = {"event": 14, "location": 6, "slot": 48}
    following = {n: torch.randint(sizes[n], document.shape) for n in model.config.next_heads}
    criterion = build_loss(LossSettings(name="two_distributions"), torch.arange(1, classes + 1))
    criterion.set_progress(0.5)
    out = model(
        **inputs, document=document, labels=labels, criterion=criterion, next_fields=following
    )
    (out.loss + out.side_loss).backward()
    assert float(out.class_count.sum()) == 62
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and bool(parameter.grad.any()), name
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"embedding", "encoder"} if variant == "lift" else set())
    assert count_parameters(model)["total"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("variant", ["cdn", "tailnet", "pituning_like", "gru, own history"])
def test_a_loss_in_pieces_equals_the_whole(build, variant, monkeypatch):
    model = build(variant).train()
    inputs, document = packed(histories([30, 34]), 64)
    classes = model.config.num_behaviors
    labels = torch.randint(classes, document.shape)
    labels[:, ::5] = IGNORED
    following = {n: torch.randint(6, document.shape) for n in model.config.next_heads}
    criterion = build_loss(
        LossSettings(name="sampled_softmax", negatives=4), torch.arange(1, classes + 1)
    )

    def run():
        torch.manual_seed(5)
        model.zero_grad()
        out = model(
            **inputs, document=document, labels=labels, criterion=criterion, next_fields=following
        )
        (out.loss + out.side_loss).backward()
        return out, [p.grad.clone() for p in model.parameters()]

    whole, expected = run()
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 7 * classes)
    pieces, found = run()
    torch.testing.assert_close(pieces.loss, whole.loss)
    torch.testing.assert_close(pieces.class_loss, whole.class_loss)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_selected_positions_and_labels_alone_as_in_the_model(build):
    model = build("sasrec")
    inputs, document = packed(histories([30, 20]), 64)
    select = torch.rand(document.shape) < 0.3
    whole = model(**inputs, document=document).logits
    torch.testing.assert_close(
        model(**inputs, document=document, select=select).logits, whole[select]
    )
    labels = torch.where(select, torch.randint(12, document.shape), IGNORED)
    found = model(**inputs, document=document, labels=labels)
    torch.testing.assert_close(found.loss, F.cross_entropy(whole[select], labels[select]))


def test_what_a_baseline_cannot_do_is_refused(build, bases):
    model = build("gru")
    [mine] = histories([5])
    with pytest.raises(ConfigError, match="gru predicts and embeds, but cannot generate"):
        model(**mine, past_key_values=EventCache(model.config))
    with pytest.raises(ValueError, match="'slot'"):
        model(**{n: v for n, v in mine.items() if n != "slot_ids"})
    with pytest.raises(Exception, match="history_head reads the time slot"):
        make("gru", inputs="event_only", history_head=True)
    with pytest.raises(ConfigError, match=r"options\.base"):
        make("lift")
    with pytest.raises(ConfigError, match="other labels"):
        settings = {"architecture": "lift", "options": {"base": str(bases[True])}}
        start_baseline(baseline_config(settings, STORES[False]), STORES[False])
    with pytest.raises(ValueError, match=r"num_hidden_layers is that of options\.base"):
        baseline_config({**settings, "num_hidden_layers": 5}, STORES[True])


def test_lift_starts_as_the_frozen_base_with_class_means(bases):
    store = STORES[True]
    base, _ = open_model(bases[True])
    settings = {"architecture": "lift", "options": {"base": str(bases[True])}}
    model = start_baseline(baseline_config(settings, store), store).eval()
    [mine] = histories([20])
    base_state = base.eval().model(**mine).last_hidden_state
    torch.testing.assert_close(model(**mine).last_hidden_state, base_state)
    classes = F.normalize(model.head.classes.weight, dim=-1)
    torch.testing.assert_close(
        model(**mine).logits, 25 * F.normalize(base_state, dim=-1) @ classes.T
    )
    # the mean unit state before class 0 in training, event by event
    total = torch.zeros(32)
    for begin, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        ids = {
            n: torch.from_numpy(store.columns[n][begin:end].astype(int))[None]
            for n in store.field_sizes()
        }
        ids["input_ids"] = ids.pop("event")
        state = base.model(
            **{n if n == "input_ids" else f"{n}_ids": v for n, v in ids.items()}
        ).last_hidden_state[0]
        for at in range(begin + 1, end):
            if store.columns["split"][at] == 0 and store.columns["event"][at] == 2:
                total += F.normalize(state[at - begin - 1], dim=-1).detach()
    torch.testing.assert_close(
        model.head.classes.weight[0], F.normalize(total, dim=-1), atol=1e-5, rtol=1e-4
    )


def test_auto_class_restores_the_model_itself_too(bases):
    assert (
        type(AutoModelForTokenClassification.from_pretrained(bases[True]))
        is BehaveGPTForBehaviorPrediction
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_autocast_is_rough_but_right(build, variant):
    model = build(variant)
    [mine] = histories([30])
    exact = model(**mine).logits
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(**mine).logits
        rough.float().square().sum().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (rough.float() - exact).abs().max() < 0.15 * exact.abs().max()
