"""Models in one file: the Predictor's numbers for any batch and length, in torch.export's format
and in ONNX."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from behavegpt.cli import main
from behavegpt.data.memory_counts import count_store
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import CheckpointError
from behavegpt.export_model import export_model
from behavegpt.graph_inputs import MEMORY, GraphInputs
from behavegpt.history_batches import Histories, memory_of_histories
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.predictor import Predictor
from behavegpt.training.model_folder import save_model
from tests.conftest import ROOT
from tests.helpers import random_store

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "history, tied, no position": {
        "history_head": True,
        "position_encoding": "none",
        "behaviors": None,
        "tied_head": True,
    },
    "history of behaviors, learned positions": {
        "history_head": True,
        "position_encoding": "learned",
    },
    "memory": {"memory": True},
    "memory, no blocks": {"memory": True, "num_hidden_layers": 0},
    "behaviors as input": {
        "history_head": True,
        "field_sizes": {"event": 14, "slot": 48, "behavior": 7, "weekday": 7},
    },
}
NEEDED = {"torch": [], "onnx": ["onnxscript", "onnxruntime"]}


def made(shape: dict[str, Any]) -> tuple[Predictor, Any]:
    options = dict(shape)
    store = random_store(3, users=12, longest=20, behaviors=options.pop("behaviors", 5))
    torch.manual_seed(0)
    fields = options.pop("field_sizes", store.field_sizes())
    config = BehaveGPTConfig(
        field_sizes=fields,
        num_behaviors=store.behaviors.classes,
        behavior_is_event=store.schema.behavior_is_event,
        memory_experts=list(EXPERTS) if options.get("memory") else None,
        **{"embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"max_length": 16}
        | options,
    )
    model = BehaveGPTForBehaviorPrediction(config)
    with torch.no_grad():  # of a size where an error would show
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.head.set_prior(torch.tensor(store.behaviors.counts))
    model.counts = count_store(store) if config.memory else None
    return Predictor(model, EventTokenizer.from_store(store, 16)), store


def runner(kind: str, folder: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """The exported file, opened by its own runtime."""
    names = list(json.loads((folder / "io.json").read_text())["inputs"])
    if kind == "torch":
        module = torch.export.load(folder / "model.pt2").module()
        return lambda feed: [
            x.detach().numpy() for x in module(*(torch.from_numpy(feed[name]) for name in names))
        ]
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return lambda feed: session.run(["logits", "user_vector"], feed)


def padded(
    columns: dict[str, np.ndarray], begin: np.ndarray, end: np.ndarray, names: list[str]
) -> dict[str, np.ndarray]:
    """Histories `begin:end` of flat columns as the graph's inputs, written out by hand."""
    length = int((end - begin).max())
    feed = {name: np.zeros((len(begin), length), np.int64) for name in (*names, "attention_mask")}
    for row, (a, b) in enumerate(zip(begin, end, strict=True)):
        for name in names:
            feed[name][row, : b - a] = columns[
                "event" if name == "input_ids" else name.removesuffix("_ids")
            ][a:b]
        feed["attention_mask"][row, : b - a] = 1
    return feed


QUICK = [
    ("plain", "torch"),
    ("history of behaviors, learned positions", "onnx"),
    ("memory", "onnx"),
    ("memory, no blocks", "torch"),
]
CASES = [
    pytest.param(shape, kind, marks=[] if (shape, kind) in QUICK else [pytest.mark.slow])
    for shape in SHAPES
    for kind in NEEDED
]


