"""Commands about runs and machines: demo, report, info, models, doctor."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, show
from behavegpt.label_tables import NAMES, read_label_table


def _demo_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="run folder (default runs/demo)"
    )
    parser.add_argument(
        "--steps", type=int, help="optimizer steps (default: 500, about a minute on 2 cores)"
    )


def _demo(arguments: Arguments) -> Any:
    from behavegpt.demo.run import run_demo

    return run_demo(arguments.out, arguments.steps)


def _report_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder with log.jsonl and eval/metrics.json")
    parser.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help=f"show names instead of labels; FILE is a CSV or parquet file with {NAMES.columns}",
    )


def _report(arguments: Arguments) -> Any:
    from behavegpt.report import write_model_card, write_report

    names = None if arguments.names is None else read_label_table(arguments.names, NAMES)
    report = write_report(arguments.run, names)
    write_model_card(arguments.run)
    print(f"written: {report}", file=sys.stderr)
    return {"report": str(report)}


def _info_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")


def _info(arguments: Arguments) -> Any:
    from behavegpt.doctor import describe_model

    return _shown(arguments, describe_model(arguments.model))


def _models_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="print the card of this model")


def _models(arguments: Arguments) -> Any:
    from behavegpt.config import closest
    from behavegpt.errors import ConfigError
    from behavegpt.shipped import SHIPPED

    if arguments.name is not None:
        if arguments.name not in SHIPPED:
            raise ConfigError(
                f"{arguments.name!r} does not ship with the package. "
                f"{closest(arguments.name, list(SHIPPED))}"
            )
        card = SHIPPED[arguments.name].card.read_text(encoding="utf-8")
        if arguments.json:
            return {"name": arguments.name, "card": card}
        print(card)
        return None
    rows = [
        [name, f"{model.size / 1e6:.1f} MB", model.about, str(model.folder)]
        for name, model in SHIPPED.items()
    ]
    show(arguments, ("name", "size", "", "folder"), rows)
    return {
        name: {"about": model.about, "bytes": model.size, "folder": str(model.folder)}
        for name, model in SHIPPED.items()
    }


def _doctor_arguments(parser: Parser) -> None:
    parser.add_argument(
        "check",
        type=Path,
        nargs="?",
        metavar="DIR",
        help=(
            "instead verify every file of the prepared folders, models, checkpoints and "
            "entries in DIR"
        ),
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(),
        help="folder to check for disk space and write permission",
    )
    parser.add_argument(
        "--reorder",
        type=Path,
        metavar="DATA",
        help="shuffle the simultaneous events of a folder prepared by 0.1",
    )


def _doctor(arguments: Arguments) -> Any:
    from behavegpt.doctor import check_folders, examine

    if arguments.reorder is not None:
        return _reorder(arguments.reorder)
    if arguments.check:
        return _shown(arguments, check_folders(arguments.check))
    return _shown(arguments, examine(arguments.folder))


def _reorder(folder: Path) -> dict[str, Any]:
    from behavegpt.data.store import open_store
    from behavegpt.data.ties import reorder

    with warnings.catch_warnings(action="ignore"):  # of the order that is being mended
        ties = reorder(open_store(folder))
    print(f"{folder}: {ties:,} simultaneous events shuffled", file=sys.stderr)
    return {"ties": ties}


def _shown(arguments: Arguments, values: dict[str, Any]) -> dict[str, Any]:
    show(arguments, ("", ""), [[name, str(value)] for name, value in values.items()])
    return values


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "train, evaluate and report on the shop log that ships with the package (about 3 minutes)",
        "  behavegpt demo\n  behavegpt demo --out runs/try --steps 100",
        _demo_arguments,
        _demo,
        {"out": Output("into")},
    ),
    "report": Command(
        "write figures, report.html and model card of a run",
        "  behavegpt report runs/mine\n"
        "  behavegpt report runs/mine --names products.csv    # code,name: what to call each code",
        _report_arguments,
        _report,
        {"run": Output("into")},
    ),
    "info": Command(
        "describe a model folder", "  behavegpt info runs/mine/model", _info_arguments, _info
    ),
    "models": Command(
        "list the models that ship with the package: universal and demo",
        "  behavegpt models\n  behavegpt models demo                     # its card\n"
        "  behavegpt predict demo shop.parquet --top-k 3",
        _models_arguments,
        _models,
    ),
    "doctor": Command(
        "check this machine (versions, devices, kernels, disk, a ten-step self-test), or "
        "the integrity of a folder",
        "  behavegpt doctor\n  behavegpt doctor --json\n"
        "  behavegpt doctor data/mine                # is any file damaged?\n"
        "  behavegpt doctor runs/mine\n"
        "  behavegpt doctor --reorder data/mine      # prepared by version 0.1",
        _doctor_arguments,
        _doctor,
    ),
}
