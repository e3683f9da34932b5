"""Pooling: from a model and histories to one vector for each user; what a vector is made of is a
row of `POOLS`.

Shape letters: U users, B rows, R positions, S histories of a row, C hidden width, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.batch import PackedBatch
from behavegpt.config import check_settings
from behavegpt.data.loader import row_length_for
from behavegpt.errors import ConfigError
from behavegpt.history_batches import Histories, history_batches, memory_of_histories
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.precision import autocast
from behavegpt.option_types import MOST_BEHAVIORS
from behavegpt.options import EmbedOptions

DAY = 86400.0
INPUT, FINAL = 0, -1  # layers: the embedded events, and the output behind the last norm


class RowHistories(NamedTuple):
    """Packed rows seen as S histories each."""

    member: torch.Tensor  # (B, S, R) bool: position belongs to history
    last: torch.Tensor  # (B, S, R) bool: position is its last event
    days: torch.Tensor  # (B, S, R) float: time from the event to the history's last one


class Pool(NamedTuple):
    """A weighted mean of one layer's states; `weight` gives (B, S, R), which is then scaled to sum
    1 over R."""

    layer: int
    weight: Callable[[RowHistories, float], torch.Tensor]


def _last(histories: RowHistories, half_life: float) -> torch.Tensor:
    """1 at each history's last event, (B, S, R)."""
    return histories.last


def _mean(histories: RowHistories, half_life: float) -> torch.Tensor:
    """1 at each event of a history, (B, S, R)."""
    return histories.member


def _decayed(histories: RowHistories, half_life: float) -> torch.Tensor:
    """2^(-days / half_life) at each event of a history, (B, S, R)."""
    return histories.member * torch.exp2(-histories.days / half_life)


POOLS = {
    "last": Pool(FINAL, _last),  # what the model knows at the user's last event
    "mean": Pool(FINAL, _mean),
    "decayed": Pool(FINAL, _decayed),  # recent events count more: half as much for each half-life
    "bag": Pool(INPUT, _mean),  # mean of the embedded events, as the transformer receives them
    "recent_bag": Pool(INPUT, _decayed),
}
BEHAVIORS = "behaviors"  # log-probabilities of the next behavior
NAMES = (*POOLS, BEHAVIORS)


def widths(model: BehaveGPTForBehaviorPrediction, pool: Sequence[str]) -> list[int]:
    """Dimensions of each part of a vector. Raises ConfigError unless `pool` names one part or more,
    each once."""
    config, pool = model.config, check_settings(EmbedOptions, {"pool": pool}, "vector").pool
    if config.given and BEHAVIORS in pool:
        raise ConfigError(
            f"the part {BEHAVIORS!r} is what the model predicts, and this one is given the "
            f"{' and '.join(config.given)} of the event that it predicts, which a vector does not "
            f"know; remove it: {', '.join(POOLS)}."
        )
    return [
        min(config.num_behaviors, MOST_BEHAVIORS) if name == BEHAVIORS else config.hidden_size
        for name in pool
    ]


@torch.no_grad()
def user_vectors(
    model: BehaveGPTForBehaviorPrediction,
    columns: Mapping[str, np.ndarray],
    begin: np.ndarray,
    end: np.ndarray,
    pool: Sequence[str] = ("last",),
    half_life: float = 7.0,
    interrupt: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Vectors (U, D) float32 of users whose events are `begin:end` (U,) of the columns, none empty,
    ascending.

    The last `max_length` events of a history are read. `columns` are the model's, and `time` in
    seconds. A user's vector does not depend on who else is in the call, up to rounding. `half_life`
    in days. `interrupt` is called before each batch; what it raises stops the work.
    """
    vectors = np.zeros((len(begin), sum(widths(model, pool))), np.float32)
    layers = {POOLS[name].layer for name in pool if name in POOLS}

    histories = Histories(columns, begin, end)

    with_logits = BEHAVIORS in pool
    # a row's weights are (S, R) beside the logits of its S users
    cells = row_length_for(model.config.max_length)
    cells += model.config.num_behaviors if with_logits else 0
    batches = history_batches(
        model,
        histories,
        cells_per_user=cells,
        with_time=True,
        memory=memory_of_histories(model, histories) if with_logits else None,
    )

    for users, batch, _, time in batches:
        interrupt()
        assert time is not None
        rows = _histories(batch, time)
        output: Any = _run(model, batch, rows, layers, with_logits)
        parts = [_part(name, output, rows, half_life) for name in pool]
        vectors[users] = torch.cat(parts, dim=-1).cpu().numpy()
    return vectors


def _part(name: str, output: Any, histories: RowHistories, half_life: float) -> torch.Tensor:
    """One part of the vectors of a batch's users (n, width) float32, history by history."""
    if name == BEHAVIORS:
        # the first classes are the most frequent ones
        logs: torch.Tensor = output.logits.float().log_softmax(-1)
        return logs[:, :MOST_BEHAVIORS]

    final = POOLS[name].layer == FINAL
    # hidden_states[0]: the embedded events, before the first block
    states = output.last_hidden_state if final else output.hidden_states[INPUT]
    weight = POOLS[name].weight(histories, half_life).to(states.dtype)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(states.dtype).tiny)

    held = histories.member.any(-1)  # (B, S), false where a row holds fewer histories
    pooled: torch.Tensor = (weight @ states)[held]  # (B, S, R) @ (B, R, C)
    return pooled.float()


def _histories(batch: PackedBatch, time: torch.Tensor) -> RowHistories:
    """The histories of packed rows, with times (B, R) in seconds."""
    index = torch.arange(int(batch.document.max()) + 1, device=batch.document.device)  # (S,)
    member = batch.document[:, None, :] == index[:, None]
    length = member.sum(-1, keepdim=True)
    last = member & (batch.position[:, None, :] == length - 1)

    newest = (last * time[:, None, :]).sum(-1, keepdim=True)
    return RowHistories(member, last, (newest - time[:, None, :]).clamp_min(0).float() / DAY)


def _run(
    model: BehaveGPTForBehaviorPrediction,
    batch: PackedBatch,
    histories: RowHistories,
    layers: set[int],
    logits: bool,
) -> Any:
    """The model's output; the prediction layer is left out unless its logits are asked for."""
    embedded = INPUT in layers
    with autocast(model.device):
        if logits:
            select = histories.last.any(1)
            return model(**batch.arguments, output_hidden_states=embedded, select=select)
        return model.model(**batch.arguments, output_hidden_states=embedded)
