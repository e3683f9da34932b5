"""Which training loss? The same model, data order and budget for each, several seeds (paper,
sections 3.2 and 4.6).

    python eval/losses.py DIR --out rows.jsonl [--seeds 0 1 2] [--losses ...] [--steps 300]
        [--layers memory --config configs/memory.yaml]
    python eval/losses.py DIR --out rows.jsonl --table      # Markdown, baselines beside them
    python eval/losses.py --choose rows.jsonl other.jsonl   # which to prefer, by validation rows

One JSON row for each prediction layer, seed, loss and split; finished ones are skipped. Losses that
are plain cross-entropy up to a share of training are trained together up to there: the same as
separate runs, bit for bit. Choices are made on the rows of the validation split; the test split is
for the report.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from behavegpt.config import read_settings
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.decision import log_frequency
from behavegpt.evaluation import score_baselines
from behavegpt.grid import Grid, Row, Run, find, mean_and_deviation, read_rows
from behavegpt.losses import Loss, LossSettings, build_loss
from behavegpt.plots import frontier
from behavegpt.pretrain import PretrainSettings, build_model
from behavegpt.training.evaluate import evaluate
from behavegpt.training.run import RunFolder
from behavegpt.training.trainer import Trainer

# cross-entropy up to `start`: these can share a run until there
DEFERRED: dict[str, dict[str, Any]] = {
    "cross_entropy": {"name": "cross_entropy"},
    "dro n0 .12 floor .8": {"name": "dro", "n0": 0.12, "floor": 0.8},
    "dro n0 .1 floor .85": {"name": "dro", "n0": 0.1, "floor": 0.85},
    "dro n0 .15 floor .85 momentum .01": {
        "name": "dro",
        "n0": 0.15,
        "floor": 0.85,
        "momentum": 0.01,
    },
    "dro n0 .2 floor .9": {"name": "dro", "n0": 0.2, "floor": 0.9},
    "dro n0 .2 floor .85": {"name": "dro", "n0": 0.2, "floor": 0.85},
    "dro n0 .2 floor .7": {"name": "dro", "n0": 0.2, "floor": 0.7},
    "dro n0 .5 floor .9": {"name": "dro", "n0": 0.5, "floor": 0.9},
    "dro n0 2 floor .5": {"name": "dro", "n0": 2.0, "floor": 0.5},
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
LAYERS: dict[str, dict[str, bool]] = {
    "memory": {"memory": True, "history_head": False},  # with --config configs/memory.yaml
    "history": {"memory": False, "history_head": True},
    "plain": {"memory": False, "history_head": False},
}
KEPT = 0.999  # of cross-entropy: nothing is to fall
CHOSEN_BY = ("rec_w", "rec_m", "ndcg@3")
FIGURES = ("rec_w", "rec_m", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")


class Together(Loss):
    """Several losses that are still the same: weights of the first, state of all."""

    def __init__(self, losses: Sequence[Loss]) -> None:
        self.losses = list(losses)
        super().__init__(losses[0].counts)

    def set_progress(self, fraction: float) -> None:
        """Share of training done, for all."""
        for loss in self.losses:
            loss.set_progress(fraction)

    def update(self, class_loss: torch.Tensor, class_count: torch.Tensor) -> None:
        """Each loss learns from the shared steps, summed losses and events (K,) by class."""
        for loss in self.losses:
            loss.update(class_loss, class_count)


def make_trainer(settings: PretrainSettings, store: EventStore) -> Trainer:
    """A fresh model and optimizer on the real training loop; the loss is set by the caller."""
    torch.manual_seed(settings.train.seed)  # the same fresh weights under every loss
    model = build_model(settings, store)
    loss = build_loss(LossSettings(name="cross_entropy"), torch.tensor(store.behaviors.counts))
    return Trainer(model, loss, store, settings.train, RunFolder(Accelerator(cpu=True)))


def figures_by_split(
    trainer: Trainer, store: EventStore, name: str, prior_correction: float = 0.0
) -> Iterable[dict[str, Any]]:
    """Metrics of the trainer's model on the validation and the test split."""
    for split in (
        "valid",
        "test",
    ):  # of one model: what is chosen on the first is reported on the other
        metrics, cross_entropy = evaluate(
            trainer.model,
            store,
            SPLITS[split],
            shift=prior_correction * log_frequency(store.behaviors.counts),
        )
        figures = metrics.compute(store.behaviors.counts)
        yield {"loss": name, "split": split, **figures, "cross_entropy": cross_entropy}


