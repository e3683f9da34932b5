"""EventCache: keys and values of past events, for inference: a further event costs one position,
not the whole history.

Shape letters: B histories, R new positions, L slots (the model's max_length), S slots in use, H
heads, D head width.

History b keeps its events in slots 0 .. length[b] - 1, whatever the padding of the batches that
brought them, so histories of different lengths stand side by side and each row's slot is its
position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from behavegpt.model.config import BehaveGPTConfig
from behavegpt.model.history import Past


class Step(NamedTuple):
    """Where the new events of one forward go."""

    # (B, R) int64; L for padding: a slot that nobody reads
    slot: torch.Tensor
    # (B, R) int64 index within the history; of padding: that of its neighbor
    position: torch.Tensor
    last: torch.Tensor  # (B,) column of each history's last new event
    mask: torch.Tensor  # (B, 1, R, S) bool, True where a query may look


class EventCache:
    """The past of B histories; the first forward fixes B. Given to the model as
    `past_key_values`."""

    is_compileable = is_croppable = False  # transformers' generate asks

    def __init__(self, config: BehaveGPTConfig) -> None:
        self.slots = config.max_length
        # a day without slots is one slot: the history head divides by their number
        self.slots_of_day = (config.field_sizes or {}).get("slot", 1)
        self.columns = 0  # of the batches so far, padding included
        self._lengths: torch.Tensor | None = None
        # keys and values, each (B, H, L + 1, D)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.times: torch.Tensor | None = (
            None  # (B, L + 1) int64 seconds, where the model reads them
        )
        self.ids: dict[str, torch.Tensor] = {}  # (B, L + 1) int64, what the history head reads
        self.step: Step  # of the forward that runs, or ran last

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, as transformers counts them."""
        return self.columns

    @property
    def lengths(self) -> torch.Tensor:
        """Events (B,) int64 of each history."""
        assert self._lengths is not None, "nothing was cached yet"
        return self._lengths

    def begin(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Step:
        """Make room for events (B, R). `attention_mask` (B, R or more; the last R count) is 0 at
        padding.

        Raises ValueError when a history would outgrow the model's window.
        """
        rows, new = input_ids.shape
        if self._lengths is None:
            self._lengths = input_ids.new_zeros(rows)

        real = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            real = attention_mask[:, -new:].bool()
        # (B, R) events of each history up to and with each new one, padding not counted
        reach = self.lengths[:, None] + real.cumsum(1)

        width = int(reach.max())  # S: slots in use once the new events are stored
        if width > self.slots:
            raise ValueError(
                f"{width} events do not fit the model's window of {self.slots}; give fewer, or let "
                "behavegpt's Predictor.generate slide the window"
            )

        position = (reach - 1).clamp(min=0)
        self._lengths = reach[:, -1]
        self.columns += new

        index = torch.arange(width, device=input_ids.device)  # (S,)
        # the first real column from the right: padding may stand on either side
        last = new - 1 - real.flip(1).to(torch.uint8).argmax(1)
        # slots are positions, so causality is a comparison
        mask = (index <= position[..., None])[:, None]  # (B, 1, R, S)
        self.step = Step(torch.where(real, position, self.slots), position, last, mask)

        return self.step

    def writer(self, layer: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """A function that stores the new keys and values (B, H, R, D) of a layer and returns all,
        (B, H, S, D)."""

        def write(*new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # a layer's first forward: only now its heads, width, dtype and device are known
            if layer == len(self.layers):
                rows, heads, _, width = new[0].shape
                # one slot more than the window holds, where padding goes
                empty = new[0].new_zeros(2, rows, heads, self.slots + 1, width)
                self.layers.append((empty[0], empty[1]))

            slot, used = self.step.slot, self.step.mask.shape[-1]
            for store, value in zip(self.layers[layer], new, strict=True):
                # detached: the cache is for inference, it must not keep graphs
                store[_rows(slot), :, slot] = value.detach().transpose(1, 2).to(store.dtype)

            keys, values = self.layers[layer]
            return keys[:, :, :used], values[:, :, :used]

        return write

    def remember_times(self, time: torch.Tensor) -> torch.Tensor:
        """Store the times (B, R) of new events; returns those of all (B, S), by slot."""
        slot, used = self.step.slot, self.step.mask.shape[-1]
        if self.times is None:
            self.times = time.new_zeros(len(slot), self.slots + 1)
        self.times[_rows(slot), slot] = time
        return self.times[:, :used]

    def remember(self, **ids: torch.Tensor) -> tuple[Past, torch.Tensor]:
        """Store new ids (B, R) of event, behavior, location and slot; returns all (B, S) and where,
        for each event, its behavior first occurs (B, S)."""
        slot, used = self.step.slot, self.step.mask.shape[-1]

        if not self.ids:
            empty = ids["event"].new_zeros(len(slot), self.slots + 1)
            self.ids = {name: empty.clone() for name in (*ids, "first")}
        for name, new in ids.items():
            self.ids[name][_rows(slot), slot] = new

        # comparing new behaviors with all stored ones costs R * S; the stored ones keep their
        # answer
        equal = self.ids["behavior"][:, None, :used] == ids["behavior"][..., None]  # (B, R, S)
        self.ids["first"][_rows(slot), slot] = equal.to(torch.uint8).argmax(-1)

        # (B, S) slots in use by longer histories only
        beyond = torch.arange(used, device=self.lengths.device) >= self.lengths[:, None]

        fields = {name: stored[:, :used] for name, stored in self.ids.items()}
        first = fields.pop("first").masked_fill(beyond, 0)

        # document -1 beyond a history's end, 0 within, as HistoryFeatures.at_last reads it
        return Past(**fields, document=-beyond.long(), slots=self.slots_of_day), first

    def take(self, rows: torch.Tensor) -> None:
        """Keep the histories `rows` (n,) only, in this order: keys and values (n, H, L + 1, D)."""
        self._lengths = self.lengths[rows]
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]
        self.ids = {name: stored[rows] for name, stored in self.ids.items()}
        if self.times is not None:
            self.times = self.times[rows]

    def forget(self, rows: torch.Tensor) -> None:
        """Empty the histories where `rows` (B,) bool holds."""
        # the slots keep their old contents, which nobody reads before they are written again
        self._lengths = self.lengths.masked_fill(rows, 0)

    def put(self, rows: torch.Tensor, other: EventCache) -> None:
        """Replace the histories `rows` (n,) by the n of another cache, (n, H, L + 1, D)."""
        self._lengths = self.lengths.index_copy(0, rows, other.lengths)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine[0][rows], mine[1][rows] = theirs
        for name, stored in self.ids.items():
            stored[rows] = other.ids[name]
        if self.times is not None and other.times is not None:
            self.times[rows] = other.times


def _rows(slot: torch.Tensor) -> torch.Tensor:
    # (B, 1), to index rows and slots together
    return torch.arange(len(slot), device=slot.device)[:, None]
