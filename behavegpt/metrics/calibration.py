"""Calibration: whether of the predictions made with 70 % about 70 % come true."""

from __future__ import annotations

from typing import Any

import torch

BINS = 10  # of equal width in the probability of the most probable behavior


class Calibration:
    """Collects the most probable behavior's probability and whether it came, in bins."""

    def __init__(self) -> None:
        # (3, BINS) float64: predictions, their summed probability, those that came true
        self.sums = torch.zeros(3, BINS, dtype=torch.float64)

    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Take up logits (N, K) and targets (N,)."""
        if not len(target):
            return

        logits = logits.float()
        # the softmax of the best class alone: no (N, K) tensor of probabilities
        best, place = logits.max(1)
        probability = torch.exp(best - torch.logsumexp(logits, 1)).double()
        bins = (probability * BINS).long().clamp(max=BINS - 1)

        came = (place == target).double()
        values = torch.stack([torch.ones_like(came), probability, came])  # (3, N)
        added = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device)
        self.sums += added.index_add(1, bins, values).cpu()

    def compute(self) -> dict[str, Any]:
        """`ece`: the expected calibration error, the mean over predictions of |probability - share
        that came| by bins (Naeini et al. 2015); `bins`: those that hold predictions.

        >>> calibration = Calibration()
        >>> logits = torch.log(torch.tensor([[0.75, 0.25]] * 4))
        >>> calibration.update(logits, torch.tensor([0, 0, 1, 1]))
        >>> figures = calibration.compute()
        >>> round(figures["ece"], 4), figures["bins"][0]["predictions"]
        (0.25, 4)
        """
        number, probability, came = self.sums
        # sum over bins of (n / N) |mean probability - share that came|; the n cancel
        error = (probability - came).abs().sum() / number.sum().clamp(min=1)

        bins = [
            {
                "predictions": int(number[k]),
                "probability": float(probability[k] / number[k]),
                "came_true": float(came[k] / number[k]),
            }
            for k in torch.nonzero(number)[:, 0].tolist()
        ]
        return {"ece": float(error), "bins": bins}
