"""Pretraining from settings to a model folder: the composition that train.py and `behavegpt train`
run.

The loop is in training/trainer.py, what a run leaves in its folder in training/run.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from behavegpt.baselines.architectures import (
    baseline_config,
    read_features,
    read_inputs,
    refuse_unknown,
)
from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.network import start_baseline
from behavegpt.config import PathText, closest
from behavegpt.data.baskets import refuse_baskets
from behavegpt.data.given import check_schema, in_order
from behavegpt.data.memory_counts import count_store
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.pack import target_counts
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.decision import thresholds_of
from behavegpt.errors import ConfigError, violation
from behavegpt.generation.constraints import links_of
from behavegpt.losses import build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.training.run import open_run
from behavegpt.training.settings import SHAPE, RunSettings
from behavegpt.training.trainer import Trainer
from behavegpt.universal.model import load_universal

# settings of `model` that are not BehaveGPTConfig's: they choose the config or its fields
CHOICES = ("architecture", "inputs", "user_features")


class PretrainSettings(RunSettings):
    """One pretraining run."""

    model: dict[str, Any] = Field(
        default_factory=dict,
        description="BehaveGPTConfig: "
        + ", ".join(SHAPE)
        + "; inputs: all, event_only or with_behavior; user_features: false to read none; "
        "architecture: "
        "a baseline instead, see docs/baselines.md",
    )
    language_model: PathText | None = Field(
        None, description="GPT-2 folder (Hugging Face format) whose blocks initialize the model"
    )

    init: Literal["random", "universal"] = Field(
        "random",
        description=(
            "initialization of the mixer, with model.memory: random, or the universal "
            "model's weights"
        ),
    )

    @field_validator("model")
    @classmethod
    def _known_shape(cls, value: dict[str, Any]) -> dict[str, Any]:
        # transformers accepts and saves any name, so a misspelled one would do nothing
        if _is_baseline(value):
            refuse_unknown(value)
            return value
        for name in value:
            if name not in (*SHAPE, *CHOICES):
                raise ValueError(f"unknown setting {name!r}. {closest(name, (*SHAPE, *CHOICES))}")
        return value


def _is_baseline(model: dict[str, Any]) -> bool:
    """Whether `model` in a configuration asks for another architecture than BehaveGPT."""
    return model.get("architecture", "behavegpt") != "behavegpt"


def model_config(settings: PretrainSettings, store: EventStore) -> BehaveGPTConfig:
    """The model's shape for a prepared folder; raises ConfigError on a contradiction."""
    try:
        config = _config_of(settings, store)
    # transformers wraps what it objects to in errors of many types
    except Exception as error:
        raise ConfigError(f"model: {violation(error)}") from None
    check_schema(config.given or (), store.schema)
    return config


def _config_of(settings: PretrainSettings, store: EventStore) -> BehaveGPTConfig:
    """The config of the settings, of a baseline if they name one."""
    if _is_baseline(settings.model):
        refuse_baskets(store.schema, f"the architecture {settings.model['architecture']}")
        return baseline_config(settings.model, store)

    is_event = store.schema.behavior_is_event
    fields, width = read_inputs(
        settings.model, store.field_sizes(), store.behaviors.classes, is_event
    )

    # CHOICES are ours, everything else is a setting of BehaveGPTConfig
    shape = {name: value for name, value in settings.model.items() if name not in CHOICES}
    # stored by name: an expert that a later version adds must not shift the weights of these
    if shape.get("memory"):
        shape["memory_experts"] = list(EXPERTS)
    return BehaveGPTConfig(
        field_sizes=fields,
        user_features=read_features(settings.model, store),
        num_behaviors=store.behaviors.classes,
        behavior_is_event=is_event,
        baskets=store.schema.has_baskets,
        # a model is refused labels with other ids by this hash
        tokenizer_hash=EventTokenizer.from_store(store, 1).hash,
        **shape | {"embedding_size": width},
    )


def pretrain(settings: PretrainSettings, *, resume: bool = False) -> Path:
    """Train a model and write RUN/model; returns RUN. Continues from the latest checkpoint with
    `resume`.

    Raises BehaveGPTError on bad settings or data, a run folder in use, a checkpoint of other data,
    or a bad loss.
    """
    # the run's lock and seed come first: building the model draws its weights
    with open_run(settings, "pretrain", resume=resume) as run:
        store = open_store(settings.data.path)
        model = build_model(settings, store)
        # of the targets, not of all events: a first event of a user is none
        loss = build_loss(settings.loss, torch.tensor(target_counts(store)))

        trainer = Trainer(model, loss, store, settings.train, run, attention=settings.attention)
        # the universal weights are a model already, and may stay the best one
        trainer.fit(_origin(settings, model), judge_start=settings.init == "universal")

        # with the data's own rules for labels: the model folder reads logs as the data was read
        tokenizer = EventTokenizer.from_store(store, model.config.max_length)
        run.save(
            trainer.best_model(),
            tokenizer,
            links_of(store),
            thresholds_of(store, tokenizer, settings.decision),
        )
    return run.path


def build_model(settings: PretrainSettings, store: EventStore) -> BehaveGPTForBehaviorPrediction:
    """The model before its first step: random, or from the parts that `language_model` and `init`
    name."""
    config = model_config(settings, store)

    if isinstance(config, BaselineConfig):
        if settings.language_model:
            raise ConfigError(
                "language_model initializes a BehaveGPT; remove it, or remove model.architecture."
            )
        model: BehaveGPTForBehaviorPrediction = start_baseline(config, store)
    else:
        model = BehaveGPTForBehaviorPrediction(config)
        # a new network begins at the training frequencies of the behaviors
        model.set_prior(torch.tensor(target_counts(store)))

    if config.memory:
        model.counts = count_store(store, in_order(config.given or ()))

    if settings.init == "universal":
        _start_universal(model)
    if settings.language_model:
        from behavegpt.adapt.language import start_from_gpt2

        start_from_gpt2(model, settings.language_model)
    return model


def _origin(settings: PretrainSettings, model: BehaveGPTForBehaviorPrediction) -> dict[str, Any]:
    """What else must be the same for a run to go on."""
    config = model.config
    origin: dict[str, Any] = {}  # only what is set: earlier checkpoints have no such entries
    if isinstance(config, BaselineConfig):
        origin["baseline"] = {"architecture": config.architecture, "options": config.options}
    if settings.init == "universal":
        origin["init"] = settings.init
    if settings.language_model:
        origin["language_model"] = settings.language_model
    return origin


def _start_universal(model: BehaveGPTForBehaviorPrediction) -> None:
    """Give the mixer the weights of the universal one. Raises ConfigError for a model without
    memory."""
    head = model.memory_head
    if head is None:
        raise ConfigError(
            "init=universal initializes the mixer of a model with memory; set "
            "model.memory=true, or remove it."
        )

    # not strict: the universal mixer has no network, whose weights stay as they are
    head.mixer.load_state_dict(load_universal().mixer.state_dict(), strict=False)
