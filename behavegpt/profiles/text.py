"""Language-model features (Klenitskiy et al. 2025, section 3.2.4): a history as text, read by a
frozen model: a causal one, as in the paper, or an encoder.

    smollm_all:    {kind: text, model: HuggingFaceTB/SmolLM2-135M, post: [{pca: 128}, l2]}
    smollm_search: {kind: text, model: ..., events: [search_query], fields: [time, query],
                    layout: table, last: 90}
    sentences:     {kind: text, model: FOLDER, pool: mean, fields: [name], tokens: 256}

events -> lines (see `event_text`) -> tokens -> the model's last hidden states -> the state at the
last or first token, or their mean. What the tokenizer puts around a text (a start token; CLS and
SEP of an encoder) stands around it here, and counts in the mean, as it does for sentence encoders.
Tokens are made line by line, with byte-level tokenizers (SmolLM2, GPT-2,
Llama 3) the same as those of the whole text. A text that is too long loses its oldest events, each
as a whole; the paper's code truncates on the left, which with the newest event first is the newest.
Newest first, without repeats, last token and 8,192 tokens are that code's.

A run that was stopped goes on with the blocks of clients that are in the cache. What is kept of the
model is its hash: new clients need the same one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, field_validator

from behavegpt.arrays import open_array, write_array
from behavegpt.console import progress
from behavegpt.datasets.challenge_files import EVENTS, EventName
from behavegpt.devices import choose_device
from behavegpt.errors import CheckpointError, ConfigError
from behavegpt.io import write_json
from behavegpt.profiles.event_text import PARTS, Layout, header, open_lines, write_lines
from behavegpt.profiles.features import spans
from behavegpt.profiles.language_model import (
    LanguageModel,
    Pool,
    model_digest,
    model_folder,
    pool,
    token_batches,
)
from behavegpt.profiles.members import Context, MemberSettings
from behavegpt.user_embeddings import UserEmbeddings


class TextSettings(MemberSettings):
    """What the model reads, and which of its states is the vector."""

    kind: Literal["text"] = "text"
    model: str = Field(
        description="folder, or name on the Hugging Face Hub, of a causal model or an encoder"
    )
    fields: tuple[str, ...] = Field(
        tuple(PARTS), min_length=1, description="parts of a line: " + ", ".join(PARTS)
    )
    events: tuple[EventName, ...] = Field(EVENTS, description="event types that are merged")
    layout: Layout = Field(
        "lines", description="lines: every part with its name; table: under a header"
    )
    last: int = Field(64, ge=1, description="newest events of a client")
    repeats: bool = Field(
        False, description="keep events that are alike but for their time, not the newest alone"
    )
    order: Literal["newest", "oldest"] = Field("newest", description="which event comes first")
    pool: Pool = Field(
        "last", description="state at the last token, mean over all, or first (CLS of an encoder)"
    )
    tokens: int = Field(
        8192, ge=8, description="longest text; the model's own limit if that is less"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: int = Field(2**15, ge=1, description="tokens, with padding, read at a time")
    block: int = Field(
        4096, ge=1, description="clients that are kept together when the run is stopped"
    )

    @field_validator("fields")
    @classmethod
    def _known(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        for field in fields:
            if field not in PARTS:
                raise ValueError(f"{field!r} is not a part of a line; use {', '.join(PARTS)}")
        if set(fields) == {"time"}:
            raise ValueError("name a field beside time")
        return fields

    def shaping(self) -> dict[str, Any]:
        """The model by what it is and not by where it lies; sizes of batches change nothing."""
        chosen = self.model_dump(mode="json", exclude={"post", "model", "batch_tokens", "block"})
        return chosen | {"digest": model_digest(model_folder(self.model))}


class Texts(NamedTuple):
    """Token ids of texts: text n is `ids[offsets[n]:offsets[n + 1]]`."""

    offsets: np.ndarray  # (N + 1,) int64
    ids: np.ndarray  # (T,) int64


def fit(context: Context, settings: TextSettings, folder: Path) -> None:
    """Nothing is fitted; writes model.json, which says what the vectors come from."""
    write_json(
        folder / "model.json",
        {"model": settings.model, "digest": model_digest(model_folder(settings.model))},
    )


def embed(context: Context, settings: TextSettings, folder: Path) -> UserEmbeddings:
    """(U, D) float32 of the asked clients with an event of the chosen types."""
    wanted = json.loads((folder / "model.json").read_text(encoding="utf-8"))["digest"]
    source = model_folder(settings.model)
    if model_digest(source) != wanted:
        raise CheckpointError(
            f"{source} is not the model that the profile was made with; put that one back."
        )

    work = context.work(settings)
    work.mkdir(parents=True, exist_ok=True)

    with context.connect() as con:
        clients, offsets = write_lines(
            con,
            settings.fields,
            settings.events,
            settings.layout,
            settings.last,
            settings.repeats,
            work / "lines.arrow",
        )

    lines = open_lines(work / "lines.arrow")
    reader = Reader(settings, source, choose_device(context.device))

    blocks = []
    with progress("texts", len(clients)) as tell:
        for start in range(0, len(clients), settings.block):
            # the name holds the block's size: a run with another size makes its own blocks
            path = work / f"block_{start:012d}_{settings.block}.npy"
            bounds = offsets[start : start + settings.block + 1]

            if not path.exists():
                texts = reader.texts(
                    lines.slice(bounds[0], bounds[-1] - bounds[0]), bounds - bounds[0]
                )
                write_array(path, reader.vectors(texts))

            blocks.append(np.array(open_array(path)))
            tell(start + len(bounds) - 1, "")

    # closes the map before its file is removed
    del lines
    vectors = np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float32)
    shutil.rmtree(work)

    return UserEmbeddings(clients, vectors)


class Reader:
    """A frozen model with its tokenizer."""

    def __init__(self, settings: TextSettings, folder: Path, device: torch.device) -> None:
        self.model = LanguageModel(folder, device, settings.precision)
        self.settings, self.device = settings, device
        top = header(settings.fields, settings.layout)
        self.between = self.model.ids("\n")  # none where line breaks are white space like any other

        first, self.end = self.model.frame
        self.start = first + (self.model.ids(top) + self.between if top else [])

        # tokens left for events once start, header and end are in place
        limit = min(settings.tokens, self.model.longest or settings.tokens)
        self.room = limit - len(self.start) - len(self.end)

        if self.room < 1:
            raise ConfigError(
                f"tokens={settings.tokens} does not even hold the header of the table; raise it."
            )

    def texts(self, lines: pa.ChunkedArray, offsets: np.ndarray) -> Texts:
        """Tokens of N texts; text n has the lines `offsets[n]:offsets[n + 1]`, the newest first.

        Only whole events are kept, as many of the newest as there is room for, but at least a part
        of the newest.
        """
        coded = lines.combine_chunks().dictionary_encode()
        # many lines are alike: each different one is tokenized once
        place, different = coded.indices.to_numpy(), coded.dictionary.to_pylist()

        tokens = [
            ids + self.between
            for ids in self.model.tokenizer(different, add_special_tokens=False).input_ids
        ]

        # (different lines + 1,)
        ends = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])])
        flat = np.concatenate([np.asarray(ids, np.int64) for ids in tokens])
        sizes = np.diff(ends)[place]  # (lines,) tokens
        text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))  # (lines,) its text

        upto = np.cumsum(sizes)  # (lines,)
        upto -= (upto - sizes)[offsets[:-1]][text]  # tokens of the text up to the end of each line

        newest = np.arange(len(lines)) == offsets[:-1][text]  # (lines,)
        # the line break after the last line is cut off, so it needs no room
        kept = np.flatnonzero((upto - len(self.between) <= self.room) | newest)

        if self.settings.order == "oldest":
            kept = kept[np.lexsort((-kept, text[kept]))]

        parts, where = spans(ends, place[kept])
        owner = np.repeat(text[kept], np.diff(parts))  # (tokens,)
        ids = flat[where]

        return self._framed(ids, np.searchsorted(owner, np.arange(len(offsets))))

    def _framed(self, ids: np.ndarray, bounds: np.ndarray) -> Texts:
        """Texts with what stands around them, without the line break at the end, and no longer than
        there is room."""
        framed = [
            np.concatenate([self.start, ids[first:last][: self.room], self.end]).astype(np.int64)
            # the last line's break is left out
            for first, last in zip(bounds[:-1], bounds[1:] - len(self.between), strict=True)
        ]
        return Texts(
            np.concatenate([[0], np.cumsum([len(text) for text in framed])]), np.concatenate(framed)
        )

    @torch.inference_mode()
    def vectors(self, texts: Texts) -> np.ndarray:
        """(N, D) float32, from batches of texts of like length."""
        lengths = np.diff(texts.offsets)  # (N,)
        out = np.empty((len(lengths), self.model.width), np.float32)

        for rows in token_batches(lengths, self.settings.batch_tokens):
            width = lengths[rows].max()  # L
            inside = np.arange(width) < lengths[rows, None]  # (B, L)
            ids = np.zeros((len(rows), width), np.int64)

            # row by row, in the order in which `spans` lists the tokens
            ids[inside] = texts.ids[spans(texts.offsets, rows)[1]]
            mask = torch.from_numpy(inside).to(self.device)
            states = self.model(torch.from_numpy(ids).to(self.device), mask)
            vectors = pool(states, mask, self.settings.pool)
            out[rows] = vectors.cpu().numpy()

        return out
