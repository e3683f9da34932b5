"""Which training loss? The same model, data order and budget for each, several seeds (paper, sections 3.2 and 4.6).

    python eval/losses.py DIR --out rows.jsonl [--seeds 0 1 2] [--layers history plain] [--losses ...] [--steps 300]
    python eval/losses.py DIR --out rows.jsonl --table          # Markdown from the rows, baselines beside them

One JSON row for each prediction layer, seed and loss, on the test split; finished rows are skipped. Losses that are
plain cross-entropy up to a share of training are trained together up to there: the same as separate runs, bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from behavegpt.compare import score_baselines
from behavegpt.config import read_settings
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.losses import Loss, LossSettings, build_loss
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.plots import frontier
from behavegpt.pretrain import PretrainSettings, model_config, training_batches
from behavegpt.training.evaluate import evaluate
from behavegpt.training.journal import Journal
from behavegpt.training.loop import Trainer
from behavegpt.training.optimizer import build_optimizer

DEFERRED: dict[str, dict[str, Any]] = {  # cross-entropy up to `start`
    "cross_entropy": {"name": "cross_entropy"},
    "dro": {"name": "dro"},
    "dro floor .7": {"name": "dro", "floor": 0.7},
    "dro floor .85": {"name": "dro", "floor": 0.85},
    "dro n0 .5 floor .7": {"name": "dro", "n0": 0.5, "floor": 0.7},
    "dro n0 .5 floor .85": {"name": "dro", "n0": 0.5, "floor": 0.85},
    "dro n0 .5 floor .9": {"name": "dro", "n0": 0.5, "floor": 0.9},
    "dro n0 2 floor .5": {"name": "dro", "n0": 2.0, "floor": 0.5},
    "dro n0 2 floor .7": {"name": "dro", "n0": 2.0, "floor": 0.7},
    "dro n0 2 floor .85": {"name": "dro", "n0": 2.0, "floor": 0.85},
    "dro power caps floor .5": {"name": "dro", "caps": "power", "floor": 0.5},
    "dro power caps floor .7": {"name": "dro", "caps": "power", "floor": 0.7},
    "class_balanced": {"name": "class_balanced"},
}
FROM_THE_START: dict[str, dict[str, Any]] = {
    "logit_adjustment": {"name": "logit_adjustment"},
    "balanced_softmax": {"name": "balanced_softmax"},
    "ldam": {"name": "ldam"},
    "class_balanced_focal": {"name": "class_balanced_focal"},
    "dro literal (eps .5, no floor, no delay)": {
        "name": "dro",
        "caps": "uniform",
        "epsilon": 0.5,
        "floor": 0.0,
        "start": 0.0,
    },
}
START = 0.8
PRIOR_CORRECTIONS = (0.1, 0.2, 0.3)  # after training, of the cross-entropy model
LAYERS = {"history": {"history_head": True}, "plain": {"history_head": False}}
FIGURES = ("rec_w", "rec_m", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")


class Together(Loss):
    """Several losses that are still the same: weights of the first, state of all."""

    def __init__(self, losses: Sequence[Loss]) -> None:
        self.losses = list(losses)
        super().__init__(losses[0].counts)

    def set_progress(self, fraction: float) -> None:
        for loss in self.losses:
            loss.set_progress(fraction)

    def update(self, class_loss: torch.Tensor, class_count: torch.Tensor) -> None:
        for loss in self.losses:
            loss.update(class_loss, class_count)


def make_trainer(settings: PretrainSettings, store: EventStore, folder: Path) -> Trainer:
    """A fresh model and optimizer on the real training loop; the loss is set by the caller."""
    torch.manual_seed(settings.train.seed)
    config = model_config(settings, store)
    model = BehaveGPTForBehaviorPrediction(config)
    model.head.set_prior(torch.tensor(store.behaviors.counts))
    train = settings.train
    return Trainer(
        model=model,
        loss=build_loss(LossSettings(name="cross_entropy"), torch.tensor(store.behaviors.counts)),
        optimizer=build_optimizer(model, train.lr, train.weight_decay, train.betas, fused=True),
        batches=training_batches(store, config, train),
        settings=train,
        steps=int(train.steps or 0),
        accelerator=Accelerator(cpu=True),
        journal=Journal(folder / "log.jsonl"),
        checkpoints=folder,
        fingerprint={},
        validate=dict,
        precision="fp32",
    )


def test_figures(trainer: Trainer, store: EventStore, prior_correction: float = 0.0) -> dict[str, Any]:
    """Metrics of the trainer's model on the test split."""
    config: Any = trainer.model.config
    metrics, cross_entropy = evaluate(
        trainer.model,
        store,
        SPLITS["test"],
        max_length=config.max_length,
        fields=config.columns,
        prior_correction=prior_correction,
    )
    return {**metrics.compute(store.behaviors.counts), "cross_entropy": cross_entropy}


