"""How good are these user vectors? Entries of the RecSys Challenge 2025 side by side, over several
seeds, with floors.

    python eval/challenge.py SPLIT ENTRY [ENTRY ...] --out results [--seeds 3] [--tasks all]
        [--subset] [--width 192]

SPLIT is a data directory after `behavegpt challenge split`, an ENTRY a folder with client_ids.npy
and embeddings.npy. Each entry and random vectors train the organizers' network; results/NAME.json
holds every seed and epoch. Finished runs are kept: call it again after an interruption, or with
more entries. Prints a Markdown table, draws scores.png. The organizers' network takes a minute and
a half of CPU time for each task, seed and 10,000 clients; one of --width 192 takes four seconds,
and its scores compare entries with each other alone. --rows FILE also writes them as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt.challenge.evaluate import evaluate, seeds_from
from behavegpt.challenge.network import WIDTH
from behavegpt.challenge.runs import RANDOM_DIMENSIONS
from behavegpt.challenge.targets import OPEN_TASKS, available_tasks
from behavegpt.datasets.challenge_files import open_directory
from behavegpt.devices import default_devices
from behavegpt.errors import BehaveGPTError
from behavegpt.io import write_text
from behavegpt.plots_challenge import challenge_results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Mean ± deviation over seeds, an entry a row, and the floors below, as Markdown."""
    tasks = list(results[0]["tasks"])
    floors = results[0]["floors"]
    random = [floors[task]["random_vectors"] for task in tasks]
    constant = [
        f"{floors[task]['constant']:.4f} ± {floors[task]['chance_std']:.4f}" for task in tasks
    ]
    best = [f"{floors[task]['ceiling']:.4f}" for task in tasks]

    table_rows = []
    for result in results:
        scores = [result["tasks"][task] for task in tasks]
        cells = [_cell(score) for score in scores]
        table_rows.append((result["name"], cells, sum(score["mean"] for score in scores)))

    # below the entries: what vectors that know nothing reach, and what no vector can exceed
    total = sum(score["mean"] for score in random)
    table_rows.append(("random vectors", [_cell(score) for score in random], total))
    total = sum(floors[task]["constant"] for task in tasks)
    table_rows.append(("constant (± chance)", constant, total))
    total = sum(floors[task]["ceiling"] for task in tasks)
    table_rows.append(("best possible", best, total))

    lines = ["| vectors | " + " | ".join(tasks) + " | sum |", "|" + "---|" * (2 + len(tasks))]
    for name, cells, total in table_rows:
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {total:.4f} |")
    return "\n".join(lines)


def names(entries: Sequence[Path]) -> dict[str, Path]:
    """Entries by the name of their folder, with that of the folder above where two are called the
    same."""
    # results are kept by name, so two entries must not share one
    folders = [entry.resolve() for entry in entries]
    plain = [folder.name for folder in folders]
    named: dict[str, Path] = {}
    for folder, entry in zip(folders, entries, strict=True):
        is_shared = plain.count(folder.name) > 1
        named[f"{folder.parent.name}_{folder.name}" if is_shared else folder.name] = entry
    return named


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each entry and task, and for the random vectors."""
    random = {task: floor["random_vectors"] for task, floor in results[0]["floors"].items()}
    scored = [
        (result["name"], result["vectors"]["dimensions"], result["tasks"]) for result in results
    ]
    scored.append(("random vectors", RANDOM_DIMENSIONS, random))

    table_rows = []
    for name, width, tasks in scored:
        for task, score in tasks.items():
            row = {
                "vectors": name,
                "dimensions": width,
                "task": task,
                "network_width": results[0]["width"] or WIDTH,
            }
            row |= {key: score[key] for key in ("mean", "std", "seeds", "scores")}
            table_rows.append(row | {"auroc": score["metrics"]["auroc"]})
    return table_rows


def _cell(score: dict[str, Any]) -> str:
    """Mean ± deviation; of one seed the mean alone."""
    spread = "" if score["std"] is None else f" ± {score['std']:.4f}"
    return f"{score['mean']:.4f}{spread}"


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="SPLIT")
    parser.add_argument("entries", type=Path, nargs="+", metavar="ENTRY")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seeds", type=int, default=3, help="the first is the organizers' (default 3)"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=OPEN_TASKS,
        help="default: the three open tasks; all: also hidden",
    )
    parser.add_argument("--devices", nargs="+", help="default: all GPUs, or cpu")
    parser.add_argument("--width", type=int, help=f"of the network (default: theirs, {WIDTH})")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="also write the scores as JSON lines"
    )
    parser.add_argument("--subset", action="store_true", help="entries may lack relevant clients")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what has no result yet, then print the table."""
    parser = make_parser()
    arguments = parser.parse_args(argv)

    everything = list(arguments.tasks) == ["all"]
    try:
        tasks = available_tasks(open_directory(arguments.data)) if everything else arguments.tasks
        results = [
            evaluate(
                entry,
                arguments.data,
                arguments.out,
                tasks=tasks,
                name=name,
                seeds=seeds_from(arguments.seeds),
                devices=arguments.devices or default_devices(),
                subset=arguments.subset,
                random_vectors=index == 0,  # the same for all of them
                width=arguments.width,
            )
            for index, (name, entry) in enumerate(names(arguments.entries).items())
        ]
    except BehaveGPTError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2

    print(table(results))
    if arguments.rows:
        write_text(arguments.rows, "".join(json.dumps(row) + "\n" for row in rows(results)))

    challenge_results(
        [arguments.out / f"{result['name']}.json" for result in results],
        arguments.out / "scores.png",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
