"""Pretraining from settings to a model folder: the composition that train.py and `behavegpt train` run.

What a run does with its model, and what it leaves in its folder, is in training/run.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator

from behavegpt.config import closest
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import ConfigError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.size import count_parameters
from behavegpt.training.run import SHAPE, RunSettings, Work, execute
from behavegpt.training.setup import training_batches

__all__ = ["SHAPE", "PretrainSettings", "model_config", "pretrain", "training_batches"]


class PretrainSettings(RunSettings):
    """One pretraining run."""

    model: dict[str, Any] = Field(default_factory=dict, description="BehaveGPTConfig: " + ", ".join(SHAPE))
    language_model: str | None = Field(None, description="GPT-2 folder (Hugging Face format): its blocks are the start")

    @field_validator("model")
    @classmethod
    def _known_shape(cls, value: dict[str, Any]) -> dict[str, Any]:
        # transformers accepts and saves any name
        for name in value:
            if name not in SHAPE:
                raise ValueError(f"unknown setting {name!r}. {closest(name, SHAPE)}")
        return value


def model_config(settings: PretrainSettings, store: EventStore) -> BehaveGPTConfig:
    """The model's shape for a prepared folder; raises ConfigError on a contradiction."""
    try:
        return BehaveGPTConfig(
            field_sizes=store.field_sizes(),
            num_behaviors=store.behaviors.classes,
            behavior_is_event=store.schema.behavior_is_event,
            tokenizer_hash=EventTokenizer.from_store(store, 1).hash,
            **settings.model,
        )
    except Exception as error:  # huggingface_hub wraps every violation in types of its own
        raise ConfigError(f"model: {str(error).strip().splitlines()[-1].strip()}") from None


def pretrain(settings: PretrainSettings, *, resume: bool = False) -> Path:
    """Train a model and write RUN/model; returns RUN. Continues from the latest checkpoint with `resume`.

    Raises BehaveGPTError on bad settings or data, a run folder in use, a checkpoint of other data, or a bad loss.
    """
    return execute(settings, lambda: begin(settings), resume=resume)


def begin(settings: PretrainSettings) -> Work:
    """A model from random weights, or from a language model's blocks, and the data it is trained on."""
    store = open_store(settings.data.path)
    config = model_config(settings, store)
    model = BehaveGPTForBehaviorPrediction(config)
    model.head.set_prior(torch.tensor(store.behaviors.counts))
    fingerprint: dict[str, Any] = {}
    if settings.language_model:
        from behavegpt.adapt.language import start_from_gpt2

        start_from_gpt2(model, settings.language_model)
        fingerprint = {"language_model": settings.language_model}
    return Work(
        "pretrain",
        store,
        EventTokenizer.from_store(store, config.max_length),
        model,
        count_parameters(model),
        fingerprint,
    )
