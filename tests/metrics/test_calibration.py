"""Calibration against torchmetrics, and its bins by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.metrics.calibration import BINS, Calibration


def scored(rows: int = 500, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(classes, (rows,), generator=generator)
    return torch.randn(rows, classes, generator=generator) + 2 * torch.eye(classes)[target], target


@pytest.mark.parametrize("parts", [1, 7])
def test_the_error_is_that_of_torchmetrics(parts: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, target = scored()
    calibration = Calibration()
    for rows in torch.arange(len(target)).chunk(parts):
        calibration.update(logits[rows], target[rows])
    theirs = multiclass_calibration_error(logits.softmax(1), target, 6, n_bins=BINS, norm="l1")
    assert calibration.compute()["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_bins_hold_what_fell_into_them() -> None:
    logits, target = scored()
    calibration = Calibration()
    calibration.update(logits, target)
    calibration.update(logits[:0], target[:0])  # a part without rows

    best, place = logits.softmax(1).max(1)
    bins = np.minimum(best.numpy() * BINS, BINS - 1).astype(int)
    came = (place == target).numpy()
    wanted = [
        [int((bins == k).sum()), best.numpy()[bins == k].mean(), came[bins == k].mean()]
        for k in np.unique(bins)
    ]
    found = [list(one.values()) for one in calibration.compute()["bins"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
