"""A trained model as one file for other runtimes: prediction and embedding as a torch.export
program or ONNX graph.

The graph takes one history a row, as ids: `FIELD_ids` (`input_ids` for the event), each (B, L)
int64, and `attention_mask` (B, L) int64, 1 at events and 0 at padding, wherever it stands. It gives
`logits` (B, K) and `user_vector` (B, C) at each row's last event: what `Predictor.predict` and
`Predictor.embed` compute, from the last `max_length` events as they do. B and L are free. A row
without events, or with a negative id, gives NaN.

A model with memory also takes what the counts say at each row's last event (`graph_inputs.MEMORY`);
`graph_inputs.GraphInputs` makes all inputs from raw events, without torch.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.memory_files import save_counts
from behavegpt.decision import FILE as THRESHOLDS
from behavegpt.decision import save_thresholds
from behavegpt.errors import ConfigError, MissingExtraError
from behavegpt.export_network import LastEvent
from behavegpt.export_samples import axes_of, fixed_axes, sample_inputs
from behavegpt.graph_inputs import FACTS, MEMORY
from behavegpt.io import scratch, write_json
from behavegpt.predictor import Predictor

Format = Literal["torch", "onnx"]
FILES = {"torch": "model.pt2", "onnx": "model.onnx"}
OUTPUTS = ("logits", "user_vector")  # not a name of the graph's own, such as `embedding`
OPSET = 20
LONGEST = 1 << 16  # events of a row; those before the last max_length change nothing
INLINE_BYTES = 1 << 30  # protobuf ends at 2 GiB; larger weights go beside the graph
TOLERANCE = 1e-4  # of the check after writing, relative to the largest number


def export_model(
    predictor: Predictor, out: Path, kind: Format, overwrite: bool = False
) -> dict[str, Any]:
    """Write OUT/model.pt2 or OUT/model.onnx, the tokenizer and io.json; returns what io.json says.

    The file is run on other sizes and must agree with the model. Raises ConfigError and
    MissingExtraError.
    """
    model = predictor.model
    if model.config.model_type != "behavegpt":
        raise ConfigError(
            f"a {model.config.model_type} model cannot be exported; give the folder of a BehaveGPT."
        )
    if model.config.given:
        raise ConfigError(
            f"a model that is given the {' and '.join(model.config.given)} of the event that it "
            "predicts cannot be exported: the graph takes histories alone; serve it (behavegpt "
            "serve), or train one without model.given for export."
        )
    refuse_baskets(predictor.tokenizer.event_schema, "an exported graph")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: already exists; choose another folder, or pass --overwrite.")

    # the graph is traced on a CPU, and the caller's model goes back to where it was
    device = model.device

    # the window and the last event inside of the graph: callers need not know either
    network = LastEvent(nn.Module.to(model, "cpu")).eval()
    try:
        with scratch(out) as folder:
            with _quiet():
                program = _traced(network)
                run = _WRITERS[kind](program, network, folder / FILES[kind])

            facts = _facts(predictor, network, kind)
            # before the folder gets its name: a graph that differs leaves nothing behind
            facts["largest_difference"] = _compare(network, run)

            # what a reader of the graph needs beside it: labels, decision rule, counts
            predictor.tokenizer.save(folder)
            if predictor.thresholds:
                save_thresholds(predictor.thresholds, predictor.tokenizer, folder)
            if model.counts is not None:
                save_counts(model.counts, folder)

            write_json(folder / FACTS, facts)
    finally:
        nn.Module.to(model, device)
    return facts


def _traced(network: LastEvent) -> torch.export.ExportedProgram:
    """The network as a graph whose rows, events and candidates are free."""
    free = {
        "rows": torch.export.Dim("rows", min=1, max=1 << 20),
        "events": torch.export.Dim("events", min=1, max=LONGEST),
        "candidates": torch.export.Dim("candidates", min=0, max=1 << 26),
    }
    sizes = []
    for name in network.inputs:
        axes = enumerate(axes_of(name))
        sizes.append({index: free[axis] for index, axis in axes if axis in free})

    # no size of 1, which torch would take for a constant
    inputs = sample_inputs(network.model.config, 3, 7)
    with torch.no_grad():
        return torch.export.export(network, inputs, dynamic_shapes=(tuple(sizes),), strict=False)


Run = Callable[[tuple[torch.Tensor, ...]], list[torch.Tensor]]


def _write_torch(program: torch.export.ExportedProgram, network: LastEvent, path: Path) -> Run:
    """Written from memory: torch's own writer tells of a full disk by a RuntimeError without a
    reason."""
    archive = io.BytesIO()
    torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())

    module = program.module()
    return lambda ids: list(module(*ids))


def _write_onnx(
    program: torch.export.ExportedProgram, network: LastEvent, path: Path
) -> Run | None:
    """The check needs onnxruntime; without it there is none."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtraError("onnxscript", "onnx") from None

    names = list(network.inputs)
    # what the file will hold: biases and embeddings too
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    # dynamo: the exporter that takes a torch.export program, with its free sizes
    torch.onnx.export(
        program,
        f=path,
        input_names=names,
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        external_data=size > INLINE_BYTES,
        dynamo=True,
        verbose=False,
    )

    try:
        import onnxruntime
    except ImportError:
        return None

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(ids: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        feed = {name: values.numpy() for name, values in zip(names, ids, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


_WRITERS: dict[str, Callable[..., Run | None]] = {"torch": _write_torch, "onnx": _write_onnx}


@torch.no_grad()
def _compare(network: LastEvent, run: Run | None) -> float | None:
    """The largest difference to the model over several sizes. Raises AssertionError when it is
    one."""
    if run is None:
        return None

    worst = 0.0
    longest = network.model.config.max_length
    # one event, the window, part of it, and more than it holds
    for rows, length in ((1, 1), (2, longest), (5, max(1, longest // 2)), (2, longest + 7)):
        # another seed than the traced sample's: a constant that was baked in would show
        ids = sample_inputs(network.model.config, rows, length, seed=1)
        for got, expected in zip(run(ids), network(*ids), strict=True):
            difference = float((got - expected).abs().max())
            assert difference <= TOLERANCE * max(1.0, float(expected.abs().max())), (
                "the file differs from the model"
            )

            worst = max(worst, difference)
    return worst


def _facts(predictor: Predictor, network: LastEvent, kind: Format) -> dict[str, Any]:
    """io.json: names, shapes and types of inputs and outputs, free axes by name."""
    config = network.model.config
    sizes = fixed_axes(config)
    shapes: dict[str, list[int | str]] = {}
    types: dict[str, str] = {}
    for name in network.inputs:
        shapes[name] = [sizes.get(axis, axis) for axis in axes_of(name)]
        types[name] = MEMORY[name].dtype if name in MEMORY else "int64"

    facts: dict[str, Any] = {
        "file": FILES[kind],
        "inputs": shapes,
        "dtypes": types,
        "outputs": {
            "logits": ["rows", config.num_behaviors],
            "user_vector": ["rows", config.hidden_size],
        },
        "looks_back": config.max_length,
        "classes": (
            "labels of preprocessor_config.json's behavior (or event) vocabulary, in its order"
        ),
        "tokenizer_hash": predictor.tokenizer.hash,
    }
    if predictor.thresholds:
        facts["thresholds"] = THRESHOLDS
    return facts


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own remarks."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
