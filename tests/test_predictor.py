"""The Predictor's inputs: whose events they are, numbers that make sense, and memory bounded by
cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from behavegpt import history_batches
from behavegpt.cli import main
from behavegpt.data.memory_counts import count_store
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import BehaveGPTError, ConfigError, DataError
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.predictor import Predictor
from behavegpt.trained_folder import load, model_folder
from behavegpt.training.model_folder import save_model
from tests.helpers import random_store


def made(behaviors: int | None = 5, events: int = 12, **options: Any) -> Predictor:
    """An untrained model of `random_store`'s columns u, t, e, l (and b)."""
    store = random_store(0, behaviors=behaviors, events=events)
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        behavior_is_event=behaviors is None,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_length=16,
        next_heads=["event", "location", "gap"],
        **options,
    )
    return Predictor(BehaveGPTForBehaviorPrediction(config), EventTokenizer.from_store(store, 16))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return made()


ROWS = [
    {
        "u": f"user{n % 3}",
        "t": f"2020-01-{n + 1:02} 10:00:00",
        "e": f"event{n % 5}",
        "l": "location1",
        "b": None,
    }
    for n in range(9)
]
FRAME = pd.DataFrame(ROWS)
VERBS: dict[str, Callable[[Predictor, Any], Any]] = {
    "predict": lambda predictor, events: predictor.predict(events),
    "embed": lambda predictor, events: predictor.embed(events),
    "generate": lambda predictor, events: predictor.generate(events, 2),
}

