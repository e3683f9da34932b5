"""What people do with a model outside of our commands: Auto classes, Trainer, sharded folders,
`generate`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import behavegpt
from behavegpt.adapt.peft import weights_hash
from behavegpt.errors import CheckpointError, MissingExtraError
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.model_folder import save_model
from tests.conftest import ROOT
from tests.test_predictor import ROWS, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN/model."""
    predictor = made()
    run = tmp_path_factory.mktemp("run")
    save_model(predictor.model, predictor.tokenizer, run / "model")
    return run / "model"


def python(code: str, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


# what takes seconds to import and knows nothing of transformers is there before each case
FRESH = """
import json, os, sys, traceback
import accelerate, duckdb, huggingface_hub, numba, pandas, pydantic, safetensors.torch, tokenizers
import pyarrow.compute, pyarrow.parquet, scipy.stats, sklearn.metrics
import torch._dynamo, torch.distributed.fsdp, torch.distributed.tensor
assert not {"transformers", "behavegpt"} & set(sys.modules)
for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(writing, stream)
        code, sys.argv[1:] = json.loads(line)
        status = 1
        try:
            exec(code, {})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    os.close(writing)
    with open(reading) as pipe:
        output = pipe.read()
    print(json.dumps([os.waitpid(child, 0)[1], output]), flush=True)
"""


@pytest.fixture(scope="module")
def fresh() -> Iterator[Callable[..., str]]:
    """Runs code in a process in which neither transformers nor any of ours was imported."""
    with subprocess.Popen(
        [sys.executable, "-c", FRESH],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(code: str, *arguments: str) -> str:
            print(json.dumps([code, arguments]), file=server.stdin, flush=True)
            status, output = json.loads(server.stdout.readline())
            assert status == 0, output
            return str(output)

        yield run
        server.stdin.close()


AUTO = {
    "AutoConfig": "BehaveGPTConfig",
    "AutoModel": "BehaveGPTModel",
    "AutoModelForTokenClassification": "BehaveGPTForBehaviorPrediction",
    "AutoFeatureExtractor": "EventTokenizer",
}


FORKED = """
import os, sys
for auto in (AutoConfig, AutoModel, AutoModelForTokenClassification, AutoFeatureExtractor):
    if os.fork() == 0:  # each is the first to be used, and transformers is imported once for all
        print(auto.__name__, type(auto.from_pretrained(sys.argv[1])).__name__, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("order", ["ours first", "ours last"])
def test_import_behavegpt_is_enough_for_the_auto_classes(
    folder: Path, order: str, fresh: Callable[..., str]
) -> None:
    lines = ["import behavegpt", f"from transformers import {', '.join(AUTO)}"]
    found = fresh("\n".join([*lines[:: 1 if order == "ours first" else -1], FORKED]), str(folder))
    assert dict(line.split() for line in found.splitlines()) == AUTO


@pytest.mark.parametrize("first", ["model.block", "pretrain"])
def test_any_module_may_be_the_first_to_be_imported(first: str, fresh: Callable[..., str]) -> None:
    """transformers' layers import the Auto classes, which import our model, which imports
    transformers' layers."""
    known = (
        "from behavegpt import BehaveGPTConfig; print(BehaveGPTConfig in "
        "transformers.MODEL_MAPPING)"
    )
    assert fresh(f"import transformers, behavegpt.{first}; {known}").strip() == "True"


def test_a_model_of_transformers_may_be_imported_after_ours(fresh: Callable[..., str]) -> None:
    """Its layers import the Auto classes before they have anything in them."""
    lines = "import behavegpt; from transformers import GPT2LMHeadModel, AutoConfig; import "
    lines += "transformers; from behavegpt import BehaveGPTConfig"
    said = fresh(f"{lines}; print(BehaveGPTConfig in transformers.MODEL_MAPPING)")
    assert said.strip() == "True"


def test_importing_is_quick_and_the_module_runs() -> None:
    heavy = "{'torch', 'transformers', 'duckdb', 'pyarrow', 'numpy'}"
    assert (
        python(f"import sys, behavegpt; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"
    )
    found = subprocess.run(
        [sys.executable, "-m", "behavegpt", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert found.stdout.strip() == f"behavegpt {behavegpt.__version__}"
    # half of the time of a prediction by the universal model, which needs nothing of it
    loaded = (
        "import sys, behavegpt; behavegpt.load('universal'); print('transformers' in sys.modules)"
    )
    assert python(loaded).strip() == "False"
    wrong = subprocess.run(
        [sys.executable, "-m", "behavegpt", "nothing"], capture_output=True, cwd=ROOT
    )
    assert wrong.returncode == 2


def test_the_trainer_with_its_defaults(tmp_path: Path) -> None:
    """remove_unused_columns keeps the fields; the default collator, loss, evaluation and saving
    work."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    predictor = made(history_head=True)
    torch.manual_seed(0)
    sizes = {
        "input_ids": 14,
        "location_ids": 6,
        "weekday_ids": 7,
        "slot_ids": 48,
        "behavior_ids": 7,
    }
    columns = {name: torch.randint(2, size, (24, 10)).tolist() for name, size in sizes.items()}
    data = Dataset.from_dict(
        columns | {"labels": torch.randint(5, (24, 10)).tolist(), "note": ["x"] * 24}
    )
    options = TrainingArguments(
        str(tmp_path / "out"), max_steps=3, report_to=[], use_cpu=True, save_steps=3
    )
    trainer = Trainer(predictor.model, options, train_dataset=data, eval_dataset=data)
    assert trainer.train().training_loss > 0
    found = trainer.predict(data)
    assert found.predictions.shape == (24, 10, 5) and found.metrics["test_loss"] > 0
    trainer.save_model(str(tmp_path / "saved"))
    predictor.tokenizer.save(tmp_path / "saved")
    assert len(behavegpt.load(tmp_path / "saved", "cpu").predict(ROWS)) == 3


def test_a_further_field_that_was_dropped_is_told() -> None:
    model = made().model
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        model(input_ids=torch.ones(1, 2, dtype=torch.long))


def test_sharded_folders(tmp_path: Path) -> None:
    predictor = made()
    predictor.model.save_pretrained(tmp_path, max_shard_size="5KB")
    predictor.tokenizer.save(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    again = behavegpt.load(tmp_path, "cpu")
    assert (again.predict(ROWS).probabilities == predictor.predict(ROWS).probabilities).all()
    before = weights_hash(tmp_path)
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"\x7f")
    assert weights_hash(tmp_path) != before
    shards[1].unlink()
    with pytest.raises(CheckpointError):
        behavegpt.load(tmp_path)


def test_a_run_stands_for_its_model(folder: Path, capsys: Any) -> None:
    from behavegpt.cli import main

    assert behavegpt.load(folder.parent, "cpu").predict(ROWS).probabilities.shape == (3, 5)
    assert main(["info", str(folder.parent)]) == 0
    with pytest.raises(CheckpointError, match="not a model folder"):
        behavegpt.load(folder.parent.parent / "nothing")


EVENTS = {
    name: torch.full((1, 3), 2) for name in ("input_ids", "location_ids", "weekday_ids", "slot_ids")
}


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": "itself"},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"custom_generate": "x/y"},
        {"dola_layers": "high"},
        {"cache_implementation": "static"},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"guidance_scale": 2.0},
        {"num_beams": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_generate_refuses_by_name_what_it_cannot(options: dict[str, Any]) -> None:
    model = made(behaviors=None).model
    if "assistant_model" in options:
        options = {"assistant_model": model}
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate(**EVENTS, max_new_tokens=2, **options)
    assert model.generate(**EVENTS, max_new_tokens=2).shape == (1, 5)


@pytest.mark.parametrize(
    "options,name",
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"position_ids": torch.zeros(1, 3, dtype=torch.long)}, "position_ids"),
        ({"token_type_ids": torch.zeros(1, 3, dtype=torch.long)}, "token_type_ids"),
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "inputs_embeds"),
        ({"head_mask": torch.ones(2, 2)}, "head_mask"),
        ({"lables": torch.zeros(1, 3, dtype=torch.long)}, "lables"),
    ],
)
def test_forward_refuses_by_name_what_it_would_ignore(options: dict[str, Any], name: str) -> None:
    model = made().model
    for network in (model, model.model):
        with pytest.raises(ValueError, match=name):
            network(**EVENTS, **options)


def test_forward_returns_a_tuple_where_asked() -> None:
    model = made().model
    assert isinstance(model(**EVENTS, return_dict=False), tuple)
    assert torch.equal(model(**EVENTS, return_dict=False)[0], model(**EVENTS).logits)


def test_the_vocabulary_is_not_resized() -> None:
    model = made().model
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    for network in (model, model.model):
        with pytest.raises(ValueError, match="resize_token_embeddings"):
            network.resize_token_embeddings(99)
    assert isinstance(model, BehaveGPTForBehaviorPrediction)


def test_extras_are_installed_from_a_checkout() -> None:
    """There is no such package on PyPI, so nothing may send anybody there."""
    assert "pip install -e '.[onnx]'" in str(MissingExtraError("onnx", "onnx"))
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("behavegpt/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
    ]
    needle = "install 'behave" + "gpt"
    assert [str(file) for file in files if needle in file.read_text(encoding="utf-8")] == []
