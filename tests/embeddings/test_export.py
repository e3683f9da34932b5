"""Export: the vectors of one-at-a-time reading, in the asked order, the same bytes however the run
went."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.embeddings.export import ExportSettings, export
from behavegpt.embeddings.pooling import NAMES
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.ingest.prepare import prepare
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.training.model_folder import Trained, save_model
from behavegpt.user_embeddings import UserEmbeddings
from tests.conftest import ROOT

LENGTH = 24  # shorter than many histories
HALF_LIFE = 3.0
RAW = {"scale": "none", "dtype": "float32", "block_users": 7, "half_life": HALF_LIFE}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    log = small_log(users=40, events=1500, seed=3)
    pq.write_table(log, folder / "log.parquet")
    prepare(folder / "log.parquet", folder / "data", SYNTHETIC_SCHEMA)
    return folder


@pytest.fixture(scope="module")
def store(work: Path) -> EventStore:
    return open_store(work / "data")


@pytest.fixture(scope="module")
def tokenizer(store: EventStore) -> EventTokenizer:
    return EventTokenizer.from_store(store, LENGTH)


@pytest.fixture(scope="module")
def model(store: EventStore, tokenizer: EventTokenizer) -> BehaveGPTForBehaviorPrediction:
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        behavior_is_event=store.schema.behavior_is_event,
        tokenizer_hash=tokenizer.hash,
        embedding_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_length=LENGTH,
        history_head=True,
        initializer_range=0.3,  # far from what untrained models give: everything moves the vectors
    )
    return BehaveGPTForBehaviorPrediction(config).eval()


def one_at_a_time(
    model: BehaveGPTForBehaviorPrediction, store: EventStore, user: int
) -> dict[str, np.ndarray]:
    """All parts of a user's vector from a plain forward pass over the user's own events, pooled
    with numpy."""
    rows = slice(
        max(store.offsets[user], store.offsets[user + 1] - LENGTH), store.offsets[user + 1]
    )
    ids = {
        name: torch.from_numpy(store.column(name)[rows].astype(np.int64))[None]
        for name in model.config.columns
    }
    inputs = {
        ("input_ids" if name == "event" else f"{name}_ids"): value for name, value in ids.items()
    }
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    final, embedded = (
        state[0].double().numpy() for state in (output.last_hidden_state, output.hidden_states[0])
    )
    time = store.columns["time"][rows].astype(float)
    weight = 0.5 ** ((time[-1] - time) / 86400 / HALF_LIFE)
    logits = output.logits[0, -1].double().numpy()
    return {
        "last": final[-1],
        "mean": final.mean(0),
        "decayed": np.average(final, axis=0, weights=weight),
        "bag": embedded.mean(0),
        "recent_bag": np.average(embedded, axis=0, weights=weight),
        "behaviors": logits - np.logaddexp.reduce(logits),
    }


def test_packed_rows_give_each_user_the_vector_of_reading_it_alone(
    model, tokenizer, store, work, tmp_path
):
    facts = export(
        Trained(model, tokenizer),
        [work / "data"],
        tmp_path / "out",
        ExportSettings(pool=NAMES, **RAW),
    )
    found = UserEmbeddings.load(tmp_path / "out")
    assert np.diff(store.offsets).max() > LENGTH > np.diff(store.offsets).min()
    for user in range(store.manifest.users):
        alone = one_at_a_time(model, store, user)
        assert set(alone) == set(facts["parts"])
        for name, (begin, end) in facts["parts"].items():
            np.testing.assert_allclose(
                found.vectors[user, begin:end], alone[name], atol=1e-5, rtol=1e-5
            )
    assert (
        found.client_ids.astype(str).tolist() == store.users().to_pylist() and found.missing is None
    )


def test_clients_come_in_the_asked_order_and_absent_ones_are_told(
    model, tokenizer, store, work, tmp_path
):
    asked = np.random.default_rng(0).permutation(store.users().cast(pa.int64()).to_numpy())[:25]
    asked = np.insert(asked, [3, 20], [-5, 10**12])
    everyone = export(
        Trained(model, tokenizer), [work / "data"], tmp_path / "all", ExportSettings(**RAW)
    )
    facts = export(
        Trained(model, tokenizer),
        [work / "data"],
        tmp_path / "out",
        ExportSettings(**RAW),
        clients=asked,
    )
    found, whole = UserEmbeddings.load(tmp_path / "out"), UserEmbeddings.load(tmp_path / "all")
    assert found.client_ids.tolist() == asked.tolist()
    assert np.flatnonzero(found.missing).tolist() == [3, 21] and (
        everyone["missing"],
        facts["missing"],
    ) == (0, 2)
    place = {client: row for row, client in enumerate(whole.client_ids)}
    rows = [place[client] for client in asked[~found.missing]]
    np.testing.assert_allclose(found.vectors[~found.missing], whole.vectors[rows], atol=1e-5)
    np.testing.assert_allclose(
        found.vectors[found.missing], np.tile(whole.vectors[rows].mean(0), (2, 1)), atol=1e-5
    )


def test_scales_and_fills_follow_their_rules(model, tokenizer, store, work, tmp_path):
    asked = [*store.users().to_pylist(), "-1"]
    found = {}
    for scale, fill in (
        ("none", "zeros"),
        ("unit", "zeros"),
        ("standard", "mean"),
        ("standard", "empty-history"),
    ):
        settings = ExportSettings(pool=("last", "bag"), **RAW | {"scale": scale, "fill": fill})
        out = tmp_path / f"{scale}-{fill}"
        parts = export(Trained(model, tokenizer), [work / "data"], out, settings, clients=asked)[
            "parts"
        ]
        found[scale, fill] = np.asarray(UserEmbeddings.load(out).vectors, np.float64)
    raw = found["none", "zeros"][:-1]
    pieces = [raw[:, begin:end] for begin, end in parts.values()]
    unit = np.hstack([piece / np.linalg.norm(piece, axis=1, keepdims=True) for piece in pieces])
    np.testing.assert_allclose(
        found["unit", "zeros"], np.vstack([unit, np.zeros(raw.shape[1])]), atol=1e-6
    )
    standard = (raw - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(
        found["standard", "mean"], np.vstack([standard, np.zeros(raw.shape[1])]), atol=1e-4
    )
    np.testing.assert_array_equal(
        found["standard", "mean"][:-1], found["standard", "empty-history"][:-1]
    )
    newest = int(np.argmax(store.columns["time"]))
    ids = {name: torch.ones(1, 1, dtype=torch.long) for name in model.config.columns}
    ids |= {
        name: torch.tensor([[int(store.columns[name][newest])]]) for name in ("weekday", "slot")
    }
    inputs = {
        ("input_ids" if name == "event" else f"{name}_ids"): value for name, value in ids.items()
    }
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    unknown = np.concatenate(
        [output.last_hidden_state[0, 0].numpy(), output.hidden_states[0][0, 0].numpy()]
    )
    np.testing.assert_allclose(
        found["standard", "empty-history"][-1],
        (unknown - raw.mean(0)) / raw.std(0),
        atol=1e-3,
        rtol=1e-3,
    )


ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def killed_at_the_fourth_block(trained: Trained, data: Path, out: Path, settings: Any) -> bool:
    """Whether an export in a process of its own was, without any clean-up."""
    child = os.fork()
    if not child:
        signal.alarm(60)  # rather than hang
        torch.set_num_threads(1)  # those of the parent are not there
        begun = iter(range(3))
        dies = lambda done, of: next(begun, None) is None and os._exit(9)  # noqa: E731
        try:
            export(trained, [data], out, settings, progress=dies)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_run_killed_between_blocks_goes_on_and_ends_with_the_same_bytes(
    model, tokenizer, work, tmp_path
):
    settings = ExportSettings(**RAW | {"scale": "standard", "dtype": "float16"})
    export(Trained(model, tokenizer), [work / "data"], tmp_path / "whole", settings)
    trained = Trained(model, tokenizer)
    assert killed_at_the_fourth_block(trained, work / "data", tmp_path / "killed", settings)
    assert not (tmp_path / "killed").exists()
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "killed.work").glob("block_*.npy")
    }
    assert len(kept) == 3
    (tmp_path / "killed.work" / ".block_000000000021.npy.tmp").write_bytes(b"half a block")
    with pytest.raises(ConfigError, match="whose settings differ"):
        export(Trained(model, tokenizer), [work / "data"], tmp_path / "killed", ExportSettings())
    again: list[int] = []
    progress = lambda done, of: again.append({p: p.stat().st_mtime_ns for p in kept} == kept)  # noqa: E731
    export(
        Trained(model, tokenizer), [work / "data"], tmp_path / "killed", settings, progress=progress
    )
    assert all(again) and not (tmp_path / "killed.work").exists()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_raw_logs_and_folders_with_other_ids_give_the_same_vectors(
    model, tokenizer, work, tmp_path
):
    settings = ExportSettings(**RAW, pool=("last", "behaviors"))
    prepare(work / "log.parquet", tmp_path / "other", SYNTHETIC_SCHEMA, split="time:1,0,0")
    assert dict(open_store(tmp_path / "other").manifest.vocabulary) != dict(
        open_store(work / "data").manifest.vocabulary
    )
    for name, events in {
        "a": work / "data",
        "b": tmp_path / "other",
        "c": work / "log.parquet",
    }.items():
        export(Trained(model, tokenizer), [events], tmp_path / name, settings)
    a, b, c = (UserEmbeddings.load(tmp_path / name).vectors for name in "abc")
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(b, c)


def test_labels_that_are_no_numbers_stand_beside_row_numbers(model, tokenizer, work, tmp_path):
    # nor need a log tell the behavior
    log = pq.read_table(work / "log.parquet").drop_columns("behavior")
    names = pc.binary_join_element_wise("u", log["user_id"].cast(pa.string()), "")
    pq.write_table(log.set_column(0, "user_id", names), tmp_path / "log.parquet")
    export(
        Trained(model, tokenizer),
        [tmp_path / "log.parquet"],
        tmp_path / "out",
        ExportSettings(**RAW),
    )
    labels = pq.read_table(tmp_path / "out" / "users.parquet")["user"].to_pylist()
    assert labels == sorted(set(names.to_pylist()))
    assert UserEmbeddings.load(tmp_path / "out").client_ids.tolist() == list(range(len(labels)))


MISTAKES = [
    ({"pool": ("lst",)}, {}, ConfigError, "unknown part 'lst'. Did you mean 'last'"),
    ({}, {"clients": ["7", "8", "7"]}, DataError, "client 7 is listed twice"),
    ({"pool": ("last", "bag", "last")}, {}, ConfigError, "'last' is listed twice"),
    (
        {"scale": "none", "dtype": "float16"},
        {"huge": True},
        DataError,
        "beyond float16; take --scale standard",
    ),
]


@pytest.mark.parametrize(
    "settings,given,error,message", MISTAKES, ids=lambda value: str(value)[:30]
)
def test_mistakes_are_told_with_a_remedy(
    model, tokenizer, work, tmp_path, settings, given, error, message
):
    from behavegpt.config import read_settings

    huge = given.pop("huge", False)
    if huge:
        model = BehaveGPTForBehaviorPrediction(model.config).eval()
        torch.nn.init.constant_(model.model.norm.weight, 1e6)
    with pytest.raises(error, match=message.replace("(", r"\(")):
        chosen = read_settings(
            ExportSettings, None, [f"{name}={list_text(value)}" for name, value in settings.items()]
        )
        export(Trained(model, tokenizer), [work / "data"], tmp_path / "out", chosen, **given)
    assert not (tmp_path / "out").exists()


def list_text(value: object) -> str:
    return json.dumps(list(value)) if isinstance(value, tuple) else str(value)


def test_data_of_another_schema_and_an_existing_folder_are_refused(
    model, tokenizer, work, tmp_path
):
    other = SYNTHETIC_SCHEMA.model_copy(update={"slot_minutes": 60})
    prepare(work / "log.parquet", tmp_path / "hours", other)
    with pytest.raises(CheckpointError, match="slot_minutes: 30 in the model, 60 in the data"):
        export(Trained(model, tokenizer), [tmp_path / "hours"], tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(BehaveGPTError, match="already exists"):
        export(Trained(model, tokenizer), [work / "data"], tmp_path / "out")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(model, tokenizer, work, tmp_path):
    save_model(model, tokenizer, tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "behavegpt.cli",
        "export",
        "model",
        str(work / "log.parquet"),
        "--block-users",
        "7",
    ]
    alone = os.environ | ONE_THREAD
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [alone | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    runs = [
        subprocess.Popen(
            [*command, out], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        for out, environment in (("one", alone), ("two", ranks[0]), ("two", ranks[1]))
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert "vectors, written: two" in said[1] and "written" not in said[2]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