@pytest.mark.parametrize("shape,kind", CASES)
def test_the_file_gives_the_predictors_numbers(tmp_path: Path, shape: str, kind: str) -> None:
    for library in NEEDED[kind]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed; pip install -e '.[onnx]'")
    predictor, store = made(SHAPES[shape])
    facts = export_model(predictor, tmp_path / "out", kind)  # type: ignore[arg-type]
    # with memory logits are sums of eighteen log-probabilities, each times a weight
    assert facts["largest_difference"] < (5e-5 if "memory" in shape else 1e-5)
    run = runner(kind, tmp_path / "out")
    columns = {name: np.asarray(c).astype(np.int64) for name, c in store.columns.items()}
    columns["behavior"] = store.column("behavior").astype(np.int64)
    encoded = EncodedHistories(_labels(store), store.offsets, columns, {}, {})
    classes = store.behaviors.classes
    check_other_layouts(run, predictor, encoded, tmp_path / "out")
    predicted, vectors = predictor.predict(encoded, classes), predictor.embed(encoded).vectors
    begin, end = np.maximum(store.offsets[:-1], store.offsets[1:] - 16), store.offsets[1:]
    inputs = GraphInputs(tmp_path / "out")
    for users in (np.arange(12), np.array([4]), np.argsort(end - begin)[:2]):
        feed = padded(columns, begin[users], end[users], inputs.names)
        logits, embedding = run(feed | told(predictor, encoded, users))
        probabilities = torch.from_numpy(logits).softmax(-1).sort(descending=True)
        assert np.allclose(probabilities.values, predicted.probabilities[users], atol=2e-6)
        assert np.allclose(embedding, vectors[users], atol=2e-5)
        labels = predictor.tokenizer.labels(probabilities.indices.numpy())
        assert (labels == predicted.labels[users]).mean() > 0.99  # ties aside


def told(predictor: Predictor, encoded: EncodedHistories, users: np.ndarray) -> Any:
    """What a model's counts say at the ends of histories, as the model itself is told it."""
    begin, end = encoded.offsets[:-1], encoded.offsets[1:]
    memory = memory_of_histories(predictor.model, Histories(encoded.columns, begin, end))
    tensors = {} if memory is None else memory.at(end[users] - 1)
    return {f"memory_{name}": values.numpy() for name, values in tensors.items()}


def check_other_layouts(
    run: Any, predictor: Predictor, encoded: EncodedHistories, folder: Path
) -> None:
    """Histories beyond the window, padding in front, behind and between, empty rows, ids that are
    none."""
    names = GraphInputs(folder).names
    inputs = [*names, "attention_mask"]
    user = int(np.argmax(np.diff(encoded.offsets)))
    begin, end = encoded.offsets[user : user + 1], encoded.offsets[user + 1 : user + 2]
    assert end - begin > 16, "longer than the window"
    expected = predictor.embed(encoded).vectors[user]
    whole = padded(encoded.columns, begin, end, names)
    length = int((end - begin)[0])
    layouts = {
        "longer": np.arange(length),
        "in front": np.arange(length) + 5,
        "holes": np.arange(length) * 2,
        "much longer, behind": np.arange(length),
    }
    for name, place in layouts.items():
        feed = {
            key: np.zeros((1, place.max() + 1 + 9 * (name != "longer")), np.int64) for key in inputs
        }
        for key in inputs:
            feed[key][0, place] = whole[key][0]
        logits, vector = run(feed | told(predictor, encoded, np.array([user])))
        assert np.allclose(vector[0], expected, atol=2e-5), name
        assert np.isfinite(logits).all()
    spoiled = {
        key: np.concatenate([values, values * (key != "attention_mask")])
        for key, values in whole.items()
    }
    spoiled["input_ids"] = np.concatenate([spoiled["input_ids"], spoiled["input_ids"][:1]])
    spoiled = {
        key: np.concatenate([v, v[:1]]) if key != "input_ids" else v for key, v in spoiled.items()
    }
    spoiled["input_ids"][2, -1] = -1
    spoiled |= told(predictor, encoded, np.array([user] * 3))
    try:
        logits, vector = run(spoiled)
    except Exception as error:  # torch refuses a negative id
        assert "out of range" in str(error) or "index" in str(error)
        spoiled["input_ids"][2, -1] = 1
        logits, vector = run(spoiled)
        vector[2] = logits[2] = np.nan
    assert np.allclose(vector[0], expected, atol=2e-5)
    assert np.isnan(vector[1:]).all() and np.isnan(logits[1:]).all(), "nothing is said of no events"