def run(trainer: Trainer, loss: Loss, begin: int, end: int) -> None:
    """Steps begin .. end - 1 under a loss."""
    trainer.loss = loss
    trainer.model.train()
    for step in range(begin, end):
        trainer.step(step)


def compare_losses(
    settings: PretrainSettings, store: EventStore, names: Iterable[str]
) -> Iterable[dict[str, Any]]:
    """Train one seed under each named loss; yields the figures of each split as they come."""
    counts = torch.tensor(store.behaviors.counts)
    options = {**DEFERRED, **FROM_THE_START}
    losses = {name: build_loss(LossSettings(**options[name]), counts) for name in names}

    shared = {name: loss for name, loss in losses.items() if name in DEFERRED}
    if shared:
        trainer = make_trainer(settings, store)
        split = round(START * trainer.steps)
        run(trainer, Together(list(shared.values())), 0, split)

        # from here on each goes its own way, from the same weights and moments
        weights = copy.deepcopy(trainer.model.state_dict())
        moments = copy.deepcopy(trainer.optimizer.state_dict())
        for name, loss in shared.items():
            trainer.model.load_state_dict(weights)
            trainer.optimizer.load_state_dict(copy.deepcopy(moments))
            run(trainer, loss, split, trainer.steps)
            yield from figures_by_split(trainer, store, name)
            # the correction after training needs no training of its own
            if name == "cross_entropy":
                for tau in PRIOR_CORRECTIONS:
                    yield from figures_by_split(
                        trainer, store, f"{name}, prior correction {tau}", tau
                    )

    for name in losses:
        if name in shared:
            continue
        trainer = make_trainer(settings, store)
        run(trainer, losses[name], 0, trainer.steps)
        yield from figures_by_split(trainer, store, name)


def table(rows: list[dict[str, Any]], store: EventStore, split: str) -> str:
    """Mean ± standard deviation over seeds as Markdown, with the count baselines."""
    lines = [
        "| layer | loss | seeds | " + " | ".join(FIGURES) + " |",
        "|" + "---|" * (3 + len(FIGURES)),
    ]
    for layer, loss in dict.fromkeys((row["layer"], row["loss"]) for row in rows):
        group = [row for row in rows if (row["layer"], row["loss"]) == (layer, loss)]
        cells = [mean_and_deviation([row[name] for row in group]) for name in FIGURES]
        lines.append(f"| {layer} | {loss} | {len(group)} | " + " | ".join(cells) + " |")

    for name, metrics, _ in score_baselines(store, split):
        figures = metrics.compute(store.behaviors.counts)
        values = [figures[figure] for figure in FIGURES]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"| - | {name} | - | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def choose(files: Sequence[Path], layer: str) -> str:
    """Mean gain in macro recall over cross-entropy, per loss, on the validation rows of several
    logs; as Markdown.

    A loss is eligible if on each log it keeps `KEPT` of cross-entropy's weighted recall and NDCG@3.
    """
    # loss -> its figures relative to cross-entropy's, a mapping for each log
    gains: dict[str, list[dict[str, float]]] = {}
    for file in files:
        means = _means_of(file, layer)
        plain = means["cross_entropy"]
        for loss, figures in means.items():
            gain = {name: figures[name] / plain[name] for name in CHOSEN_BY}
            gains.setdefault(loss, []).append(gain)

    # compared over all logs or not at all, best macro recall first
    complete = {loss: logs for loss, logs in gains.items() if len(logs) == len(files)}
    macro = {}
    for loss, logs in complete.items():
        macro[loss] = float(np.mean([gain["rec_m"] for gain in logs]))

    lines = [
        "| loss | macro recall | least weighted recall | least NDCG@3 | eligible |",
        "|---|---|---|---|---|",
    ]
    for loss in sorted(complete, key=lambda name: -macro[name]):
        least = {name: min(gain[name] for gain in complete[loss]) for name in CHOSEN_BY}
        eligible = least["rec_w"] >= KEPT and least["ndcg@3"] >= KEPT
        cells = (f"{value - 1:+.1%}" for value in (macro[loss], least["rec_w"], least["ndcg@3"]))
        lines.append(f"| {loss} | " + " | ".join(cells) + f" | {'yes' if eligible else 'no'} |")
    return "\n".join(lines)