WITHOUT_USER: dict[str, tuple[Any, str]] = {
    "renamed": (FRAME.rename(columns={"u": "user_id"}), "Did you mean 'user_id'"),
    "other case": (FRAME.rename(columns={"u": "U"}), "Did you mean 'U'"),
    "dropped": (FRAME.drop(columns="u"), "no column 'u' (the user)"),
    "in the index": (FRAME.set_index("u"), "'u' (the user) is the frame's index"),
    "in one of two indices": (FRAME.set_index(["u", "t"]), "reset_index"),
    "the time in the index": (FRAME.set_index("t"), "'t' (the time) is the frame's index"),
    "polars": (pl.DataFrame(ROWS).rename({"u": "uid"}), "Did you mean 'uid'"),
    "arrow": (pa.Table.from_pylist(ROWS).drop_columns(["u"]), "no column 'u'"),
    "columns": ({name: [row[name] for row in ROWS] for name in ("t", "e", "l")}, "no column 'u'"),
    "a list, renamed": (
        [{"customer_id" if k == "u" else k: v for k, v in row.items()} for row in ROWS],
        "customer_id",
    ),
    "a list, other case": (
        [{"U" if k == "u" else k: v for k, v in row.items()} for row in ROWS],
        "'U'",
    ),
    "a list of mixed things": ([*ROWS, 3], "a int stands among the events"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", WITHOUT_USER)
def test_a_frame_without_the_user_is_refused(predictor: Predictor, name: str, verb: str) -> None:
    events, text = WITHOUT_USER[name]
    with pytest.raises(DataError) as error:
        VERBS[verb](predictor, events)
    assert text in str(error.value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_events_is_one_history(predictor: Predictor, verb: str, kind: type) -> None:
    alone = kind({k: v for k, v in row.items() if k != "u"} for row in ROWS)
    assert VERBS[verb](predictor, alone).users.to_pylist() == ["0"]
    assert VERBS[verb](predictor, kind(ROWS)).users.to_pylist() == ["user0", "user1", "user2"]


def test_files_without_the_user_are_refused(
    predictor: Predictor, tmp_path: Path, capsys: Any
) -> None:
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    FRAME.rename(columns={"u": "user_id"}).to_csv(tmp_path / "log.csv", index=False)
    for verb in ("predict", "embed", "generate"):
        out = ["--out", str(tmp_path / "out.parquet")]
        assert main([verb, str(tmp_path / "model"), str(tmp_path / "log.csv"), *out]) == 2
        assert "no column 'u' (the user)" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:x", "cpu cuda"])
def test_a_device_that_is_not_there_is_one_clear_error(
    predictor: Predictor, device: str, tmp_path: Path, capsys: Any
) -> None:
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used"):
        load(tmp_path / "model", device)
    assert main(["serve", str(tmp_path / "model"), "--port", "0", "--device", device]) == 2
    assert f"device '{device}' cannot be used" in capsys.readouterr().err


def test_progress_is_told_in_users_up_to_all(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_batches, "CELLS_PER_BATCH", 1)  # a batch for each user
    told: list[tuple[int, int]] = []
    users = predictor.predict(FRAME, on_user=lambda done, total: told.append((done, total))).users
    assert told[-1] == (len(users), len(users)) and [done for done, _ in told] == sorted(
        done for done, _ in told
    )


def test_a_series_holds_no_log(predictor: Predictor) -> None:
    with pytest.raises(DataError, match="a Series holds no logs"):
        predictor.predict(pd.Series(["a"]))


NAN = float("nan")
BAD: list[tuple[str, str, tuple[Any, ...]]] = [
    ("predict", "top_k", (2.5, None, "3", 0, -1, True, NAN, [3], np.float32(2))),
    ("predict", "prior_correction",
     (NAN, math.inf, -math.inf, "0.3", None, True, -1, 11, 10**400)),
    ("embed", "pool", ([], (), "last", None, ["first"], ["last", "last"], [3], [[]])),
    ("generate", "temperature", (1e-320, 1e-4, NAN, math.inf, -1, 101, "1", True)),
    ("generate", "top_p", (1e-300, 0, NAN, 1.1, -0.5, "1")),
    ("generate", "until",
     ("99999999999999999 weeks", "0 days", "soon", 3, "", "1" * 4000, "9" * 39 + "h", "0.001 min",
      "{a: 1}", "nan days", "-1 day", "1e3 days")),
    ("generate", "steps", (0, 2.5, "3", 10**9, True, None)),
    ("generate", "samples", (0, 1.5, "2", -1, 10**12)),
    ("generate", "seed", (-1, 0.5, 2**63, 10**5000, "1")),
    ("generate", "keep", (0,)), ("generate", "rows", (0,)), ("generate", "probabilities", (-1,)),
]  # fmt: skip
BAD_NUMBERS = [(verb, {name: value}) for verb, name, values in BAD for value in values]


@pytest.mark.parametrize("verb,options", BAD_NUMBERS, ids=lambda v: next(iter(v)))
def test_numbers_without_sense_are_refused(
    predictor: Predictor, verb: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as error:
        getattr(predictor, verb)(ROWS, **options)
    assert next(iter(options)) in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "verb,options",
    [
        ("predict", {"top_k": np.int64(3), "prior_correction": np.float32(0.5)}),
        ("predict", {"top_k": 10**30, "prior_correction": 0}),
        ("embed", {"pool": ("last", "bag")}),
        ("generate", {"steps": 2, "temperature": 0, "top_p": 1e-6}),
        ("generate", {"steps": 2, "temperature": 1e-3, "until": "100 weeks"}),
        ("generate", {"steps": np.int32(2), "temperature": 100, "seed": 2**63 - 1}),
    ],
)
def test_the_ends_of_the_bounds_work(
    predictor: Predictor, verb: str, options: dict[str, Any]
) -> None:
    found = getattr(predictor, verb)(ROWS, **options)
    if verb == "predict":
        assert np.isfinite(found.probabilities).all() and found.probabilities.min() >= 0


@pytest.mark.parametrize(
    "line",
    [
        ["predict", "--prior-correction", "nan"],
        ["predict", "--top-k", "0"],
        ["generate", "--steps", "0"],
        ["generate", "--temperature", "1e-320"],
        ["generate", "--top-p", "1e-300"],
        ["generate", "--until", "99999999999999999 weeks"],
        ["generate", "--seed", "-1"],
    ],
)
def test_the_command_line_checks_the_same(
    predictor: Predictor, tmp_path: Path, capsys: Any, line: list[str]
) -> None:
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    assert main([line[0], str(tmp_path / "model"), str(tmp_path / "log.csv"), *line[1:]]) == 2
    assert line[1].lstrip("-").replace("-", "_") in capsys.readouterr().err


def one_event_users(predictor: Predictor, users: int, events: int = 1) -> EncodedHistories:
    rng = np.random.default_rng(0)
    sizes = dict(predictor.model.config.field_sizes or {})
    columns = {
        name: rng.integers(2 if size > 3 else 0, size, users * events)
        for name, size in sizes.items()
    }
    columns |= {"behavior": columns["event"], "time": np.tile(np.arange(events) * 60, users)}
    labels = pa.array([f"{n:06}" for n in range(users)], pa.string())
    return EncodedHistories(labels, np.arange(users + 1) * events, columns, {}, {})


def call(predictor: Predictor, verb: str, encoded: EncodedHistories) -> Any:
    if verb == "embed":
        return predictor.embed(encoded, ["last", "behaviors"]).vectors
    if verb == "generate":
        return predictor.generate(encoded, 2, top_p=0.9, time="observed", place="observed").columns[
            "event"
        ]
    return predictor.predict(encoded).probabilities


@pytest.mark.parametrize("verb", ["predict", "embed", "generate"])
def test_logits_are_bounded_by_cells(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Many users of one event with many classes: no batch holds more cells than the limit, and
    nothing changes."""
    predictor = made(behaviors=None, events=3000)
    encoded = one_event_users(predictor, 700)
    expected = call(predictor, verb, encoded)
    shapes: list[int] = []
    predictor.model.head.register_forward_hook(
        lambda module, args, logits: shapes.append(logits.numel())
    )
    for module in ("behavegpt.history_batches", "behavegpt.history_logits"):
        monkeypatch.setattr(f"{module}.CELLS_PER_BATCH", 300_000)
    monkeypatch.setattr("behavegpt.generation.rollout.LOGIT_BYTES", 16 * 300_000)
    got = call(predictor, verb, encoded)
    assert max(shapes) <= 300_000 and len(shapes) > 3
    assert np.allclose(got, expected, atol=1e-6)


def test_more_classes_than_cells_go_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = made(behaviors=None, events=50)
    encoded = one_event_users(predictor, 10)
    expected = predictor.predict(encoded)
    shapes: list[int] = []
    predictor.model.head.register_forward_hook(
        lambda module, args, logits: shapes.append(len(logits))
    )
    for module in ("behavegpt.history_batches", "behavegpt.history_logits"):
        monkeypatch.setattr(f"{module}.CELLS_PER_BATCH", 100)
    got = predictor.predict(encoded)
    assert shapes == [2] * 5
    assert (got.labels == expected.labels).all() and np.allclose(
        got.probabilities, expected.probabilities, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["predict", "embed", "generate"])
def test_peak_memory_of_many_users_and_classes(verb: str) -> None:
    """20,000 users of one event at 32,768 classes: 4.7 GiB once, when positions alone were
    bounded."""
    import subprocess
    import sys

    code = (
        "import resource\nfrom tests.test_predictor import call, made, one_event_users\n"
        "predictor = made(behaviors=None, events=32766)\nencoded = one_event_users(predictor, "
        "20_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"call(predictor, {verb!r}, encoded)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[-1]) < 1 << 20, "KiB"


@pytest.mark.parametrize("verb", ["predict", "embed", "generate"])
def test_work_can_be_interrupted(predictor: Predictor, verb: str) -> None:
    class Stop(BehaveGPTError):
        pass

    calls = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    assert history_batches.POSITIONS_PER_BATCH["cpu"] == 16_384
    encoded = one_event_users(predictor, 20_000)
    with pytest.raises(Stop):
        getattr(predictor, verb)(encoded, interrupt=interrupt)
    assert len(calls) == 2


def test_without_options_five_behaviors_the_last_state_and_fifty_events(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow, wide = made(), made(behaviors=None, events=30)
    assert narrow.predict(ROWS).labels.shape == (3, 5) == wide.predict(ROWS).labels.shape
    last = predictor.embed(ROWS).vectors
    assert np.array_equal(last, predictor.embed(ROWS, ["last"]).vectors)
    assert not np.array_equal(last, predictor.embed(ROWS, ["mean"]).vectors)
    asked: list[Any] = []
    monkeypatch.setattr("behavegpt.predictor.roll_out", lambda *given: asked.append(given))
    predictor.generate(ROWS, samples=None)
    predictor.generate(ROWS, 7, samples=2)
    assert [(given[3].steps, given[3].samples) for given in asked] == [(50, 1), (7, 2)]


def test_a_table_has_a_row_for_each_rank(predictor: Predictor) -> None:
    found = predictor.predict(ROWS, top_k=3)
    table = found.to_table().to_pydict()
    assert list(table) == ["user", "rank", "behavior", "probability"]
    assert len(found) == 3 and table["rank"] == [1, 2, 3] * 3
    assert table["user"] == [f"user{n}" for n in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert table["behavior"] == found.labels.flatten().tolist()
    assert table["probability"] == pytest.approx(found.probabilities.flatten().tolist())


def test_links_are_those_beside_the_model_unless_others_are_given(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = object(), object()
    linked = Predictor(predictor.model, predictor.tokenizer, mine)  # type: ignore[arg-type]
    asked: list[Any] = []
    monkeypatch.setattr("behavegpt.predictor.roll_out", lambda *given: asked.append(given[4]))
    for asking in (linked, predictor):
        asking.generate(ROWS)
        asking.generate(ROWS, links=others)  # type: ignore[arg-type]
    assert [asked.index(links) for links in asked] == [0, 1, 2, 1] and asked[2] is None


def test_counts_go_with_their_users_through_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with memory, two users at a time."""
    store = random_store(0, users=9)
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=5,
        embedding_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_length=8,
        memory=True,
        memory_experts=list(EXPERTS),
    )
    model = BehaveGPTForBehaviorPrediction(config)
    model.counts = count_store(store)
    predictor = Predictor(model, EventTokenizer.from_store(store, 8))
    users = pa.array([f"{n}" for n in range(9)], pa.string())
    encoded = EncodedHistories(users, store.offsets, store.columns, {}, {})
    expected = predictor.predict(encoded)
    sizes: list[int] = []
    model.head.register_forward_hook(lambda module, args, logits: sizes.append(len(logits)))
    # five classes: a row of eight histories is more than that
    monkeypatch.setattr("behavegpt.history_logits.CELLS_PER_BATCH", 2 * 5 + 4)
    found = predictor.predict(encoded)
    assert sum(sizes) == 9 and max(sizes) == 2
    assert (found.labels == expected.labels).all()
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert len({tuple(row) for row in expected.probabilities}) == 9, "the users must differ"


def test_a_run_is_opened_by_its_model_or_its_adapter(tmp_path: Path) -> None:
    for name, inside in {
        "model": "model/config.json",
        "adapter": "adapter/adapter_config.json",
        "plain": "config.json",
        "plain adapter": "adapter_config.json",
        "both": "model/config.json",
        "nothing": "notes.txt",
    }.items():
        (tmp_path / name / inside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / inside).touch()
    (tmp_path / "both" / "adapter").mkdir()
    (tmp_path / "both" / "adapter" / "adapter_config.json").touch()
    found = {path.name: model_folder(path).relative_to(path) for path in tmp_path.iterdir()}
    assert found == {
        "model": Path("model"),
        "adapter": Path("adapter"),
        "plain": Path(),
        "plain adapter": Path(),
        "both": Path("model"),
        "nothing": Path(),
    }


def test_where_a_model_runs_and_with_which_kernel(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(predictor.model, predictor.tokenizer, tmp_path / "model")
    asked: list[Any] = []

    def choose(device: torch.device, half: bool, window: int) -> str:
        asked.append((device.type, half, window))
        return "eager"

    monkeypatch.setattr("behavegpt.trained_folder.choose_backend", choose)
    opened = load(tmp_path / "model", "cpu")
    assert asked == [("cpu", False, 16)]
    assert opened.model.config._attn_implementation == "eager"
    monkeypatch.setattr(
        "behavegpt.trained_folder.choose_device", lambda device: torch.device("meta")
    )
    monkeypatch.setattr("behavegpt.trained_folder.choose_precision", lambda wanted, device: "bf16")
    assert load(tmp_path / "model").model.device.type == "meta"
    assert asked[1:] == [("meta", True, 16)]
