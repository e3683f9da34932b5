"""Commands of scaling laws: `behavegpt scale CONFIG.yaml`, the sweep; `scale_law` fits and
plans."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from behavegpt.cli import scale_law
from behavegpt.cli.command import Arguments, Command, Group, Parser, show
from behavegpt.cli.scale_law import checked_options, device_arguments

# column of a row -> heading, in the order of the table
DRY_RUN = {
    "size": "size",
    "params": "parameters",
    "embeddings": "embeddings",
    "blocks": "blocks",
    "head": "head",
    "runs": "runs",
    "events": "events",
    "flops": "FLOP",
    "gib": "GiB",
    "events_per_second": "events/s",
    "hours": "hours",
}


def _run_arguments(parser: Parser) -> None:
    parser.add_argument(
        "config", help="YAML file, or the name of a shipped one, such as scaling/small"
    )
    parser.add_argument(
        "overrides", nargs="*", help="settings, for example data.path=DIR out=FOLDER seeds=[0,1]"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show sizes, operations, memory and time; train nothing",
    )
    device_arguments(parser, "dry run: also estimate hours on a device with this peak speed")
    parser.add_argument(
        "--worker",
        type=_worker,
        default=(0, 1),
        metavar="I/N",
        help="index of this process (from 0) and number of processes, for SLURM arrays",
    )
    parser.add_argument("--retry-failed", action="store_true", help="retry failed runs")


def _worker(text: str) -> tuple[int, int]:
    share = re.fullmatch(r"(\d+)/(\d+)", text)
    # from 0, as SLURM_ARRAY_TASK_ID counts
    if not share or int(share[1]) >= int(share[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write I/N with I from 0 to N - 1, for example 0/8"
        )
    return int(share[1]), int(share[2])


def _run(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.scaling.sweep import SweepSettings, sweep

    settings = read_settings(SweepSettings, arguments.config, arguments.overrides)
    if arguments.dry_run:
        return _dry_run(arguments, settings)

    # failed runs are told by the sweep itself; they have no figures for the table
    rows = sweep(settings, arguments.worker, arguments.retry_failed)
    done = [row for row in rows if row["status"] == "done"]
    table = [
        [
            row["run"],
            f"{row['params']:,}",
            f"{row['events']:,}",
            f"{row['loss']:.4f}",
            f"{row['seconds']:.0f}",
        ]
        for row in sorted(done, key=lambda row: (row["params"], row["events"]))
    ]

    show(arguments, ("run", "parameters", "events", "loss", "seconds"), table)
    path = Path(settings.out) / "rows.jsonl"
    print(
        f"rows: {path}; next: behavegpt scale fit {path} --out {path.with_name('fit.json')}",
        file=sys.stderr,
    )

    return {"rows": str(path), "done": len(done), "failed": len(rows) - len(done)}


def _dry_run(arguments: Arguments, settings: Any) -> Any:
    from behavegpt.options import PlanOptions
    from behavegpt.scaling.estimate import Device, estimate

    options = checked_options(PlanOptions, arguments)
    device = Device(options.tflops, options.utilization) if options.tflops else None
    rows = estimate(settings, device)
    names = dict(DRY_RUN)
    if device:
        names["device_hours"] = "device hours"

    table = [_cells(row, names) for row in rows]
    show(arguments, [*names.values()], table)
    if device:
        print(
            f"device hours: {device.tflops:,.0f} TFLOP/s at an assumed utilization of "
            f"{device.utilization:.0%}; small models reach less, because starting kernels takes "
            "longer than running them.",
            file=sys.stderr,
        )

    # the largest sizes take minutes a step on a CPU: a dry run must not
    if any(row.get("measured") is False for row in rows):
        print(
            "events/s of the largest sizes follow from the measured ones by operations.",
            file=sys.stderr,
        )

    return {"sizes": rows[:-1], "all": rows[-1]}


def _cells(row: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [_cell(name, row.get(name)) for name in names]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    # hours on a device have more digits: a sweep of tiny models takes seconds there
    formats = {"flops": ".2e", "gib": ".2f", "hours": ".2f", "device_hours": ".4f", "size": ""}
    return format(value, formats.get(name, ",.0f"))


COMMANDS: dict[str, Command] = {
    "run": Command(
        "train the model and data sizes of a sweep, or continue it (short: `behavegpt "
        "scale CONFIG`)",
        "  behavegpt scale scaling/small data.path=DIR out=runs/scaling --dry-run\n"
        "  behavegpt scale scaling/small data.path=DIR out=runs/scaling\n"
        "  behavegpt scale CONFIG --worker $SLURM_ARRAY_TASK_ID/8          # sbatch "
        "--array=0-7\n"
        "  behavegpt scale scaling/paper --dry-run --tflops 989 --utilization 0.4",
        _run_arguments,
        _run,
    ),
    **scale_law.COMMANDS,
}

SCALE = Group(
    "scaling laws: run a sweep (`scale CONFIG.yaml`), fit the law, plan a budget",
    COMMANDS,
    default="run",
)
