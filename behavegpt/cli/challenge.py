"""Commands of the RecSys Challenge 2025: `challenge split`, `targets`, `validate`, and those of
`challenge_scores`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt.cli import challenge_scores
from behavegpt.cli.command import Arguments, Command, Group, Output, Parser, show


def _split_arguments(parser: Parser) -> None:
    parser.add_argument("directory", type=Path, help="the challenge's data directory")
    parser.add_argument(
        "--out", type=Path, help="write a split copy there instead of into the directory"
    )
    parser.add_argument(
        "--strict", action="store_true", help="active clients and labels from the input alone"
    )
    parser.add_argument(
        "--unknown-skus", action="store_true", help="keep purchases of products without properties"
    )
    parser.add_argument(
        "--memory", default="2GiB", help="memory of the query engine (default 2GiB)"
    )
    parser.add_argument("--threads", type=int, help="threads (default: all cores)")


def _split(arguments: Arguments) -> Any:
    from behavegpt.challenge.split import split
    from behavegpt.console import progress
    from behavegpt.datasets.challenge_files import raw_rows

    # rows are the unit of progress: the files differ a hundredfold in size
    with progress("split", raw_rows(arguments.directory)) as update:
        summary = split(
            arguments.directory,
            arguments.out,
            strict=arguments.strict,
            unknown_skus=arguments.unknown_skus,
            memory=arguments.memory,
            threads=arguments.threads,
            progress=update,
        )

    rows = [
        [name, f"{file['rows']:,}", str(file["first"]), str(file["last"])]
        for name, file in summary["files"].items()
    ]
    show(arguments, ("file", "rows", "first", "last"), rows, f"written into {summary['directory']}")
    return summary


def _targets_arguments(parser: Parser) -> None:
    parser.add_argument("directory", type=Path, help="a split data directory")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for TASK_WINDOW.npy and client_ids.npy"
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="default: every task whose labels are there"
    )


def _targets(arguments: Arguments) -> Any:
    from behavegpt.challenge.targets import available_tasks, write_targets
    from behavegpt.console import progress
    from behavegpt.datasets.challenge_files import open_directory

    directory = open_directory(arguments.directory)
    tasks = arguments.tasks or available_tasks(directory)
    with progress("targets", len(tasks)) as update:
        written = write_targets(directory, arguments.out, tasks, update)

    counts = (
        "clients",
        "labels",
        "train_positives",
        "validation_positives",
        "labels_absent_in_validation",
    )

    rows = [[task["task"], *_counted(task, counts)] for task in written]
    show(
        arguments,
        ["task", *(name.replace("_", " ") for name in counts)],
        rows,
        f"written into {arguments.out}",
    )
    return {"out": str(arguments.out), "tasks": written}


def _counted(task: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{task[name]:,}" for name in names]


def _validate_arguments(parser: Parser) -> None:
    parser.add_argument("entry", type=Path, help="folder with client_ids.npy and embeddings.npy")
    parser.add_argument(
        "--data", type=Path, help="the challenge's data directory, for its relevant clients"
    )
    parser.add_argument(
        "--subset", action="store_true", help="relevant clients may be missing (local tests)"
    )


def _validate(arguments: Arguments) -> Any:
    from behavegpt.challenge.validate import validate
    from behavegpt.datasets.challenge_files import open_directory

    directory = open_directory(arguments.data) if arguments.data else None
    result = validate(arguments.entry, directory, arguments.subset)

    # valid or not is the result here, and no error: problems go where results go
    if not arguments.json:
        zeros = f", {result['zero_vectors']:,} vectors all zero" if result["zero_vectors"] else ""
        if result["ok"]:
            size = f"{result['clients']:,} clients, {result['dimensions']} dimensions"
            print(f"{arguments.entry}: valid ({size}{zeros})")
        else:
            print(f"{arguments.entry}: NOT valid{zeros}")

        for kind in ("problems", "warnings"):
            for text in result[kind]:
                print(f"{kind[:-1]}: {text}")

    return result


COMMANDS: dict[str, Command] = {
    "split": Command(
        "split the raw events into input, training target and validation target (14 days each)",
        "  behavegpt challenge split DATA\n  behavegpt challenge split DATA --out SPLIT --memory "
        "8GiB",
        _split_arguments,
        _split,
        {"out": Output("into")},
    ),
    "targets": Command(
        "write the target matrices of the relevant clients",
        "  behavegpt challenge targets SPLIT --out TARGETS\n"
        "  behavegpt challenge targets SPLIT --out TARGETS --tasks churn propensity_sku",
        _targets_arguments,
        _targets,
        {"out": Output("into")},
    ),
    "validate": Command(
        "check an entry (client_ids.npy, embeddings.npy); exit code 1 if it would be refused",
        "  behavegpt challenge validate ENTRY --data DATA\n"
        "  behavegpt challenge validate ENTRY --data SPLIT --subset --json",
        _validate_arguments,
        _validate,
    ),
    **challenge_scores.COMMANDS,
}

CHALLENGE = Group(
    "the RecSys Challenge 2025: split, targets, validate, evaluate, leaderboard", COMMANDS
)
