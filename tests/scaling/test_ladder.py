"""Shapes and counts, against the model that is built and against torch's own counting."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model

from behavegpt.baselines.network import start_baseline
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.pretrain import PretrainSettings, model_config
from behavegpt.scaling.ladder import Task, make_rung, memory
from tests.helpers import random_store

TASK = Task(fields={"location": 2000, "weekday": 7, "slot": 48, "event": 116}, behaviors=39)
COMMON = {"max_length": 64, "dropout": 0.0, "history_head": False}


@pytest.mark.parametrize("width,layers,millions", [(128, 2, 0.4), (256, 4, 3.1), (512, 8, 25.2)])
def test_the_papers_sizes_are_widths_of_128_256_and_512(width, layers, millions):
    rung = make_rung(
        {"embedding_size": width // 4, "num_hidden_layers": layers, "num_attention_heads": 2},
        "",
        TASK,
        COMMON,
    )
    near = make_rung(rung.parameters["blocks"], "blocks", TASK, COMMON)
    assert (near.width, near.model["num_hidden_layers"]) == (width, layers)
    assert rung.parameters["blocks"] / 1e6 == pytest.approx(millions, abs=0.06)


def test_blocks_have_the_parameters_of_gpt2_of_that_shape():
    rung = make_rung(1e6, "without_embeddings", TASK, COMMON)
    shape = {
        "n_embd": rung.width,
        "n_layer": rung.model["num_hidden_layers"],
        "n_head": 2,
        "vocab_size": 8,
    }
    gpt2 = GPT2Model(GPT2Config(**shape))
    blocks = sum(p.numel() for part in (gpt2.h, gpt2.ln_f) for p in part.parameters())
    assert rung.parameters["blocks"] == pytest.approx(blocks, rel=0.01)


@pytest.mark.parametrize("count", ["total", "without_embeddings"])
@pytest.mark.parametrize("size", [2e4, 1.6e5, 1e6, 2.4e7])
def test_a_rung_is_near_the_size_and_is_counted_as_built(size, count):
    rung = make_rung(size, count, TASK, COMMON)
    assert 0.6 < rung.parameters[count] / size < 1.7
    assert rung.width % (2 * rung.model["num_attention_heads"]) == 0
    if size <= 1e6:
        config = BehaveGPTConfig(field_sizes=TASK.fields, num_behaviors=39, **rung.model)
        assert rung.params == sum(
            p.numel() for p in BehaveGPTForBehaviorPrediction(config).parameters()
        )


def test_larger_sizes_are_larger_models_also_with_three_fields():
    task = Task(fields={"weekday": 7, "slot": 48, "event": 46}, behaviors=44)
    sizes = [1e4, 2e4, 4e4, 8e4, 1.6e5, 3.2e5, 6.4e5]
    found = [make_rung(size, "total", task, COMMON).params for size in sizes]
    assert found == sorted(set(found))


def test_operations_are_those_torch_counts():
    rung = make_rung(
        {"embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "total",
        TASK,
        COMMON,
    )
    model = BehaveGPTForBehaviorPrediction(
        BehaveGPTConfig(field_sizes=TASK.fields, num_behaviors=39, **rung.model)
    )
    model.set_attn_implementation("eager")
    ids = {f"{name}_ids": torch.randint(0, size, (4, 64)) for name, size in TASK.fields.items()}
    ids["input_ids"] = ids.pop("event_ids")
    with FlopCounterMode(display=False) as counter:
        model(**ids, labels=torch.zeros(4, 64, dtype=torch.long)).loss.backward()
    whole_rows = 12 * 2 * 128 * (64 - 1) / 2  # torch counts what the causal mask throws away
    assert rung.flops_per_event + whole_rows == pytest.approx(
        counter.get_total_flops() / (4 * 64), rel=0.02
    )


def test_memory_is_at_least_that_of_weights_gradients_and_moments():
    rung = make_rung(1e6, "total", TASK, COMMON)
    assert memory(rung, 0) == 16 * rung.params
    assert memory(rung, 8192) > memory(rung, 256) > memory(rung, 0)


def test_a_size_below_the_embeddings_is_refused_with_the_remedy():
    wide = Task(fields={"event": 50_000, "weekday": 7, "slot": 48}, behaviors=100)
    with pytest.raises(ConfigError, match=r"smallest has .* embeddings.*count=without_embeddings"):
        make_rung(1e4, "total", wide, COMMON)
    assert make_rung(1e4, "without_embeddings", wide, COMMON).parameters["without_embeddings"] < 2e4


def test_a_contradictory_shape_is_named():
    with pytest.raises(ConfigError, match=r"sizes: .*multiple of"):
        make_rung({"embedding_size": 5, "num_attention_heads": 3}, "total", TASK, COMMON)


def test_a_baseline_is_counted_as_it_is_built() -> None:
    """`model.architecture` in a sweep: the rung's parameters are those of the network that
    pretraining makes."""
    store = random_store(users=8)
    rung = make_rung(2e4, "total", Task.of(store), {"architecture": "gru", "max_length": 16})
    settings = PretrainSettings.model_validate(
        {"out": "x", "data": {"path": "x"}, "model": rung.model}
    )
    network = start_baseline(model_config(settings, store), store)
    assert rung.params == sum(p.numel() for p in network.parameters())
    assert rung.params != make_rung(2e4, "total", Task.of(store), {"max_length": 16}).params
