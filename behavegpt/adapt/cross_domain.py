"""The tokenizer, the data and the shape of a model for another domain, in the base's layout of
fields.

The width of the blocks is the number of fields times d, so the base's fields stay: one that the new
data lack is constantly unknown, further ones of the data are not read. Both are said.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from behavegpt.adapt.new_behavior import grown_vocabulary
from behavegpt.adapt.settings import AdaptSettings
from behavegpt.data.reencode import empty_vocabulary, new_labels, reencode
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import ConfigError, DataError, violation
from behavegpt.model import BehaveGPTConfig

# of the config what follows from the data
_NOT_SHAPE = (
    "field_sizes",
    "field_order",
    "user_features",
    "num_behaviors",
    "behavior_is_event",
    "tokenizer_hash",
    "retired",
)


def target_tokenizer(
    old: EventTokenizer, store: EventStore, options: AdaptSettings, grow: bool
) -> tuple[EventTokenizer, EventStore]:
    """The adapted model's tokenizer, and the store in its ids.

    Raises DataError for a domain with one class, ConfigError where the two kinds of behaviors
    cannot be grown.
    """
    schema = store.schema
    if options.new is not None and not grow:
        raise ConfigError(
            "adapt.new names behaviors to append, but the vocabulary is the data's; use "
            "mode=new_behavior."
        )
    if grow and schema.behavior_is_event != old.event_schema.behavior_is_event:
        kind = {True: "the events themselves", False: "a column of their own"}
        raise ConfigError(
            f"the base's behaviors are {kind[old.event_schema.behavior_is_event]}, the data's are "
            f"{kind[schema.behavior_is_event]}, so none can be appended; prepare the data with the "
            "same columns, or use mode=cross_domain."
        )

    # the base's ids stay with grow; else the data's own vocabularies, in the base's fields alone
    if grow:
        vocabulary = grown_vocabulary(old, store, options)
    else:
        # of the base, not of the data: the width of its blocks is that of its fields
        fields = [field for field in old.vocabulary if field != "behavior"]
        if not schema.behavior_is_event:
            fields.append("behavior")
        # a field that the data lack has no label: every event is unknown in it
        vocabulary = {field: store.vocabulary.get(field, empty_vocabulary()) for field in fields}

    # what is known of the users widens nothing: the data's features are read, and no others
    for name in old.event_schema.features:
        vocabulary.pop(name, None)
    vocabulary |= _features(old, store, grow)
    encoded = reencode(store, vocabulary)
    if encoded.behaviors.classes < 2:
        raise DataError(
            f"{store.path}: the data hold {encoded.behaviors.classes} behavior, so there is "
            "nothing to predict; give a log with at least two, or check the behavior column."
        )

    return EventTokenizer(schema, dict(encoded.vocabulary), old.max_length), encoded


def target_config(
    base: BehaveGPTConfig,
    tokenizer: EventTokenizer,
    dropout: float | None,
    features: Collection[str] | None = None,
) -> BehaveGPTConfig:
    """The base's shape for another tokenizer, with the named features of users or all of the data.
    Raises ConfigError on a contradiction."""
    # the base has an embedding of behaviors, for which such data have no labels of their own
    if "behavior" in (base.field_order or ()) and tokenizer.event_schema.behavior_is_event:
        raise ConfigError(
            "the base reads behaviors beside the events (inputs: with_behavior), in the data they "
            "are the same; prepare the data with --behavior and a column of behaviors, or take a "
            "base trained with model.inputs=all."
        )

    fixed = {"weekday": 7, "slot": tokenizer.event_schema.slots}  # the calendar's, not learned
    sizes = {
        field: fixed[field] if field in fixed else len(tokenizer.vocabulary[field])
        for field in base.field_order or ()
    }
    # by exclusion: a setting that the config gains later is taken over without a word here
    shape: dict[str, Any] = {
        name: getattr(base, name)
        for name in BehaveGPTConfig.__annotations__
        if name not in (*_NOT_SHAPE, "dropout")
    }
    try:
        return BehaveGPTConfig(
            field_sizes=sizes,
            user_features={
                name: len(tokenizer.vocabulary[name])
                for name in tokenizer.event_schema.features
                if features is None or name in features
            },
            num_behaviors=tokenizer.behaviors.classes,
            behavior_is_event=tokenizer.event_schema.behavior_is_event,
            tokenizer_hash=tokenizer.hash,
            dropout=base.dropout if dropout is None else dropout,
            **shape,
        )
    # transformers wraps what it objects to in errors of many types
    except Exception as error:
        raise ConfigError(f"the base's shape does not fit the data: {violation(error)}") from None


def _features(old: EventTokenizer, store: EventStore, grow: bool) -> dict[str, Vocabulary]:
    """The vocabularies of the data's features of users, grown from the base's with `grow`."""
    vocabularies = {}
    for name in store.schema.features:
        ours, known = store.vocabulary[name], old.vocabulary.get(name)
        # a feature that was cut into ranges, and is not now, is another one
        grows = grow and known is not None and type(known) is type(ours)
        vocabularies[name] = known.grow(new_labels(known, ours)) if known and grows else ours
    return vocabularies


def schema_remarks(base: BehaveGPTConfig, old: EventTokenizer, store: EventStore) -> list[str]:
    """What differs between the base's inputs and the data's, and what is made of it."""
    ours = [field for field in base.field_order or () if field != "behavior"]
    theirs = store.schema.input_fields
    lacking = [name for name in ours if name not in theirs]
    further = [name for name in theirs if name not in ours]
    remarks = [f"the data have no {name}: constantly unknown for the model" for name in lacking]
    remarks += [f"the base has no field {name}: it is not read" for name in further]
    # of features no width depends: they may come and go
    lost = sorted((base.user_features or {}).keys() - set(store.schema.features))
    gained = sorted(set(store.schema.features) - (base.user_features or {}).keys())
    remarks += [f"the data have no {name} of the users: it is not read any more" for name in lost]
    remarks += [f"the base has no {name} of the users: it is read from now on" for name in gained]

    # 48 rows of a slot embedding for 24 slots: neighbors are averaged
    before, now = old.event_schema.slot_minutes, store.schema.slot_minutes
    if before != now:
        remarks.append(f"slots of {now} instead of {before} minutes: copied slots are averaged")
    return remarks
