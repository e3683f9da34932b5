"""The model: packed = one at a time, GPT-2's arithmetic, and the traps of transformers 5."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model

import behavegpt.model
from behavegpt.batch import IGNORED, PADDING
from behavegpt.data import collate
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import (
    BehaveGPTConfig,
    BehaveGPTForBehaviorPrediction,
    BehaveGPTModel,
    chunks,
    history,
)
from behavegpt.model.config import GAP_BUCKETS
from behavegpt.model.size import count_parameters

SIZES = {"location": 9, "weekday": 7, "slot": 48, "event": 22}
VARIANTS = {
    "paper": {"num_behaviors": 5},
    "learned": {"num_behaviors": 5, "position_encoding": "learned"},
    "history": {"num_behaviors": 5, "history_head": True},
    "tied": {"num_behaviors": 20, "behavior_is_event": True, "tied_head": True},
    "both": {
        "num_behaviors": 20,
        "behavior_is_event": True,
        "tied_head": True,
        "history_head": True,
    },
    "behavior as input": {
        "num_behaviors": 5,
        "history_head": True,
        "field_sizes": {**SIZES, "behavior": 7},
    },
    "next": {"num_behaviors": 5, "next_heads": ["event", "location", "gap"]},
    "no blocks": {"num_behaviors": 5, "history_head": True, "num_hidden_layers": 0},
    "elapsed time": {"num_behaviors": 5, "gap": True, "position_encoding": "time"},
}


def make(variant: str = "paper", **more: object) -> BehaveGPTForBehaviorPrediction:
    torch.manual_seed(0)
    shape = {
        "field_sizes": SIZES,
        "embedding_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_length": 64,
        "dropout": 0.0,
    }
    model = BehaveGPTForBehaviorPrediction(
        BehaveGPTConfig(**{**shape, **VARIANTS[variant], **more})
    )
    with torch.no_grad():  # weights large enough that every part matters
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def histories(lengths: list[int], seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {
        "input_ids": 22,
        "location_ids": 9,
        "weekday_ids": 7,
        "slot_ids": 48,
        "behavior_ids": 7,
    }
    drawn = [
        {n: torch.randint(size, (1, k), generator=generator) for n, size in sizes.items()}
        for k in lengths
    ]
    for part, k in zip(drawn, lengths, strict=True):
        part["time_ids"] = torch.randint(100_000, (1, k), generator=generator).cumsum(1)
    return drawn


def packed(
    parts: list[dict[str, torch.Tensor]], row: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All histories in one row with padding behind."""
    used = sum(p["input_ids"].shape[1] for p in parts)
    inputs = {n: F.pad(torch.cat([p[n] for p in parts], 1), (0, row - used)) for n in parts[0]}
    document = torch.cat([torch.full_like(p["input_ids"], i) for i, p in enumerate(parts)], 1)
    return inputs, F.pad(document, (0, row - used), value=PADDING)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_packed_equals_one_history_at_a_time(variant, backend):
    model = make(variant)
    model.set_attn_implementation(backend)
    parts = histories([1, 17, 30, 2, 11])
    inputs, document = packed(parts, 64)
    together = model(**inputs, document=document).logits[:, : int((document >= 0).sum())]
    alone = torch.cat([model(**p).logits for p in parts], 1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    probe = torch.randn_like(alone)
    names, weights = zip(
        *[(n, p) for n, p in model.named_parameters() if "next_heads" not in n], strict=True
    )
    first = torch.autograd.grad((together * probe).sum(), weights)
    second = torch.autograd.grad((alone * probe).sum(), weights)
    for name, a, b in zip(names, first, second, strict=True):
        assert (a - b).abs().max() <= 1e-5 * (1 + b.abs().max()), name


@pytest.mark.parametrize("variant", ["paper", "both", "history"])
def test_neighbors_and_padding_change_nothing(variant):
    model = make(variant).eval()
    [mine] = histories([20], seed=1)
    alone = model(**mine).logits
    for seed in range(5):
        inputs, document = packed([*histories([7, 13], seed=seed + 2), mine], 50 + seed)
        torch.testing.assert_close(
            model(**inputs, document=document).logits[:, 20:40], alone, atol=1e-5, rtol=1e-5
        )
    padded = {n: F.pad(v, (6, 0), value=1) for n, v in mine.items()}
    mask = F.pad(torch.ones_like(mine["input_ids"]), (6, 0))
    torch.testing.assert_close(
        model(**padded, attention_mask=mask).logits[:, 6:], alone, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_future_changes_no_past_logit(variant):
    model = make(variant).eval()
    [mine] = histories([40], seed=3)
    before = model(**mine).logits
    for position in range(1, 40):
        changed = {n: v.clone() for n, v in mine.items()}
        for n, v in histories([40], seed=100 + position)[0].items():
            changed[n][:, position:] = v[:, position:]
        assert torch.equal(model(**changed).logits[:, :position], before[:, :position]), position


def test_without_blocks_the_past_counts_only_through_the_history_head():
    """The ablation that tells what the transformer adds: the event at hand, and the counts of the
    user's past."""
    [mine], [other] = histories([20], seed=1), histories([20], seed=2)
    # the same event after others
    other = {n: torch.cat([v[:, :-1], mine[n][:, -1:]], 1) for n, v in other.items()}
    blind, counting = (make("no blocks", history_head=head).eval() for head in (False, True))
    assert torch.equal(blind(**mine).logits[:, -1], blind(**other).logits[:, -1])
    assert not torch.equal(counting(**mine).logits[:, -1], counting(**other).logits[:, -1])
    changed = {n: v.clone() for n, v in mine.items()}
    changed["location_ids"][:, -1] = (mine["location_ids"][:, -1] + 1) % SIZES["location"]
    # but each of its fields
    assert not torch.equal(blind(**changed).logits[:, -1], blind(**mine).logits[:, -1])


def test_blocks_compute_what_gpt2_computes():
    """With learned positions the transformer is GPT-2's (Radford et al. 2019), to rounding."""
    model = make("learned").model.eval()
    width = model.config.hidden_size
    gpt2 = GPT2Model(
        GPT2Config(n_embd=width, n_layer=2, n_head=4, n_positions=64, vocab_size=3, attn_pdrop=0.0)
    ).eval()
    state = {"wpe.weight": model.embedding.position.weight, "wte.weight": gpt2.wte.weight}
    for i, b in enumerate(model.blocks):
        a = b.attention
        qkv = [a.q_proj, a.k_proj, a.v_proj]
        state |= {
            f"h.{i}.ln_1.weight": b.attention_norm.weight,
            f"h.{i}.ln_1.bias": b.attention_norm.bias,
            f"h.{i}.attn.c_attn.weight": torch.cat([p.weight.T for p in qkv], 1),
            f"h.{i}.attn.c_attn.bias": torch.cat([p.bias for p in qkv]),
            f"h.{i}.attn.c_proj.weight": a.o_proj.weight.T,
            f"h.{i}.attn.c_proj.bias": a.o_proj.bias,
            f"h.{i}.ln_2.weight": b.mlp_norm.weight,
            f"h.{i}.ln_2.bias": b.mlp_norm.bias,
            f"h.{i}.mlp.c_fc.weight": b.mlp_in.weight.T,
            f"h.{i}.mlp.c_fc.bias": b.mlp_in.bias,
            f"h.{i}.mlp.c_proj.weight": b.mlp_out.weight.T,
            f"h.{i}.mlp.c_proj.bias": b.mlp_out.bias,
        }
    state |= {"ln_f.weight": model.norm.weight, "ln_f.bias": model.norm.bias}
    gpt2.load_state_dict(state)
    [mine] = histories([50])
    tables = model.embedding.tables
    x = torch.cat([tables[f](mine["input_ids" if f == "event" else f"{f}_ids"]) for f in SIZES], -1)
    ours = model(**mine).last_hidden_state
    torch.testing.assert_close(ours, gpt2(inputs_embeds=x).last_hidden_state, atol=2e-5, rtol=1e-5)


def test_history_features_against_counting():
    """Each count against a loop."""
    model = make("history")
    lengths = [5, 23, 1, 12]
    parts = histories(lengths, seed=5)
    inputs, document = packed(parts, 48)
    select = document >= 0
    past = history.Past(
        inputs["input_ids"],
        inputs["behavior_ids"],
        inputs["location_ids"],
        inputs["slot_ids"],
        document,
        48,
    )
    found = model.history(past, select)
    dense = torch.zeros(len(found.counts), 5, 8).scatter_add(
        1, found.classes[..., None].expand(-1, -1, 8), found.counts
    )
    row = 0
    for part in parts:
        event, behavior, place, slot = (
            part[n][0].tolist() for n in ("input_ids", "behavior_ids", "location_ids", "slot_ids")
        )

        def near(a: int, b: int, slot: list[int] = slot) -> bool:  # an hour is two slots
            return min(abs(slot[a] - slot[b]), 48 - abs(slot[a] - slot[b])) <= 2

        for t in range(len(event)):
            want = torch.zeros(5, 8)
            for s in range(t + 1):
                if behavior[s] < 2:
                    continue
                like = [s > 0 and ids[s - 1] == ids[t] >= 2 for ids in (event, behavior, place)]
                simple = [1.0, math.exp((s - t) / 8), s == t, near(t, s)]
                want[behavior[s] - 2] += torch.tensor([*simple, *like, s > 0 and near(t, s - 1)])
            torch.testing.assert_close(dense[row], want)
            row += 1


@pytest.mark.parametrize("variant", ["both", "paper", "next"])
def test_chunked_loss_equals_the_whole_and_its_gradient(variant, monkeypatch):
    model = make(variant)
    inputs, document = packed(histories([30, 34]), 64)
    classes = model.config.num_behaviors
    labels = torch.randint(classes, document.shape)
    labels[:, ::5] = IGNORED
    sizes = {"event": 22, "location": 9, "gap": 56}
    following = {n: torch.randint(sizes[n], document.shape) for n in model.config.next_heads}
    criterion = build_loss(LossSettings(name="balanced_softmax"), torch.arange(1, classes + 1))

    def run():
        model.zero_grad()
        out = model(
            **inputs, document=document, labels=labels, criterion=criterion, next_fields=following
        )
        (out.loss + out.side_loss).backward()
        return out, [p.grad.clone() for p in model.parameters()]

    whole, expected = run()
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 7 * classes)
    chunked, found = run()
    torch.testing.assert_close(chunked.loss, whole.loss)
    torch.testing.assert_close(chunked.class_loss, whole.class_loss)
    assert torch.equal(chunked.class_count, whole.class_count)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load_keep_every_weight_and_the_field_order(variant, tmp_path):
    model = make(variant).eval()
    model.save_pretrained(tmp_path)
    again = BehaveGPTForBehaviorPrediction.from_pretrained(tmp_path).eval()
    assert list(again.config.field_sizes) == list(VARIANTS[variant].get("field_sizes", SIZES))
    for (name, a), (_, b) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    [mine] = histories([20])
    assert torch.equal(model(**mine).logits, again(**mine).logits)
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, BehaveGPTModel)
    assert torch.equal(body.eval()(**mine).last_hidden_state, model(**mine).last_hidden_state)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), BehaveGPTConfig)


