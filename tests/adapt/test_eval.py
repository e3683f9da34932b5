"""The two scripts of the adaptation figures, end to end on small logs; their protocols load."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from behavegpt.config import read_settings
from behavegpt.data.pack import target_rows
from behavegpt.data.store import open_store
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.ingest.prepare import prepare
from behavegpt.shipped import SHIPPED
from tests.conftest import ROOT

TINY = str(ROOT / "configs" / "tiny.yaml")


def script(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "eval" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    for seed, name in enumerate(("here", "there")):
        pq.write_table(small_log(users=40, events=2500, seed=seed), folder / f"{name}.parquet")
    return folder


def protocol_of(name, tmp_path, **changed):
    tree = yaml.safe_load((ROOT / f"configs/adapt/eval_{name}.yaml").read_text()) | changed
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "protocol.yaml"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/adapt").glob("eval_*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_protocol_loads(path):
    module = script("new_behavior" if "new_behavior" in path.stem else "cross_domain")
    protocol = read_settings(module.Protocol, path)
    rows = list(module.grid(protocol))
    assert len(rows) > 40
    for row in rows:  # every row's settings are valid
        if row.get("mode") not in getattr(protocol, "untrained", ()) and row.get(
            "method"
        ) not in getattr(module, "UNTRAINED", ()):
            assert module.settings_of(protocol, row, path, path, path).train.seed == row["seed"]


def test_cross_domain(logs, tmp_path, capsys):
    module = script("cross_domain")
    config = protocol_of(
        "cross_domain",
        tmp_path,
        schema={"user": "user_id", "time": "timestamp", "location": "location", "event": "event"},
        target={"file": "there.parquet", "tz": "UTC"},
        sources={"home": {"file": "here.parquet", "tz": "UTC", "schema": {"location": "behavior"}}},
        pretrain={"config": TINY, "steps": 2, "losses": ["dro", "cross_entropy"]},
        fractions={0.5: {"steps": 2, "batch_events": 256, "seeds": [0]}},
        modes={"cross_domain": {"adapt": {"scale": "base"}}, "scratch": {"lr": 1e-3}},
        modes_of_other_losses=["cross_domain"],
        counted=["markov", "mixture"],
        universal=str(SHIPPED["universal"].folder),
    )
    line = [str(config), "--out", str(tmp_path / "rows.jsonl")]
    run = [*line, "--logs", str(logs), "--work", str(tmp_path)]
    assert module.main([*run, "--only", "scratch"]) == 0
    assert module.main(run) == 0 and module.main(run) == 0
    rows = module.read_rows(tmp_path / "rows.jsonl")
    keys = [tuple(row[name] for name in module.KEY) for row in rows]
    assert len(keys) == len(set(keys)) == 3 + 2 + 1
    schemas = {name: open_store(tmp_path / "data" / name).schema for name in ("here", "there")}
    assert (schemas["here"].location, schemas["there"].location) == ("behavior", "location")
    trained = [row for row in rows if "trained" in row]
    assert len({row["rows"] for row in trained}) == 1 and {row["mode"] for row in trained} == {
        "cross_domain",
        "scratch",
    }
    assert next(row for row in trained if row["mode"] == "scratch")["reused"] == 0
    capsys.readouterr()
    assert module.main([*line, "--table", "--plot", str(tmp_path / "figure.png")]) == 0
    assert "| 50% | home | dro | cross_domain | 1 |" in capsys.readouterr().out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_share_of_the_users_trains_and_all_are_tested(logs, tmp_path):
    module = script("cross_domain")
    store = prepare([logs / "here.parquet"], tmp_path / "data", SYNTHETIC_SCHEMA)
    part = module.share_of_users(store, 0.25, seed=3)
    owner = np.repeat(np.arange(store.manifest.users), np.diff(store.offsets))
    for split in (0, 1):
        kept = target_rows(part, split)
        chosen = np.unique(owner[np.asarray(part.columns["split"]) == split])
        assert len(chosen) <= round(0.25 * store.manifest.users)
        assert kept.tolist() == [row for row in target_rows(store, split) if owner[row] in chosen]
    assert target_rows(part, 2).tolist() == target_rows(store, 2).tolist()
    trained = np.asarray(part.columns["split"]) == 0
    assert (
        part.vocabulary["event"].counts.sum()
        <= trained.sum()
        < (np.asarray(store.columns["split"]) == 0).sum()
    )
    plan, row = (
        module.share_of_users(store, 0.25, seed=3),
        module.share_of_users(store, 0.25, seed=4),
    )
    assert np.array_equal(plan.columns["split"], part.columns["split"])
    assert not np.array_equal(row.columns["split"], part.columns["split"])


def test_new_behavior(tmp_path, capsys):
    module = script("new_behavior")
    log = small_log(users=40, events=2500, seed=0)
    times = log["timestamp"].to_pylist()
    events = log["event"].to_pylist()
    order = sorted(times)
    split = [order[int(len(order) * share)].date().isoformat() for share in (0.7, 0.85)]
    before = [e for e, t in zip(events, times, strict=True) if t.date().isoformat() < split[0]]
    name = max(set(before), key=before.count)
    names = pa.array([None if i % 50 == 0 and e != name else e for i, e in enumerate(events)])
    log = log.append_column("event_name", names).set_column(
        log.column_names.index("event"),
        "event",
        pa.array([sorted(set(events)).index(e) for e in events]),
    )
    pq.write_table(log, tmp_path / "log.parquet")
    config = protocol_of(
        "new_behavior",
        tmp_path,
        file="log.parquet",
        schema={
            "user": "user_id",
            "time": "timestamp",
            "location": "location",
            "event": "event",
            "tz": "UTC",
        },
        split=f"date:{split[0]},{split[1]}",
        new=[name],
        users=20,
        days=60,
        min_events=2,
        pretrain={"config": TINY, "steps": 2},
        finetune={"steps": 2, "batch_events": 256},
        seeds=[0],
    )
    line = [str(config), "--out", str(tmp_path / "rows.jsonl")]
    run = [*line, "--logs", str(tmp_path), "--work", str(tmp_path / "work")]
    assert module.main([*run, "--only", "base", "new rows", *module.UNTRAINED[1:]]) == 0
    rows = {row["method"]: row for row in module.read_rows(tmp_path / "rows.jsonl")}
    assert rows["base"]["recall_new"] == 0 and rows["base"]["rows_new"] == 0
    assert len({row["rows_known"] for row in rows.values()}) == 1, (
        "all are scored on the same known rows"
    )
    assert rows["new rows"]["rows_new"] > 0 and rows["new rows"]["examples"] > 0
    held = module.prepared(read_settings(module.Protocol, config), tmp_path, tmp_path / "work")
    assert name not in held.behaviors.values.to_pylist()
    capsys.readouterr()
    assert module.main([*line, "--table", "--plot", str(tmp_path / "figure.png")]) == 0
    assert f"| {name} |" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["behavior"] == name
