"""What the golden files hold still: each case runs a small part of the library and returns a tree
of plain values.

All inputs are made on the spot from fixed seeds, so a case depends on the library and on nothing
else. Models are tiny and learning rates small: training amplifies rounding, and the values must
agree across processors and BLAS libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import behavegpt
from behavegpt.challenge import network
from behavegpt.challenge.evaluate import evaluate as evaluate_entry
from behavegpt.challenge.split import split
from behavegpt.challenge.targets import TASKS, load_targets
from behavegpt.cli import main
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import open_store
from behavegpt.datasets.challenge_files import open_directory
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.embeddings.export import ExportSettings, export
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.generation.constraints import count_links
from behavegpt.ingest.prepare import prepare
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.profiles.pipeline import run as run_profile
from behavegpt.profiles.settings import ProfileSettings
from behavegpt.training.model_folder import Trained
from behavegpt.user_embeddings import UserEmbeddings
from tests.challenge.makers import make_directory
from tests.profiles.makers import make_input

Tree = dict[str, Any]
SHAPE = {
    "embedding_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_length": 32,
    "dropout": 0.1,
}
TRAIN = {
    "steps": 20,
    "batch_events": 256,
    "micro_batches": 2,
    "lr": 1e-3,
    "valid_every": 10,
    "log_every": 1,
}
LOSS = {"name": "dro", "start": 0.4}
BASE = "history_head"  # the run that predictions, fine-tuning and generation start from
PRETRAINED: dict[str, Tree] = {
    "plain": SHAPE,
    BASE: SHAPE | {"history_head": True, "next_heads": ["event", "location", "gap", "slot"]},
    "gru": SHAPE | {"architecture": "gru"},
    "hstu": SHAPE | {"architecture": "hstu"},
}


class Workplace:
    """Inputs and trained runs in one folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, name: str) -> Path:
        """A prepared log: `known`, or `other` with a further user base and labels that `known`
        lacks."""
        out = self.folder / name
        if not out.exists():
            seed, rows = {"known": (0, 1500), "other": (1, 900)}[name]
            log = self.folder / f"{name}.parquet"
            table = small_log(events=rows, users=rows // 25, seed=seed)
            if name == "other":
                table = _with_new_behaviors(table)
            pq.write_table(table, log)
            prepare(log, out, SYNTHETIC_SCHEMA)
        return out

    def run(self, name: str) -> Path:
        """A pretraining run of PRETRAINED."""
        out = self.folder / "runs" / name
        if not out.exists():
            tree = {
                "out": str(out),
                "data": {"path": str(self.data("known"))},
                "loss": LOSS,
                "train": TRAIN,
            }
            if name not in ("plain", BASE):
                tree["loss"] = {"name": "cross_entropy"}
            pretrain(PretrainSettings.model_validate(tree | {"model": PRETRAINED[name]}))
        return out

    def clients(self) -> Path:
        """A challenge directory for the profile members."""
        out = self.folder / "clients"
        return out if out.exists() else make_input(out)

    def challenge(self) -> Path:
        """A challenge directory after the split."""
        out = self.folder / "challenge"
        if not out.exists():
            split(make_directory(out, clients=200))
        return out


def _with_new_behaviors(log: pa.Table) -> pa.Table:
    """The log with its three most frequent behaviors, and their events, under other names."""
    behavior = np.array(log["behavior"].to_pylist(), object)
    labels, counts = np.unique(behavior, return_counts=True)
    renamed = np.isin(behavior, labels[np.argsort(-counts, kind="stable")[:3]])
    for name in ("behavior", "event"):
        known = np.array(log[name].to_pylist(), object)
        column = pa.array(np.where(renamed, "new " + known, known).tolist())
        log = log.set_column(log.schema.get_field_index(name), name, column)
    return log


# ---- the cases


def prepared_folders(place: Workplace) -> Tree:
    """Content hashes, splits and rejected rows of logs whose times are written in several ways."""
    texts = {
        "iso": [
            "2024-03-30 23:30:00",
            "2024-03-31 02:30:00",
            "2024-05-01 09:00:00",
            "2024-07-09 10:15:30",
            "soon",
        ],
        "european": [
            "30.03.2024 23:30",
            "31.03.2024 02:30",
            "01.05.2024 09:00",
            "09.07.2024 10:15",
            "",
        ],
        "seconds": [1711837800, 1711848600, 1714554000, 1720520130, -(10**15)],
    }
    found: Tree = {"known": _folder(place.data("known")), "other": _folder(place.data("other"))}
    for name, times in texts.items():
        rows = {"who": ["a", "b", "a", "b", "a"], "when": times, "what": ["x", "y", "x", "z", "x"]}
        log = place.folder / f"times_{name}.parquet"
        pq.write_table(pa.table(rows), log)
        form = {"european": {"time_format": "%d.%m.%Y %H:%M"}}.get(name, {})
        schema = EventSchema(user="who", time="when", event="what", tz="Europe/Berlin", **form)
        out = prepare(
            log,
            place.folder / f"prepared_{name}",
            schema,
            split="time:0.5,0.25,0.25",
            max_reject_share=0.5,
        )
        found[name] = _folder(out.path)
    return found


def _folder(path: Path) -> Tree:
    manifest = json.loads((path / "dataset.json").read_text())
    kept = (
        "content_hash",
        "vocabulary",
        "columns",
        "split",
        "rejected",
        "ties",
        "events",
        "users",
        "time_origin",
    )
    return {name: manifest[name] for name in kept}


def losses(place: Workplace) -> Tree:
    """Training loss of each of 20 steps, and validation, of BehaveGPT and of two baselines."""
    return {name: _journal(place.run(name)) for name in PRETRAINED}


def fine_tuning(place: Workplace) -> Tree:
    """Losses of three modes, and what they reuse."""
    found: Tree = {}
    for mode in ("new_behavior", "cross_domain", "lora"):
        out = place.folder / "runs" / mode
        tree = {
            "out": str(out),
            "data": {"path": str(place.data("other"))},
            "loss": LOSS,
            "train": TRAIN,
        }
        finetune(
            FinetuneSettings.model_validate(
                tree | {"base": str(place.run(BASE) / "model"), "mode": mode}
            )
        )
        found[mode] = _journal(out) | {
            "transfer": json.loads((out / "run.json").read_text())["transfer"]
        }
    return found


def _journal(run: Path) -> Tree:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    return {
        "loss": [line["loss"] for line in steps],
        "cross_entropy": [line["cross_entropy"] for line in steps],
        "grad_norm": [line["grad_norm"] for line in steps],
        "valid": [figures_of(line) for line in valid],
    }


def figures_of(line: Tree) -> Tree:
    """The figures of a line of the journal or of a model's metrics."""
    return {name: value for name, value in line.items() if isinstance(value, (int, float))}


def predictions(place: Workplace) -> Tree:
    """Labels and probabilities of the next behaviors of ten users, from raw labels."""
    predictor = behavegpt.load(place.run(BASE) / "model")
    rows = small_log(events=200, users=10, seed=5)
    found: Tree = {}
    for correction in (0.0, 1.0):
        said = predictor.predict(rows, top_k=4, prior_correction=correction)
        found[f"correction_{correction:g}"] = {
            "users": said.users.to_pylist(),
            "labels": said.labels.tolist(),
            "probabilities": _numbers(said.probabilities),
            "unknown": said.unknown,
        }
    return found


def vectors(place: Workplace) -> Tree:
    """Exported user vectors: the settings of an entry to the challenge, and all parts unscaled."""
    predictor = behavegpt.load(place.run(BASE) / "model")
    found: Tree = {}
    chosen = {
        "entry": ExportSettings(dtype="float32"),
        "parts": ExportSettings(
            pool=("last", "mean", "decayed", "bag", "recent_bag", "behaviors"),
            scale="none",
            dtype="float32",
        ),
    }
    for name, settings in chosen.items():
        out = place.folder / f"vectors_{name}"
        facts = export(
            Trained(predictor.model, predictor.tokenizer), [place.data("known")], out, settings
        )
        made = UserEmbeddings.load(out)
        found[name] = {
            "parts": facts["parts"],
            "clients": made.client_ids[:6].tolist(),
            "first": _numbers(made.vectors[:2]),
            "mean": _numbers(np.asarray(made.vectors, np.float64).mean(0)),
        }
    return found


def metrics(place: Workplace) -> Tree:
    """Every metric of `behavegpt evaluate` on the test split."""
    run = place.run(BASE)
    assert main(["evaluate", str(run / "model"), str(place.data("known"))]) == 0
    said = json.loads((run / "eval" / "metrics.json").read_text())["models"]
    return {model: figures_of(figures) for model, figures in said.items()}


def generated(place: Workplace) -> Tree:
    """Drawn futures under each policy: ids, gaps and how the fields were drawn."""
    rows = small_log(events=120, users=6, seed=5)
    ways: dict[str, Tree] = {
        "heads": {"probabilities": 2},
        "observed": {"time": "observed", "place": "observed", "samples": 2},
        "typical": {"time": "typical", "place": "typical", "temperature": 0.7, "top_p": 0.9},
        "until": {"until": "2 days", "hours": False, "personal": False, "keep": 5},
    }
    found = {}
    counted = count_links(open_store(place.data("known")))
    for run in ("plain", BASE):
        predictor = behavegpt.load(place.run(run) / "model")
        learned = predictor.links
        for name, options in ways.items():
            if run == "plain" and name == "heads":  # it has no heads
                continue
            links = learned if name == "heads" else counted
            made = predictor.generate(rows, steps=40, seed=3, links=links, **options)
            columns = {column: values.tolist() for column, values in sorted(made.columns.items())}
            found[f"{run} {name}"] = {
                "policies": made.policies,
                "rows": len(made),
                "hashes": {column: _hash(values) for column, values in columns.items()},
                "first": {column: values[:12] for column, values in columns.items()},
                "probability": _numbers(made.probability[:6]),
            }
    return found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def profile(place: Workplace) -> Tree:
    """Vectors of profile members and of their ensemble, the best loss of those that train."""
    training = {"epochs": 2, "batch": 16, "lr": 0.003, "held_out": 0.1}
    members: dict[str, Tree] = {
        "stats": {"kind": "handcrafted"},
        "day": {
            "kind": "gru_autoencoder",
            "fields": ["day", "event", "sku:9"],
            "hidden": 8,
            "layers": 1,
        },
        "next": {
            "kind": "next_event",
            "fields": ["event", "price"],
            "shape": {"embedding_size": 8, "layers": 1, "heads": 1},
        },
        "warp": {
            "kind": "factorization",
            "factors": 4,
            "user_features": ["sku", "category", "name", "query", "url:9"],
        },
    }
    for name in ("day", "next", "warp"):
        members[name]["training"] = training
    out = place.folder / "profile"
    tree = {
        "data": {"path": str(place.clients()), "threads": 1},
        "out": str(out),
        "members": members,
    }
    facts = run_profile(ProfileSettings.model_validate(tree))
    found: Tree = {"ok": facts["ok"]}
    for folder in (*(out / "members" / name for name in members), out / "ensembles" / "all"):
        made = UserEmbeddings.load(folder)
        found[folder.name] = {
            "shape": list(made.vectors.shape),
            "clients": made.client_ids[:6].tolist(),
            "first": _numbers(made.vectors[0]),
            "mean": _numbers(np.asarray(made.vectors, np.float64).mean(0)),
        }
        training_facts = folder / "state" / "training.json"
        if training_facts.exists():
            found[folder.name]["losses"] = json.loads(training_facts.read_text())
    return found


def challenge(place: Workplace) -> Tree:
    """The six tasks' targets, and the scores of random vectors by a narrow network."""
    directory = open_directory(place.challenge())
    ids = np.sort(directory.relevant_clients)
    found: Tree = {}
    for task in TASKS:
        targets = load_targets(directory, ids, task)
        found[task] = {
            "labels": targets.labels.tolist(),
            "rows": int(targets.rows.sum()),
            "train": _hash(targets.train.tolist()),
            "validation": _hash(targets.validation.tolist()),
        }
    entry = place.folder / "entry"
    drawn = np.random.default_rng(0).standard_normal((len(ids), 6), np.float32)
    UserEmbeddings(ids, drawn).save(entry)
    with _narrow():
        result = evaluate_entry(
            entry, place.challenge(), place.folder / "scores", tasks=list(TASKS)
        )
    found["scores"] = {task: said["epochs"][0] for task, said in result["tasks"].items()}
    return found


@contextmanager
def _narrow() -> Iterator[None]:
    """The evaluator's network, small enough for a quick test."""
    before = network.WIDTH, network.BOTTLENECK
    network.WIDTH, network.BOTTLENECK = 32, 48
    yield
    network.WIDTH, network.BOTTLENECK = before


def _numbers(array: np.ndarray) -> Any:
    """Nested lists with eight significant digits."""
    flat = [float(f"{value:.8g}") for value in np.asarray(array, np.float64).ravel()]
    return np.asarray(flat).reshape(np.shape(array)).tolist()


CASES: Mapping[str, Callable[[Workplace], Tree]] = {
    case.__name__: case
    for case in (
        prepared_folders,
        losses,
        fine_tuning,
        predictions,
        vectors,
        metrics,
        generated,
        profile,
        challenge,
    )
}


def result(case: str, place: Workplace) -> Tree:
    """A case's tree as JSON gives it back, made by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tree: Tree = json.loads(json.dumps(CASES[case](place)))
    finally:
        torch.set_num_threads(threads)
    return tree
