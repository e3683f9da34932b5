"""Language-model features: what a model is given to read, and vectors that depend on nothing
else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from behavegpt.datasets.challenge_files import EVENTS
from behavegpt.errors import CheckpointError
from behavegpt.profiles.event_text import PARTS, open_lines, write_lines
from behavegpt.profiles.language_model import MissingModelError, token_batches
from behavegpt.profiles.members import Context
from behavegpt.profiles.pipeline import run
from behavegpt.profiles.settings import ProfileSettings
from behavegpt.profiles.text import Reader, TextSettings, embed, fit
from tests.profiles.makers import read_events

NAMES = ["product buy", "add to cart", "remove from cart", "page visit", "search query"]
ALL = tuple(PARTS), EVENTS, "lines"
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer that learned a few merges."""
    folder = tmp_path_factory.mktemp("model")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [
        f"event type: {name}; timestamp: 2023-01-0{i} 10:00; item: {i}; url: 1{i};"
        for name in NAMES
        for i in range(9)
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 96 positions, whose tokenizer puts CLS and SEP around a text."""
    folder = tmp_path_factory.mktemp("encoder")
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    text = [f"event type: {name}; item: {i}; url: {i};" for name in NAMES for i in range(50)]
    pieces.train_from_iterator(
        text, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=120, intermediate_size=32, max_position_embeddings=96, **shape)
    BertModel(config).save_pretrained(folder)
    return folder


def settings(model: Path, **changes: Any) -> TextSettings:
    return TextSettings.model_validate(
        {"model": str(model), "block": 5, "batch_tokens": 2000, **changes}
    )


@cache
def events_of(path: Path) -> pd.DataFrame:
    return read_events(path)


def by_hand(path: Path, client: int, repeats: bool = False) -> list[str]:
    """The lines of one client, the newest first, by a loop; times that are equal are sorted by
    event and text."""
    table = events_of(path)
    found: dict[Any, tuple[Any, ...]] = {}
    for number, event in enumerate(table[table["client_id"] == client].to_dict("records")):
        parts = []
        for name, column in (
            ("item", "sku"),
            ("url", "url"),
            ("category", "category"),
            ("price", "price"),
        ):
            if not pd.isna(event[column]):
                parts.append(f"{name}: {int(event[column])};")
        codes = [
            (column, event[column])
            for column in ("name", "query")
            if isinstance(event[column], str)
        ]
        parts += [f"{column}: {' '.join(text.strip('[]').split())};" for column, text in codes]
        head = f"event type: {NAMES[event['event']]};"
        line = " ".join([head, f"timestamp: {event['timestamp']:%Y-%m-%d %H:%M};", *parts])
        key = number if repeats else (head, *parts)
        found[key] = max(found.get(key, ()), (event["timestamp"], event["event"], line))
    return [line for _, _, line in sorted(found.values(), reverse=True)]


@pytest.mark.parametrize("last,repeats", [(3, False), (64, False), (64, True)])
def test_lines_are_the_newest_events(
    small: Path, tmp_path: Path, context: Callable[..., Context], last: int, repeats: bool
) -> None:
    with context(small).connect() as con:
        clients, offsets = write_lines(con, *ALL, last, repeats, tmp_path / "l.arrow")
    lines = open_lines(tmp_path / "l.arrow").to_pylist()
    for client, first, stop in zip(clients, offsets[:-1], offsets[1:], strict=True):
        assert lines[first:stop] == by_hand(small, client, repeats)[:last]
    relevant = np.load(small / "input" / "relevant_clients.npy")
    assert np.array_equal(clients, np.intersect1d(relevant, read_events(small)["client_id"]))


def test_a_table_has_empty_cells(
    small: Path, tmp_path: Path, context: Callable[..., Context], model: Path
) -> None:
    chosen = settings(
        model,
        fields=("time", "sku", "query"),
        layout="table",
        events=("product_buy", "search_query"),
    )
    with context(small).connect() as con:
        write_lines(con, chosen.fields, chosen.events, "table", 64, False, tmp_path / "l.arrow")
    cells = [line.split(" | ") for line in open_lines(tmp_path / "l.arrow").to_pylist()]
    assert all(len(row) == 3 and (row[1] == "") != (row[2] == "") for row in cells)
    reader = Reader(chosen, model, CPU)
    assert reader.model.tokenizer.decode(reader.start) == "timestamp | item | query\n"


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_tokens_are_those_of_the_whole_text(
    small: Path, tmp_path: Path, context: Callable[..., Context], model: Path, order: str
) -> None:
    with context(small).connect() as con:
        clients, offsets = write_lines(con, *ALL, 64, False, tmp_path / "l.arrow")
    lines = open_lines(tmp_path / "l.arrow")
    tokenizer = AutoTokenizer.from_pretrained(model)
    for tokens in (8192, 150, 8):
        texts = Reader(settings(model, order=order, tokens=tokens), model, CPU).texts(
            lines, offsets
        )
        for row, client in list(enumerate(clients))[::5]:
            ids = texts.ids[texts.offsets[row] : texts.offsets[row + 1]].tolist()
            own = by_hand(small, client)
            # the longest text of whole events that fits, from the newest on; or the beginning of
            # the newest
            fitting = [
                n
                for n in range(1, len(own) + 1)
                if len(tokenizer("\n".join(own[:n])).input_ids) <= tokens
            ]
            kept = own[: max(fitting, default=1)]
            wanted = tokenizer("\n".join(kept if order == "newest" else kept[::-1])).input_ids[
                :tokens
            ]
            assert ids == wanted


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("start", [False, True])
def test_vectors_do_not_depend_on_padding_or_on_the_batch(
    small: Path,
    tmp_path: Path,
    context: Callable[..., Context],
    model: Path,
    pool: str,
    start: bool,
) -> None:
    """Compared with every text read alone, tokenized as a whole."""
    tokenizer, network = (
        AutoTokenizer.from_pretrained(model),
        AutoModel.from_pretrained(model).eval(),
    )
    chosen = settings(
        model, pool=pool, layout="table" if start else "lines", fields=("event", "url", "sku")
    )
    fit(context(small), chosen, tmp_path)
    found = embed(context(small), chosen, tmp_path)
    with context(small).connect() as con:
        _, offsets = write_lines(
            con, chosen.fields, chosen.events, chosen.layout, 64, False, tmp_path / "l.arrow"
        )
    lines = open_lines(tmp_path / "l.arrow").to_pylist()
    for row in range(len(found.client_ids)):
        own = lines[offsets[row] : offsets[row + 1]]
        text = "\n".join(["event type | url | item", *own] if start else own)
        with torch.no_grad():
            states = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = states[-1] if pool == "last" else states.mean(0)
        assert np.abs(found.vectors[row] - wanted.numpy()).max() < 1e-5
    small_batches = chosen.model_copy(update={"batch_tokens": 1, "block": 3})
    assert (
        np.abs(embed(context(small), small_batches, tmp_path).vectors - found.vectors).max() < 1e-5
    )
    assert embed(context(small), chosen, tmp_path).vectors.tobytes() == found.vectors.tobytes()


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_encoder_is_pooled_as_transformers_does(
    small: Path, tmp_path: Path, context: Callable[..., Context], encoder: Path, pooling: str
) -> None:
    """Mean over CLS, text and SEP, or the state of CLS; the oldest events of a long text go."""
    chosen = settings(encoder, pool=pooling, fields=("event", "sku"), last=20)
    fit(context(small), chosen, tmp_path)
    found = embed(context(small), chosen, tmp_path)
    with context(small).connect() as con:
        _, offsets = write_lines(
            con, chosen.fields, chosen.events, "lines", 20, False, tmp_path / "l.arrow"
        )
    lines = open_lines(tmp_path / "l.arrow").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    network = AutoModel.from_pretrained(encoder).eval()

    texts = []
    for start, stop in pairwise(offsets):
        fitting = [
            count
            for count in range(1, stop - start + 1)
            if len(tokenizer(" ".join(lines[start : start + count])).input_ids) <= 96
        ]
        texts.append(" ".join(lines[start : start + max(fitting)]))
    assert sum(text.count(";") // 2 for text in texts) < len(lines)  # some are too long

    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = network(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    wanted = means if pooling == "mean" else states[:, 0]
    assert np.abs(found.vectors - wanted.numpy()).max() < 1e-5


def test_half_precision_is_near(
    small: Path, tmp_path: Path, context: Callable[..., Context], model: Path
) -> None:
    fit(context(small), settings(model), tmp_path)
    full = embed(context(small), settings(model), tmp_path).vectors
    half = embed(context(small), settings(model, precision="bf16"), tmp_path).vectors
    assert half.dtype == np.float32 and 0 < np.abs(half - full).max() < 0.1


def test_a_stopped_run_goes_on_with_its_blocks(
    small: Path,
    tmp_path: Path,
    context: Callable[..., Context],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, ours = settings(model), context(small)
    fit(ours, chosen, tmp_path)
    whole = embed(ours, chosen, tmp_path)
    read, calls = Reader.vectors, []

    def stops(self: Reader, texts: Any) -> np.ndarray:
        calls.append(len(texts.offsets) - 1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, texts)

    monkeypatch.setattr(Reader, "vectors", stops)
    with pytest.raises(KeyboardInterrupt):
        embed(ours, chosen, tmp_path)
    calls[:] = [0] * 10
    assert embed(ours, chosen, tmp_path).vectors.tobytes() == whole.vectors.tobytes()
    assert sum(calls) == len(whole.client_ids) - 3 * chosen.block
    assert not list((ours.cache / "unfinished").iterdir())  # and nothing is left of it


def test_a_missing_model_switches_the_member_off(
    small: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    members = {
        "stats": {"kind": "handcrafted"},
        "reader": {"kind": "text", "model": "nobody/has-this-model"},
        "lost": {"kind": "text", "model": str(tmp_path / "no" / "such" / "folder")},
        "tiny": {"kind": "text", "model": str(model), "last": 4},
    }
    tree = {"data": {"path": str(small)}, "out": str(tmp_path / "run"), "members": members}
    facts = run(ProfileSettings.model_validate(tree))
    found = {name: member["status"] for name, member in facts["members"].items()}
    assert (
        found == {"stats": "built", "reader": "off", "lost": "off", "tiny": "built"} and facts["ok"]
    )
    told = [line for line in capsys.readouterr().err.splitlines() if "skipping reader" in line]
    assert len(told) == 1 and "hf download nobody/has-this-model" in told[0]


def test_another_model_is_noticed(
    small: Path, tmp_path: Path, context: Callable[..., Context], model: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    chosen = settings(other)
    assert chosen.shaping() == settings(model).shaping()  # what it is, not where it lies
    fit(context(small), chosen, tmp_path)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(model)).save_pretrained(other)
    assert chosen.shaping() != settings(model).shaping()
    with pytest.raises(CheckpointError, match="is not the model that the profile was made with"):
        embed(context(small), chosen, tmp_path)
    (other / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no language model in Hugging Face format"):
        Reader(chosen, other, CPU)
    with pytest.raises(MissingModelError, match="set `model` to a folder"):
        settings(tmp_path / "gone").shaping()


def test_batches_hold_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 200)
    batches = list(token_batches(lengths, 300))
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(rows) * lengths[rows].max() <= 300 for rows in batches)
    assert [len(rows) for rows in token_batches(np.array([5, 900]), 300)] == [1, 1]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"fields": ("colour",)}, "'colour' is not a part of a line"),
        ({"fields": ("time",)}, "a field beside time"),
        ({"tokens": 2}, "greater than or equal to 8"),
    ],
)
def test_wrong_settings_are_named(model: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(model, **changes)
