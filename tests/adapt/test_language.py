"""Blocks from GPT-2 compute what transformers' GPT-2 computes."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from behavegpt.adapt.language import start_from_gpt2
from behavegpt.cli import main
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.runs import save_store

FIELDS = {"location": 5, "weekday": 7, "slot": 48, "event": 9}


def small_gpt2(folder, head=False, **changed):
    """A randomly initialised GPT-2 with biases and norms that are not trivial, saved as Hugging
    Face does."""
    torch.manual_seed(1)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": 11} | changed
    gpt2 = (GPT2LMHeadModel if head else GPT2Model)(GPT2Config(**shape))
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    gpt2.save_pretrained(folder)
    return (gpt2.transformer if head else gpt2).eval()


def our_model(**changed):
    shape = {
        "embedding_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_length": 16,
    } | changed
    return BehaveGPTForBehaviorPrediction(
        BehaveGPTConfig(field_sizes=FIELDS, num_behaviors=6, **shape)
    ).eval()


@pytest.mark.parametrize("head", [False, True])
def test_hidden_states_are_gpt2s(tmp_path, head):
    gpt2 = small_gpt2(tmp_path / "gpt2", head)
    model = our_model(position_encoding="none")
    start_from_gpt2(model, tmp_path / "gpt2")
    ids = {f"{name}_ids": torch.randint(0, size, (3, 16)) for name, size in FIELDS.items()}
    ids["input_ids"] = ids.pop("event_ids")
    with torch.no_grad():
        ours = model.model(**ids, output_hidden_states=True)
        gpt2.wpe.weight.zero_()
        theirs = gpt2(inputs_embeds=ours.hidden_states[0], output_hidden_states=True)
    torch.testing.assert_close(ours.hidden_states[1], theirs.hidden_states[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours.last_hidden_state, theirs.last_hidden_state, rtol=1e-5, atol=1e-5
    )


def test_learned_positions_come_along(tmp_path):
    gpt2 = small_gpt2(tmp_path / "gpt2")
    model = our_model(position_encoding="learned")
    start_from_gpt2(model, tmp_path / "gpt2")
    ids = {"weekday_ids": torch.zeros(1, 16, dtype=int), "input_ids": torch.arange(16)[None] % 9}
    ids |= {"slot_ids": ids["weekday_ids"], "location_ids": ids["weekday_ids"]}
    with torch.no_grad():
        ours = model.model(**ids)
        tables = model.model.embedding.tables
        embedded = torch.cat(
            [tables[n](ids["input_ids"] if n == "event" else ids[f"{n}_ids"]) for n in FIELDS], -1
        )
        theirs = gpt2(inputs_embeds=embedded)
    torch.testing.assert_close(
        ours.last_hidden_state, theirs.last_hidden_state, rtol=1e-5, atol=1e-5
    )


def test_embeddings_and_head_stay_as_they_were(tmp_path):
    small_gpt2(tmp_path / "gpt2")
    model = our_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from_gpt2(model, tmp_path / "gpt2")
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if name.startswith(("model.blocks.", "model.norm."))}


@pytest.mark.parametrize(
    "theirs,ours,message",
    [
        (
            {},
            {"embedding_size": 16},
            "hidden width: 64 here, 32 in GPT-2 .*embedding_size = 32 / number of fields",
        ),
        ({"n_layer": 3}, {}, "num_hidden_layers=3"),
        ({"n_head": 2}, {}, "num_attention_heads=2"),
        ({"n_inner": 50}, {}, "inner width: 128 here, 50"),
        ({"activation_function": "relu"}, {}, "activation: gelu_new here, relu"),
        ({"n_positions": 12}, {"position_encoding": "learned"}, "positions: 16 here, 12"),
    ],
)
def test_another_shape_is_refused_with_the_setting_to_change(tmp_path, theirs, ours, message):
    small_gpt2(tmp_path / "gpt2", **theirs)
    with pytest.raises(ConfigError, match=message):
        start_from_gpt2(our_model(**ours), tmp_path / "gpt2")


def test_a_folder_that_is_no_gpt2_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        start_from_gpt2(our_model(), tmp_path)
    our_model().save_pretrained(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="a behavegpt, not a gpt2"):
        start_from_gpt2(our_model(), tmp_path / "ours")


def test_pretraining_can_start_from_a_language_model(tmp_path):
    small_gpt2(tmp_path / "gpt2", n_layer=1, n_head=2)
    save_store(random_store(0), tmp_path / "data")
    line = [
        "train",
        str(ROOT / "configs/tiny.yaml"),
        f"data.path={tmp_path / 'data'}",
        f"out={tmp_path / 'run'}",
    ]
    assert main([*line, "train.steps=1", f"language_model={tmp_path / 'gpt2'}"]) == 0
    assert main([*line, "train.steps=1", "--resume"]) == 2, "another start is another run"
