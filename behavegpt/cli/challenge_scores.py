"""Commands that score entries of the RecSys Challenge 2025: `challenge evaluate`, `leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, show

BOARD = "leaderboard.json"
PARTS = ("auroc", "diversity", "novelty")  # of a score
COLUMNS = (  # of an evaluation
    "task",
    "score",
    "best epoch",
    *PARTS,
    "floor ± chance",
    "random vectors",
    "ceiling",
    "absent labels",
)


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

    # a folder stands for its results, so that a leaderboard is made of a whole series
    listed = [
        sorted(path.glob("*.json")) if path.is_dir() else [path] for path in arguments.results
    ]
    # an earlier leaderboard in a folder of results is none of them
    files = [path for paths in listed for path in paths if path.name != BOARD]
    board = leaderboard([read_result(path) for path in files])

    rows = []
    for entry in board["entries"]:
        cells = [_score_text(entry["tasks"].get(task)) for task in board["tasks"]]
        name = f"{entry['place']}. {entry['name']}"
        rows.append([name, f"{entry['borda']:g}", f"{entry['sum']:.4f}", *cells])

    show(arguments, ("entry", "Borda", "sum", *board["tasks"]), rows)
    for task, better, worse in board["within_noise"]:
        say(f"{task}: {better} and {worse} differ by less than the noise between seeds")

    if arguments.out:
        write_json(arguments.out / BOARD, board)
        figure = challenge_scores(arguments.out / BOARD, arguments.out / "leaderboard.png")
        say(f"written: {figure}")

    return board


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument("entry", type=Path, help="folder with client_ids.npy and embeddings.npy")
    parser.add_argument(
        "--data", type=Path, required=True, help="the challenge's data directory, after the split"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for NAME.json and the runs (NAME/)"
    )
    parser.add_argument("--name", help="name of the entry (default: name of its folder)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks to evaluate (default: the three open ones; all: the hidden ones too)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="number of seeds; the first is the organizers' (default 1)",
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
        help="faster matrix products on a GPU; changes scores in the third digit",
    )


def _evaluate(arguments: Arguments) -> Any:
    from behavegpt.challenge.evaluate import evaluate, seeds_from
    from behavegpt.challenge.targets import OPEN_TASKS, available_tasks
    from behavegpt.console import say
    from behavegpt.datasets.challenge_files import open_directory
    from behavegpt.devices import default_devices
    from behavegpt.plots_challenge import challenge_results

    # the hidden tasks cost as much again, and the split of the public data may lack their labels
    tasks = arguments.tasks or OPEN_TASKS
    if tasks == ["all"]:
        tasks = available_tasks(open_directory(arguments.data))

    result = evaluate(
        arguments.entry,
        arguments.data,
        arguments.out,
        tasks=tasks,
        seeds=seeds_from(arguments.seeds),
        devices=arguments.devices or default_devices(),
        name=arguments.name,
        subset=arguments.subset,
        random_vectors=arguments.random_vectors,
        tf32=arguments.tf32,
    )

    show(
        arguments,
        COLUMNS,
        [_evaluate_row(task, result) for task in result["tasks"]],
        f"{result['name']}: mean ± deviation over {arguments.seeds} seeds, best of 3 epochs",
    )

    # also those of earlier entries: the figure compares what is in the folder
    results = [path for path in sorted(arguments.out.glob("*.json")) if path.name != BOARD]
    say(
        f"written: {arguments.out / result['name']}.json, "
        f"{challenge_results(results, arguments.out / 'scores.png')}"
    )

    # measured on the challenge's data: docs/challenge.md
    if arguments.seeds == 1:
        say(
            "one seed says little: on 10,000 clients, scores of the same vectors differ "
            "by .02; use --seeds 3 or more"
        )

    return result


def _evaluate_row(task: str, result: dict[str, Any]) -> list[str]:
    score, floor = result["tasks"][task], result["floors"][task]
    parts = score["metrics"]  # churn is an AUROC alone
    return [
        task,
        _score_text(score),
        " ".join(map(str, score["best_epochs"])),
        *(f"{parts[part]:.4f}" if part in parts else "-" for part in PARTS),
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
