"""How a task is scored: AUROC alone, or for propensity 0.8 AUROC + 0.1 diversity + 0.1 novelty.

N clients, O outputs of the network. AUROC is exact (ranks, ties half) where the organizers
integrate a curve in float32: equal to 2e-8. A label that no client, or every client, has in the
window scores 0 and counts in the mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from behavegpt.errors import DataError

# the organizers' batch, for which torchmetrics decides whether it sees logits or probabilities
RULE_ROWS = 128
# the organizers': ten recommendations, a power that spreads small differences
TOP, NOVELTY_POWER, TINY = 10, 100, 1e-9
WEIGHTS = {"auroc": 0.8, "diversity": 0.1, "novelty": 0.1}  # of a propensity task
# a constant logit that says "nobody": the best that can be done without telling clients apart
LOW = -20.0
BLOCK, LABELS = 2**16, 64  # clients, and labels, looked at in one go


def score(logits: Tensor, targets: Tensor, popularity: np.ndarray | None) -> dict[str, float]:
    """Metrics of logits (N, O) float32 against targets (N, O) uint8, and their weighted sum
    "score".

    Without `popularity` (O,) float64 the score is the AUROC alone. Raises DataError when a metric
    is not a number.
    """
    metrics = {"auroc": float(auroc(probabilities(logits), targets).mean())}
    if popularity is not None:
        metrics |= {"diversity": diversity(logits), "novelty": novelty(logits, popularity)}

    metrics["score"] = weigh(metrics)
    if not (torch.isfinite(logits).all() and math.isfinite(metrics["score"])):
        low, high = logits.min().item(), logits.max().item()
        raise DataError(
            f"the network's outputs, from {low:.3g} to {high:.3g}, cannot be scored: the vectors "
            "are too large for it; scale them, for example each dimension to mean 0 and standard "
            "deviation 1."
        )

    return metrics


def weigh(metrics: dict[str, float]) -> float:
    """The score of a task from its metrics."""
    if "diversity" not in metrics:
        return metrics["auroc"]
    return sum(weight * metrics[name] for name, weight in WEIGHTS.items())


def probabilities(logits: Tensor) -> Tensor:
    """(N, O) as torchmetrics ranks them: the sigmoid of 128 rows if any value among them lies
    outside [0, 1]."""
    # (N,)
    outside = ((logits < 0) | (logits > 1)).any(dim=1)

    # (N / 128,): torchmetrics decides batch by batch, and theirs have 128 rows
    batches = F.pad(outside, (0, -len(outside) % RULE_ROWS)).view(-1, RULE_ROWS).any(dim=1)

    squashed = batches.repeat_interleave(RULE_ROWS)[: len(logits)]
    return torch.where(squashed[:, None], logits.sigmoid(), logits)


def auroc(values: Tensor, targets: Tensor) -> Tensor:
    """(O,) float64: the share of (positive, negative) pairs of clients that `values` (N, O) order
    rightly, ties half.

    0 for a label without positives or without negatives.

    >>> auroc(torch.tensor([[0.1], [0.4], [0.4], [0.8]]), torch.tensor([[0], [0], [1], [1]]))
    tensor([0.8750], dtype=torch.float64)
    """
    areas = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)

    for some in torch.arange(values.shape[1]).split(LABELS):
        # (LABELS, N): one sort for all labels of a stretch
        columns = values[:, some].t().contiguous()
        for label, column, ordered in zip(
            some.tolist(), columns, columns.sort(dim=1).values, strict=True
        ):
            # (P,) values of the clients that have the label
            positive = column[targets[:, label] > 0]

            # of a positive and a negative client
            pairs = len(positive) * (len(column) - len(positive))
            if not pairs:
                continue

            # the Mann-Whitney statistic: rank sum of the positives, equal values at their mean rank
            below = torch.searchsorted(ordered, positive).double()
            up_to = torch.searchsorted(ordered, positive, right=True).double()
            ranks = ((below + up_to + 1) / 2).sum()

            areas[label] = (ranks - len(positive) * (len(positive) + 1) / 2) / pairs

    return areas


def diversity(logits: Tensor) -> float:
    """Mean over clients of the entropy of sigmoid(logits) (N, O) made to sum to 1, as a share of
    log2(O)."""
    total = 0.0
    for rows in logits.split(BLOCK):
        # (BLOCK, O)
        shares = rows.sigmoid()
        shares /= shares.sum(dim=1, keepdim=True)
        total -= float((shares * torch.log2(shares + TINY)).sum(dtype=torch.float64))

    most = math.log2(max(2, logits.shape[1]))  # a single label has no diversity
    return total / ((len(logits) + TINY) * most)


def novelty(logits: Tensor, popularity: np.ndarray) -> float:
    """(1 - mean popularity of the ten strongest labels, weighted by sigmoid(logits) (N, O)) to the
    power of 100.

    `popularity` (O,) is divided by the sum of its ten largest values first.
    """
    top = min(TOP, len(popularity))
    # (O,)
    shares = torch.from_numpy(popularity / np.sort(popularity)[-top:].sum()).to(logits.device)

    total = 0.0
    for rows in logits.split(BLOCK):
        # (BLOCK, 10) each
        values, labels = torch.topk(rows.sigmoid(), top, dim=1)
        total += float((values * shares[labels]).sum())
    return (1 - total / (len(logits) + TINY)) ** NOVELTY_POWER


def floors(targets: Tensor, popularity: np.ndarray | None) -> dict[str, Any]:
    """What `score` gives without knowing anything, at best, and by chance, for targets (N, O).

    "constant": the same very low logit for everyone; "chance_std": the standard deviation of the
    score of values drawn at random (labels taken as independent); "ceiling": a perfect order;
    "absent_labels": labels that cannot be ranked.
    """
    clients, outputs = targets.shape
    # (O,) each
    positives = targets.sum(dim=0, dtype=torch.float64)
    negatives = clients - positives
    present = (positives > 0) & (negatives > 0)

    # of an AUROC by chance: (N + 1) / (12 P (N - P)), Mann and Whitney 1947
    variance = ((clients + 1) / (12 * positives * negatives))[present].sum().item() / outputs**2
    # labels that cannot be ranked score 0 in each mean
    share = present.double().mean().item()

    constant, ceiling, weight = {"auroc": share / 2}, {"auroc": share}, 1.0

    if popularity is not None:
        logits = torch.full((1, outputs), LOW)
        flat = {"diversity": diversity(logits), "novelty": novelty(logits, popularity)}
        constant, ceiling = constant | flat, ceiling | dict.fromkeys(flat, 1.0)
        weight = WEIGHTS["auroc"]

    return {
        "constant": weigh(constant),
        "chance_std": weight * math.sqrt(variance),
        "ceiling": weigh(ceiling),
        "labels": outputs,
        "absent_labels": int((~present).sum()),
        "clients": clients,
        "positives": int(positives.sum()),
    }
