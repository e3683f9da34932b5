"""Logit adjustment after training: p(b) / prior(b) ** tau, in prediction as in evaluation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from behavegpt.data.store import TEST
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.predictor import Predictor
from behavegpt.training.evaluate import evaluate, score
from tests.helpers import random_store


@pytest.fixture(scope="module")
def made():
    store = random_store(5, users=30)
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        embedding_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_length=16,
    )
    model = BehaveGPTForBehaviorPrediction(config).eval()
    counts = torch.tensor(np.asarray(store.behaviors.counts), dtype=torch.float64) + 1
    return store, model, counts / counts.sum()


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_probabilities_are_divided_by_the_training_frequency(made, tau):
    store, model, prior = made
    tokenizer = EventTokenizer.from_store(store, 16)
    histories = EncodedHistories(
        pa.array([f"u{i:02d}" for i in range(30)]), store.offsets, store.columns, {}, {}
    )
    predictor = Predictor(model, tokenizer)
    found = []
    for correction in ({}, {"prior_correction": tau}):  # none by default
        answer = predictor.predict(histories, top_k=len(prior), **correction)
        order = np.argsort(answer.labels.astype(str), axis=1)
        found.append(np.take_along_axis(answer.probabilities, order, axis=1))
    labels = np.argsort(np.array(store.behaviors.values.to_pylist(), dtype=str))
    wanted = found[0] / prior.numpy()[labels] ** tau
    np.testing.assert_allclose(found[1], wanted / wanted.sum(1, keepdims=True), rtol=1e-4)
    rarest = int(np.argmin(prior.numpy()[labels]))
    assert (found[1][:, rarest] > found[0][:, rarest]).all()


def test_the_cross_entropy_of_an_evaluation_is_that_of_the_corrected_logits(made):
    store, model, prior = made
    parts = list(score(model, store, TEST))
    logits, target = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "target")
    )
    _, found = evaluate(model, store, TEST, shift=prior.log().float())
    assert found == pytest.approx(
        float(F.cross_entropy(logits.double() - prior.log(), target)), rel=1e-5
    )
