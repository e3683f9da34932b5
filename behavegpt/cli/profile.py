"""Command of universal behavioral profiles: `behavegpt profile CONFIG.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, show

if TYPE_CHECKING:
    import numpy as np


def _arguments(parser: Parser) -> None:
    parser.add_argument("config", type=Path, help="YAML with data, out, members and ensembles")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="NAME=VALUE", help="settings, such as seed=1"
    )
    parser.add_argument(
        "--members",
        nargs="+",
        default=[],
        metavar="NAME",
        help="build only these members, and no ensemble",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="evaluate every member and ensemble quickly, next to noise",
    )
    parser.add_argument(
        "--embed",
        type=Path,
        metavar="DIR",
        help="embed the clients in DIR with the members fitted by this run",
    )
    parser.add_argument("--to", type=Path, metavar="ENTRY", help="output folder of --embed")
    parser.add_argument(
        "--at",
        metavar="DAY",
        help=(
            "reference day of --embed: ages count back from its midnight (default: the end "
            "of the fitted history, or the day after DIR's last event)"
        ),
    )
    parser.add_argument("--ensemble", default="all", help="ensemble used by --embed (default all)")


def _profile(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.errors import ConfigError
    from behavegpt.profiles.new_clients import embed_new
    from behavegpt.profiles.pipeline import run
    from behavegpt.profiles.settings import ProfileSettings

    settings = read_settings(ProfileSettings, arguments.config, arguments.overrides)

    if arguments.embed:
        if not arguments.to:
            raise ConfigError("--embed needs --to ENTRY, the folder for the new clients' vectors.")
        data = settings.data.model_copy(update={"path": str(arguments.embed)})
        return embed_new(settings.out, data, arguments.to, arguments.ensemble, arguments.at)
    # ages of a run are fixed by its history: another day would not fit what was learned
    if arguments.at:
        raise ConfigError("--at is the day of --embed DIR; a run counts from its own last event.")

    report = run(settings, arguments.members)
    columns = ("member", "kind", "status", "clients", "dimensions", "fit s", "embed s", "peak MB")
    rows = [[name, *_cells(member)] for name, member in report["members"].items()]
    for name, ensemble in report["ensembles"].items():
        size = [f"{ensemble['clients']:,}", str(ensemble["dimensions"])]
        rows.append([name, "ensemble", ensemble["status"], *size])

    # a table needs a cell in every column; ensembles have no times, failed members no sizes
    for row in rows:
        row += [""] * (len(columns) - len(row))
    show(arguments, columns, rows, f"written into {settings.out}")

    if arguments.probe:
        report["probe"] = _probed(Path(settings.data.path), Path(settings.out), report)
        tasks = list(next(iter(report["probe"].values())))
        lines = []
        for name, scores in report["probe"].items():
            lines.append([name, *(f"{score:.4f}" for score in scores.values())])
        show(arguments, ("quick AUROC", *tasks), lines)

    return report


def _cells(member: dict[str, Any]) -> list[str]:
    if member["status"] in ("off", "failed"):
        # nothing was built: no sizes and no times
        return [member["kind"], member["status"]]

    peak = member["peak_bytes"]
    return [
        member["kind"],
        member["status"],
        f"{member['clients']:,}",
        str(member["dimensions"]),
        f"{member['fit_s']:.1f}",
        f"{member['embed_s']:.1f}",
        "" if peak is None else f"{peak / 1e6:,.0f}",
    ]


def _probed(data: Path, out: Path, report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Quick scores of noise, of every member alone and of the ensembles: name -> task -> AUROC."""
    from behavegpt.challenge.targets import available_tasks, load_targets
    from behavegpt.datasets.challenge_files import open_directory
    from behavegpt.profiles.probe import noise, probe
    from behavegpt.user_embeddings import UserEmbeddings

    available = [
        name for name, member in report["members"].items() if member["status"] in ("built", "kept")
    ]
    folders = {name: out / "alone" / name for name in available}
    folders |= {f"ensemble {name}": out / "ensembles" / name for name in report["ensembles"]}
    directory = open_directory(data)
    entries = {name: UserEmbeddings.load(folder) for name, folder in folders.items()}
    # every entry has the same clients in the same order
    ids = next(iter(entries.values())).client_ids
    vectors: dict[str, np.ndarray] = {
        "noise": noise(len(ids)),
        **{name: entry.vectors for name, entry in entries.items()},
    }
    scores: dict[str, dict[str, float]] = {name: {} for name in vectors}

    for task in available_tasks(directory):
        # read once a task, for all entries: a million clients' labels take longer than a probe
        targets = load_targets(directory, ids, task)
        for name, matrix in vectors.items():
            rows = targets.rows
            scores[name][task] = probe(matrix[rows], targets.train[rows], targets.validation[rows])

    return scores


COMMANDS: dict[str, Command] = {
    "profile": Command(
        "universal behavioral profiles: build members and ensembles of user vectors from one YAML",
        "  behavegpt profile configs/profiles/small.yaml data.path=SPLIT out=runs/profile --probe\n"
        "  behavegpt profile configs/profiles/small.yaml data.path=SPLIT out=runs/profile "
        "--members stats\n"
        "  behavegpt profile configs/profiles/small.yaml data.path=SPLIT out=runs/profile --embed "
        "NEW --to runs/new",
        _arguments,
        _profile,
        {"to": Output("into")},
    )
}
