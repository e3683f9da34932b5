"""`export`: user vectors for millions of users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, given_options, named_logs
from behavegpt.cli.models import load_trained, log_arguments


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument(
        "events", nargs="+", help="prepared folder, or files with the training log's columns"
    )
    parser.add_argument(
        "out", type=Path, help="folder to write: client_ids.npy, embeddings.npy, export.json"
    )
    parser.add_argument(
        "--pool", metavar="PART+PART", help="parts of a vector (default last+mean), see below"
    )
    parser.add_argument("--half-life", type=float, help="days, for the decayed parts (default 7)")
    parser.add_argument("--scale", choices=("standard", "unit", "none"), help="default: standard")
    parser.add_argument(
        "--clients", type=Path, metavar="NPY", help="whose vectors, in which order (default: all)"
    )
    parser.add_argument(
        "--fill", choices=("mean", "zeros", "empty-history"), help="clients without events"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), help="default: float16")
    parser.add_argument(
        "--block-users",
        type=int,
        help="users at a time, kept when the run is killed (default 8192)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    log_arguments(parser)


def _export(arguments: Arguments) -> Any:
    import datetime

    import torch
    from accelerate import PartialState

    from behavegpt.arrays import open_array
    from behavegpt.config import check_settings
    from behavegpt.console import progress, say
    from behavegpt.embeddings.export import ExportSettings, export
    from behavegpt.training.model_folder import Trained
    from behavegpt.training.ranks import tell_ranks

    names = ("pool", "half_life", "scale", "fill", "dtype", "block_users")
    given = given_options(arguments, names)
    if "pool" in given:
        given["pool"] = given["pool"].split("+")

    settings = check_settings(ExportSettings, given, "export")
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


COMMANDS: dict[str, Command] = {
    "export": Command(
        "user vectors for millions of users, as an entry to the RecSys Challenge 2025 (also under "
        "accelerate launch)",
        "  behavegpt export runs/mine/model data/mine vectors\n"
        "  behavegpt export runs/mine/model data/mine entry --clients input/relevant_clients.npy "
        "--pool mean+decayed\n"
        "  accelerate launch -m behavegpt.cli export runs/mine/model new_logs.parquet vectors\n"
        "parts: last, mean, decayed: hidden states at the last event, averaged, averaged with "
        "--half-life;\n"
        "bag, recent_bag: averages of the embedded events; behaviors: log-probabilities of the "
        "next behavior.\n"
        "A run that was killed goes on where it was when it is started again.",
        _export_arguments,
        _export,
        {"out": Output("whole")},
    ),
}
