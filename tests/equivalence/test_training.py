"""Runs that must agree: one optimizer step is one global batch, however it is cut over
micro-batches and ranks.

Ranks are processes joined by gloo, as torchrun would start them (tests/runs.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

from behavegpt.data.store import EventStore, open_store
from behavegpt.data.vocabulary import FIRST
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.training.journal import read_journal
from tests.helpers import random_store
from tests.runs import ROOT, quick_folder, save_store, shared_runs, tiny_settings

# micro-batches, ranks; 8 rows do not divide by 3 or 10
CUTS = [(1, 1), (8, 1), (1, 2), (3, 1), (5, 2)]
STEPS = 14
Outputs = dict[tuple[int, int], Path]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        # every history in one window
        save_store(random_store(users=100, longest=16, behaviors=9), folder / "data")
        yield folder


def settings_for(place: Path, out: Path, loss: str, micro: int, **train: Any) -> dict[str, Any]:
    """Eight rows a step; no dropout, whose masks depend on the cut; the DRO weights count from the
    first step."""
    train = {
        "steps": STEPS,
        "batch_events": 512,
        "micro_batches": micro,
        "clip": 1e9,
        "valid_every": STEPS,
    } | train
    settings = tiny_settings(place / "data", out, **train)
    settings["model"]["dropout"] = 0.0
    settings["loss"] = {"name": loss} | (
        {"start": 0.0, "momentum": 0.1, "n0": 2.0, "floor": 0.5} if loss == "dro" else {}
    )
    return settings


@pytest.fixture(scope="module", params=["cross_entropy", "dro"])
def runs_of(request: pytest.FixtureRequest, place: Path) -> tuple[str, Outputs]:
    """The same run cut in all ways, with what each recorded beside it."""
    loss: str = request.param
    outputs: Outputs = {}
    for micro, world in CUTS:
        out = place / f"{loss}-{micro}x{world}"
        result = shared_runs().run(
            settings_for(place, out, loss, micro), world=world, record=f"{out}.record"
        )
        assert result.status == 0, result.output
        outputs[micro, world] = out
    return loss, outputs


def rows_by_step(out: Path) -> dict[int, Counter[int]]:
    """Ids of the events that each step trained on, over all ranks and micro-batches."""
    rows: dict[int, Counter[int]] = defaultdict(Counter)
    for path in Path(f"{out}.record").glob("rows-*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            rows[entry["step"]].update(entry["rows"])
    return dict(rows)


def train_losses(out: Path) -> np.ndarray:
    return np.array([r["loss"] for r in read_journal(out / "log.jsonl") if r["kind"] == "train"])


def relative(gradients: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm, all parameters together."""
    assert gradients.keys() == reference.keys()
    difference = sum(
        float((gradients[n].double() - reference[n].double()).square().sum()) for n in reference
    )
    return float(
        (difference / sum(float(g.double().square().sum()) for g in reference.values())) ** 0.5
    )


def test_every_cut_trains_on_the_same_rows(runs_of: tuple[str, Outputs]) -> None:
    _, outputs = runs_of
    whole = rows_by_step(outputs[1, 1])
    assert sorted(whole) == list(range(STEPS)) and all(
        max(rows.values()) == 1 for rows in whole.values()
    )
    for cut, out in outputs.items():
        assert rows_by_step(out) == whole, cut


def test_every_cut_has_the_gradient_of_the_whole_batch(
    runs_of: tuple[str, Outputs], record_property: Callable[[str, object], None]
) -> None:
    _, outputs = runs_of
    whole = load_file(f"{outputs[1, 1]}.record/gradients-0.safetensors")
    for (micro, world), out in outputs.items():
        for rank in range(world):
            error = relative(load_file(f"{out}.record/gradients-{rank}.safetensors"), whole)
            record_property(f"gradient {micro} x {world}", error)
            assert error <= 1e-6, (micro, world, rank, error)


def test_the_gradient_is_that_of_the_weighted_mean(
    runs_of: tuple[str, Outputs], place: Path
) -> None:
    """In float64, one history at a time, with the weights of loss.md written out."""
    loss, outputs = runs_of
    out = outputs[1, 1]
    store = open_store(place / "data")
    model = BehaveGPTForBehaviorPrediction.from_pretrained(out / "model").train()
    model.load_state_dict(load_file(f"{out}.record/weights-0.safetensors"), strict=False)
    model.double()
    counts = torch.tensor(np.asarray(store.behaviors.counts), dtype=torch.float64)
    weight = first_dro_weights(counts) if loss == "dro" else torch.ones_like(counts)
    total = torch.zeros((), dtype=torch.float64)
    mass = torch.zeros((), dtype=torch.float64)
    for row in rows_by_step(out)[0]:
        logits = next_behavior_logits(model, store, row)
        target = torch.tensor(int(store.column("behavior")[row]) - FIRST)
        total = total + weight[target] * F.cross_entropy(logits, target)
        mass = mass + weight[target]
    mean = total / mass
    mean.backward()
    reference = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    recorded = load_file(f"{out}.record/gradients-0.safetensors")
    assert relative(recorded, reference) <= 1e-5
    assert abs(mean.item() - train_losses(out)[0]) <= 1e-6