@pytest.mark.parametrize("name", ["type", "keys", "training", "geo.city", "%type", "a.b%2Ec", "Ä"])
def test_a_column_may_have_any_name(name, tmp_path):
    sizes = {**SIZES, name: 4}
    model = make("paper", field_sizes=sizes)
    inputs = {**histories([9])[0], f"{name}_ids": torch.arange(9)[None] % 4}
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    found = BehaveGPTForBehaviorPrediction.from_pretrained(tmp_path)
    torch.testing.assert_close(found(**inputs).logits, expected, rtol=0, atol=0)
    other = model(**{**inputs, f"{name}_ids": torch.ones(1, 9, dtype=torch.long)}).logits
    assert not torch.equal(other, expected)


def test_the_history_head_begins_with_equal_chances():
    prior = make("history").head.history_gate.log_prior.exp()
    torch.testing.assert_close(prior, torch.full((5,), 1 / 5))


def test_there_is_no_buffer_that_loading_could_leave_uninitialized():
    for variant in VARIANTS:
        model = make(variant)
        assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())


def test_a_gate_of_one_is_the_smoothed_frequency_of_a_count_model():
    model = make("history").head
    counts = torch.tensor([50, 30, 15, 4, 1])
    model.set_prior(counts)
    prior = (counts + 0.5) / (counts + 0.5).sum()
    torch.nn.init.zeros_(model.dense.weight), torch.nn.init.zeros_(model.projection.weight)
    torch.nn.init.zeros_(model.dense.bias), torch.nn.init.zeros_(model.history_gate.gate.weight)
    model.history_gate.gate.bias.data = torch.eye(8)[0]
    model.history_gate.log_scale.data.fill_(-math.log(8.0))
    seen = torch.tensor([2.0, 0.0, 5.0, 1.0, 0.0])
    shown = history.History(seen[None, :, None].expand(1, 5, 8), torch.arange(5)[None])
    found = model(torch.randn(1, 32), shown).softmax(-1)[0]
    torch.testing.assert_close(found, (seen + 8 * prior) / (8 + 8))


