"""A frozen language model in a folder or on the Hugging Face Hub: where it is, what it is, and what
is made of its states.

Shape letters: B texts of L tokens, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from behavegpt.errors import MissingExtraError

# what makes up a model; weights as pickles are never opened
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class MissingModelError(MissingExtraError):
    """A language model that is not there: like a missing library, it switches its member off."""

    def __init__(self, model: str, why: str) -> None:
        Exception.__init__(
            self,
            f"{model} is no folder, and the Hub did not give it ({why}); run `hf download {model}` "
            "where there is a network, or set `model` to a folder in Hugging Face format.",
        )


def model_folder(model: str) -> Path:
    """The folder `model`, or that of the Hub's cache, downloaded if need be. Raises
    MissingModelError."""
    if Path(model).is_dir():
        return Path(model)

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingModelError(model, type(error).__name__) from None


def model_digest(folder: Path) -> str:
    """SHA-256 of the files that make up a model."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def pool(states: Tensor, mask: Tensor, mode: Literal["last", "mean"]) -> Tensor:
    """States (B, L, D) where `mask` (B, L) -> (B, D): the last one or the mean."""
    lengths = mask.sum(1)
    if mode == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    # padding must not count in the mean
    return (states * mask[..., None]).sum(1) / lengths[:, None]


def token_batches(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Rows (B,) of like length, the longest first, with at most `tokens` tokens when padded, but at
    least one row."""
    # the longest first: if any batch does not fit in memory, it is this one
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size
