"""Each part of the prediction layer against its formula, one position and one class at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import (
    BehaveGPTConfig,
    BehaveGPTForBehaviorPrediction,
    chunks,
    head,
    head_loss,
)
from behavegpt.model.block import rope_tables, rotate
from behavegpt.model.history import History
from behavegpt.model.mixer import Memory, Mixer
from behavegpt.model.precision import choose_precision
from tests.model.test_model import SIZES, histories, make

ROWS, CLASSES, EXPERTS, STATE = 4, 7, 3, 5


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """One vector through a linear layer."""
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


# ---- the mixer


def random_memory() -> Memory:
    """Positions with 3, 2, 1 and no candidates, classes seen and never seen, a gap of nothing."""
    torch.manual_seed(1)
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    return Memory(
        owner=owner,
        classes=torch.tensor([6, 0, 3, 2, 5, 1]),
        probability=torch.rand(6, EXPERTS),
        age=torch.tensor([[0.0, 9.0], [3, 400], [-1, -1], [1, 0], [-1, -1], [20, 90000]]),
        rest=torch.rand(ROWS, EXPERTS),
        evidence=torch.rand(ROWS, EXPERTS - 1) * 9,
        reliability=torch.cat([-torch.rand(ROWS, EXPERTS - 1) * 3, torch.rand(ROWS, 1) * 12], 1),
        context=torch.tensor(
            [[9.0, 4, 13, 4, 60], [1, 1, 0, 5, 0], [30, 2, 47, 6, -3], [0, 0, 20, 0, 1e6]]
        ),
    )


def random_mixer(state_size: int) -> Mixer:
    torch.manual_seed(2)
    mixer = Mixer(EXPERTS, hidden_size=6, summary_size=4, state_size=state_size, dropout=0.5).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return mixer


def what_is_known(memory: Memory, n: int, classes: int) -> torch.Tensor:
    """c of position n: evidence, reliability, and the moment."""
    known, different, half_hour, weekday, gap = memory.context[n].tolist()
    angle = 2 * math.pi * half_hour / 48
    moment = [
        math.log(1 + known) / 4,
        math.log(1 + different) / 2,
        math.sin(angle),
        math.cos(angle),
        float(weekday in (5, 6)),
        math.log(1 + max(gap, 0)) / 10,
        float(gap <= 0),
        math.log(classes) / 6,
    ]
    evidence = [math.log(1 + value) / 4 for value in memory.evidence[n].tolist()]
    reliability = memory.reliability[n].tolist()
    judged = [value / 4 for value in reliability[:-1]] + [reliability[-1] / 12]
    return torch.tensor(evidence + judged + moment)


def judged(
    mixer: Mixer, log_chance: torch.Tensor, age: list[float], rest: torch.Tensor
) -> torch.Tensor:
    """phi of one class; `rest` (H,): what the summary and the network add."""
    since = [math.log(1 + max(age[0], 0)) / 4, math.log(1 + max(age[1], 0)) / 16]
    x = torch.cat([log_chance / 4, torch.tensor([*since, float(age[0] < 0)])])
    return linear(mixer.score, gelu(linear(mixer.candidate, x) + rest))[0]


def slow_mixer(
    mixer: Mixer,
    memory: Memory,
    log_prior: torch.Tensor,
    state: torch.Tensor,
    told: torch.Tensor | None,
) -> torch.Tensor:
    """logit(b) = sum_j g_j(c) log P_j(b) + phi(x(b), psi(c)), and what a network adds."""
    prior, logits = log_prior.exp(), torch.empty(ROWS, CLASSES)
    for n in range(ROWS):
        hidden = linear(mixer.context, what_is_known(memory, n, CLASSES))
        if mixer.network is not None:
            hidden = hidden + linear(mixer.network.state, state[n])
        hidden = gelu(hidden)
        gate = mixer.weight + linear(mixer.gate, hidden)
        summary = linear(mixer.from_summary, linear(mixer.summary, hidden))
        candidates = {int(c): m for m, c in enumerate(memory.classes) if int(memory.owner[m]) == n}
        others = [b for b in range(CLASSES) if b not in candidates]

        opinion: dict[int, torch.Tensor] = {b: torch.zeros(6) for b in range(CLASSES)}
        added: dict[int, Any] = dict.fromkeys(range(CLASSES), 0.0)
        if mixer.network is not None and told is not None:
            # relative to even chances; all candidates together have one voice, and so, before phi,
            # have all the others
            chance = told[n].softmax(0)
            together = chance[list(candidates)].mean() if candidates else torch.tensor(1e-9)
            typical = chance[others].mean()
            trust = linear(mixer.network.gate, hidden)[0]
            for b in range(CLASSES):
                added[b] = trust * ((together if b in candidates else chance[b]) * CLASSES).log()
                voice = ((chance[b] if b in candidates else typical) * CLASSES).log()
                opinion[b] = mixer.network.candidate.weight[:, 0] * voice.clamp(-10, 10) / 4

        for b in range(CLASSES):
            if b in candidates:
                m = candidates[b]
                log_chance, age = memory.probability[m].log(), memory.age[m].tolist()
                typical_chance = log_chance
            else:
                log_chance, age = memory.rest[n].log() + log_prior[b], [-1.0, -1.0]
                typical_chance = memory.rest[n].log() + prior[others].mean().log()
            phi = judged(mixer, typical_chance, age, summary + opinion[b])
            logits[n, b] = gate @ log_chance + phi + added[b]
    return logits


@pytest.mark.parametrize("state_size", [0, STATE])
@torch.no_grad()
def test_the_mixer_is_its_formula(state_size: int) -> None:
    mixer, memory = random_mixer(state_size), random_memory()
    log_prior, state = torch.randn(CLASSES).log_softmax(0), torch.randn(ROWS, STATE)
    told = 3 * torch.randn(ROWS, CLASSES) if state_size else None
    found = mixer(memory, log_prior, state, told)
    expected = slow_mixer(mixer, memory, log_prior, state, told)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_probabilities_of_nothing_and_of_everything_stay_finite() -> None:
    memory = random_memory()
    memory = memory._replace(
        probability=memory.probability * 0, rest=memory.rest * 0, age=memory.age * 0
    )
    everything = torch.full((ROWS, CLASSES), -1e4)
    everything[:, 0] = 1e4  # a network that is sure of one class
    for told in (everything, -everything):
        found = random_mixer(STATE)(
            memory, torch.full((CLASSES,), -2.0), torch.zeros(ROWS, STATE), told
        )
        assert found.isfinite().all() and found.abs().max() < 1e5


def test_a_new_mixer_is_the_last_expert_and_hardly_more() -> None:
    torch.manual_seed(0)
    mixer = Mixer(EXPERTS, hidden_size=64, state_size=STATE)
    network, bound = mixer.network, 1 / 64**0.5  # of torch's uniform weights
    assert network is not None
    assert mixer.weight.tolist() == [0, 0, 1] and mixer.dropout.p == 0.1
    for layer in (mixer.gate, mixer.score, network.gate):
        assert 0.05 * bound < layer.weight.abs().max() <= 0.1 * bound
    assert not network.state.weight.any() and not network.candidate.weight.any()
    assert network.gate.bias.tolist() == [1]
    for layer in (mixer.from_summary, network.state, network.candidate):
        assert layer.bias is None
    assert mixer.summary.out_features == 16 and Mixer(EXPERTS).context.out_features == 64
    again = mixer.fresh()
    assert again.shape == mixer.shape and {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in mixer.named_parameters()
    }


# ---- the head with memory


def with_memory(**shape: Any) -> BehaveGPTForBehaviorPrediction:
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        **{"field_sizes": SIZES, "num_behaviors": 5, "embedding_size": 8, "num_hidden_layers": 1}
        | {"num_attention_heads": 4, "memory": True, "memory_experts": ["a", "b"]}
        | shape
    )
    return BehaveGPTForBehaviorPrediction(config)


def test_a_head_with_memory_begins_with_equal_chances() -> None:
    for made in (with_memory().head.memory, head.MemoryHead(with_memory().config)):
        assert made is not None
        torch.testing.assert_close(made.log_prior.exp(), torch.full((5,), 1 / 5))


def test_the_prior_of_a_head_with_memory_stands_with_the_counts_alone() -> None:
    made = with_memory().head
    made.set_prior(torch.tensor([7, 3, 1, 0, 1]))
    assert made.memory is not None and not made.projection.bias.any()
    expected = torch.tensor([7.5, 3.5, 1.5, 0.5, 1.5]) / 14.5
    torch.testing.assert_close(made.memory.log_prior.exp(), expected)


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 0.0), (0.04, 0.04), (0.5, 0.1)])
def test_the_mixers_dropout_is_the_models_up_to_a_tenth(dropout: float, expected: float) -> None:
    made = with_memory(dropout=dropout).head.memory
    assert made is not None and made.mixer.dropout.p == expected


def test_the_mixer_of_a_head_has_the_shape_of_the_universal_one() -> None:
    """Two experts and their mixture, 32 hidden units and 16 of the summary; a network's state."""
    for layers, state in ((1, 32), (0, 0)):
        made = with_memory(num_hidden_layers=layers).head.memory
        assert made is not None and made.mixer.shape[:4] == (3, 32, 16, state)