def test_initialization_reaches_every_parameter():
    model = BehaveGPTForBehaviorPrediction(
        BehaveGPTConfig(field_sizes=SIZES, embedding_size=64, num_behaviors=50, history_head=True)
    )
    for name, parameter in model.named_parameters():
        std = float(parameter.float().std())
        if "norm" in name:
            assert torch.equal(
                parameter,
                torch.ones_like(parameter) if "weight" in name else torch.zeros_like(parameter),
            )
        elif name.endswith("history_gate.gate.bias"):
            assert torch.allclose(parameter, torch.tensor(1 / 8))
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("log_scale"):
            assert torch.allclose(parameter, torch.tensor(10.0).log().neg())
        else:
            small = "o_proj" in name or "mlp_out" in name
            wanted = 0.02 * math.sqrt(1024 / 256)  # at width 256
            assert std == pytest.approx(wanted / (math.sqrt(24) if small else 1), rel=0.1), name


@pytest.mark.parametrize(
    ("given", "width", "deviation"), [(None, 1024, 0.02), (None, 64, 0.08), (0.03, 64, 0.03)]
)
def test_new_weights_are_larger_in_narrow_models(given, width, deviation):
    config = BehaveGPTConfig(
        field_sizes=SIZES, embedding_size=width // 4, num_attention_heads=4, initializer_range=given
    )
    assert config.initializer_range == deviation


