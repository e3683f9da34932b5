"""The time between events as an input: whole-number buckets, and positions that gaps move on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

import behavegpt
from behavegpt.baselines.config import BaselineConfig
from behavegpt.cli import main
from behavegpt.data.collate import gap_buckets
from behavegpt.export_model import export_model
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.graph_inputs import GraphInputs
from behavegpt.model import BehaveGPTConfig
from behavegpt.model.elapsed import GAP_IDS, elapsed, half_octaves
from behavegpt.model.inputs import Events
from behavegpt.pretrain import PretrainSettings, pretrain
from tests.model.test_model import histories, make
from tests.runs import tiny_settings

BOTH = {"gap": True, "position_encoding": "time"}


def test_buckets_are_those_of_the_gap_head() -> None:
    edges = [2**k + d for k in range(28) for d in (-2, -1, 0, 1)]
    seconds = torch.tensor([-5, 0, 1, 2, 3, 59, 60, 3600, 86_400, 10**10, *edges])
    assert half_octaves(seconds).tolist() == gap_buckets(seconds.numpy()).tolist()


def test_gaps_and_positions_are_a_historys_own() -> None:
    """Two histories in a row: the first event of each has no gap and stands at 0."""
    time = torch.tensor([[100, 100, 103, 103 + 3600, 50, 50 + 86_400]])
    index = torch.tensor([[0, 1, 2, 3, 0, 1]])
    found = elapsed(Events({"time": time}, index, index))
    hour, day = (int(half_octaves(torch.tensor([gap]))) for gap in (3600, 86_400))
    assert found.gap.tolist() == [[0, 1, 1 + 4, 1 + hour, 0, 1 + day]]
    assert found.position.tolist() == [[0, 1, 2 + 4 / 8, 3 + (4 + hour) / 8, 0, 1 + day / 8]]
    assert int(found.gap.max()) < GAP_IDS


def test_later_events_look_further_back() -> None:
    """Only differences of times count, and they do."""
    model = make(**BOTH).eval()
    [mine] = histories([12])
    del mine["behavior_ids"]
    logits = model(**mine).logits
    moved = model(**mine | {"time_ids": mine["time_ids"] + 10**9}).logits
    assert torch.equal(moved, logits)
    later = mine["time_ids"].clone()
    later[:, 6:] += 10**7
    changed = model(**mine | {"time_ids": later}).logits
    assert torch.equal(changed[:, :6], logits[:, :6])
    assert not torch.allclose(changed[:, 6:], logits[:, 6:], atol=1e-3)
    with pytest.raises(ValueError, match="give time_ids, in seconds"):
        model(**{name: ids for name, ids in mine.items() if name != "time_ids"})


@pytest.mark.parametrize(
    ("make_config", "settings", "message"),
    [
        (BehaveGPTConfig, {"position_encoding": "clock"}, "rope, learned, none or time"),
        (
            BehaveGPTConfig,
            BOTH | {"memory": True, "memory_experts": ["a"], "num_hidden_layers": 0},
            "no effect on counts alone",
        ),
        (BaselineConfig, {"gap": True}, "are BehaveGPT's"),
        (BaselineConfig, {"position_encoding": "time"}, "are BehaveGPT's"),
    ],
)
def test_what_cannot_read_the_time_is_refused(
    make_config: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        make_config(**settings)


def test_off_by_default() -> None:
    config = BehaveGPTConfig()
    assert not config.reads_time and "time" not in config.columns


def test_commits_are_read_predicted_and_drawn_by_their_times(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Git activity: training, prediction, states, generation, export and fine-tuning know the
    time."""
    log = pq.read_table(shared_data("git_activity.parquet"))
    log = log.filter(log["user_id"].to_numpy() < 120).slice(0, 4000)
    pq.write_table(log, tmp_path / "log.parquet")
    columns = (
        "--user user_id --time timestamp --event area --behavior activity --location repository"
    )
    arguments = [str(tmp_path / "log.parquet"), "--out", str(tmp_path / "data"), *columns.split()]
    assert main(["prepare", *arguments, "--order", "order"]) == 0

    settings = tiny_settings(tmp_path / "data", tmp_path / "run", steps=4)
    settings["model"] |= BOTH | {"next_heads": ["event", "location", "gap"]}
    pretrain(PretrainSettings.model_validate(settings))
    model = behavegpt.load(tmp_path / "run" / "model", "cpu")
    assert model.model.model.embedding.gap.weight.abs().sum() > 0

    given = log.slice(0, 300)
    found = model.predict(given, 3)
    user = found.users[0].as_py()
    own = given.filter(np.array([str(value) == user for value in given["user_id"].to_pylist()]))
    assert np.allclose(model.predict(own, 3).probabilities[0], found.probabilities[0], atol=1e-6)
    state = model.state(user, own)
    assert np.allclose(model.predict(state, 3).probabilities, found.probabilities[0], atol=1e-6)

    # windows of 16 events restart on the way, and the cache with them
    drawn = [model.generate(given, steps=20, cache=cache).to_table() for cache in (True, False)]
    assert drawn[0].equals(drawn[1])

    export_model(model, tmp_path / "portable", "torch")
    _, feed = GraphInputs(tmp_path / "portable").of(given)
    graph = torch.export.load(tmp_path / "portable" / "model.pt2").module()
    vectors = graph(*(torch.from_numpy(values) for values in feed.values()))[1]
    assert "time_ids" in feed
    assert np.allclose(vectors.detach(), model.embed(given).vectors, atol=1e-5)

    del settings["model"]
    base = {"base": str(tmp_path / "run" / "model"), "out": str(tmp_path / "tuned")}
    finetune(FinetuneSettings.model_validate(settings | base | {"mode": "full"}))
    assert behavegpt.load(tmp_path / "tuned" / "model", "cpu").model.config.gap
