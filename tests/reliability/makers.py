"""One folder of each kind that the program reads back, and what a reader gets from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from behavegpt.adapt.peft import save_adapter
from behavegpt.data.store import EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.datasets.synthetic import SYNTHETIC_SCHEMA, small_log
from behavegpt.generation.constraints import links_of
from behavegpt.ingest.prepare import prepare
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.trained_folder import load
from behavegpt.training.checkpoint import Snapshot, load_checkpoint, save_checkpoint
from behavegpt.training.model_folder import save_model
from behavegpt.user_embeddings import UserEmbeddings


class Kind(NamedTuple):
    """How a folder is made, beneath a place that holds what it builds on, and read: a digest of all
    that comes out."""

    make: Callable[[Path], Path]
    read: Callable[[Path], str]


SHAPE: dict[str, Any] = {
    "embedding_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_length": 16,
}
SHAPE |= {"history_head": True, "next_heads": ["event", "gap"]}


def make_store(place: Path) -> Path:
    log = small_log(users=12, events=400, seed=3)
    bad = pa.table(
        {
            **{n: log[n].slice(0, 3) for n in log.column_names},
            "user_id": pa.nulls(3, log["user_id"].type),
        }
    )
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables([log, bad.cast(log.schema)]), place / "log.parquet")
    return prepare(place / "log.parquet", place / "data", SYNTHETIC_SCHEMA).path


def tiny_model(
    store: EventStore, tokenizer: EventTokenizer, **changed: Any
) -> BehaveGPTForBehaviorPrediction:
    torch.manual_seed(0)
    config = BehaveGPTConfig(
        field_sizes=store.field_sizes(),
        num_behaviors=store.behaviors.classes,
        behavior_is_event=store.schema.behavior_is_event,
        tokenizer_hash=tokenizer.hash,
        **SHAPE | changed,
    )
    return BehaveGPTForBehaviorPrediction(config).eval()


def make_model(place: Path) -> Path:
    store = open_store(make_store(place / "for-model"))
    tokenizer = EventTokenizer.from_store(store, 16)
    save_model(tiny_model(store, tokenizer), tokenizer, place / "model", links_of(store))
    return place / "model"


def make_adapter(place: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    base = make_model(place / "for-adapter")
    model = load(base, "cpu").model
    names = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.startswith("model.")
    ]
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    save_adapter(adapter, place / "adapter", base)
    return place / "adapter"


def make_checkpoint(place: Path) -> Path:
    torch.manual_seed(0)
    tensors = {"weight": torch.randn(8, 4), "bias": torch.randn(4)}
    moments = {f"exp_avg/{name}": torch.randn_like(value) for name, value in tensors.items()}
    snapshot = Snapshot(
        7, tensors, moments, {"class_loss": torch.rand(5)}, {"progress": {"step": 7}}
    )
    return save_checkpoint(place / "ckpt", snapshot)


def make_entry(place: Path) -> Path:
    rng = np.random.default_rng(0)
    missing = rng.random(40) < 0.2
    return UserEmbeddings(rng.permutation(1000)[:40], rng.normal(size=(40, 6)), missing).save(
        place / "entry"
    )


def read_store(path: Path) -> str:
    store = open_store(path)
    columns = {
        name: np.array(column)
        for name, column in {**store.columns, "offsets": store.offsets}.items()
    }
    labels = {
        field: (v.values.to_pylist(), v.counts.tolist()) for field, v in store.vocabulary.items()
    }
    return digest(
        store.manifest.model_dump(mode="json"), columns, labels, store.users().to_pylist()
    )


def read_model(path: Path) -> str:
    predictor = load(path, "cpu")
    config = {k: v for k, v in predictor.model.config.to_dict().items() if not k.startswith("_")}
    links = (
        {} if predictor.links is None else {k: vars(link) for k, link in predictor.links.items()}
    )
    odds = None if predictor.links is None else predictor.links.gap_odds
    return digest(predictor.model.state_dict(), config, predictor.tokenizer.to_dict(), links, odds)


def read_checkpoint(path: Path) -> str:
    found = load_checkpoint(path)
    return digest(found.step, found.model, found.optimizer, found.loss, found.trainer)


def read_entry(path: Path) -> str:
    found = UserEmbeddings.load(path)
    return digest(found.client_ids, np.array(found.vectors), found.missing)


def digest(*parts: Any) -> str:
    """A hash of values, arrays and tensors by their bytes."""
    found = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        if isinstance(value, np.ndarray):
            found.update(
                f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
            )
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                take(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                take(item)
        else:
            found.update(repr(value).encode())

    take(parts)
    return found.hexdigest()


KINDS = {
    "store": Kind(make_store, read_store),
    "model": Kind(make_model, read_model),
    "adapter": Kind(make_adapter, read_model),
    "checkpoint": Kind(make_checkpoint, read_checkpoint),
    "entry": Kind(make_entry, read_entry),
}


def contents(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, bytes]:
    """All files below a folder, by name; hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.endswith(leave_out)}
