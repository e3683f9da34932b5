"""Commands of the RecSys Challenge 2025: `challenge split`, `targets`, `validate`, `evaluate`,
`leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Group, Output, Parser, show

BOARD = "leaderboard.json"
PARTS = ("auroc", "diversity", "novelty")  # of a score


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

    with progress("split", raw_rows(arguments.directory)) as update:
        facts = split(
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
        for name, file in facts["files"].items()
    ]
    show(arguments, ("file", "rows", "first", "last"), rows, f"written into {facts['directory']}")
    return facts


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
        facts = write_targets(directory, arguments.out, tasks, update)

    columns = (
        "task",
        "clients",
        "labels",
        "train_positives",
        "validation_positives",
        "labels_absent_in_validation",
    )

    rows = [
        [f"{fact[name]:,}" if name != "task" else fact[name] for name in columns] for fact in facts
    ]
    show(
        arguments,
        [name.replace("_", " ") for name in columns],
        rows,
        f"written into {arguments.out}",
    )
    return {"out": str(arguments.out), "tasks": facts}


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

    if not arguments.json:
        size = (
            f"{result['clients']:,} clients, {result['dimensions']} dimensions"
            if result["ok"]
            else ""
        )
        zeros = f", {result['zero_vectors']:,} vectors all zero" if result["zero_vectors"] else ""
        print(
            f"{arguments.entry}: "
            + (f"valid ({size}{zeros})" if result["ok"] else f"NOT valid{zeros}")
        )

        for kind in ("problems", "warnings"):
            for text in result[kind]:
                print(f"{kind[:-1]}: {text}")

    return result


def _leaderboard_arguments(parser: Parser) -> None:
    parser.add_argument(
        "results", type=Path, nargs="+", help="result files (JSON), or folders of them"
    )
    parser.add_argument("--out", type=Path, help="folder for leaderboard.json and leaderboard.png")


def _leaderboard(arguments: Arguments) -> Any:
    from behavegpt.challenge.leaderboard import leaderboard, read_result
    from behavegpt.console import say
    from behavegpt.io import write_json
    from behavegpt.plots_challenge import challenge_scores

    found = [sorted(path.glob("*.json")) if path.is_dir() else [path] for path in arguments.results]
    files = [path for paths in found for path in paths if path.name != BOARD]
    board = leaderboard([read_result(path) for path in files])

    rows = []
    for entry in board["entries"]:
        cells = [_score_text(entry["tasks"].get(task)) for task in board["tasks"]]
        rows.append(
            [
                f"{entry['place']}. {entry['name']}",
                f"{entry['borda']:g}",
                f"{entry['sum']:.4f}",
                *cells,
            ]
        )

    show(arguments, ("entry", "Borda", "sum", *board["tasks"]), rows)
    for task, better, worse in board["within_noise"]:
        say(f"{task}: {better} and {worse} differ by less than the noise between seeds")

    if arguments.out:
        write_json(arguments.out / BOARD, board)
        say(
            f"written: {challenge_scores(arguments.out / BOARD, arguments.out / 'leaderboard.png')}"
        )

    return board


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument("entry", type=Path, help="folder with client_ids.npy and embeddings.npy")
    parser.add_argument(
        "--data", type=Path, required=True, help="the challenge's data directory, after the split"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for NAME.json and the single runs (NAME/)"
    )
    parser.add_argument("--name", help="of the entry in results (default: its folder's name)")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="default: the three open tasks; all: also hidden"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many; the first is the organizers' (default 1)"
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        metavar="DEVICE",
        help="e.g. cuda:0 cuda:1 (default: all GPUs, or cpu)",
    )

    parser.add_argument(
        "--subset", action="store_true", help="relevant clients may be missing (local tests)"
    )
    parser.add_argument(
        "--random-vectors", action="store_true", help="also train on random vectors, as a floor"
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="faster products on a GPU; moves scores in the third digit",
    )


def _evaluate(arguments: Arguments) -> Any:
    from behavegpt.challenge.evaluate import evaluate, seeds_from
    from behavegpt.challenge.targets import OPEN_TASKS, available_tasks
    from behavegpt.console import say
    from behavegpt.datasets.challenge_files import open_directory
    from behavegpt.devices import default_devices
    from behavegpt.plots_challenge import challenge_results

    tasks = arguments.tasks or OPEN_TASKS
    result = evaluate(
        arguments.entry,
        arguments.data,
        arguments.out,
        tasks=available_tasks(open_directory(arguments.data)) if tasks == ["all"] else tasks,
        seeds=seeds_from(arguments.seeds),
        devices=arguments.devices or default_devices(),
        name=arguments.name,
        subset=arguments.subset,
        random_vectors=arguments.random_vectors,
        tf32=arguments.tf32,
    )

    rows = [_evaluate_row(task, result) for task in result["tasks"]]
    columns = (
        "task",
        "score",
        "best epoch",
        *PARTS,
        "floor ± chance",
        "random vectors",
        "ceiling",
        "absent labels",
    )

    show(
        arguments,
        columns,
        rows,
        f"{result['name']}: mean ± deviation over {arguments.seeds} seeds, best of 3 epochs",
    )

    results = [path for path in sorted(arguments.out.glob("*.json")) if path.name != BOARD]
    say(
        f"written: {arguments.out / result['name']}.json, "
        f"{challenge_results(results, arguments.out / 'scores.png')}"
    )

    if arguments.seeds == 1:
        say(
            "one seed says little: on 10,000 clients scores of the same vectors differ by .02; "
            "take --seeds 3 or more"
        )

    return result


def _evaluate_row(task: str, result: dict[str, Any]) -> list[str]:
    found, floor = result["tasks"][task], result["floors"][task]
    return [
        task,
        _score_text(found),
        " ".join(map(str, found["best_epochs"])),
        *(f"{found['metrics'][part]:.4f}" if part in found["metrics"] else "-" for part in PARTS),
        f"{floor['constant']:.4f} ± {floor['chance_std']:.4f}",
        _score_text(floor.get("random_vectors")),
        f"{floor['ceiling']:.4f}",
        f"{floor['absent_labels']}/{floor['labels']}",
    ]


def _score_text(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    return (
        f"{score['mean']:.4f}"
        if score["std"] is None
        else f"{score['mean']:.4f} ± {score['std']:.4f}"
    )


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
    "evaluate": Command(
        "train the organizers' network on an entry for each task and score it, with floors",
        "  behavegpt challenge evaluate ENTRY --data SPLIT --out results\n"
        "  behavegpt challenge evaluate ENTRY --data SPLIT --out results --seeds 3 --tasks all "
        "--random-vectors\n"
        "  behavegpt challenge evaluate ENTRY --data SPLIT --out results --devices cuda:0 cuda:1",
        _evaluate_arguments,
        _evaluate,
        {"out": Output("into")},
    ),
    "leaderboard": Command(
        "rank entries over tasks by Borda count (rank k of N gives N - k points; ties share)",
        "  behavegpt challenge leaderboard results/*.json\n"
        "  behavegpt challenge leaderboard ours.json theirs/scores.json --out board",
        _leaderboard_arguments,
        _leaderboard,
        {"out": Output("into")},
    ),
}

CHALLENGE = Group(
    "the RecSys Challenge 2025: split, targets, validate, evaluate, leaderboard", COMMANDS
)
