"""GRU (after GRU4Rec, Hidasi et al. 2016, arXiv:1511.06939): a recurrent network over each history.

    r_t = sigmoid(W_r x_t + U_r h_{t-1} + b_r)      z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    n_t = tanh(W_n x_t + b_n + r_t (U_n h_{t-1} + c_n))      h_t = (1 - z_t) n_t + z_t h_{t-1}

The last layer's h_t scores the classes. Ours instead of the original's: full cross-entropy over all
positions of a history, for its ranking losses over the other users of a mini-batch.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.layout import Layout
from behavegpt.model.output import Encoded


class GRUEncoder(nn.Module):
    """`num_hidden_layers` recurrent layers of the hidden width."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        layers = config.num_hidden_layers
        self.gru = nn.GRU(
            config.hidden_size,
            config.hidden_size,
            layers,
            batch_first=True,
            dropout=config.dropout if layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, layout: Layout) -> Encoded:
        """x (B, R, C) -> (B, R, C); each history begins with h = 0."""
        return Encoded(self.dropout(run_gru(self.gru, x, layout)))


def run_gru(gru: nn.GRU, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """States (B, R, C) of packed rows (B, R, C), history by history."""
    histories = layout.unpack()
    if not len(histories.length):
        return torch.zeros_like(x)

    # packed: the recurrence must not run over padding or into another history
    together = pack_padded_sequence(
        histories.take(x), histories.length.cpu(), batch_first=True, enforce_sorted=False
    )
    states, _ = pad_packed_sequence(gru(together)[0], batch_first=True)
    return histories.put(states, x)
