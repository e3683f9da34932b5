"""Transformer blocks from a language model: a GPT-2 folder in Hugging Face format (the paper's Fig.
7 comparison).

GPT-2's block is ours with other names: its Conv1D stores weights transposed, and query, key and
value in one matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2Model

from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.model import BehaveGPTForBehaviorPrediction

# ours -> GPT-2's; Conv1D or LayerNorm
_BLOCK = {
    "attention_norm": "ln_1",
    "attention.o_proj": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}


@torch.no_grad()
def start_from_gpt2(model: BehaveGPTForBehaviorPrediction, folder: str | Path) -> None:
    """Copy blocks and final norm, and position embeddings if the model learns some; embeddings and
    head stay.

    Raises CheckpointError if `folder` is no GPT-2, ConfigError if its shape is not the model's.
    """
    gpt2 = _open(Path(folder))
    # before anything is copied: half a model would be left
    _refuse_shape(model, gpt2.config, str(folder))

    body: Any = model.model
    theirs, width = gpt2.state_dict(), model.config.hidden_size

    for number, block in enumerate(body.blocks):
        for ours, name in _BLOCK.items():
            weight = theirs[f"h.{number}.{name}.weight"]
            layer = block.get_submodule(ours)
            layer.weight.copy_(weight if weight.ndim == 1 else weight.T)  # Conv1D: (in, out)
            layer.bias.copy_(theirs[f"h.{number}.{name}.bias"])

        # query, key and value side by side, (C, 3 C)
        fused = theirs[f"h.{number}.attn.c_attn.weight"]
        bias = theirs[f"h.{number}.attn.c_attn.bias"]
        for at, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = slice(at * width, (at + 1) * width)
            layer = block.get_submodule(f"attention.{name}")
            # Conv1D again: (in, out)
            layer.weight.copy_(fused[:, part].T)
            layer.bias.copy_(bias[part])

    body.norm.weight.copy_(theirs["ln_f.weight"])
    body.norm.bias.copy_(theirs["ln_f.bias"])
    if body.embedding.position is not None:
        # GPT-2 has more positions than the window holds
        body.embedding.position.weight.copy_(theirs["wpe.weight"][: model.config.max_length])


def _open(folder: Path) -> GPT2Model:
    """The language model, from files alone. Raises CheckpointError for any other kind."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: not a model folder (no config.json); give a GPT-2 in Hugging Face format."
        )
    try:
        config = GPT2Config.from_pretrained(folder, local_files_only=True)
        # GPT2Config takes the place of any type that the file names
        named = GPT2Config.get_config_dict(folder)[0].get("model_type")
        if config.model_type != "gpt2" or named != "gpt2":
            raise ValueError(f"a {named}, not a gpt2")
        return GPT2Model.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: cannot be loaded as GPT-2 ({str(error).splitlines()[0]})."
        ) from None


def _refuse_shape(model: BehaveGPTForBehaviorPrediction, gpt2: GPT2Config, folder: str) -> None:
    """One error with every difference and the setting that removes it."""
    ours = model.config
    # what -> ours, GPT-2's, how to make them equal
    wanted = {
        "hidden width": (
            ours.hidden_size,
            gpt2.n_embd,
            f"embedding_size = {gpt2.n_embd} / number of fields",
        ),
        "layers": (ours.num_hidden_layers, gpt2.n_layer, f"num_hidden_layers={gpt2.n_layer}"),
        "heads": (ours.num_attention_heads, gpt2.n_head, f"num_attention_heads={gpt2.n_head}"),
        "inner width": (
            ours.intermediate_size,
            gpt2.n_inner or 4 * gpt2.n_embd,
            f"intermediate_size={gpt2.n_inner}",
        ),
        "norm's epsilon": (
            ours.layer_norm_eps,
            gpt2.layer_norm_epsilon,
            "a GPT-2 with the epsilon of the model",
        ),
        "activation": ("gelu_new", gpt2.activation_function, "a GPT-2 with gelu_new"),
        "attention scaled by layer": (
            False,
            gpt2.scale_attn_by_inverse_layer_idx,
            "a GPT-2 without it",
        ),
        "attention scaled by width": (True, gpt2.scale_attn_weights, "a GPT-2 with it"),
    }

    # all differences at once: each is a setting to change before the next try
    lines = [
        f"{what}: {a} here, {b} in GPT-2 (use {fix})"
        for what, (a, b, fix) in wanted.items()
        if a != b
    ]
    if ours.position_encoding == "learned" and ours.max_length > gpt2.n_positions:
        lines.append(
            f"positions: {ours.max_length} here, {gpt2.n_positions} in GPT-2 (use a shorter "
            "max_length)"
        )
    if lines:
        raise ConfigError(f"{folder}: these blocks do not fit the model: {'; '.join(lines)}.")