def _means_of(file: Path, layer: str) -> dict[str, dict[str, float]]:
    """Loss -> mean figures over the seeds of a log's validation rows, with one prediction layer."""
    groups: dict[str, list[Row]] = {}
    for row in read_rows(file):
        if row["split"] == "valid" and row["layer"] == layer:
            groups.setdefault(row["loss"], []).append(row)

    means: dict[str, dict[str, float]] = {}
    for loss, rows in groups.items():
        means[loss] = {name: float(np.mean([row[name] for row in rows])) for name in CHOSEN_BY}
    return means


def runs(store: EventStore, arguments: argparse.Namespace, rows: Sequence[Row]) -> Iterator[Run]:
    """For each layer and seed a run of the losses that share their start, and one of each other
    loss."""
    for layer in arguments.layers:
        for seed in arguments.seeds:
            key = {"layer": layer, "seed": seed, "split": "test"}
            missing = [
                name for name in arguments.losses if find(rows, {**key, "loss": name}) is None
            ]

            # those that share their start as one run, each other one by itself
            shared = [name for name in missing if name in DEFERRED]
            alone = [[name] for name in missing if name not in shared]
            for names in (shared, *alone):
                if names:
                    yield Run(
                        {**key, "loss": names[-1]},
                        partial(rows_of, store, arguments, layer, seed, names),
                    )


def rows_of(
    store: EventStore, arguments: argparse.Namespace, layer: str, seed: int, names: Sequence[str]
) -> Iterator[Row]:
    """Two rows of each loss, for the validation and the test split."""
    extra = [f"model.{key}={value}" for key, value in LAYERS[layer].items()]
    overrides = [f"data.path={arguments.data}", "out=unused", f"train.steps={arguments.steps}"]
    settings = read_settings(
        PretrainSettings,
        arguments.config,
        [*overrides, f"train.seed={seed}", "train.epochs=1", *extra],
    )
    known = {"data": arguments.data.name, "content_hash": store.manifest.content_hash}
    known |= {"layer": layer, "seed": seed, "steps": arguments.steps}

    began = time.perf_counter()
    for figures in compare_losses(settings, store, names):
        yield {**known, **figures, "seconds": round(time.perf_counter() - began, 1)}
        shown = {f: round(figures[f] or 0, 4) for f in FIGURES}
        print(layer, seed, figures["loss"], figures["split"], shown, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="prepared folder")
    parser.add_argument("--out", type=Path, help="JSONL file of rows")
    parser.add_argument("--config", default="configs/small.yaml")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=["history"])
    parser.add_argument(
        "--losses", nargs="+", choices=[*DEFERRED, *FROM_THE_START], default=[*DEFERRED]
    )
    parser.add_argument(
        "--choose",
        type=Path,
        nargs="+",
        metavar="ROWS",
        help="compare the losses over several logs",
    )
    parser.add_argument("--table", action="store_true", help="print the table of the rows")
    parser.add_argument(
        "--split", choices=("valid", "test"), default="test", help="of the table and the plot"
    )
    parser.add_argument(
        "--plot", type=Path, help="draw macro against weighted recall of the first layer's rows"
    )
    arguments = parser.parse_args(argv)
    if arguments.choose:
        print(choose(arguments.choose, arguments.layers[0]))
        return 0
    if arguments.data is None or arguments.out is None:
        parser.error("DIR and --out are needed")

    store = open_store(arguments.data)
    rows = read_rows(arguments.out)
    if arguments.table or arguments.plot:
        wanted = [row for row in rows if row["split"] == arguments.split]
        print(table(wanted, store, arguments.split))
        if arguments.plot:
            shown = [row for row in wanted if row["layer"] == arguments.layers[0]]
            frontier(shown, arguments.plot, within=0.93)
        return 0

    Grid(arguments.out).run(runs(store, arguments, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