def test_the_model_folder_stands_alone():
    """`save_pretrained` with code copies siblings only: nothing else of the package may be
    imported."""
    for path in Path(behavegpt.model.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith("behavegpt") or name.startswith("behavegpt.model"), (
                    path.name,
                    name,
                )


@pytest.mark.parametrize(
    "shape,message",
    [
        ({"num_attention_heads": 5}, "multiple of"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 0, not -1"),
        ({"position_encoding": "sinus"}, "position_encoding"),
        ({"tied_head": True}, "tied_head needs behavior_is_event"),
        ({"behavior_is_event": True}, "behavior_is_event needs"),
        ({"next_heads": ["weather"]}, "next_heads"),
        ({"field_sizes": {"slot": 48}}, "event"),
        ({"field_sizes": {"event": 8}, "history_head": True}, "history_head reads the time slot"),
        ({"num_attention_heads": 0}, "num_attention_heads and embedding_size must be at least 1"),
        ({"max_length": 0}, "max_length, num_attention_heads"),
        ({"embedding_size": 0}, "embedding_size must be at least 1"),
        ({"embedding_size": 9, "num_attention_heads": 4}, "multiple of"),
        (
            {"field_sizes": {"event": 8}, "embedding_size": 3, "num_attention_heads": 1},
            r"hidden_size 3 .* must be a multiple of 2 \* num_attention_heads 1",
        ),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout must be in"),
        ({"next_heads": ["weekday"]}, "next_heads may name"),
        ({"field_sizes": {"event": 22, "slot": 48}, "next_heads": ["location"]}, "next_heads may"),
        ({"behavior_is_event": True, "num_behaviors": 22}, "behavior_is_event needs"),
        ({"field_order": ["event", "slot"]}, "field_order must name each"),
    ],
)
def test_contradictions_are_refused(shape, message):
    with pytest.raises(Exception, match=message):
        make(**shape)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_attention_heads": 1, "max_length": 1, "embedding_size": 1, "num_hidden_layers": 1},
        {"num_attention_heads": 16, "embedding_size": 8, "dropout": 0.99},
        {"next_heads": ["slot", "gap", "event", "location"]},
        {"field_sizes": {"event": 22, "slot": 48}, "history_head": True, "next_heads": ["gap"]},
    ],
)
def test_the_ends_of_the_bounds_of_a_shape_work(shape):
    assert make(**shape).config.hidden_size % 2 == 0


