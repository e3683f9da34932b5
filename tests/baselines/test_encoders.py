"""Each baseline's encoder and head against the formulas of its docstring, written as loops over one
history."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from behavegpt.baselines import cooccurrence, hstu, patt
from behavegpt.baselines.layout import Layout
from behavegpt.data.store import TRAIN
from behavegpt.model.inputs import RowLayout, read_events
from tests.baselines.makers import STORES, histories, layout, make, packed

LENGTH = 13


@pytest.fixture
def history():
    return histories([LENGTH], seed=4)[0]


def embedded(model, history: dict[str, torch.Tensor]) -> torch.Tensor:
    """(T, C) the inputs, from the tables."""
    tables = model.model.embedding.tables
    x = torch.cat(
        [tables[f](history["input_ids" if f == "event" else f"{f}_ids"][0]) for f in tables], -1
    )
    if model.config.scale_inputs:
        x = x * math.sqrt(32)
    if model.model.embedding.position is not None:
        x = x + model.model.embedding.position.weight[: len(x)]
    return x


def states(model, history: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.model(**history).last_hidden_state[0]


def norm(x: torch.Tensor, layer: torch.nn.LayerNorm | None = None) -> torch.Tensor:
    """(x - mean) / deviation, with the layer's scale and shift."""
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return y if layer is None else y * layer.weight + layer.bias


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def loop_attention(attention, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(D)) v, head by head and query by query."""
    query, key, value = attention.query(q), attention.key(x), attention.value(x)
    width = x.shape[-1] // attention.heads
    out = torch.zeros_like(x)
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        for t in range(len(x)):
            weight = torch.stack(
                [query[t, part] @ key[j, part] / math.sqrt(width) for j in range(t + 1)]
            ).softmax(0)
            out[t, part] = sum(weight[j] * value[j, part] for j in range(t + 1))
    return out


def test_gru_is_the_recurrence_history_by_history():
    model = make("gru", num_hidden_layers=1)
    parts = histories([5, 1, 9], seed=2)
    inputs, document = packed(parts, 20)
    w_ih, w_hh, b_ih, b_hh = (
        getattr(model.model.encoder.gru, f"{n}_l0")
        for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    wanted = []
    for part in parts:
        h = torch.zeros(32)
        for x in embedded(model, part):
            of_x, of_h = (w_ih @ x + b_ih).chunk(3), (w_hh @ h + b_hh).chunk(3)
            r, z = ((of_x[i] + of_h[i]).sigmoid() for i in range(2))
            h = (1 - z) * (of_x[2] + r * of_h[2]).tanh() + z * h
            wanted.append(h)
    found = model.model(**inputs, document=document).last_hidden_state[0]
    close(found[:15], torch.stack(wanted))
    assert not found[15:].any()


def test_sasrec_block_by_block(history):
    model = make("sasrec")
    x = embedded(model, history)
    for block in model.model.encoder.blocks:
        q = norm(x, block.attention_norm)
        z = norm(q + loop_attention(block.attention, q, x), block.mlp_norm)
        x = z + block.mlp_out(block.mlp_in(z).clamp(min=0))
    close(states(model, history), norm(x, model.model.encoder.norm))
    assert model.model.encoder.blocks[0].mlp_in.out_features == 32, (
        "inner width C, as in the original"
    )


def test_sasrec_scores_with_the_events_own_embeddings(history):
    narrow = make("sasrec", inputs="event_only", class_bias=False)
    table = narrow.model.embedding.tables["event"].weight
    assert table.shape == (14, 32), "the event alone takes the width of all fields"
    close(narrow(**history).logits[0], states(narrow, history) @ table[2:].T)
    wide = make("sasrec")
    table = wide.model.embedding.tables["event"].weight
    close(
        wide(**history).logits[0],
        states(wide, history) @ wide.head.to_event.weight.T @ table[2:].T + wide.head.bias,
    )
    apart = make("sasrec", is_event=False)
    assert apart.head.classes.weight.shape == (5, 32), (
        "behaviors that are no events have vectors of their own"
    )


def test_esasrec_gates_both_branches(history):
    model = make("esasrec")
    x = embedded(model, history)
    for block in model.model.encoder.blocks:
        normed = norm(x, block.attention_norm)
        y = x + block.attention_gate(x).sigmoid() * block.attention_out(
            loop_attention(block.attention, normed, normed)
        )
        normed = norm(y, block.mlp_norm)
        a = block.mlp_in(normed)
        x = y + block.mlp_gate(y).sigmoid() * block.mlp_out(
            a / (1 + (-a).exp()) * block.mlp_side(normed)
        )
    close(states(model, history), norm(x, model.model.encoder.norm))


@pytest.mark.parametrize("target_time", ["hidden", "known"])
def test_hstu_pair_by_pair(history, target_time):
    model = make("hstu", options={"target_time": target_time})
    x, time = embedded(model, history), history["time_ids"][0].tolist()
    width = 32 // 2
    for block in model.model.encoder.blocks:
        u, v, q, k = F.silu(norm(x) @ block.parts.weight.T).chunk(4, -1)
        seen = torch.zeros_like(x)
        for i in range(LENGTH):
            asked = time[min(i + 1, LENGTH - 1)] if target_time == "known" else time[i]
            for j in range(i + 1):
                bucket = min(int(math.log(max(abs(asked - time[j]), 1)) / 0.301), 128)
                bias = block.position_bias.weight[i - j, 0] + block.time_bias.weight[bucket, 0]
                for head in (slice(0, width), slice(width, 32)):
                    score = q[i, head] @ k[j, head] + bias
                    seen[i, head] += score * score.sigmoid() / 64 * v[j, head]
        x = x + block.out(u * norm(seen))
    close(states(model, history), x)
    h, e = F.normalize(x, dim=-1), F.normalize(model.head.to_event(x), dim=-1)
    table = F.normalize(model.model.embedding.tables["event"].weight[2:], dim=-1)
    close(model(**history).logits[0], e @ table.T / 0.05)
    assert h.shape == (LENGTH, 32)


def test_hstu_buckets_at_their_borders():
    """Bucket b begins at exp(0.301 b) seconds."""
    for bucket in (5, 40, 100):
        edge = math.exp(0.301 * bucket)
        found = hstu.time_bucket(torch.tensor([math.floor(edge), math.ceil(edge)]))
        assert found.tolist() == [bucket - 1, bucket]


def test_wukong_machine_by_machine(history):
    model = make("wukong", options={"events": 3, "rows": 4, "rank": 5, "inner": 6})
    x, encoder = embedded(model, history), model.model.encoder
    for t in range(LENGTH):
        events = [x[t - ago] if t >= ago else torch.zeros(32) for ago in range(3)] + [
            x[: t + 1].mean(0)
        ]
        # (16, 8)
        state = torch.stack([event[8 * f : 8 * f + 8] for event in events for f in range(4)])
        for layer in encoder.layers:
            pairs = (state @ state.T) @ layer.compress.weight.T  # X X' Y, as printed
            machines = layer.mlp(norm(pairs.flatten(), layer.norm)).view(4, 8)
            branches = torch.cat([machines, layer.linear.weight @ state])
            kept = state if len(state) == 8 else layer.residual.weight @ state
            state = norm(branches + kept, layer.out_norm)
        close(states(model, history)[t], encoder.out(state.flatten()))
    assert len(encoder.layers) == 2 and isinstance(encoder.layers[1].residual, torch.nn.Identity)


def test_patt_with_determinants_of_pairs(history):
    model = make("patt")
    x = embedded(model, history)
    for block in model.model.encoder.blocks:
        s = block.query(x) ** 2
        kernel = s @ s.T
        weight = torch.zeros(LENGTH, LENGTH)
        for i in range(LENGTH):

            def det(a: int, b: int, kernel: torch.Tensor = kernel) -> torch.Tensor:
                pair = kernel[[a, b]][:, [a, b]].double() + 1e-5 * torch.eye(2)
                return torch.linalg.det(pair)

            total = sum(det(a, b) for b in range(i + 1) for a in range(b))
            logits = [-det(i, j) / total for j in range(i)] + [-kernel[i, i]]
            weight[i, : i + 1] = (torch.stack(logits) / math.sqrt(32)).softmax(0)
        y = norm(x + block.out(weight @ x), block.attention_norm)
        x = norm(y + block.mlp_out(F.gelu(block.mlp_in(y))), block.mlp_norm)
    close(states(model, history), x)


def test_patt_pairs_that_are_alike_weigh_more():
    similar = torch.tensor([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]])
    logits = patt.pair_logits(similar, torch.ones(1, 3, 3, dtype=torch.bool).tril())
    dets = [1 - 0.9**2, 1 - 0.1**2, 1 - 0.2**2]
    close(logits[0, 2, :2], -torch.tensor(dets[1:]) / sum(dets))
    assert logits[0, 1, 0] == pytest.approx(-1.0)  # the only pair so far


@pytest.mark.parametrize("gate", ["multiply", "add"])
def test_tailnet_event_by_event(history, gate):
    model = make("tailnet", options={"gate": gate})
    encoder, head = model.model.encoder, model.head
    counts = STORES[True].vocabulary["event"].counts
    tail = torch.ones(12, dtype=torch.bool)
    tail[np.argsort(-counts, kind="stable")[:2]] = False  # a fifth of 12 classes
    assert torch.equal(head.is_tail, tail)
    v = encoder.gru(embedded(model, history)[None])[0][0]
    events = history["input_ids"][0].tolist()
    logits = model(**history).logits[0]
    for t in range(LENGTH):
        s, session = torch.zeros(32), torch.zeros(32)
        for j in range(t + 1):
            kind = encoder.types.weight[int(events[j] >= 2 and bool(tail[events[j] - 2]))]
            f = (encoder.now(v[t]) + encoder.past.weight @ torch.cat([v[j], kind])).sigmoid()
            s = s + (encoder.weights.weight[0] @ f) * v[j] / (t + 1)
            session = session + (encoder.weights.weight[1] @ f) * v[j] / (t + 1)
        r = (encoder.preference.weight[0] @ s).sigmoid()
        score = head.classes.weight @ encoder.out(torch.cat([v[t], session]))
        share = torch.where(tail, r, 1 - r)
        close(logits[t], (score * share if gate == "multiply" else score + share.log()) + head.bias)


def test_cdn_mixes_experts_by_frequency_and_branches_by_progress(history):
    model = make("cdn")
    head, state = model.head, states(model, history)
    counts = torch.tensor(STORES[True].vocabulary["event"].counts).float()
    close(head.frequency[:, 0], (1 + counts).log() / (1 + counts.max()).log())
    assert head.frequency[int(counts.argmax()), 2] == 0, "rank of the most frequent class"
    vectors = []
    for k in range(12):
        g = (head.gate.weight @ head.frequency[k] + head.gate.bias).softmax(0)
        y = g[0] * head.experts[0](head.classes.weight[k])
        for j in range(1, 4):
            y = y + g[j] * head.experts[j](head.content.weight[head.cluster[k]])
        vectors.append(y)
    for progress, own in ((0.0, 1.0), (1.0, 0.75)):
        head.set_progress(progress)
        user = own * head.main(state) + (1 - own) * head.balanced(state)
        close(model(**history).logits[0], user @ torch.stack(vectors).T + head.bias)


def test_esr_exchanges_two_views(history):
    model = make("esr_nollm")
    encoder, head = model.model.encoder, model.head
    z = encoder.vectors[history["input_ids"][0]]
    views = [encoder.to_half(embedded(model, history)), encoder.adapter(z)]
    found = []
    for own in (0, 1):
        normed = [norm(views[i], encoder.norms[i]) for i in (own, 1 - own)]
        y = views[own] + loop_attention(encoder.exchange[own], *normed)
        for block in encoder.blocks:
            q = norm(y, block.attention_norm)
            m = norm(q + loop_attention(block.attention, q, y), block.mlp_norm)
            y = m + block.mlp_out(block.mlp_in(m).relu())
        found.append(norm(y, encoder.norm))
    state = torch.cat(found, -1)
    close(states(model, history), state)
    classes = torch.cat([head.classes.weight, head.adapter(head.vectors)], -1)
    close(model(**history).logits[0], state @ classes.T + head.bias)


def test_esr_draws_users_to_those_like_them():
    model = make("esr_nollm", options={"similar": 2, "alpha": 0.5}).train()
    parts = histories([4, 7, 3, 9], seed=8)
    inputs, document = packed(parts, 30)
    at = layout_of(inputs, document)
    encoded = model.model.encoder(model.model.embedding(at), at)
    last = [model.model(**part).last_hidden_state[0, -1] for part in parts]
    z = model.model.encoder.vectors
    mean = [F.normalize(z[part["input_ids"][0]].mean(0), dim=0) for part in parts]
    wanted = torch.zeros(30)
    ends = np.cumsum([4, 7, 3, 9]) - 1
    for u, end in enumerate(ends):
        others = sorted((v for v in range(4) if v != u), key=lambda v: -float(mean[u] @ mean[v]))[
            :2
        ]
        target = torch.stack([last[v] for v in others]).mean(0)
        wanted[end] = 0.5 * (last[u] - target).square().mean() * len(parts[u]["input_ids"][0])
    close(encoded.auxiliary[0], wanted)


def layout_of(inputs, document):
    events = read_events(inputs, RowLayout(document))
    return Layout(events.ids, events.document, events.position)


def test_pituning_adds_log_transitions_that_begin_at_the_counts(history):
    from behavegpt.baselines.architectures import baseline_config
    from behavegpt.baselines.network import start_baseline
    from tests.baselines.makers import SHAPE

    store = STORES[True]
    model = start_baseline(
        baseline_config({"architecture": "pituning_like", **SHAPE}, store), store
    ).eval()
    event, split = store.columns["event"].astype(int), store.columns["split"]
    followed = np.zeros((14, 12))
    for begin, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        for at in range(begin + 1, end):
            if split[at] == TRAIN and event[at] >= 2:
                followed[event[at - 1], event[at] - 2] += 1
    prior = (store.vocabulary["event"].counts + 0.5) / (
        store.vocabulary["event"].counts + 0.5
    ).sum()
    wanted = np.log((followed + 10 * prior) / (followed.sum(1, keepdims=True) + 10))
    np.testing.assert_allclose(model.head.transitions.weight.detach().numpy(), wanted, atol=1e-5)
    state = F.gelu(model.head.dense(states(model, history)))
    close(
        model(**history).logits[0],
        state @ model.head.classes.weight.T
        + model.head.transitions.weight[history["input_ids"][0]],
    )
    assert model.config.next_heads == ["location", "slot"] and model.config.next_weight == 0.5


def test_pair_counts_and_vectors_against_counting():
    store = STORES[True]
    event, split = store.columns["event"].astype(int), store.columns["split"]
    wanted = np.zeros((12, 12))
    for begin, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        for a in range(begin, end):
            for b in range(max(begin, a - 5), a):
                if split[a] == split[b] == TRAIN and min(event[a], event[b]) >= 2:
                    wanted[event[a] - 2, event[b] - 2] += 1
                    wanted[event[b] - 2, event[a] - 2] += 1
    found = cooccurrence.pair_counts(store, "event", 12).to_dense().numpy()
    np.testing.assert_array_equal(found, wanted)
    margin = wanted.sum(1)
    ppmi = np.maximum(
        0, np.log(np.maximum(wanted, 1e-300) * wanted.sum() / np.outer(margin, margin))
    )
    vectors = cooccurrence.label_vectors(store, "event", 12).numpy()
    spectrum = np.linalg.svd(ppmi, compute_uv=False)
    np.testing.assert_allclose(np.sort((vectors**2).sum(0))[::-1], spectrum, rtol=1e-4, atol=1e-4)
    assert torch.equal(
        cooccurrence.label_vectors(store, "event", 12),
        cooccurrence.label_vectors(store, "event", 12),
    ), "the same log gives the same vectors"


def test_clusters_find_separate_clouds():
    generator = torch.Generator().manual_seed(1)
    centers = 10 * torch.eye(3)
    member = torch.arange(30) % 3
    found = cooccurrence.clusters(
        centers[member] + 0.1 * torch.randn(30, 3, generator=generator), 3
    )
    if len(found.unique()) == 3:  # two starts in one cloud may merge others
        assert all(len(found[member == c].unique()) == 1 for c in range(3))
    assert found.max() < 3


def test_looking_back_stays_in_the_history():
    document = torch.tensor([[0, 0, 0, 1, 1]])
    at = layout(5)._replace(document=document, position=torch.tensor([[0, 1, 2, 0, 1]]))
    values = torch.arange(1.0, 6.0)[None, :, None]
    assert at.back(values, 3)[0, :, :, 0].tolist() == [
        [1, 0, 0],
        [2, 1, 0],
        [3, 2, 1],
        [4, 0, 0],
        [5, 4, 0],
    ]
    assert at.visible()[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    histories_ = at.unpack()
    assert torch.equal(histories_.put(histories_.take(values), values), values)
