"""How each field is drawn: the table of heads and settings, and the words of the result."""

from __future__ import annotations

import pytest
import torch

from behavegpt.errors import ConfigError
from behavegpt.generation.constraints import Links, count_links
from behavegpt.generation.policies import Policies, Source, choose_policies
from behavegpt.generation.settings import GenerationSettings
from tests.generation.test_generation import HEADS, setting

ALL, NONE = HEADS, list[str]()
CASES = [  # heads, settings, whether links are known, field -> words
    (
        ALL,
        {},
        True,
        {"time": "head, slot head", "event": "head, among those of the behavior in training"},
    ),
    (
        ALL,
        {},
        False,
        {"event": "head, whatever the behavior", "location": "head, whatever the event"},
    ),
    (ALL, {"place": "typical"}, True, {"location": "typical", "behavior": "head"}),
    (["gap"], {}, True, {"time": "head", "event": "typical", "location": "observed"}),
    (NONE, {}, True, {"time": "observed", "event": "typical", "location": "observed"}),
    (NONE, {"time": "typical"}, True, {"time": "typical"}),
]


@pytest.mark.parametrize("heads,options,linked,words", CASES)
def test_each_field_has_a_source_that_the_result_names(heads, options, linked, words):
    store, model, tokenizer, _ = setting("rope", next_heads=heads)
    links = count_links(store) if linked else Links()
    described = choose_policies(model, tokenizer, GenerationSettings(**options), links).describe()
    assert {field: described[field] for field in words} == words


def test_training_hours_are_named_and_fields_without_a_source_are_copied():
    store, model, tokenizer, _ = setting("behavior", next_heads=["gap", "event"])
    links = count_links(store)
    links.gap_odds = torch.zeros(48, 4)
    policies = choose_policies(model, tokenizer, GenerationSettings(), links)
    assert policies.describe()["time"] == "head, by training's hours" and policies.needs_own_past
    assert Policies(Source.HEAD, None, None, ("price",)).describe()["price"] == "the user's last"
    assert not Policies(Source.HEAD, None, None).needs_own_past


@pytest.mark.parametrize(
    "options,linked,message",
    [
        ({"time": "head"}, True, "no gap head; use the policy observed or typical for the time"),
        ({"place": "head"}, True, "no location head"),
        ({}, False, "no event head, so it cannot generate events"),
    ],
)
def test_a_head_that_is_missing_is_named(options, linked, message):
    store, model, tokenizer, _ = setting("bare")
    links = count_links(store) if linked else Links()
    with pytest.raises(ConfigError, match=message):
        choose_policies(model, tokenizer, GenerationSettings(**options), links)
