"""GRU autoencoder: nothing depends on padding or on the batch, the decoder sees the past and the
vector alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from behavegpt.profiles.fields import END, PAD, START, Vocabularies
from behavegpt.profiles.gru_autoencoder import GruAutoencoder, GruSettings, embed, fit
from behavegpt.profiles.members import Context
from behavegpt.profiles.networks import load_network
from behavegpt.profiles.task import TrainingSettings, mean_objective, seeded
from tests.profiles.makers import read_events

SIZES = {"day": 20, "event": 10, "sku": 30}
FIELDS = ("week", "event", "category", "price", "sku:10", "url:min2")
TRAINING = TrainingSettings(epochs=4, batch=8, lr=1e-2, held_out=0.2)


def settings(**changes: Any) -> GruSettings:
    plain = {
        "fields": FIELDS,
        "hidden": 12,
        "layers": 2,
        "longest": 16,
        "training": TRAINING,
        **changes,
    }
    return GruSettings.model_validate(plain)


def network(seed: int = 0, **changes: Any) -> GruAutoencoder:
    with seeded(seed):
        return GruAutoencoder(settings(fields=("day", "event", "sku"), **changes), SIZES).eval()


def batch(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Random sequences of the lengths, START and END included, padded with PAD."""
    rng = np.random.default_rng(seed)
    ids = {}
    for name, size in SIZES.items():
        table = np.full((len(lengths), max(lengths)), PAD)
        for row, length in zip(table, lengths, strict=True):
            row[:length] = [START, *rng.integers(3, size, length - 2), END]
        ids[name] = torch.from_numpy(table)
    return ids


def cut(ids: dict[str, Tensor], row: int, length: int) -> dict[str, Tensor]:
    return {name: table[row : row + 1, :length] for name, table in ids.items()}


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("start", ["zeros", "last", "all"])
def test_the_loss_is_that_of_each_client_alone_step_by_step(combine: str, start: str) -> None:
    """Compared with a decoder that is run one event at a time on one unpadded client."""
    net, lengths = network(combine=combine, start=start), [7, 3, 14, 5]
    ids = batch(lengths)
    wanted = dict.fromkeys(SIZES, 0.0)
    for row, length in enumerate(lengths):
        own = cut(ids, row, length)
        parts = [net.embeddings[name](own[name]) for name in SIZES]
        events = sum(parts[1:], parts[0]) if combine == "sum" else torch.cat(parts, -1)
        encoded, state = net.encoder(events)
        vector = encoded[:, -1]
        hidden = {"zeros": 0 * state, "last": torch.stack([vector, vector]), "all": state}[start]
        for step in range(length - 1):
            out, hidden = net.decoder(events[:, step : step + 1] + vector[:, None], hidden)
            for name, head in net.heads.items():
                wanted[name] += F.cross_entropy(
                    head(out[:, 0]), own[name][:, step + 1], reduction="sum"
                ).item()
    found = net(ids, torch.tensor(lengths))
    assert {name: round(loss.item(), 2) for name, loss in found.items()} == {
        n: round(v, 2) for n, v in wanted.items()
    }


def test_a_vector_does_not_depend_on_padding_or_on_the_batch() -> None:
    net, lengths = network(), [4, 126, 9, 3, 60]
    ids = batch(lengths)
    together = net.encode(net.embed(ids), torch.tensor(lengths))[-1]
    for row, length in enumerate(lengths):
        alone = cut(ids, row, length)
        assert (
            net.encode(net.embed(alone), torch.tensor([length]))[-1] - together[row]
        ).abs().max() < 1e-5
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {name: table[order] for name, table in ids.items()}
    again = net.encode(net.embed(shuffled), torch.tensor(lengths)[order])[-1]
    assert (again - together[order]).abs().max() < 1e-5
    # the fault this guards against: the state after the padding is another one
    unpacked = net.encoder(net.embed(ids))[1][-1]
    assert (unpacked - together)[2].abs().max() > 1e-3


def test_the_decoder_reads_neither_the_future_nor_more_than_the_vector() -> None:
    lengths = torch.tensor([9])
    ids, other = batch([9]), batch([9], seed=1)
    mixed = {name: torch.cat([ids[name][:, :5], other[name][:, 5:]], 1) for name in SIZES}
    for start in ("zeros", "last", "all"):
        net = network(start=start)
        state = net.encode(net.embed(ids), lengths)
        # (8, H): one client, so time by time is its order
        hidden = net.decode(net.embed(ids), state, lengths)
        changed = net.decode(net.embed(mixed), state, lengths)
        assert torch.equal(hidden[:5], changed[:5]) and not torch.allclose(hidden[5], changed[5])
        assert not torch.allclose(hidden, net.decode(net.embed(ids), state + 1, lengths))
        lower = state + torch.tensor([1.0, 0.0])[:, None, None]  # not part of the vector
        leaks = not torch.allclose(hidden, net.decode(net.embed(ids), lower, lengths))
        assert leaks == (start == "all")


