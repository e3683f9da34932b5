"""Long-term generation (section 4.4): autoregressive rollouts, event by event, all fields of an
event together.

For each step and user, from the hidden state at the last event: the time gap, hence weekday and
slot in the schema's zone; the behavior; an event of this behavior; a place of this event
(constraints.py says which go together). The drawn event is the next input. Fields without a head
follow a fallback (policies.py), and the result names it.

When a user's window is full, it restarts from its last `keep` events (state.py).

Shapes: N rows (a row is one sample of one user), K behaviors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.generation.constraints import Links
from behavegpt.generation.incremental import IncrementalModel
from behavegpt.generation.policies import choose_policies
from behavegpt.generation.result import Generated
from behavegpt.generation.settings import GenerationSettings
from behavegpt.generation.state import RowState
from behavegpt.generation.steps import Rollout
from behavegpt.model import BehaveGPTForBehaviorPrediction

CACHE_BYTES = 1 << 30  # on a CPU; on a GPU a share of what is free
LOGIT_BYTES = 1 << 28


@torch.no_grad()
def roll_out(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    encoded: EncodedHistories,
    settings: GenerationSettings,
    links: Links | None = None,
    on_rows: Callable[[int, int], None] | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Generated:
    """The futures of all users of `encoded`. The same user, seed and sample give the same future in
    any batch.

    `interrupt` is called after each step; what it raises stops the work. Raises ConfigError when
    the model lacks a head that the settings ask for.
    """
    refuse_baskets(tokenizer.event_schema, "generate")
    links = Links() if links is None else links
    policies = choose_policies(model, tokenizer, settings, links)
    gap_odds = links.gap_odds if settings.hours else None

    user, sample = _rows_by_length(encoded, model.config.max_length, settings.samples)
    size, parts = _rows_at_once(model, settings), []
    for first in range(0, len(user), size):
        rows = user[first : first + size], sample[first : first + size]
        state = RowState.start(
            model.config,
            tokenizer.event_schema,
            encoded,
            rows,
            settings,
            policies.needs_own_past,
            model.counts,
        )
        reader = IncrementalModel(
            model, use_cache=settings.cache, personal=settings.personal, gap_odds=gap_odds
        )

        for part in Rollout(reader, state, policies, links, settings).steps():
            interrupt()
            parts.append(part)
        if on_rows:
            on_rows(min(first + size, len(user)), len(user))

    return Generated.join(
        parts, encoded, tokenizer, policies.describe(), settings.model_dump(exclude_none=True)
    )


def _rows_by_length(
    encoded: EncodedHistories, window: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """User and number of the sample of each row, (U * samples,) each; the longest windows first."""
    # rows of like length together: the windows of a batch are padded to the longest
    length = np.minimum(np.diff(encoded.offsets), window)  # (U,)
    # stable: which users share a batch must not depend on the sort
    order = np.argsort(-length, kind="stable")
    return np.repeat(order, samples), np.tile(np.arange(samples), len(order))


def _rows_at_once(model: BehaveGPTForBehaviorPrediction, settings: GenerationSettings) -> int:
    """Rows whose cache and scores fit the memory; at least one, at most `settings.rows`."""
    config = model.config
    # bytes a row: keys and values in float32 at each slot of each block
    cached = 8 * config.num_hidden_layers * (config.max_length + 1) * config.hidden_size
    # the scores of all heads, float32, and what drawing holds beside them
    scores = 16 * (config.num_behaviors + sum((config.field_sizes or {}).values()))

    room = CACHE_BYTES, LOGIT_BYTES
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        room = free // 3, free // 12

    return max(1, min(settings.rows, room[0] // max(1, cached), room[1] // scores))
