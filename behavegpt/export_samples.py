"""Inputs of an exported graph, drawn at random: to trace a model, and to compare the file with it.

Shapes: B rows, L events, M candidates of all rows, J experts with their mixture.
"""

from __future__ import annotations

import numpy as np
import torch

from behavegpt.graph_inputs import MEMORY, PREFIX
from behavegpt.model import BehaveGPTConfig


def axes_of(name: str) -> tuple[str, ...]:
    """Names of the axes of an input."""
    return MEMORY[name].axes if name in MEMORY else ("rows", "events")


def fixed_axes(config: BehaveGPTConfig) -> dict[str, int]:
    """Sizes of the axes that are not free: J, what is said of a candidate's age, of the moment."""
    # (mixture included), age in events and seconds, the five figures of Memory.context
    experts = len(config.memory_experts or ()) + 1
    return {"experts": experts, "counts": experts - 1, "age": 2, "context": 5}


def sample_inputs(
    config: BehaveGPTConfig, rows: int, length: int, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Histories of 1 to `length` events, each column and the mask (rows, length), and what counts
    may say of them."""
    rng = np.random.default_rng(seed)
    # vocabulary ids of behaviors: two more than classes, padding and unknown
    sizes = config.ids_by_column | {"behavior": config.num_behaviors + 2, "time": 1 << 30}

    lengths = rng.integers(1, length + 1, rows)
    # one row of full length, the others padded at the end
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]

    columns = []
    for field in config.columns:
        least = 1 if sizes[field] > 1 else 0  # 0 is padding, unless it is the only id
        ids = rng.integers(least, sizes[field], mask.shape)
        columns.append(np.where(mask, ids, 0))

    counts = _sample_memory(config, rows, rng) if config.memory else []
    arrays = [*columns, mask.astype(np.int64), *counts]
    return tuple(torch.from_numpy(np.ascontiguousarray(values)) for values in arrays)


def _sample_memory(
    config: BehaveGPTConfig, rows: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """What counts may say, in the order of MEMORY; the last row has no candidate."""
    count = rng.integers(1, min(config.num_behaviors, 9) + 1, rows)
    # no candidate at all is a case of its own for the mixer
    count[-1] = 0

    sizes = fixed_axes(config) | {"rows": rows, "candidates": int(count.sum())}
    values: dict[str, np.ndarray] = {}
    for name, spec in MEMORY.items():
        values[name] = rng.random([sizes[axis] for axis in spec.axes])

    classes = [rng.permutation(config.num_behaviors)[:number] for number in count]
    values[f"{PREFIX}owner"] = np.repeat(np.arange(rows), count)
    values[f"{PREFIX}classes"] = np.concatenate(classes)
    # mean log-probabilities, so below 0
    values[f"{PREFIX}reliability"] *= -4
    return [values[name].astype(spec.dtype) for name, spec in MEMORY.items()]
