"""The ladder: shapes of models by their number of parameters, and what training one of them takes.

The shapes are GPT-2's: 64 units of width for each layer and for each attention head (12 layers, 12
heads, 768 units in GPT-2 small), so a model has 12 * layers * width^2 parameters in its blocks.
Widths of 128, 256 and 512 are then 0.4 M, 3 M and 25 M, the paper's three sizes. Below 128 a model
keeps one layer and two heads.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from behavegpt.baselines.architectures import read_inputs, shape_baseline
from behavegpt.baselines.network import BaselineForBehaviorPrediction
from behavegpt.config import Settings
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.store import EventStore
from behavegpt.errors import ConfigError, violation
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.size import count_parameters

WIDTH_PER_LAYER = WIDTH_PER_HEAD = 64
# embeddings of a field wider than 16 are multiples of 4, for even heads and fast kernels
ROUND_FROM, ROUND_TO = 16, 4
SHAPE_OF_SIZE = ("embedding_size", "num_hidden_layers", "num_attention_heads")
BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and Adam's two moments
# of activations kept for the backward pass, per unit of width, layer and position: 34 bytes in half
# precision (Korthikanti et al. 2022, eq. 2, without attention scores), twice that in fp32
BYTES_PER_ACTIVATION = 68


class Task(Settings):
    """What of a data set decides a model's size."""

    fields: dict[str, int] = Field(
        description="ids of each input field, padding and unknown included"
    )
    behaviors: int = Field(ge=2, description="classes to predict")
    behavior_is_event: bool = Field(False, description="the classes are the events")

    @classmethod
    def of(cls, store: EventStore) -> Task:
        return cls(
            fields=store.field_sizes(),
            behaviors=store.behaviors.classes,
            behavior_is_event=store.schema.behavior_is_event,
        )


@dataclass(frozen=True)
class Rung:
    """One size of the ladder."""

    model: dict[str, Any]  # BehaveGPTConfig's shape
    width: int
    parameters: dict[str, int]  # by part, see count_parameters
    flops_per_event: float  # of training, without recomputation

    @property
    def params(self) -> int:
        return self.parameters["total"]

    @property
    def name(self) -> str:
        return f"{self.width}x{self.model['num_hidden_layers']}"


def make_rung(
    size: float | Mapping[str, int], count: str, task: Task, common: Mapping[str, Any]
) -> Rung:
    """The GPT-2-like shape whose number of parameters (`count`: a key of count_parameters) is
    nearest to `size`.

    `size` may also be a shape itself (`SHAPE_OF_SIZE`); `common` is the shape that all sizes share.
    ConfigError if the smallest model is more than twice as large, which happens when the
    vocabularies alone are.
    """
    if isinstance(size, Mapping):
        return _measure(task, {**common, **size})

    # parameters grow with the width, so the nearest is one of two neighbors
    widths = _widths(size, len(task.fields))

    def rung_of(width: int) -> Rung:
        return _measure(task, {**common, **_shape(width, task)})

    reach = bisect.bisect_left(widths, size, key=lambda width: rung_of(width).parameters[count])
    near = [rung_of(width) for width in widths[max(reach - 1, 0) : reach + 1]]

    # nearest as a ratio: half as large is as far as twice as large
    best = min(
        near, key=lambda rung: max(rung.parameters[count] / size, size / rung.parameters[count])
    )
    if best.parameters[count] > 2 * size:
        raise ConfigError(
            f"sizes: no model of {size:,.0f} parameters ({count}) for this data: the smallest has "
            f"{best.parameters[count]:,}, of which {best.parameters['embeddings']:,} are "
            f"embeddings of {sum(task.fields.values()):,} labels. Ask for larger ones, set "
            "count=without_embeddings, or prepare the data with --max-vocabulary."
        )

    return best


def memory(rung: Rung, batch_events: int) -> float:
    """Estimated bytes of training in fp32: weights, gradients, Adam's moments and the activations
    of one step."""
    activations = BYTES_PER_ACTIVATION * rung.width * rung.model["num_hidden_layers"]
    return BYTES_PER_PARAMETER * rung.params + activations * batch_events


def _widths(size: float, fields: int) -> list[int]:
    """Embedding sizes of a field, ascending, that a model of about `size` parameters may have."""
    # the width at which 12 * layers * width^2, layers = width / 64, is twice the size
    most = max(2 * WIDTH_PER_LAYER, (2 * size * WIDTH_PER_LAYER / 12) ** (1 / 3))
    widths = range(1, 2 + int(most / fields))
    return [width for width in widths if width <= ROUND_FROM or width % ROUND_TO == 0]


def _shape(embedding_size: int, task: Task) -> dict[str, int]:
    width = len(task.fields) * embedding_size
    embedding_size += width % 2  # rotary positions need an even head
    width = len(task.fields) * embedding_size
    wanted = max(2, width // WIDTH_PER_HEAD)
    heads = next(heads for heads in range(wanted, 0, -1) if width % (2 * heads) == 0)

    layers = max(1, round(width / WIDTH_PER_LAYER))
    return dict(zip(SHAPE_OF_SIZE, (embedding_size, layers, heads), strict=True))


def _measure(task: Task, model: dict[str, Any]) -> Rung:
    """Count a model without allocating it. ConfigError on a shape that contradicts itself."""
    classes: dict[str, Any] = {
        "num_behaviors": task.behaviors,
        "behavior_is_event": task.behavior_is_event,
    }
    network: type[BehaveGPTForBehaviorPrediction] = BehaveGPTForBehaviorPrediction

    try:
        if model.get("architecture", "behavegpt") == "behavegpt":
            fields, width = read_inputs(model, task.fields, task.behaviors, task.behavior_is_event)
            shape = {
                name: value
                for name, value in model.items()
                if name not in ("architecture", "inputs")
            }
            if shape.get("memory"):
                shape["memory_experts"] = list(EXPERTS)
            config = BehaveGPTConfig(
                field_sizes=fields, **classes, **shape | {"embedding_size": width}
            )
        else:
            config = shape_baseline(model, task.fields, task.behaviors, task.behavior_is_event)
            network = BaselineForBehaviorPrediction
    except Exception as error:
        raise ConfigError(f"sizes: {violation(error)}") from None

    # meta tensors have shapes and no memory
    with torch.device("meta"):
        parameters = count_parameters(network(config))

    multiplied = parameters["total"] - parameters["embeddings"]
    # each weight takes two operations forward and four backward; attention 4 * width for each event
    # looked at, of which a full window has (length + 1) / 2 on average, and twice that backward; of
    # a baseline, its weights' alone
    attention = 0.0
    if network is BehaveGPTForBehaviorPrediction:
        attention = 12 * config.num_hidden_layers * config.hidden_size * (config.max_length + 1) / 2

    return Rung(dict(model), config.hidden_size, parameters, 6 * multiplied + attention)
