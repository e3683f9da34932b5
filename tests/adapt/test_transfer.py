"""Every tensor of an adapted model is exactly what its cell of the table says, before and after
training."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

import behavegpt
from behavegpt.adapt.mode_table import MODES, PARTS, cells, part_of
from behavegpt.adapt.settings import AdaptSettings, LoraSettings
from behavegpt.adapt.transfer import slot_mix
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.errors import ConfigError
from behavegpt.finetune import FinetuneSettings, adapt_model, finetune
from behavegpt.ingest.prepare import prepare
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.embedding import module_name
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.training.model_folder import open_model
from behavegpt.training.setup import training_batches
from tests.runs import tiny_settings

CASES = [
    *((mode, {}) for mode in MODES),
    ("new_behavior", {"rows": "new"}),
    ("cross_domain", {"time": "fresh"}),
    ("transformer_only", {"time": "copied"}),
    ("full", {"vocabulary": "grow"}),
    ("full", {"same_labels": False}),
    ("full", {"gate": "fresh"}),
    ("lora", {"vocabulary": "grow"}),
]
GROWN = [
    ("head.projection", "weight"),
    ("head.projection", "bias"),
    ("model.embedding.tables.event", "weight"),
]
NAMES = [f"{mode} {' '.join(map(str, options.values()))}".strip() for mode, options in CASES]
BY_CLASS = ("head.projection.weight", "head.projection.bias", "head.history_gate.log_prior")


def labels_of(name, tokenizer):
    """The label of each row of a tensor, by name; None for a tensor without."""
    if name in BY_CLASS:
        return tokenizer.behaviors.values.to_pylist()
    parts = name.split(".")
    field = (
        parts[3]
        if name.startswith("model.embedding.tables")
        else parts[1]
        if parts[0] == "next_heads"
        else None
    )
    if field not in tokenizer.vocabulary:
        return None
    return ["<pad>", "<unknown>", *tokenizer.vocabulary[field].values.to_pylist()]


def check_rows(name, tensor, old, new, base, fresh, same_labels, grow):
    shifted = name == "head.projection.bias" and not grow
    theirs, ours = labels_of(name, old), labels_of(name, new)
    if theirs is None:
        assert torch.equal(tensor, base), name
        return
    for row, label in enumerate(ours):
        known = label in theirs and (same_labels or label.startswith("<"))
        wanted = base[theirs.index(label)] if known else fresh[row]
        if known and shifted:  # the bias holds the log frequency, which is the data's
            shares = [
                (float(v.counts[v.values.to_pylist().index(label)]) + 0.5)
                / float((v.counts + 0.5).sum())
                for v in (new.behaviors, old.behaviors)
            ]
            assert float(tensor[row] - wanted) == pytest.approx(
                np.log(shares[0] / shares[1]), abs=1e-5
            )
            continue
        assert torch.equal(tensor[row], wanted), (name, label)


def plain(work):
    """The state and the names of trained tensors, adapters left out and other names put back."""
    names = {
        ".base_layer.": ".",
        ".modules_to_save.default.": ".",
        ".original_module.": ".<frozen copy>.",
    }
    state, trained = {}, set()
    from behavegpt.adapt.new_behavior import merge_new_rows

    rows = {
        n.split(".parametrizations.")[0] + "." + n.split(".")[-2]
        for n, _ in work.model.named_parameters()
        if "parametrizations" in n
    }
    model = merge_new_rows(copy.deepcopy(work.model)) if rows else work.model
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        short = name
        for long, instead in names.items():
            short = short.replace(long, instead)
        if "lora_" in name or "<frozen copy>" in short:
            continue
        state[short] = tensor
        if gradients.get(name):
            trained.add(short)
    return state, trained, rows


@pytest.mark.parametrize("mode,options", CASES, ids=NAMES)
def test_every_tensor_is_what_its_cell_says(place, settings_for, mode, options):
    settings = settings_for(mode, adapt=options)
    torch.manual_seed(5)
    work = adapt_model(settings)
    base, old = open_model(place / "base/model")
    torch.manual_seed(5)
    fresh = BehaveGPTForBehaviorPrediction(work.model.config)
    fresh.head.set_prior(torch.tensor(work.store.behaviors.counts))
    state, trained, rows = plain(work)
    grow = mode == "new_behavior" or options.get("vocabulary") == "grow"
    row = cells(mode, settings.adapt, grow)
    assert set(state) == set(fresh.state_dict())
    for name, tensor in state.items():
        cell, source, other = row[part_of(name)], base.state_dict()[name], fresh.state_dict()[name]
        if cell == "fresh":
            assert torch.equal(tensor, other), name
        elif cell in ("grown", "rows"):
            check_rows(
                name, tensor, old, work.tokenizer, source, other, settings.adapt.same_labels, grow
            )
        else:
            assert torch.equal(tensor, source), name
        if name != "head.history_gate.log_prior":
            assert (name in trained) == (cell in ("copied", "grown", "fresh")), name
        assert (name in rows) == (cell == "rows" and labels_of(name, old) is not None), name


@pytest.mark.parametrize("mode,options", CASES, ids=NAMES)
def test_training_changes_what_is_trained_and_nothing_else(place, settings_for, mode, options):
    settings = settings_for(mode, adapt=options, train={"weight_decay": 0.5})
    torch.manual_seed(settings.train.seed)
    work = adapt_model(settings)
    start, trained, rows = plain(work)
    start = {name: tensor.clone() for name, tensor in start.items()}
    run = finetune(settings)
    end = behavegpt.load(run / "model").model.state_dict()
    adapted = {
        name for name in start if cells(mode, settings.adapt, False)[part_of(name)] == "adapted"
    }
    old = open_model(place / "base/model")[1]
    for name, tensor in end.items():
        same = torch.equal(tensor, start[name])
        if name in trained:
            assert not same, name
        elif name in rows:
            known = [label in labels_of(name, old) for label in labels_of(name, work.tokenizer)]
            assert torch.equal(tensor[known], start[name][known]), (
                "old rows are the same, bit for bit"
            )
            new = ~torch.tensor(known)
            assert (
                (tensor[new] != start[name][new]).flatten(1).any(1).all()
                if tensor.ndim > 1
                else True
            ), name
        elif name in adapted:
            assert same == name.endswith("bias"), name
        else:
            assert same, name


def test_the_papers_rows():
    """Section 3.3 and the papers of the other methods, as read there; not from our table."""
    paper = MODES["cross_domain"]
    assert {paper[part] for part in ("qk", "vo", "mlp", "norms", "dense", "time")} == {"copied"}
    assert paper["projection"] == paper["fields"] == "fresh"
    grows = MODES["new_behavior"]
    assert grows["fields"] == grows["projection"] == "grown" and "frozen" not in grows.values()
    assert set(MODES["scratch"].values()) == {"fresh"}
    only = MODES["transformer_only"]
    assert {p for p, cell in only.items() if cell != "fresh"} == {
        "position",
        "qk",
        "vo",
        "mlp",
        "norms",
    }
    assert {p for p, cell in MODES["ofa"].items() if cell == "frozen"} == {"qk", "vo", "mlp"}
    assert {p for p, cell in MODES["qk_only"].items() if cell != "fresh"} == {"qk"}
    assert all(set(row) | {"prior"} == set(PARTS) for row in MODES.values())


def test_gradients_of_new_rows_are_those_of_the_whole_tensor(settings_for):
    """Also where the logits come in chunks, which differentiate by hand."""
    from behavegpt.model import chunks

    works = dict.fromkeys(("all", "new"))
    for rows in works:
        torch.manual_seed(0)
        works[rows] = adapt_model(
            settings_for("new_behavior", adapt={"rows": rows, "dropout": 0.0})
        )
    whole, part = works["all"], works["new"]
    batch = next(
        training_batches(whole.store, whole.model.config, settings_for("full").train).micro_batches(
            0
        )
    )
    loss = build_loss(
        LossSettings(name="cross_entropy"), torch.tensor(whole.store.behaviors.counts)
    )
    found = []
    before = dict(chunks.CHUNK_ELEMENTS)
    for elements in (before, {"cpu": 64, "cuda": 64}):
        chunks.CHUNK_ELEMENTS.update(elements)
        for work in (whole, part):
            work.model.zero_grad()
            out = work.model(
                **batch.arguments,
                labels=batch.target,
                criterion=loss,
                next_fields=batch.next_fields,
            )
            (out.loss + out.side_loss).backward()
        for module, name in (
            ("head.projection", "weight"),
            ("head.projection", "bias"),
            ("model.embedding.tables.event", "weight"),
        ):
            new = part.model.get_submodule(module).parametrizations[name]
            gradient = getattr(whole.model.get_submodule(module), name).grad[new[0].index]
            torch.testing.assert_close(new.original.grad, gradient, rtol=1e-5, atol=1e-6)
            found.append(float(gradient.abs().sum()))
    chunks.CHUNK_ELEMENTS.update(before)
    assert min(found) > 0
    # event, location, projection x 2, next event x 2
    assert sum(p.requires_grad for p in part.model.parameters()) == 6


def test_fresh_embeddings_can_have_the_bases_mean_and_spread(place, settings_for):
    base = open_model(place / "base/model")[0].state_dict()["model.embedding.tables.event.weight"]
    torch.manual_seed(5)
    work = adapt_model(settings_for("cross_domain", adapt={"scale": "base"}))
    torch.manual_seed(5)
    fresh = BehaveGPTForBehaviorPrediction(work.model.config).model.embedding.tables["event"].weight
    mine = work.model.model.embedding.tables["event"].weight
    wanted = fresh / work.model.config.initializer_range * base[2:].std(0) + base[2:].mean(0)
    torch.testing.assert_close(mine, wanted)


def test_known_ids_are_never_renumbered(place, settings_for):
    old = open_model(place / "base/model")[1]
    work = adapt_model(settings_for("new_behavior"))
    for field, vocabulary in old.vocabulary.items():
        grown = work.tokenizer.vocabulary[field]
        assert grown.values.to_pylist()[: vocabulary.classes] == vocabulary.values.to_pylist()
        assert grown.classes > vocabulary.classes
    raw, mine = open_store(place / "new"), work.store
    for field in raw.vocabulary:
        assert mine.vocabulary[field].decode(mine.columns[field]) == raw.vocabulary[field].decode(
            raw.columns[field]
        )
        counts = [
            dict(
                zip(s.vocabulary[field].values.to_pylist(), s.vocabulary[field].counts, strict=True)
            )
            for s in (raw, mine)
        ]
        assert counts[0] == counts[1]


def test_slots_of_another_length_are_averages():
    table = torch.arange(48.0)[:, None]
    assert torch.allclose(slot_mix(48, 24) @ table, torch.arange(0.5, 48, 2)[:, None])
    assert torch.allclose(
        slot_mix(24, 48) @ table[:24], torch.arange(24.0).repeat_interleave(2)[:, None]
    )
    assert torch.allclose(slot_mix(48, 9).sum(1), torch.ones(9))
    assert torch.equal(slot_mix(48, 48), torch.eye(48))


@pytest.mark.parametrize(
    "mode,options,message",
    [
        ("lora", {"rows": "new"}, "rows=new"),
        ("full", {"lora": {"rank": 4}}, "adapt.lora has no effect"),
    ],
)
def test_an_option_without_effect_is_refused(mode, options, message):
    with pytest.raises(ConfigError, match=message):
        cells(mode, AdaptSettings.model_validate(options), False)
    assert LoraSettings().rank == 8


@pytest.mark.parametrize("name", ["geo.city", "type", "plain"])
def test_rows_of_a_field_of_any_name_are_found_by_label(tmp_path, name):
    """torch refuses some names, so their tensors are called otherwise than the field."""
    rows = pd.DataFrame({"user": [1, 1, 2, 2] * 30, "event": ["a", "b", "c", "d"] * 30})
    rows["time"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(rows)), "h")
    schema = EventSchema(user="user", time="time", event="event", extra=(name,))
    folders = []
    for number, labels in enumerate((["x", "y", "y"], ["y", "x", "x"])):  # the other is frequent
        rows[name] = (labels * len(rows))[: len(rows)]
        rows.to_parquet(tmp_path / f"{number}.parquet")
        folders.append(tmp_path / f"data{number}")
        prepare([tmp_path / f"{number}.parquet"], folders[-1], schema)

    settings = tiny_settings(folders[0], tmp_path / "base", steps=2)
    settings["model"] |= {"next_heads": [name]}
    pretrain(PretrainSettings.model_validate(settings))
    settings = tiny_settings(folders[1], tmp_path / "tuned", steps=1)
    del settings["model"]
    settings |= {"mode": "full", "base": str(tmp_path / "base" / "model")}
    settings["train"] |= {"lr": 1e-12}
    finetune(FinetuneSettings.model_validate(settings))

    old, new = (open_model(tmp_path / run / "model") for run in ("base", "tuned"))
    before, after = (one.tokenizer.vocabulary[name].values.to_pylist() for one in (old, new))
    assert before == after[::-1]
    for part in ("model.embedding.tables", "next_heads"):
        weights = [
            one.model.get_submodule(part)[module_name(name)].weight[2:] for one in (old, new)
        ]
        assert torch.allclose(weights[0], weights[1].flip(0), atol=1e-6), part
