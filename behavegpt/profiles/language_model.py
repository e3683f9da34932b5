"""A frozen language model in a folder or on the Hugging Face Hub: where it is, what it is, and what
is made of its states.

Shape letters: B texts of L tokens, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from behavegpt.errors import CheckpointError, MissingExtraError

# what makes up a model; weights as pickles are never opened
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
Pool = Literal["last", "mean", "first"]


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


class LanguageModel:
    """A frozen model without its head, and its tokenizer.

    A model of a kind that is pretrained by filling in masked tokens (BERT and its like) is read as
    an encoder, every other as a causal model.
    """

    def __init__(self, folder: Path, device: torch.device, precision: str) -> None:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # transformers shows one for reading the weights

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
            fills_in = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
            self.encodes = fills_in and not getattr(config, "is_decoder", False)
            auto: Any = AutoModel if self.encodes else AutoModelForCausalLM
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=True)
            self.network: Any = model.base_model.to(device).eval()  # without the head
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{folder}: no language model in Hugging Face format ({reason})."
            ) from None

    @property
    def width(self) -> int:
        """D."""
        return int(self.network.config.hidden_size)

    @property
    def longest(self) -> int | None:
        """Tokens that it reads at most; None: its configuration names no limit."""
        positions = getattr(self.network.config, "max_position_embeddings", None)
        if not self.encodes:
            return positions
        # RoBERTa counts positions from 2 on; only its tokenizer knows how many are left
        return min(positions or self.tokenizer.model_max_length, self.tokenizer.model_max_length)

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids before and after a text."""
        if self.encodes:
            with_frame, text = list(self.tokenizer("a").input_ids), self.ids("a")
            first = next(
                start
                for start in range(len(with_frame))
                if with_frame[start : start + len(text)] == text
            )
            return with_frame[:first], with_frame[first + len(text) :]

        # the start token, where the tokenizer puts one
        start = [i for i in self.tokenizer("").input_ids if i == self.tokenizer.bos_token_id]
        return start, []

    def ids(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids (B, L) where `mask` (B, L) -> last states (B, L, D) float32."""
        cache = {} if self.encodes else {"use_cache": False}
        output = self.network(input_ids=ids, attention_mask=mask.long(), **cache)
        return output.last_hidden_state.float()


def pool(states: Tensor, mask: Tensor, mode: Pool) -> Tensor:
    """States (B, L, D) where `mask` (B, L) -> (B, D): the last or first one, or the mean."""
    if mode == "first":
        return states[:, 0]
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
