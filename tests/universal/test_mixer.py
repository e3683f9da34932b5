"""The mixer: no label is known to it, it cannot learn noise, and it sees the next event nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from behavegpt.data.memory_past import EXPERTS
from behavegpt.model.mixer import Mixer
from behavegpt.universal.reader import MemoryReader, make_reader, take
from behavegpt.universal.train import UniversalSettings, fit_mixer, read_rows
from behavegpt.universal.worlds import World, random_world


def reader_of(world: World, used: np.ndarray) -> MemoryReader:
    return make_reader(world.columns, world.offsets, used, world.classes)


def logits_of(mixer: Mixer, reader: MemoryReader, positions: np.ndarray) -> torch.Tensor:
    log_prior = torch.log(torch.from_numpy(reader.tables.prior))
    with torch.no_grad():
        return torch.cat([mixer(batch.memory, log_prior) for batch in reader.batches(positions)])


@pytest.fixture(scope="module")
def mixer() -> Mixer:
    torch.manual_seed(0)
    return Mixer(len(EXPERTS) + 1).eval()


def test_permuted_classes_give_permuted_logits(mixer: Mixer) -> None:
    world = random_world(3, events=4_000)
    used = np.ones(len(world.columns.time), bool)
    order = np.random.default_rng(0).permutation(world.classes).astype(np.int32)
    behavior = order[world.columns.behavior]
    other = world._replace(columns=world.columns._replace(behavior=behavior))
    positions = np.arange(0, len(used), 3)
    one = logits_of(mixer, reader_of(world, used), positions)
    two = logits_of(mixer, reader_of(other, used), positions)
    assert torch.allclose(two[:, torch.from_numpy(order.astype(np.int64))], one, atol=1e-4)


def test_batches_give_what_one_position_gives(mixer: Mixer) -> None:
    world = random_world(5, events=6_000)
    reader = reader_of(world, world.columns.time < np.median(world.columns.time))
    positions = np.arange(7, len(world.columns.time), 11)
    together = logits_of(mixer, reader, positions)
    for n in (0, 50, len(positions) - 1):
        assert torch.allclose(
            together[n], logits_of(mixer, reader, positions[n : n + 1])[0], atol=1e-5
        )
    assert torch.allclose(together.logsumexp(1).isfinite().float(), torch.ones(len(positions)))


def test_noise_is_not_learned() -> None:
    """Training positions, whose targets the tables hold, give no more than the entropy of the
    noise."""
    rng = np.random.default_rng(0)
    world = random_world(1, events=8_000)
    count, classes = len(world.columns.time), 12
    columns = world.columns._replace(
        behavior=rng.integers(0, classes, count).astype(np.int32),
        event=rng.integers(2, 400, count).astype(np.int32),
        # contexts that hardly any other event has
        location=rng.integers(2, 300, count).astype(np.int32),
    )
    reader = reader_of(World(columns, world.offsets, classes), np.ones(count, bool))
    users, everything = rng.permutation(len(world.offsets) - 1), np.ones(count, bool)
    fitted, held = (
        read_rows("noise", reader, np.sort(half), everything, 4_000, rng, training=True)
        for half in np.array_split(users, 2)
    )
    torch.manual_seed(0)
    fresh = Mixer(len(EXPERTS) + 1, hidden_size=8)
    fit_mixer(
        fresh, [fitted], UniversalSettings(out="unused", questions={}, epochs=4, batch=250), rng
    )
    with torch.no_grad():
        logits = fresh(take(held.readings, held.position, held.shares), held.log_prior)
    loss = torch.nn.functional.cross_entropy(logits, held.target, reduction="none")
    error = loss.std() / len(loss) ** 0.5
    assert loss.mean() > np.log(classes) - 3 * error - 0.002


def test_a_world_is_a_function_of_its_seed() -> None:
    one, again, other = random_world(2, 3_000), random_world(2, 3_000), random_world(3, 3_000)
    assert all(np.array_equal(a, b) for a, b in zip(one.columns, again.columns, strict=True))
    assert not np.array_equal(one.columns.behavior[:500], other.columns.behavior[:500])
    for u in range(len(one.offsets) - 1):
        assert (np.diff(one.columns.time[one.offsets[u] : one.offsets[u + 1]]) >= 0).all()