def test_mixers_that_no_checkpoint_holds_are_made_anew() -> None:
    """transformers asks `_init_weights` for what a folder lacks."""
    model = with_memory()
    assert model.head.memory is not None
    mixer = model.head.memory.mixer
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(9)
    model._init_weights(mixer)
    assert mixer.weight.tolist() == [0, 0, 1]
    assert all(parameter.abs().max() < 2 for parameter in mixer.parameters())


# ---- the head without


@torch.no_grad()
def test_the_logits_are_the_formula() -> None:
    """Eq. 3, the events' own embeddings, and what the user's counts add."""
    made = make("both").head
    gate, tied = made.history_gate, made.tied_projection
    assert gate is not None and tied is not None
    made.set_prior(torch.arange(20))
    table, hidden = torch.randn(22, 8), torch.randn(3, 32)
    counts = torch.randint(4, (3, 2, 8)).float()
    history = History(counts, torch.tensor([[4, 0], [19, 7], [1, 2]]))
    found = made(hidden, history, table)
    for n in range(3):
        expected = linear(made.projection, gelu(linear(made.dense, hidden[n])))
        for b in range(20):
            expected[b] += linear(tied, hidden[n]) @ table[b + 2]
        for d, b in enumerate(history.classes[n].tolist()):
            weights = gate.log_scale.exp() / gate.log_prior[b].exp()
            expected[b] += linear(gate.gate, hidden[n]) @ (1 + counts[n, d] * weights).log()
        torch.testing.assert_close(found[n], expected, atol=1e-4, rtol=1e-4)


