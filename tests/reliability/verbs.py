"""Every verb that writes, as a command line on small data: what is made ready for them, and what
each writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from behavegpt.datasets.synthetic import small_log
from behavegpt.user_embeddings import UserEmbeddings
from tests.challenge.makers import make_directory
from tests.datasets.repositories import Commit, repository
from tests.profiles.makers import make_input
from tests.reliability.forks import ROOT, commands

TINY = str(ROOT / "configs" / "tiny.yaml")
WORLDS = str(ROOT / "configs" / "universal" / "tiny.yaml")
STEPS = ["train.steps=6", "train.checkpoint_every=2", "train.batch_events=256", "train.keep=1"]
# name -> (arguments; OUT is the folder for what it writes, what says that it goes on or replaces)
VERBS: dict[str, list[str]] = {
    "prepare": ["prepare", "log.parquet", "--out", "OUT/data", "--overwrite"],
    "convert": [
        "convert",
        "recsys2025",
        "profiles/input",
        "--clock",
        "7",
        "--out",
        "OUT/stream.parquet",
    ],
    "synthesize": ["synthesize", "--events", "30000", "--out", "OUT/log.parquet"],
    "train": ["train", TINY, "data.path=data", "out=OUT/run", *STEPS, "--resume"],
    "finetune": [
        "finetune",
        str(ROOT / "configs" / "adapt" / "cross_domain.yaml"),
        *("base=model", "data.path=data", "out=OUT/tuned", *STEPS, "--mode", "lora", "--resume"),
    ],
    "finetune --mode label": [
        *("finetune", "model", "log.parquet", "--mode", "label", "--labels", "labels.csv"),
        *("--at", "2024-01-30", "out=OUT/labels", "epochs=4", "min_users=20", "seeds=0"),
    ],
    "vocabulary add": ["vocabulary", "add", "model", "podcast", "--out", "OUT/grown"],
    "vocabulary retire": ["vocabulary", "retire", "model", "behavior_0003", "--out", "OUT/less"],
    "evaluate": ["evaluate", "model", "data", "--out", "OUT/eval/metrics.json", "--baselines"],
    "predict": ["predict", "model", "log.parquet", "--out", "OUT/predictions.parquet"],
    "forecast": ["forecast", "log.parquet", "--days", "3", "--out", "OUT/week.parquet"],
    "embed": ["embed", "model", "log.parquet", "--out", "OUT/vectors.jsonl"],
    "probe": [
        *("probe", "model", "log.parquet", "labels.csv", "--at", "2024-01-30", "--out"),
        *("OUT/probe", "--min-users", "20", "--folds", "2", "--seeds", "1"),
    ],
    "generate": ["generate", "model", "log.parquet", "--steps", "4", "--out", "OUT/future.csv"],
    "export": ["export", "model", "log.parquet", "OUT/entry", "--block-users", "5", "--overwrite"],
    "export-model": ["export-model", "model", "OUT/portable", "--format", "torch", "--overwrite"],
    "challenge split": ["challenge", "split", "challenge", "--out", "OUT/split"],
    "challenge targets": ["challenge", "targets", "split", "--out", "OUT/targets"],
    "profile": ["profile", "profile.yaml", "out=OUT/profile"],
    "profile --embed": [
        "profile",
        "profile.yaml",
        "out=profiled",
        "--embed",
        "profiles",
        "--to",
        "OUT/new",
    ],
    "benchmark": ["benchmark", "benchmark.yaml", "out=OUT/benchmark"],
    "scale run": ["scale", "run", "sweep.yaml", "out=OUT/sweep"],
    "scale fit": ["scale", "fit", "rows.jsonl", "--out", "OUT/fit.json", "--draws", "20"],
    "challenge evaluate": [
        *("challenge", "evaluate", "entry", "--data", "split", "--out", "OUT/results"),
        *("--tasks", "churn", "--subset"),
    ],
    "challenge leaderboard": ["challenge", "leaderboard", "results", "--out", "OUT/board"],
    "convert git": [
        "convert",
        "git",
        "repository",
        "--out",
        "OUT/git.parquet",
        "--salt",
        "long enough",
    ],
    "predict universal": ["predict", "universal", "log.parquet", "--out", "OUT/next.parquet"],
    "evaluate universal": ["evaluate", "universal", "data", "--out", "OUT/universal.json"],
    "pretrain-universal": ["pretrain-universal", WORLDS, "out=OUT/universal"],
    "thresholds": ["thresholds", "OUT/model", "data"],
    "when": ["when", "OUT/model", "data"],
    "update": ["update", "OUT/run", "later.parquet", "--steps", "3", "--states"],
    "report": ["report", "OUT/run"],
    "doctor --reorder": ["doctor", "--reorder", "OUT/data"],
    "demo": ["demo", "--out", "OUT/demo", "--steps", "6"],
}
# what a verb that changes a folder in place finds there: it is put into OUT first
FINDS = {
    "thresholds": "run/model",
    "when": "run/model",
    "update": "run",
    "report": "run",
    "doctor --reorder": "data",
}
# files that tell times, and what was kept
VOLATILE = (
    *("run.json", "log.jsonl", "member.json", "rows.jsonl", "tables.md", "updates.jsonl"),
    *("results/entry.json", "churn.1278.json", "demo/report.html", "demo/model/README.md"),
)
BENCHMARK = {
    "out": "unused",
    "data": {"log": {"path": "data"}},
    "models": {"tiny": {"config": TINY}},
    "train": {"steps": 6, "batch_events": 256},
    "seeds": [0],
    "draws": 10,
}
SWEEP = {
    "sizes": [1e3, 2e3],
    "events": [400, 800],
    "model": {"max_length": 32, "history_head": False},
}
COMMITS = [
    Commit(f"Add part {i}", (f"src/{i % 3}.py",), f"{1_700_000_000 + i} +0100") for i in range(200)
]
PROFILE = {
    "members": {
        "stats": {"kind": "handcrafted"},
        "prices": {"kind": "handcrafted", "families": ["prices"]},
    }
}


def make_ready(place: Path) -> Path:
    """Logs, a prepared folder, a model, challenge directories and a finished profile, for the
    commands of `VERBS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(small_log(users=30, events=1500, seed=1), place / "log.parquet")
    # the same users again, after all that
    later = small_log(users=30, events=300, seed=2)
    times = later["timestamp"].to_numpy() + np.timedelta64(3650, "D")
    place_of_time = later.column_names.index("timestamp")
    later = later.set_column(place_of_time, "timestamp", pa.array(times))
    pq.write_table(later, place / "later.parquet")
    rows = "".join(f"{user},{'ab'[user % 2]}\n" for user in range(30))
    (place / "labels.csv").write_text(f"user_id,segment\n{rows}")
    make_directory(place / "challenge")
    make_input(place / "profiles")
    (place / "benchmark.yaml").write_text(yaml.safe_dump(BENCHMARK))
    (place / "profile.yaml").write_text(
        yaml.safe_dump({"data": {"path": "profiles"}, "out": "unused", **PROFILE})
    )
    sizes = [(n, d) for n in (1e3, 1e4, 1e5) for d in (1e4, 1e5, 1e6)]
    rows = [{"params": n, "events": d, "loss": 1 + 9 * n**-0.3 + 11 * d**-0.3} for n, d in sizes]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heads = ["model.history_head=true", "model.next_heads=[event, location, gap]"]
    (place / "sweep.yaml").write_text(yaml.safe_dump({"data": {"path": "data"}, **SWEEP}))
    repository(place / "repository", COMMITS)
    for argv in (
        ["prepare", "log.parquet", "--out", "data"],
        ["train", TINY, "data.path=data", "out=run", *heads],
        ["evaluate", "run/model", "data", "--out", "run/eval/metrics.json", "--baselines"],
        ["challenge", "split", "challenge", "--out", "split"],
        ["profile", "profile.yaml", "out=profiled"],
    ):
        ended = commands().run(argv, place)
        assert ended.status == 0, ended.output
    (place / "model").symlink_to("run/model")
    clients = np.load(place / "split" / "input" / "relevant_clients.npy")
    vectors = np.random.default_rng(0).standard_normal((len(clients), 6), np.float32)
    UserEmbeddings(np.sort(clients), vectors).save(place / "entry")
    (place / "results").mkdir()
    for name, score in (("ours", 0.7), ("theirs", 0.6)):
        (place / "results" / f"{name}.json").write_text(
            json.dumps({"churn": score, "propensity_sku": score})
        )
    return place


def lay_out(place: Path, verb: str) -> Path:
    """The folder `out`, anew, with what the verb finds there."""
    shutil.rmtree(place / "out", ignore_errors=True)
    if verb in FINDS:
        found = place / FINDS[verb]
        shutil.copytree(found, place / "out" / found.name)
    return place / "out"


def argv_of(verb: str, out: str) -> list[str]:
    """The command line that writes into the folder `out`."""
    return [word.replace("OUT", out, 1) for word in VERBS[verb]]
