"""Vectors of labels from a file, in the place of a language model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.errors import DataError
from tests.baselines.makers import make


def test_vectors_are_matched_by_label_and_leave_no_path(tmp_path):
    labels = [f"event{i}" for i in (3, 0, 7, 1, 2, 5)] + ["elsewhere"]
    vectors = np.random.default_rng(0).normal(size=(7, 10)).astype(np.float32)
    np.savez(tmp_path / "text.npz", labels=labels, vectors=vectors)
    chosen = {"vector": 6, "text_vectors": str(tmp_path / "text.npz")}
    model = make("esr_nollm", options=chosen)
    found = model.head.vectors
    assert torch.equal(model.model.encoder.vectors[2:], found)
    assert not found[4].any() and found[3].any(), "event4 has no vector"
    # principal components keep the distances between labels, up to one scale
    known = torch.cdist(torch.from_numpy(vectors[:6]), torch.from_numpy(vectors[:6]))
    ours = torch.cdist(found[[3, 0, 7, 1, 2, 5]], found[[3, 0, 7, 1, 2, 5]])
    torch.testing.assert_close(ours / ours.max(), known / known.max(), atol=1e-4, rtol=1e-4)
    assert model.config.options["text_vectors"] is None


@pytest.mark.parametrize(
    "arrays,message",
    [
        ({"labels": ["event1"], "vectors": np.ones((1, 3))}, "at least 6 wide"),
        ({"labels": ["x"], "vectors": np.ones((1, 8))}, "none of its 1 labels"),
        ({"vectors": np.ones((1, 8))}, "labels"),
        ({"labels": np.array([{}]), "vectors": np.ones((1, 8))}, "plain arrays"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "text.npz", **arrays)
    with pytest.raises(DataError, match=message):
        make("esr_nollm", options={"vector": 6, "text_vectors": str(tmp_path / "text.npz")})
