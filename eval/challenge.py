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
    rows = [
        (result["name"], [_cell(result["tasks"][task]) for task in tasks], _sum(result))
        for result in results
    ]
    floors = results[0]["floors"]
    random = [floors[task]["random_vectors"] for task in tasks]
    rows.append(
        (
            "random vectors",
            [_cell(found) for found in random],
            sum(found["mean"] for found in random),
        )
    )
    constant = [
        f"{floors[task]['constant']:.4f} ± {floors[task]['chance_std']:.4f}" for task in tasks
    ]
    rows.append(("constant (± chance)", constant, sum(floors[task]["constant"] for task in tasks)))
    best = [f"{floors[task]['ceiling']:.4f}" for task in tasks]
    rows.append(("best possible", best, sum(floors[task]["ceiling"] for task in tasks)))
    lines = ["| vectors | " + " | ".join(tasks) + " | sum |", "|" + "---|" * (2 + len(tasks))]
    lines += [
        f"| {name} | " + " | ".join(cells) + f" | {total:.4f} |" for name, cells, total in rows
    ]
    return "\n".join(lines)


def names(entries: Sequence[Path]) -> dict[str, Path]:
    """Entries by the name of their folder, with that of the folder above where two are called the
    same."""
    folders = [entry.resolve() for entry in entries]
    plain = [folder.name for folder in folders]
    return {
        f"{folder.parent.name}_{folder.name}"
        if plain.count(folder.name) > 1
        else folder.name: entry
        for folder, entry in zip(folders, entries, strict=True)
    }


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each entry and task, and for the random vectors."""
    random = {task: floor["random_vectors"] for task, floor in results[0]["floors"].items()}
    found = [
        (result["name"], result["vectors"]["dimensions"], result["tasks"]) for result in results
    ]
    found.append(("random vectors", RANDOM_DIMENSIONS, random))
    return [
        {
            "vectors": name,
            "dimensions": width,
            "task": task,
            "network_width": results[0]["width"] or WIDTH,
        }
        | {key: of[key] for key in ("mean", "std", "seeds", "scores")}
        | {"auroc": of["metrics"]["auroc"]}
        for name, width, tasks in found
        for task, of in tasks.items()
    ]


def _cell(found: dict[str, Any]) -> str:
    spread = "" if found["std"] is None else f" ± {found['std']:.4f}"
    return f"{found['mean']:.4f}{spread}"


def _sum(result: dict[str, Any]) -> float:
    return sum(found["mean"] for found in result["tasks"].values())


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate what has no result yet, then print the table."""
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
