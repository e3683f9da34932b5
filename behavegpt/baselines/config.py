"""BaselineConfig: which baseline, its shape, and the options of its own; saved beside its
weights."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from behavegpt.model import BehaveGPTConfig


@strict
class BaselineConfig(BehaveGPTConfig):
    """Shape of a baseline: BehaveGPTConfig's names, where they mean the same, and what follows.

    `hidden_size` is as there (fields x embedding_size), so that all models read the same inputs at
    the same width.
    """

    model_type = "behavegpt_baseline"

    architecture: str = "gru"  # a name of architectures.ARCHITECTURES
    options: dict[str, Any] | None = None  # of that architecture: its Options, complete
    more_columns: list[str] | None = None  # of the log, read beside the fields: time, behavior
    # learned | none; rope where the architecture has BehaveGPT's blocks
    position_encoding: str = "none"
    scale_inputs: bool = False  # embeddings times sqrt(hidden_size), as SASRec and HSTU do
    score: str = "dot"  # dot | cosine, of the hidden state with a vector of each class
    score_temperature: float = 0.05  # cosine: logits = cosine / score_temperature
    tied_scores: bool = False  # where the classes are the events: score with the events' embeddings
    next_weight: float = 1.0  # of the auxiliary heads' losses
    # ours in most baselines: a bias for each class, begun at its log frequency
    class_bias: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a prepared log that the model reads."""
        # dict.fromkeys: each once, in order
        return tuple(dict.fromkeys((*super().columns, *(self.more_columns or ()))))

    def validate_architecture(self) -> None:
        """Refuse contradictions; called by transformers after construction."""
        super().validate_architecture()
        if self.reads_time:
            raise ValueError(
                "BaselineConfig: gap and position_encoding time are BehaveGPT's; leave them out."
            )
        if self.score not in ("dot", "cosine"):
            raise ValueError(f"BaselineConfig: score must be dot or cosine, not {self.score!r}.")
        if self.score_temperature <= 0:
            raise ValueError(
                f"BaselineConfig: score_temperature must be positive, not {self.score_temperature}."
            )
