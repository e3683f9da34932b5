"""`export`: user vectors for millions of users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, given_options, named_logs
from behavegpt.cli.models import load_trained, log_arguments

if TYPE_CHECKING:
    from behavegpt.embeddings.export import ExportSettings


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument(
        "events", nargs="+", help="prepared folder, or log files with the training log's columns"
    )
    parser.add_argument(
        "out", type=Path, help="output folder: client_ids.npy, embeddings.npy, export.json"
    )
    parser.add_argument(
        "--pool", metavar="PART+PART", help="parts of the vectors, see below (default last+mean)"
    )
    parser.add_argument(
        "--half-life", type=float, help="half-life of the decayed parts in days (default 7)"
    )
    parser.add_argument(
        "--scale",
        choices=("standard", "unit", "none"),
        help="scaling of the vectors (default standard)",
    )
    parser.add_argument(
        "--clients", type=Path, metavar="NPY", help="client ids to export, in order (default: all)"
    )
    parser.add_argument(
        "--fill",
        choices=("mean", "zeros", "empty-history"),
        help="vector for clients without events",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), help="number format (default float16)"
    )
    parser.add_argument(
        "--block-users",
        type=int,
        help="users per block; finished blocks survive a kill (default 8192)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    log_arguments(parser)


def _export(arguments: Arguments) -> Any:
    import datetime

    import torch
    from accelerate import PartialState

    from behavegpt.arrays import open_array
    from behavegpt.console import progress, say
    from behavegpt.embeddings.export import export
    from behavegpt.training.model_folder import Trained
    from behavegpt.training.ranks import tell_ranks

    settings = _settings(arguments)
    # one process may prepare or assemble for hours while the others wait
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(days=7))
    tell_ranks(state)
    predictor = load_trained(arguments, state.device)
    # without an encoding the events may also be a prepared folder
    encoded = bool(arguments.encoding)
    events = named_logs(arguments, arguments.events) if encoded else arguments.events

    with progress("export", 100) as advance:
        manifest = export(
            Trained(predictor.model, predictor.tokenizer),
            events,
            arguments.out,
            settings,
            clients=open_array(arguments.clients) if arguments.clients else None,
            overwrite=arguments.overwrite,
            progress=lambda done, of: advance(100 * done // of, f"% of {of:,} users"),
        )

    # one process tells what all of them have written
    if not state.is_main_process:
        return None

    say(f"{manifest['vectors']:,} vectors, written: {arguments.out}")
    if manifest["missing"]:
        say(
            f"{manifest['missing']:,} of them have no events and were filled by the rule "
            f"{settings.fill} (missing.npy)"
        )

    return manifest


def _settings(arguments: Arguments) -> ExportSettings:
    from behavegpt.config import check_settings
    from behavegpt.embeddings.export import ExportSettings

    # no defaults here: those of ExportSettings hold for Python too
    names = ("pool", "half_life", "scale", "fill", "dtype", "block_users")
    given = given_options(arguments, names)
    if "pool" in given:
        given["pool"] = given["pool"].split("+")
    return check_settings(ExportSettings, given, "export")


COMMANDS: dict[str, Command] = {
    "export": Command(
        "write vectors of millions of users, in the format of the RecSys Challenge 2025 "
        "(also under accelerate launch)",
        "  behavegpt export runs/mine/model data/mine vectors\n"
        "  behavegpt export runs/mine/model data/mine entry --clients "
        "input/relevant_clients.npy --pool mean+decayed\n"
        "  accelerate launch -m behavegpt.cli export runs/mine/model new_logs.parquet "
        "vectors\n"
        "\n"
        "parts: last: the hidden state at the last event; mean: its mean over events; "
        "decayed: a mean that decays\n"
        "with --half-life; bag, recent_bag: means of event embeddings; behaviors: "
        "log-probabilities of the next\n"
        "behavior. Run an interrupted command again to continue it.",
        _export_arguments,
        _export,
        {"out": Output("whole")},
    ),
}
