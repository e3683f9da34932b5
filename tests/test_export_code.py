"""Model folders with their code: transformers opens them without behavegpt, and gives the same
numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import behavegpt
from behavegpt.cli import main
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import ConfigError
from behavegpt.export_code import export_code
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.predictor import Predictor
from behavegpt.training.model_folder import save_model
from tests.helpers import random_store

# the package is hidden: importing it, or any part of it, fails
OPENED = """
import json, sys
sys.modules["behavegpt"] = None
import torch
from transformers import AutoModel, AutoModelForTokenClassification
ids = {name: torch.tensor(values) for name, values in json.load(sys.stdin).items()}
open_ = lambda kind: kind.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    logits = open_(AutoModelForTokenClassification)(**ids).logits
    hidden = open_(AutoModel)(**ids).last_hidden_state
print(json.dumps([logits.tolist(), hidden.tolist()]))
"""


@pytest.fixture
def predictor() -> Predictor:
    store = random_store(3, users=8, longest=12, behaviors=5)
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        behavior_is_event=store.schema.behavior_is_event,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_length=16,
        tokenizer_hash=EventTokenizer.from_store(store, 1).hash,
    )
    model = BehaveGPTForBehaviorPrediction(config).eval()
    return Predictor(model, EventTokenizer.from_store(store, 16))


def test_transformers_opens_it_without_the_package(predictor: Predictor, tmp_path: Path) -> None:
    written = export_code(predictor, tmp_path / "out")
    assert "behavegpt.py" in written["code"] and "label.py" not in written["code"]
    sizes = predictor.model.config.field_sizes or {}
    rng = torch.Generator().manual_seed(0)
    ids = {}
    for field, size in sizes.items():
        name = "input_ids" if field == "event" else f"{field}_ids"
        low = 0 if field in ("weekday", "slot") else 1
        ids[name] = torch.randint(low, size, (2, 6), generator=rng)
    with torch.no_grad():
        logits = predictor.model(**ids).logits
        hidden = predictor.model.model(**ids).last_hidden_state

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(tmp_path / "out")],
        input=json.dumps({name: values.tolist() for name, values in ids.items()}),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    torch.testing.assert_close(torch.tensor(theirs[0]), logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(theirs[1]), hidden, atol=1e-6, rtol=0)


def test_it_is_a_model_folder_still(predictor: Predictor, tmp_path: Path, capsys) -> None:
    """Opened by our own classes: the code beside the weights is not run."""
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    command = ["export-model", str(tmp_path / "model"), str(tmp_path / "out")]
    assert main([*command, "--format", "transformers"]) == 0
    assert "trust_remote_code" in capsys.readouterr().err
    (tmp_path / "out" / "MANIFEST.json").unlink()
    (tmp_path / "out" / "behavegpt.py").write_text("raise SystemExit('run')")
    opened = behavegpt.load(tmp_path / "out", "cpu")
    assert type(opened.model) is BehaveGPTForBehaviorPrediction
    with pytest.raises(ConfigError, match="already exists"):
        export_code(predictor, tmp_path / "out")
