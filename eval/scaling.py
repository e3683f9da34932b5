"""How does the loss fall with model size and data (paper, section 4.7, Fig. 7 and 8)? Sweep, fit
and figures in one go.

    python eval/scaling.py DIR --out runs/scaling                  # a prepared folder
    python eval/scaling.py --synthetic 3000000 --out runs/scaling  # the lowest loss is known

Killed or interrupted, the same command goes on. Started again in other processes, it shares the
work; each waits for nobody, so the last one's fit is of all rows. OUT/rows.jsonl, OUT/fit.json,
OUT/fit_figs/*.png, OUT/summary.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from behavegpt.config import read_settings
from behavegpt.data.pack import target_rows
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.datasets.synthetic import generate
from behavegpt.datasets.synthetic_world import World, make_world
from behavegpt.ingest.prepare import prepare
from behavegpt.io import write_json
from behavegpt.scaling.fit import PAPER, Fit, fit_rows, write_fit
from behavegpt.scaling.plots import draw_sweep
from behavegpt.scaling.rows import usable_rows
from behavegpt.scaling.settings import SweepSettings
from behavegpt.scaling.sweep import sweep

NAMES = ("alpha", "beta", "L_0", "ratio", "share")


def synthetic_data(events: int, seed: int, folder: Path) -> Path:
    """A prepared folder of the generator's events; made once."""
    if not (folder / "data" / "dataset.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        schema = generate(folder / "log.parquet", events, seed=seed)
        prepare(folder / "log.parquet", folder / "data", schema, overwrite=True)
    return folder / "data"


def best_possible(heldout: EventStore, log: Path, world: World, split: str) -> float:
    """Mean -ln P of the held-out targets under the generator's own law, given each user's whole
    past.

    `log` is what `generate` wrote for the world. Targets are each user's last events, since the
    split is by time.
    """
    users = heldout.users().to_pylist()
    rows = target_rows(heldout, SPLITS[split])

    # user -> targets, and events after them
    owners = np.searchsorted(heldout.offsets, rows, "right") - 1
    count = dict(zip(users, np.bincount(owners), strict=False))  # the last users may have none
    later = np.asarray(heldout.columns["split"]) > SPLITS[split]
    after = dict(zip(users, np.add.reduceat(later, heldout.offsets[:-1]), strict=True))

    # the law of the world, on the whole histories as they were generated
    events = pq.read_table(log, filters=[("user_id", "in", [int(user) for user in users])])
    user = events["user_id"].to_numpy()
    probability = world.next_behavior_probabilities(events)
    # the world numbers its behaviors in its own order
    label = {text: number for number, text in enumerate(world.labels["behavior"].to_pylist())}
    behavior = np.array([label[text] for text in events["behavior"].to_pylist()])
    surprise = -np.log(probability[np.arange(len(user) - 1), behavior[1:]])  # of events 1 .. N - 1

    # a user's targets are the events before those of later splits
    asked = np.zeros(len(user), bool)
    ends = np.append(np.flatnonzero(user[1:] != user[:-1]) + 1, len(user))
    for end in ends:
        last = end - int(after[str(user[end - 1])])
        asked[last - int(count.get(str(user[end - 1]), 0)) : last] = True
    assert asked.sum() == len(rows), "the log is not the one that was prepared"
    return float(surprise[asked[1:]].mean())


def summary(fit: Fit, floor: float | None) -> dict[str, Any]:
    """What is compared with the paper."""
    figures = {name: getattr(fit, name).model_dump() for name in NAMES}
    return {
        "fit": figures,
        "paper": PAPER,
        "best_possible": floor,
        "error": fit.error,
        "warnings": fit.warnings,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep what is missing, then fit and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="prepared folder")
    parser.add_argument("--synthetic", type=int, metavar="EVENTS", help="generate a log instead")
    parser.add_argument("--seed", type=int, default=0, help="of the generated log")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/scaling/small.yaml")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the sweep"
    )
    parser.add_argument("--count", choices=("total", "without_embeddings"), default="total")
    parser.add_argument(
        "--min-events", type=float, default=0, help="leave smaller runs out of the fit"
    )
    arguments = parser.parse_args(argv)
    if (arguments.data is None) == (arguments.synthetic is None):
        parser.error("give a prepared folder or --synthetic")

    log = arguments.out / "log"
    data = arguments.data or synthetic_data(arguments.synthetic, arguments.seed, log)
    overrides = [f"data.path={data}", f"out={arguments.out}", *arguments.set]
    settings = read_settings(SweepSettings, arguments.config, overrides)
    sweep(settings)

    # the rows of all processes that share the work
    rows = usable_rows([arguments.out / "rows.jsonl"], arguments.count)
    rows = [row for row in rows if row["events"] >= arguments.min_events]
    fit = fit_rows(rows, arguments.count)
    floor = None
    if arguments.synthetic:
        heldout, world = open_store(arguments.out / "data" / "heldout"), make_world(arguments.seed)
        floor = best_possible(heldout, log / "log.parquet", world, settings.data.split)

    write_fit(fit, arguments.out / "fit.json")
    draw_sweep(rows, fit, arguments.out / "fit_figs", floor)
    write_json(arguments.out / "summary.json", summary(fit, floor))

    for name in NAMES:
        print(f"{name:6} {getattr(fit, name)}   paper: {PAPER.get(name, '-')}")
    if floor is not None:
        print(f"lowest possible loss on the held-out targets: {floor:.4f}")
    for text in fit.warnings:
        print(f"warning: {text}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