def _labels(store: Any) -> Any:
    import pyarrow as pa

    return pa.array([f"{i:03}" for i in range(len(store.offsets) - 1)], pa.string())


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor, _ = made({})
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    command = ["export-model", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "torch"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "io.json").write_text("{}")  # as an earlier export would have left it
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == {
        "logits": ["rows", 5],
        "user_vector": ["rows", 32],
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "io.json",
        "model.pt2",
        "preprocessor_config.json",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


# run in a process where torch cannot be imported: from a file of raw events to probabilities
WITHOUT_TORCH = """
import json, sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] == "torch"
        return None if hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import numpy as np, onnxruntime
from behavegpt.graph_inputs import GraphInputs
folder, log = sys.argv[1:]
inputs = GraphInputs(folder)
users, feed = inputs.of(log)
logits, vectors = onnxruntime.InferenceSession(folder + "/model.onnx").run(None, feed)
chances = np.exp(logits - logits.max(1, keepdims=True))
chances /= chances.sum(1, keepdims=True)
found = {"users": users.to_pylist(), "labels": inputs.labels(logits, 5).tolist()}
found |= {"chances": np.sort(chances)[:, ::-1].tolist(), "vectors": vectors.tolist()}
print(json.dumps(found))
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("shape", ["plain", "memory"])
def test_raw_events_without_torch(tmp_path: Path, shape: str) -> None:
    for library in NEEDED["onnx"]:
        pytest.importorskip(library, reason=f"{library} is not installed; pip install -e '.[onnx]'")
    predictor, _ = made(SHAPES[shape])
    export_model(predictor, tmp_path / "out", "onnx")
    rng = np.random.default_rng(0)
    seconds = np.sort(rng.integers(0, 50 * 86400, (7, 40)), axis=1).ravel()
    log = pd.DataFrame(
        {
            "u": np.repeat([f"user {i}" for i in range(7)], 40),
            "t": pd.Timestamp("1970-01-03") + pd.to_timedelta(seconds, unit="s"),
            "e": rng.choice([f"event{i}" for i in range(13)], 280),
            "l": rng.choice([f"location{i}" for i in range(4)], 280),
            "b": rng.choice([f"behavior{i}" for i in range(5)], 280),
        }
    )
    log = log[rng.random(280) < np.repeat(rng.random(7), 40)]  # of different lengths
    log.to_csv(tmp_path / "log.csv", index=False)
    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        str(tmp_path / "out"),
        str(tmp_path / "log.csv"),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    expected = predictor.predict(tmp_path / "log.csv", top_k=5)
    assert found["users"] == expected.users.to_pylist()
    assert np.allclose(found["chances"], expected.probabilities, atol=2e-6)
    assert (np.array(found["labels"]) == expected.labels).mean() > 0.99  # ties aside
    assert np.allclose(found["vectors"], predictor.embed(tmp_path / "log.csv").vectors, atol=2e-5)


def test_what_a_model_with_memory_is_given(tmp_path: Path) -> None:
    """The folder says names, shapes and types of the inputs, and holds the counts."""
    predictor, store = made(SHAPES["memory"])
    facts = export_model(predictor, tmp_path / "out", "torch")
    experts = len(EXPERTS) + 1
    assert {name: facts["inputs"][name] for name in MEMORY} == {
        "memory_owner": ["candidates"],
        "memory_classes": ["candidates"],
        "memory_probability": ["candidates", experts],
        "memory_age": ["candidates", 2],
        "memory_rest": ["rows", experts],
        "memory_evidence": ["rows", experts - 1],
        "memory_reliability": ["rows", experts],
        "memory_context": ["rows", 5],
    }
    columns = {name: np.asarray(c).astype(np.int64) for name, c in store.columns.items()}
    columns["behavior"] = store.column("behavior").astype(np.int64)
    encoded = EncodedHistories(_labels(store), store.offsets, columns, {}, {})
    feed = GraphInputs(tmp_path / "out").of(encoded).feed
    assert {name: values.dtype.name for name, values in feed.items()} == facts["dtypes"]
    expected = told(predictor, encoded, np.arange(12))
    assert all(np.array_equal(feed[name], values) for name, values in expected.items())
    with pytest.raises(CheckpointError, match="export-model"):
        GraphInputs(tmp_path)