def run(trainer: Trainer, loss: Loss, begin: int, end: int) -> None:
    """Steps begin .. end - 1 under a loss."""
    trainer.loss = loss
    trainer.model.train()
    for step in range(begin, end):
        trainer.step(step)


def compare_losses(
    settings: PretrainSettings, store: EventStore, names: Iterable[str]
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Train one seed under each named loss; yields the name and its test figures as they come."""
    counts = torch.tensor(store.behaviors.counts)
    losses = {n: build_loss(LossSettings(**{**DEFERRED, **FROM_THE_START}[n]), counts) for n in names}
    with tempfile.TemporaryDirectory() as folder:
        shared = {name: loss for name, loss in losses.items() if name in DEFERRED}
        if shared:
            trainer = make_trainer(settings, store, Path(folder))
            split = round(START * trainer.steps)
            run(trainer, Together(list(shared.values())), 0, split)
            weights = copy.deepcopy(trainer.model.state_dict())
            moments = copy.deepcopy(trainer.optimizer.state_dict())
            for name, loss in shared.items():
                trainer.model.load_state_dict(weights)
                trainer.optimizer.load_state_dict(copy.deepcopy(moments))
                run(trainer, loss, split, trainer.steps)
                yield name, test_figures(trainer, store)
                if name == "cross_entropy":
                    for tau in PRIOR_CORRECTIONS:
                        yield f"{name}, prior correction {tau}", test_figures(trainer, store, tau)
        for name in losses.keys() - shared.keys():
            trainer = make_trainer(settings, store, Path(folder))
            run(trainer, losses[name], 0, trainer.steps)
            yield name, test_figures(trainer, store)


def table(rows: list[dict[str, Any]], store: EventStore) -> str:
    """Mean ± standard deviation over seeds as Markdown, with the count baselines."""
    lines = ["| layer | loss | seeds | " + " | ".join(FIGURES) + " |", "|" + "---|" * (3 + len(FIGURES))]
    for layer, loss in dict.fromkeys((row["layer"], row["loss"]) for row in rows):
        found = [row for row in rows if (row["layer"], row["loss"]) == (layer, loss)]
        cells = []
        for name in FIGURES:
            values = np.array([row[name] for row in found], float)
            spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.4f}{spread}")
        lines.append(f"| {layer} | {loss} | {len(found)} | " + " | ".join(cells) + " |")
    for name, metrics in score_baselines(store, "test"):
        figures = metrics.compute(store.behaviors.counts)
        cells = ["-" if figures[f] is None else f"{figures[f]:.4f}" for f in FIGURES]
        lines.append(f"| - | {name} | - | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of rows")
    parser.add_argument("--config", default="configs/small.yaml")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=["history"])
    parser.add_argument("--losses", nargs="+", choices=[*DEFERRED, *FROM_THE_START], default=[*DEFERRED])
    parser.add_argument("--table", action="store_true", help="print the table of the rows")
    parser.add_argument("--plot", type=Path, help="draw macro against weighted recall of the first layer's rows")
    arguments = parser.parse_args(argv)
    store = open_store(arguments.data)
    journal = Journal(arguments.out)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if arguments.table or arguments.plot:
        print(table(rows, store))
        if arguments.plot:
            frontier([row for row in rows if row["layer"] == arguments.layers[0]], arguments.plot)
        return 0
    done = {(row["layer"], row["seed"], row["loss"]) for row in rows}
    for layer in arguments.layers:
        for seed in arguments.seeds:
            missing = [name for name in arguments.losses if (layer, seed, name) not in done]
            extra = [f"model.{key}={value}" for key, value in LAYERS[layer].items()]
            overrides = [f"data.path={arguments.data}", "out=unused", f"train.steps={arguments.steps}"]
            settings = read_settings(
                PretrainSettings, arguments.config, [*overrides, f"train.seed={seed}", "train.epochs=1", *extra]
            )
            began = time.perf_counter()
            for name, figures in compare_losses(settings, store, missing):
                known = {"data": arguments.data.name, "content_hash": store.manifest.content_hash}
                row = {**known, "layer": layer, "loss": name, "seed": seed, "steps": arguments.steps}
                journal.append({**row, **figures, "seconds": round(time.perf_counter() - began, 1)})
                print(layer, seed, name, {f: round(figures[f] or 0, 4) for f in FIGURES}, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
