"""Adapters through PEFT's own files: saved, loaded, merged, on grown models; and those of another
base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel

import behavegpt
from behavegpt.adapt.peft import open_adapter
from behavegpt.data.pack import target_rows
from behavegpt.data.reencode import fit_store
from behavegpt.data.store import open_store
from behavegpt.errors import CheckpointError
from behavegpt.finetune import finetune
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.evaluate import score

KINDS = {
    "the data's vocabulary": {},
    "grown": {"vocabulary": "grow"},
    "rsLoRA": {"lora": {"rank": 4, "rank_stabilized": True}},
    "DoRA": {"lora": {"rank": 4, "weight_decomposed": True}},
}


def logits(model, store):
    model.eval()
    return torch.cat([part.logits for part in score(model, store, 2)])


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_pefts_own_loading(place, settings_for, kind):
    run = finetune(settings_for("lora", adapt=KINDS[kind]))
    merged = behavegpt.load(run / "model")
    store = fit_store(open_store(place / "new"), merged.tokenizer)
    wanted = logits(merged.model, store)
    assert len(wanted) == len(target_rows(store, 2)) > 50
    start = BehaveGPTForBehaviorPrediction.from_pretrained(run / "base")
    before = logits(start, store)
    adapted = PeftModel.from_pretrained(start, run / "adapter")
    torch.testing.assert_close(
        logits(adapted, store), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max())
    )
    assert (before - wanted).abs().max() > 1e-3, "the adapter does something"
    ours = behavegpt.load(run / "adapter")
    torch.testing.assert_close(
        logits(ours.model, store), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max())
    )
    assert ours.tokenizer.hash == merged.tokenizer.hash
    assert json.loads((run / "adapter/adapter_config.json").read_text())["r"] in (4, 8)


def test_an_adapter_on_known_labels_needs_no_base_of_its_own(place, settings_for):
    """With `grow` and no new label the start is the base itself: PEFT's files go on top of it."""
    run = finetune(
        settings_for("lora", adapt={"vocabulary": "grow"}, data={"path": str(place / "known")})
    )
    assert not (run / "base").exists()
    store = open_store(place / "known")
    base = BehaveGPTForBehaviorPrediction.from_pretrained(place / "base/model")
    adapted = PeftModel.from_pretrained(base, run / "adapter")
    wanted = logits(behavegpt.load(run / "model").model, store)
    torch.testing.assert_close(
        logits(adapted, store), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max())
    )


def test_a_merged_model_can_grow_again(place, settings_for, tmp_path):
    first = finetune(settings_for("lora", adapt={"vocabulary": "grow", "new": ["behavior5"]}))
    second = finetune(
        settings_for("new_behavior", base=str(first / "model"), out=str(tmp_path / "second"))
    )
    behaviors = [
        behavegpt.load(run / "model").tokenizer.behaviors.values.to_pylist()
        for run in (first, second)
    ]
    assert behaviors[1] == [*behaviors[0], "behavior6"]


def test_an_adapter_for_another_base_is_refused(place, settings_for, tmp_path):
    run = finetune(settings_for("lora"))
    with pytest.raises(CheckpointError, match=r"has other weights; use the base it belongs to"):
        open_adapter(run / "adapter", place / "base/model")
    shutil.copytree(run / "adapter", tmp_path / "bare")
    (tmp_path / "bare/behavegpt.json").unlink()
    with pytest.raises(CheckpointError, match=r"behavegpt.json is missing"):
        behavegpt.load(tmp_path / "bare")
    shutil.rmtree(run / "base")
    facts = run / "adapter/behavegpt.json"
    facts.write_text(facts.read_text().replace(str(run / "base"), "moved"))
    with pytest.raises(CheckpointError, match=r"behavegpt.json: damaged or changed"):
        behavegpt.load(run / "adapter")
    (run / "adapter/MANIFEST.json").unlink()  # as the message says when the change was meant
    with pytest.raises(CheckpointError, match="moved: not a model folder"):
        behavegpt.load(run / "adapter")