def next_behavior_logits(
    model: BehaveGPTForBehaviorPrediction, store: EventStore, row: int
) -> torch.Tensor:
    """Logits (K,) of the event at `row`, from the same user's events before it."""
    begin = int(store.offsets[np.searchsorted(store.offsets, row, side="right") - 1])
    columns = {"event": "input_ids"} | {f: f"{f}_ids" for f in ("location", "weekday", "slot")}
    past = {
        ids: torch.tensor(np.asarray(store.columns[f][begin:row], np.int64))[None]
        for f, ids in columns.items()
    }
    logits = model(**past).logits
    assert logits is not None
    return logits[0, -1]


def first_dro_weights(counts: torch.Tensor) -> torch.Tensor:
    """p*(b) / pi(b) while all class losses are equal: the room between floor 1/2 and cap is filled
    evenly."""
    prior = counts / counts.sum()
    cap = 1 / (1 - torch.exp(-counts.clamp(min=1) / (2 * counts.mean())))
    room = (cap - 0.5) * prior
    return 0.5 + (cap - 0.5) * 0.5 / room.sum()


def test_every_cut_has_the_same_losses(
    runs_of: tuple[str, Outputs], record_property: Callable[[str, object], None]
) -> None:
    _, outputs = runs_of
    whole = train_losses(outputs[1, 1])
    assert len(whole) == STEPS
    for (micro, world), out in outputs.items():
        error = float(np.abs(train_losses(out) - whole).max())
        record_property(f"loss {micro} x {world}", error)
        assert error <= 1e-5, (micro, world, error)


def test_validation_is_the_same_on_two_ranks(runs_of: tuple[str, Outputs]) -> None:
    """Weights differ in the last bits by then, so the figures may differ by an event that changes
    its rank."""
    _, outputs = runs_of
    one, two = (read_journal(outputs[cut] / "log.jsonl")[-1] for cut in ((1, 1), (1, 2)))
    assert one["kind"] == two["kind"] == "valid" and one.keys() == two.keys()
    assert abs(one["cross_entropy"] - two["cross_entropy"]) <= 1e-5
    for name in ("rec_w", "rec_m", "ndcg@3", "hr@3"):
        assert abs(one[name] - two[name]) <= 0.01


def test_resume_with_another_cut_goes_on_with_the_same_rows(place: Path) -> None:
    """1 rank x 2 -> 2 ranks x 1 -> 1 rank x 3 -> 2 ranks x 5, each ended by a signal to one
    rank."""
    whole = place / "uncut"
    result = shared_runs().run(settings_for(place, whole, "dro", 1), record=f"{whole}.record")
    assert result.status == 0, result.output
    out = place / "recut"
    for part, (micro, world) in enumerate([(2, 1), (1, 2), (3, 1), (5, 2)]):
        order = {"signal": [signal.SIGTERM, 2 * part + 3, world - 1]} if part < 3 else {}
        settings = settings_for(place, out, "dro", micro)
        result = shared_runs().run(
            settings, resume=part > 0, world=world, record=f"{out}.record", **order
        )
        assert set(result.statuses) == {143 if part < 3 else 0}, result.output
    assert rows_by_step(out) == rows_by_step(whole)
    assert np.abs(train_losses(out) - train_losses(whole)).max() <= 1e-5


def test_dropout_is_repeated_and_depends_on_the_cut(place: Path) -> None:
    """Masks follow (seed, step, part, rank), on two ranks too."""
    losses = []
    for number, micro in enumerate((2, 2, 4)):
        settings = settings_for(place, place / f"dropout-{number}", "dro", micro)
        settings["model"]["dropout"] = 0.5
        result = shared_runs().run(settings, world=2)
        assert result.status == 0, result.output
        losses.append(train_losses(place / f"dropout-{number}"))
    assert losses[0].tolist() == losses[1].tolist()
    assert np.abs(losses[0] - losses[2]).max() > 1e-3


@pytest.mark.slow
def test_torchrun_agrees(place: Path) -> None:
    """The harness's ranks are torchrun's."""
    out = place / "torchrun"
    settings = settings_for(place, out, "dro", 4)
    config = place / "torchrun.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, str(ROOT / "train.py"), str(config)], check=True, cwd=ROOT, env=environment
    )
    other = place / "forked"
    result = shared_runs().run(settings_for(place, other, "dro", 4), world=2)
    assert result.status == 0, result.output
    assert train_losses(out).tolist() == train_losses(other).tolist()