def test_the_same_seed_gives_the_same_bytes(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    found = []
    for name, seed, threads in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        (tmp_path / name).mkdir()
        ours = context(small, seed=seed, threads=threads)
        fit(ours, settings(), tmp_path / name)
        found.append(embed(ours, settings(), tmp_path / name))
    assert found[0].vectors.tobytes() == found[1].vectors.tobytes() != found[2].vectors.tobytes()
    assert np.array_equal(found[0].client_ids, found[1].client_ids)
    # whoever has no event is absent, and who has one is there
    active = np.intersect1d(
        np.load(small / "input" / "relevant_clients.npy"), read_events(small)["client_id"]
    )
    assert np.array_equal(found[0].client_ids, active) and found[0].vectors.shape == (
        len(active),
        12,
    )
    # the size of the batches changes nothing
    one = settings(training=TRAINING.model_copy(update={"batch": 1}))
    assert (
        np.abs(embed(context(small), one, tmp_path / "a").vectors - found[0].vectors).max() < 1e-5
    )


def test_the_best_state_is_what_is_exported(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """The saved network has the loss that was the lowest of all epochs, which was not the last."""
    chosen = settings(
        training=TRAINING.model_copy(
            update={"lr": 0.1, "epochs": 16, "patience": 20, "held_out": 0.3}
        )
    )
    ours = context(small)
    fit(ours, chosen, tmp_path)
    facts = json.loads((tmp_path / "training.json").read_text())
    losses = [epoch["held_out"] for epoch in facts["epochs"]]
    assert facts["best"] == min(losses) < losses[-1]
    assert facts["best_epoch"] == losses.index(min(losses)) + 1
    vocabularies = Vocabularies.load(tmp_path / "vocabularies.safetensors")
    store = ours.sequences(chosen.sequence, vocabularies)
    net = GruAutoencoder(chosen, vocabularies.sizes)
    load_network(net, tmp_path)

    def objective(rows: np.ndarray, _: np.random.Generator) -> tuple[Tensor, float]:
        ids, lengths = store.padded(rows, chosen.longest)
        loss = net(
            {name: torch.from_numpy(table) for name, table in ids.items()},
            torch.from_numpy(lengths),
        )
        return torch.stack(list(loss.values())).sum(), float((lengths - 1).sum())

    held_out = np.sort(
        np.random.default_rng((0, len(store.clients))).permutation(len(store.clients))[:8]
    )
    assert abs(mean_objective(net, objective, held_out, 3, 0) - facts["best"]) < 1e-4


def test_it_learns_to_rebuild(small: Path, tmp_path: Path, context: Callable[..., Context]) -> None:
    """30 clients are learned by heart, so that what is left of the loss is far below that of the
    fields' counts."""
    training = TRAINING.model_copy(update={"epochs": 30, "held_out": 0.0, "lr": 2e-2})
    chosen = settings(fields=("week", "event"), hidden=32, layers=1, longest=12, training=training)
    fit(context(small), chosen, tmp_path)
    epochs = json.loads((tmp_path / "training.json").read_text())["epochs"]
    assert epochs[-1]["loss"] < 0.35 * epochs[0]["loss"]


def test_new_clients_are_embedded_like_fitted_ones(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    fit(context(small), settings(), tmp_path)
    fitted = embed(context(small), settings(), tmp_path)
    other = shutil.copytree(small, tmp_path / "new")
    some = fitted.client_ids[::4]
    for file in (other / "input").glob("*.parquet"):
        table = pd.read_parquet(file)
        table[table["client_id"].isin(some)].assign(
            client_id=lambda t: t["client_id"] + 10**6
        ).to_parquet(file)
    np.save(other / "input" / "relevant_clients.npy", some + 10**6)
    new = embed(context(other), settings(), tmp_path)
    assert np.array_equal(new.client_ids - 10**6, some)
    assert np.abs(new.vectors - fitted.vectors[::4]).max() < 1e-6


def test_all_clients_train_and_those_asked_for_are_embedded(
    small: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    text = settings(
        fields=("name",), events=("product_buy", "add_to_cart"), clients="all", longest=10
    )
    fit(context(small), text, tmp_path)
    found = embed(context(small), text, tmp_path)
    table = read_events(small)
    buyers = table.loc[table["event"] < 2, "client_id"]
    assert np.array_equal(
        found.client_ids, np.intersect1d(np.load(small / "input" / "relevant_clients.npy"), buyers)
    )


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"fields": ("event", "time")}, "time has no ids to predict"),
        (
            {"fields": ("day", "event"), "combine": "concat", "hidden": 13},
            "hidden=13 cannot be shared by 2",
        ),
        ({"fields": ("colour",)}, "'colour' is not a field"),
        ({"longest": 2}, "greater than or equal to 3"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)
