"""Every verb that writes, as a command line on small data: what is made ready for them, and what
each writes."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from behavegpt.datasets.synthetic import small_log
from tests.challenge.makers import make_directory
from tests.profiles.makers import make_input
from tests.reliability.forks import ROOT, commands

TINY = str(ROOT / "configs" / "tiny.yaml")
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
    "evaluate": ["evaluate", "model", "data", "--out", "OUT/eval/metrics.json", "--baselines"],
    "predict": ["predict", "model", "log.parquet", "--out", "OUT/predictions.parquet"],
    "embed": ["embed", "model", "log.parquet", "--out", "OUT/vectors.jsonl"],
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
    "scale fit": ["scale", "fit", "rows.jsonl", "--out", "OUT/fit.json", "--draws", "20"],
}
# files that tell times, and what was kept
VOLATILE = ("run.json", "log.jsonl", "member.json", "rows.jsonl", "tables.md")
BENCHMARK = {
    "out": "unused",
    "data": {"log": {"path": "data"}},
    "models": {"tiny": {"config": TINY}},
    "train": {"steps": 6, "batch_events": 256},
    "seeds": [0],
    "draws": 10,
}
PROFILE = {
    "members": {
        "stats": {"kind": "handcrafted"},
        "prices": {"kind": "handcrafted", "families": ["prices"]},
    }
}


def make_ready(place: Path) -> Path:
    """Logs, a prepared folder, a model, challenge directories and a finished profile, for the
    commands of `VERBS`."""
    import pyarrow.parquet as pq

    pq.write_table(small_log(users=30, events=1500, seed=1), place / "log.parquet")
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
    for argv in (
        ["prepare", "log.parquet", "--out", "data"],
        ["train", TINY, "data.path=data", "out=run", *heads],
        ["challenge", "split", "challenge", "--out", "split"],
        ["profile", "profile.yaml", "out=profiled"],
    ):
        ended = commands().run(argv, place)
        assert ended.status == 0, ended.output
    (place / "model").symlink_to(place / "run" / "model")
    return place


def argv_of(verb: str, out: str) -> list[str]:
    """The command line that writes into the folder `out`."""
    return [word.replace("OUT", out, 1) for word in VERBS[verb]]