def test_the_defaults_are_the_papers():
    """Section 4.1.4; what it does not state, as docs/paper.md says."""
    paper = {
        "embedding_size": 256,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "head_size": 1024,
        "max_length": 90,
    }
    ours = {"position_encoding": "rope", "dropout": 0.1, "layer_norm_eps": 1e-5}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    extras = ("behavior_is_event", "history_head", "memory", "tied_head", "next_heads")
    config = BehaveGPTConfig()
    for name, value in (paper | ours | ids).items():
        assert getattr(config, name) == value, name
    assert not any(getattr(config, name) for name in extras)
    # the smallest that is a model at all: nothing but padding, unknown and one label
    assert config.field_sizes == {"location": 3, "weekday": 7, "slot": 48, "event": 3}
    assert config.num_behaviors == config.num_labels == 2


def test_what_a_shape_leaves_open_follows_from_its_width():
    config = BehaveGPTConfig(field_sizes=SIZES, embedding_size=8, num_attention_heads=2)
    assert (config.hidden_size, config.intermediate_size, config.head_size) == (32, 128, 32)
    given = BehaveGPTConfig(
        field_sizes=SIZES,
        embedding_size=8,
        num_attention_heads=2,
        intermediate_size=20,
        head_size=5,
        field_order=["event", "slot", "weekday", "location"],
    )
    model = BehaveGPTForBehaviorPrediction(given)
    assert list(model.model.embedding.tables) == ["event", "slot", "weekday", "location"]
    assert model.model.blocks[0].mlp_in.out_features == 20 and model.head.dense.out_features == 5
    assert given.columns == ("event", "slot", "weekday", "location")
    with_history = BehaveGPTConfig(
        field_sizes=SIZES, embedding_size=8, num_attention_heads=2, history_head=True
    )
    assert with_history.columns == (*SIZES, "behavior")


def test_a_key_value_cache_is_refused():
    [mine] = histories([5])
    with pytest.raises(ValueError, match="cache"):
        make()(**mine, use_cache=True)


def test_missing_inputs_are_named():
    [mine] = histories([5])
    with pytest.raises(ValueError, match="'slot'"):
        make()(**{n: v for n, v in mine.items() if n != "slot_ids"})
    with pytest.raises(ValueError, match="behavior_ids"):
        make("history")(**{n: v for n, v in mine.items() if n != "behavior_ids"})


def test_gradient_checkpointing_changes_no_gradient():
    parts, document = packed(histories([30, 20]), 64)
    found = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**parts, document=document).logits.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bf16_autocast_keeps_fp32_weights_and_gradients():
    model = make("both")
    [mine] = histories([30])
    exact = model(**mine).logits
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(**mine).logits
        rough.float().square().sum().backward()
    assert (
        {p.dtype for p in model.parameters()}
        == {torch.float32}
        == {p.grad.dtype for p in model.parameters()}
    )
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_bf16_autocast_rounds_no_count_of_the_history():
    """bf16 has no odd number between 256 and 512: behavior 0 at all of 300 events counts 1, 2, ..,
    300."""
    once = torch.zeros(1, 300, dtype=torch.long)
    past = history.Past(
        *(once + history.SPECIAL_IDS for _ in range(3)), slot=once, document=once, slots=48
    )
    features, everywhere = history.HistoryFeatures(), torch.ones_like(once, dtype=torch.bool)
    exact = features(past, everywhere)
    with torch.autocast("cpu", torch.bfloat16):
        rough = features(past, everywhere)
    assert exact.counts[:, 0, 0].tolist() == list(range(1, 301))
    assert rough.counts.dtype == torch.float32 and torch.equal(rough.counts, exact.counts)