def test_the_loss_in_pieces_is_weighted_scaled_and_told_by_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A criterion with weights and a margin, and a backward that begins with a factor."""
    counts = torch.tensor([500, 50, 20, 4, 1])
    criterion = build_loss(LossSettings(name="ldam", start=0.0), counts)
    assert len(set(criterion.class_weight.tolist())) == 5
    results = []
    for cells in (1 << 20, 4 * 5):
        monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", cells)
        torch.manual_seed(0)
        made, hidden = make("paper").head, torch.randn(18, 32, requires_grad=True)
        target = torch.arange(18) % 5
        parts = head_loss.head_loss(made, head.Predicted(hidden), target, criterion, 5)
        (parts.total / 7).backward()
        gradients = [hidden.grad, *(p.grad for p in made.parameters())]
        results.append([parts.total.detach(), parts.class_loss, parts.class_count, *gradients])
        with torch.no_grad():
            each = criterion.per_event(made(hidden), target)
        by_class = torch.stack([each[target == b].sum() for b in range(5)])
        torch.testing.assert_close(parts.class_loss, by_class)
        torch.testing.assert_close(
            parts.total.detach(), (each * criterion.class_weight[target]).sum()
        )
        assert parts.class_count.tolist() == [4, 4, 4, 3, 3]
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4)


def test_gradients_are_gathered_where_the_projection_is_plain_and_trained() -> None:
    def sink(change: Any = lambda projection: None) -> chunks.GradientSink | None:
        made = make("paper").head
        change(made.projection)
        gradients = {
            id(p): torch.zeros_like(p) for p in made.projection.parameters() if p.requires_grad
        }
        found = chunks._sink_of(made.projection, gradients)
        if found is not None:
            assert found.weight is gradients[id(made.projection.weight)]
            assert found.bias is gradients[id(made.projection.bias)]
        return found

    class Adapted(nn.Linear):
        pass

    assert sink() is not None
    assert sink(lambda p: p.requires_grad_(False)) is None
    assert sink(lambda p: p.weight.requires_grad_(False)) is None
    assert sink(lambda p: p.bias.requires_grad_(False)) is None
    assert sink(lambda p: setattr(p, "bias", None)) is None
    assert sink(lambda p: setattr(p, "__class__", Adapted)) is None


def test_gathered_gradients_are_summed_in_full_precision() -> None:
    """301 has no bf16."""
    sink = chunks.GradientSink(torch.zeros(2, 3), torch.zeros(2))
    x = torch.ones(301, 3, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)
    y = chunks._SinkingLinear.apply(x, weight, bias, sink)
    assert (y == 4).all()
    y.sum().backward()
    assert (sink.weight == 301).all() and (sink.bias == 301).all() and (x.grad == 2).all()


# ---- blocks and the rest


def test_rotary_positions_are_turns_of_the_complex_plane() -> None:
    """Pair i of D/2 at position p turns by p / 10000^(2i / D) (Su et al. 2021)."""
    torch.manual_seed(0)
    position, x = torch.tensor([[0, 1, 2, 50]]), torch.randn(1, 2, 4, 6)
    found = rotate(x, *rope_tables(position, 6, torch.float32))
    for t, p in enumerate(position[0].tolist()):
        for i in range(3):
            angle = torch.tensor(1j * p * 10000 ** (-2 * i / 6)).exp()
            turned = torch.complex(x[0, :, t, i], x[0, :, t, i + 3]) * angle
            torch.testing.assert_close(found[0, :, t, i], turned.real)
            torch.testing.assert_close(found[0, :, t, i + 3], turned.imag)


def test_dropout_is_where_the_config_puts_it() -> None:
    model = make("paper", dropout=0.25)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.25] * 3, "embeddings, and each block's branches"
    [mine] = histories([30])
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(**mine).logits, model(**mine).logits)


@pytest.mark.parametrize(
    ("wanted", "device", "native", "expected"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_half_precision_is_chosen_where_the_device_computes_in_it(
    wanted: str, device: str, native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision(wanted, torch.device(device)) == expected


def test_outputs_are_a_tuple_only_where_that_is_asked() -> None:
    model, [mine] = make().eval(), histories([4])
    plain = model(**mine).logits
    for asked in (None, True):
        assert torch.equal(model(**mine, return_dict=asked).logits, plain)
    assert torch.equal(model(**mine, return_dict=False)[0], plain)
    labels = torch.tensor([[1, 0, -100, 3]])
    expected = F.cross_entropy(plain[0, [0, 1, 3]], labels[0, [0, 1, 3]])
    torch.testing.assert_close(model(**mine, labels=labels, return_dict=False)[0], expected)
