"""The table of baselines: name -> encoder, head, options and defaults; and from settings to a
configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from behavegpt.baselines import hstu, wukong
from behavegpt.baselines.approximate import cdn, esr, lift, pituning, tailnet
from behavegpt.baselines.config import BaselineConfig
from behavegpt.baselines.esasrec import ESASRecEncoder
from behavegpt.baselines.gru import GRUEncoder
from behavegpt.baselines.heads import ScoreHead
from behavegpt.baselines.hstu import HSTUEncoder
from behavegpt.baselines.patt import PAttEncoder
from behavegpt.baselines.sasrec import SASRecEncoder
from behavegpt.baselines.wukong import WukongEncoder
from behavegpt.config import Settings, closest
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import FIRST


class NoOptions(Settings):
    """An architecture without options of its own."""


class Architecture(NamedTuple):
    """What makes a baseline."""

    encoder: Callable[[BaselineConfig], nn.Module]
    head: Callable[[BaselineConfig], ScoreHead] = ScoreHead
    options: type[Settings] = NoOptions
    shape: dict[str, Any] = {}
    mlp_ratio: int = 4  # intermediate_size / hidden_size where it is not set
    columns: tuple[str, ...] = ()  # of the log, beside the fields
    reconstructed: tuple[str, ...] = ()  # auxiliary heads, of the fields that the data have
    # what a new model takes from the training split
    start: Callable[[Any, EventStore], None] | None = None
    inherit: Callable[[Settings], dict[str, Any]] | None = None  # shape that its options decide


# SASRec's own positions and input scale; the baselines built on its encoder share them
LEARNED = {"position_encoding": "learned", "scale_inputs": True}
# chosen on New York's validation where it is not the default: recurrent networks begin on a plateau
# with less
WIDER = {"initializer_range": 0.1}
ARCHITECTURES: dict[str, Architecture] = {
    "gru": Architecture(GRUEncoder, shape=WIDER),
    "sasrec": Architecture(SASRecEncoder, shape={**LEARNED, "tied_scores": True}, mlp_ratio=1),
    "esasrec": Architecture(ESASRecEncoder, shape={**LEARNED, "tied_scores": True}),
    "hstu": Architecture(
        HSTUEncoder,
        options=hstu.Options,
        shape={**LEARNED, "tied_scores": True, "score": "cosine", "class_bias": False},
        columns=("time",),
    ),
    "wukong": Architecture(
        WukongEncoder, options=wukong.Options, shape={"initializer_range": 0.02}
    ),
    "patt": Architecture(PAttEncoder, shape={"position_encoding": "learned"}),
    "tailnet": Architecture(
        tailnet.TailNetEncoder,
        tailnet.TailNetHead,
        tailnet.Options,
        shape=WIDER,
        columns=("behavior",),
        start=tailnet.start,
    ),
    "cdn": Architecture(
        SASRecEncoder, cdn.CDNHead, cdn.Options, shape=LEARNED, mlp_ratio=1, start=cdn.start
    ),
    "lift": Architecture(
        lift.encoder,
        options=lift.Options,
        shape={"score": "cosine", "score_temperature": 0.04, "class_bias": False},
        start=lift.start,
        inherit=lift.inherit,
    ),
    "esr_nollm": Architecture(
        esr.ESREncoder, esr.ESRHead, esr.Options, shape=LEARNED, mlp_ratio=1, start=esr.start
    ),
    "pituning_like": Architecture(
        pituning.PITuningEncoder,
        pituning.PITuningHead,
        shape={"position_encoding": "rope", "next_weight": pituning.WEIGHT, "class_bias": False},
        reconstructed=pituning.RECONSTRUCTED,
        start=pituning.start,
    ),
}
SHARED = (  # names of BaselineConfig that settings may give for every architecture
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_length",
    "position_encoding",
    "dropout",
    "initializer_range",
    "history_head",
    "memory",
    "given",
    "scale_inputs",
    "score",
    "score_temperature",
    "tied_scores",
    "class_bias",
)
INPUTS = ("all", "event_only", "with_behavior")


def refuse_unknown(settings: dict[str, Any]) -> None:
    """Raise ValueError for a name or value of `model:` that no baseline, or not this one, has."""
    name = settings.get("architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture {name!r} is unknown. {closest(str(name), ['behavegpt', *ARCHITECTURES])}"
        )

    known = ("architecture", "inputs", "user_features", "options", *SHARED)
    for key in settings:
        if key not in known:
            raise ValueError(f"the baseline {name} has no setting {key!r}. {closest(key, known)}")

    options = ARCHITECTURES[name].options
    for key in settings.get("options") or {}:
        if key not in options.model_fields:
            raise ValueError(
                f"options: {name} has no {key!r}. "
                f"{closest(key, list(options.model_fields) or ['none'])}"
            )


def read_inputs(
    settings: Mapping[str, Any], fields: dict[str, int], behaviors: int, is_event: bool
) -> tuple[dict[str, int], int]:
    """Ids by field, and the width of each field's embedding, of `inputs: all`, `event_only` or
    `with_behavior`.

    With the event alone its embedding takes the width of all fields, so that nothing but the inputs
    changes. The behavior (`behaviors` classes) joins as a field of its own unless the behaviors are
    the events.
    """
    width = settings.get("embedding_size", BaselineConfig.embedding_size)
    inputs = settings.get("inputs", "all")
    if inputs not in INPUTS:
        raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, not {inputs!r}")

    # the only input keeps the width of all: encoder and head stay as large
    if inputs == "event_only":
        return {"event": fields["event"]}, width * len(fields)

    if inputs == "with_behavior" and not is_event:
        # the behavior's own ids begin behind the special ones, as every field's do
        fields = {**fields, "behavior": FIRST + behaviors}

    return fields, width


def read_features(settings: Mapping[str, Any], store: EventStore) -> dict[str, int] | None:
    """Ids by feature of the user that a model reads: those of the prepared folder, but with
    `user_features: false` or the event alone. ValueError for another value."""
    reads = settings.get("user_features", True)
    if not isinstance(reads, bool):
        raise ValueError(f"user_features must be true or false, not {reads!r}")
    if not reads or settings.get("inputs") == "event_only":
        return None
    return store.feature_sizes() or None


def baseline_config(settings: dict[str, Any], store: EventStore) -> BaselineConfig:
    """A baseline's configuration for a prepared folder, from `model:`'s settings. ValueError on a
    contradiction."""
    config = shape_baseline(
        settings, store.field_sizes(), store.behaviors.classes, store.schema.behavior_is_event
    )
    config.user_features = read_features(settings, store)
    # the hash alone is needed, so any length will do
    config.tokenizer_hash = EventTokenizer.from_store(store, 1).hash
    return config


def shape_baseline(
    settings: Mapping[str, Any], fields: dict[str, int], behaviors: int, is_event: bool
) -> BaselineConfig:
    """The configuration for fields with so many ids; `is_event`: the behaviors are the events.
    ValueError as above."""
    name = settings["architecture"]
    architecture = ARCHITECTURES[name]
    fields, width = read_inputs(settings, fields, behaviors, is_event)
    options = architecture.options(**(settings.get("options") or {}))
    shape = {
        **architecture.shape,
        **{key: value for key, value in settings.items() if key in SHARED},
        "embedding_size": width,
    }

    if architecture.inherit is not None:
        inherited = _inherited(architecture.inherit(options), settings)
        shape |= inherited
        # in the order of the base's fields: its embeddings are concatenated in it
        sizes = {"behavior": FIRST + behaviors, **fields}
        fields = {field: sizes[field] for field in inherited["field_order"]}

    if shape.get("memory"):
        shape["memory_experts"] = list(EXPERTS)

    shape.setdefault(
        "intermediate_size", architecture.mlp_ratio * shape["embedding_size"] * len(fields)
    )
    return BaselineConfig(
        architecture=name,
        options=options.model_dump(mode="json"),
        # behavior ids are the event ids where behaviors are the events: no second column
        more_columns=[
            column for column in architecture.columns if column != "behavior" or not is_event
        ],
        # the next event itself is what the main head predicts where behaviors are the events
        next_heads=[
            name
            for name in architecture.reconstructed
            if name in fields and not (name == "event" and is_event)
        ],
        field_sizes=fields,
        num_behaviors=behaviors,
        behavior_is_event=is_event,
        **shape,
    )


def _inherited(inherited: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of the model that an encoder is taken from. ValueError for a setting that differs
    from it."""
    for key in inherited.keys() & settings.keys():
        if settings[key] != inherited[key]:
            raise ValueError(f"{key} is that of options.base, {inherited[key]}; remove it")
    return inherited