def test_second_heads_count_in_full_and_apart_from_the_weights_of_the_loss():
    """Their sum is that of plain cross-entropies, whatever the criterion weights its classes
    with."""
    model = make("next").eval()
    [mine] = histories([30])
    labels = torch.randint(5, (1, 30))
    labels[0, ::4] = IGNORED
    kept = labels != IGNORED
    following = {n: torch.randint(9, labels.shape) for n in model.config.next_heads}
    predicted = model(**mine, select=kept).next_logits
    sums = [F.cross_entropy(predicted[n], following[n][kept], reduction="sum") for n in following]
    for settings in (
        LossSettings(name="cross_entropy"),
        LossSettings(name="class_balanced", start=0.0),
    ):
        criterion = build_loss(settings, torch.tensor([500, 50, 20, 4, 1]))
        out = model(**mine, labels=labels, criterion=criterion, next_fields=following)
        torch.testing.assert_close(out.side_loss, torch.stack(sums).sum())
        torch.testing.assert_close(
            out.loss, criterion.total(model(**mine, select=kept).logits, labels[kept])
        )


def test_configs_of_earlier_versions_load_with_the_gap_heads_size():
    old = make("next").config.to_dict() | {"gap_buckets": GAP_BUCKETS}
    config = BehaveGPTConfig.from_dict(old)
    assert "gap_buckets" not in config.to_dict()
    assert (
        BehaveGPTForBehaviorPrediction(config).next_heads["gap"].out_features == collate.GAP_BUCKETS
    )
    with pytest.raises(ValueError, match="gap_buckets is 56"):
        BehaveGPTConfig.from_dict(old | {"gap_buckets": 20})


def test_trainer_style_labels_give_the_mean_loss():
    model = make()
    [mine] = histories([12])
    labels = torch.randint(5, (1, 12))
    labels[0, 3] = IGNORED
    out = model(**mine, labels=labels)
    kept = labels != IGNORED
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[kept], labels[kept]))
    torch.testing.assert_close(
        model(**mine, labels=labels, num_items_in_batch=22).loss, out.loss * 11 / 22
    )


def test_selected_positions_are_the_rows_of_the_whole():
    model = make("both").eval()
    inputs, document = packed(histories([12, 9]), 32)
    select = torch.rand(document.shape) < 0.4
    whole = model(**inputs, document=document).logits
    torch.testing.assert_close(
        model(**inputs, document=document, select=select).logits, whole[select]
    )


def test_parameters_are_counted_by_part():
    counts = count_parameters(make("both"))
    model = make("both")
    assert counts["embeddings"] == sum(SIZES.values()) * 8
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    paper = BehaveGPTConfig(
        field_sizes={"location": 2000, "weekday": 7, "slot": 48, "event": 116}, num_behaviors=39
    )
    with torch.device("meta"):
        size = count_parameters(BehaveGPTForBehaviorPrediction(paper))
    assert size["blocks"] / 1e6 == pytest.approx(151.2, abs=0.1), "12 layers of width 1024"
    assert size["head"] / 1e6 == pytest.approx(1.1, abs=0.05)


def test_hidden_states_on_request():
    out = make()(**histories([5])[0], output_hidden_states=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(1, 5, 32)] * 3


@pytest.mark.slow
def test_compiled_equals_eager():
    model = make("both").eval()
    [mine] = histories([30])
    torch.testing.assert_close(
        torch.compile(model)(**mine).logits, model(**mine).logits, atol=1e-5, rtol=1e-5
    )


def test_importing_the_package_is_light():
    code = (
        "import sys, behavegpt, behavegpt.cli; sys.exit(any(m in sys.modules for m in ('torch', "
        "'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_under_autocast_attention_gets_one_dtype(backend, monkeypatch):
    """The variable-length kernels refuse mixed ones."""
    from behavegpt.model import attention

    seen = []
    real = attention.BACKENDS[backend]

    def spy(q, k, v, plan):
        seen.append({q.dtype, k.dtype, v.dtype})
        return real(q, k, v, plan)

    monkeypatch.setitem(attention.BACKENDS, backend, spy)
    model = make()
    model.set_attn_implementation(backend)
    with torch.autocast("cpu", torch.bfloat16):
        model(**histories([9])[0])
    assert seen == [{torch.bfloat16}] * 2
