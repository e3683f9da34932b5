"""Numbers that are drawn go with the behavior that was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import behavegpt
from behavegpt.data.schema import EventSchema
from behavegpt.generation.constraints import Links, load_links
from behavegpt.generation.field_odds import odds_given
from behavegpt.ingest.prepare import prepare
from behavegpt.pretrain import PretrainSettings, pretrain
from tests.runs import tiny_settings

SCHEMA = EventSchema(user="user", time="time", event="event", numeric=("amount",))


def log_of(rows: int = 2400) -> pd.DataFrame:
    """What comes next is a coin; only the event tells whether the amount is about 5 or 500."""
    rng = np.random.default_rng(0)
    event = rng.choice(["coffee", "flight"], rows)
    amount = np.where(event == "flight", 500, 5) * rng.lognormal(0, 0.2, rows)
    return pd.DataFrame(
        {
            "user": rng.integers(0, 20, rows),
            "time": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows), "h"),
            "event": event,
            "amount": amount.round(2),
        }
    )


def test_a_flight_costs_more_than_a_coffee(tmp_path: Path) -> None:
    log = log_of()
    prepare(log, tmp_path / "data", SCHEMA)
    settings = tiny_settings(tmp_path / "data", tmp_path / "run", steps=20)
    settings["model"] |= {"next_heads": ["amount", "gap"]}
    pretrain(PretrainSettings.model_validate(settings))
    model = behavegpt.load(tmp_path / "run", "cpu")
    assert set(model.links.field_odds) == {"amount"}

    def agreement(links: Links) -> float:
        futures = model.generate(log, 6, seed=1, links=links).to_table().to_pandas()
        return float(((futures["amount"] > 50) == (futures["event"] == "flight")).mean())

    assert agreement(model.links) > 0.95
    without = load_links(tmp_path / "run" / "model")
    without.field_odds = {}
    assert agreement(without) < 0.7


def test_a_behavior_that_came_later_changes_nothing() -> None:
    odds = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert odds_given(odds, np.array([1, 5])).tolist() == [[2.0, 3.0], [0.0, 0.0]]
