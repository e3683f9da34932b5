"""Commands of scaling laws: `behavegpt scale CONFIG.yaml` (the sweep), `scale fit`,
`scale plan`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import Arguments, Command, Group, Output, Parser, show

if TYPE_CHECKING:
    from behavegpt.config import S

COUNTS = ("total", "without_embeddings")
FIGURES = {
    "alpha": "alpha (N)",
    "beta": "beta (D)",
    "L_0": "L_0 (nats)",
    "C_N": "C_N",
    "C_D": "C_D",
    "ratio": "D_opt / N_opt at the largest run",
    "share": "N_opt grows as FLOP **",
}
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
        "config", help="YAML file, or a shipped one by its name, such as scaling/small"
    )
    parser.add_argument(
        "overrides", nargs="*", help="settings, for example data.path=DIR out=FOLDER seeds=[0,1]"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show sizes, operations, memory, time; train nothing"
    )
    parser.add_argument(
        "--tflops", type=float, help="dry run: also hours on a device of this speed on paper"
    )
    parser.add_argument(
        "--utilization",
        type=float,
        default=0.4,
        help="share of --tflops that is reached (default 0.4)",
    )

    parser.add_argument(
        "--worker",
        type=_worker,
        default=(0, 1),
        metavar="I/N",
        help="this process's share, I from 0 (SLURM arrays)",
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed runs again")


def _checked(kind: type[S], arguments: Arguments) -> S:
    """The numbers of the command line that `kind` has. Raises ConfigError."""
    from behavegpt.config import check_settings

    given = {name: getattr(arguments, name) for name in kind.model_fields if name in arguments}
    return check_settings(kind, given, "options")


def _worker(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write I/N with I from 0 to N - 1, for example 0/8"
        )
    return int(found[1]), int(found[2])


def _run(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.scaling.sweep import SweepSettings, sweep

    settings = read_settings(SweepSettings, arguments.config, arguments.overrides)
    if arguments.dry_run:
        return _dry_run(arguments, settings)

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

    checked = _checked(PlanOptions, arguments)
    device = Device(checked.tflops, checked.utilization) if checked.tflops else None
    rows = estimate(settings, device)
    names = dict(DRY_RUN)
    if device:
        names["device_hours"] = "device hours"

    show(
        arguments,
        [*names.values()],
        [[_cell(name, row.get(name)) for name in names] for row in rows],
    )
    if device:
        print(
            f"device hours: {device.tflops:,.0f} TFLOP/s at an assumed utilization of "
            f"{device.utilization:.0%}; small "
            "models reach less, because starting kernels takes longer than running them.",
            file=sys.stderr,
        )

    if any(row.get("measured") is False for row in rows):
        print(
            "events/s of the largest sizes follow from the measured ones by operations.",
            file=sys.stderr,
        )

    return {"sizes": rows[:-1], "all": rows[-1]}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    formats = {"flops": ".2e", "gib": ".2f", "hours": ".2f", "device_hours": ".4f", "size": ""}
    return format(value, formats.get(name, ",.0f"))


def _fit_arguments(parser: Parser) -> None:
    parser.add_argument(
        "rows",
        type=Path,
        nargs="+",
        help="rows.jsonl of sweeps; params, events and loss are needed",
    )

    parser.add_argument(
        "--out", type=Path, required=True, help="fit.json to write; figures are drawn beside it"
    )
    parser.add_argument(
        "--count", choices=COUNTS, default="total", help="parameters that N counts (default total)"
    )
    parser.add_argument(
        "--min-events",
        type=float,
        default=0,
        help="leave out runs with fewer events: those that hardly learned",
    )

    parser.add_argument(
        "--delta",
        type=float,
        default=1e-3,
        help="of the Huber loss of log residuals (default 1e-3)",
    )

    parser.add_argument("--draws", type=int, default=400, help="bootstrap draws (default 400)")
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the intervals (default 0.95)"
    )
    parser.add_argument(
        "--floor",
        type=float,
        help="loss of the best possible prediction, if known, for the figures",
    )
    parser.add_argument("--no-plots", action="store_true", help="write fit.json alone")
    parser.add_argument(
        "--name",
        help="fit the runs of this name; those of other names are only drawn (default: all)",
    )


def _fit(arguments: Arguments) -> Any:
    from behavegpt.errors import DataError
    from behavegpt.options import FitOptions
    from behavegpt.scaling.fit import Bootstrap, fit_rows, write_fit
    from behavegpt.scaling.rows import usable_rows

    _checked(FitOptions, arguments)

    rows = [
        row
        for row in usable_rows(arguments.rows, arguments.count)
        if row["events"] >= arguments.min_events
    ]
    how = Bootstrap(arguments.draws, arguments.confidence)
    fitted = [row for row in rows if arguments.name in (None, row.get("name"))]
    if not fitted:
        names = ", ".join(sorted({str(row.get("name")) for row in rows}))
        raise DataError(
            f"--name {arguments.name!r}: no such runs with enough events; there are "
            f"{names or 'none'}."
        )

    fit = fit_rows(fitted, arguments.count, arguments.delta, how)
    write_fit(fit, arguments.out)
    table = [
        [text, *(f"{x:.4g}" for x in getattr(fit, name).model_dump().values())]
        for name, text in FIGURES.items()
    ]
    show(arguments, ("", "value", "low", "high"), table)
    facts = (
        f"{fit.rows} runs, median error {fit.error:.2%}, {fit.confidence:.0%} intervals, N: "
        f"{fit.count}"
    )
    print(facts, file=sys.stderr)
    for text in fit.warnings:
        print(f"warning: {text}", file=sys.stderr)

    if not arguments.no_plots:
        from behavegpt.scaling.plots import draw_sweep

        figures = draw_sweep(
            rows, fit, arguments.out.with_name(f"{arguments.out.stem}_figs"), arguments.floor
        )
        print(f"figures: {', '.join(str(path) for path in figures)}", file=sys.stderr)

    return fit.model_dump(exclude={"draws"})


def _plan_arguments(parser: Parser) -> None:
    parser.add_argument("fit", type=Path, metavar="FIT", help="fit.json")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--compute", type=float, metavar="FLOP", help="training operations")
    budget.add_argument("--events", type=float, help="training events that there are, for one pass")
    budget.add_argument("--hours", type=float, help="hours of training")
    parser.add_argument(
        "--tflops", type=float, help="speed on paper of all devices; default: as the sweep was run"
    )
    parser.add_argument(
        "--utilization",
        type=float,
        default=0.4,
        help="share of --tflops that is reached (default 0.4)",
    )


def _plan(arguments: Arguments) -> Any:
    from behavegpt.errors import ConfigError
    from behavegpt.options import PlanOptions
    from behavegpt.scaling import plan
    from behavegpt.scaling.fit import read_fit

    _checked(PlanOptions, arguments)

    fit = read_fit(arguments.fit)

    if arguments.compute is not None:
        result = plan.plan_compute(fit, arguments.compute)
    elif arguments.events is not None:
        result = plan.plan_events(fit, arguments.events)
    else:
        speed = (
            arguments.tflops * 1e12 * arguments.utilization
            if arguments.tflops
            else fit.flops_per_second
        )
        if speed is None:
            raise ConfigError(
                "--hours: the rows do not say how fast they were; give --tflops (one H200, bf16: "
                "989)."
            )

        result = plan.plan_hours(fit, arguments.hours, speed)

    names = {
        "params": f"parameters ({fit.count})",
        "events": "events",
        "ratio": "events per parameter",
        "loss": "loss",
    }

    rows = [[text, *(f"{x:,.4g}" for x in result[name].values())] for name, text in names.items()]
    show(arguments, ("", "value", "low", "high"), rows)
    print(f"{result['flops']:.3g} training operations", file=sys.stderr)
    for text in result["warnings"]:
        print(f"warning: {text}", file=sys.stderr)

    return result


COMMANDS: dict[str, Command] = {
    "run": Command(
        "train the sizes and data of a sweep, or go on with it (`behavegpt scale CONFIG` for "
        "short)",
        "  behavegpt scale configs/scaling/small.yaml data.path=DIR out=runs/scaling --dry-run\n"
        "  behavegpt scale configs/scaling/small.yaml data.path=DIR out=runs/scaling\n"
        "  behavegpt scale CONFIG --worker $SLURM_ARRAY_TASK_ID/8          # sbatch --array=0-7\n"
        "  behavegpt scale configs/scaling/paper.yaml --dry-run --tflops 989 --utilization 0.4",
        _run_arguments,
        _run,
    ),
    "fit": Command(
        "fit L(N, D) = C_N N^-alpha + C_D D^-beta + L_0 to rows, with intervals and figures",
        "  behavegpt scale fit runs/scaling/rows.jsonl --out runs/scaling/fit.json\n"
        "  behavegpt scale fit a/rows.jsonl b/rows.jsonl --out fit.json --count without_embeddings",
        _fit_arguments,
        _fit,
        {"out": Output("file", (".json",))},
    ),
    "plan": Command(
        "model size, events and expected loss for a budget",
        "  behavegpt scale plan --compute 1e18 runs/scaling/fit.json\n"
        "  behavegpt scale plan --events 6e8 runs/scaling/fit.json\n"
        "  behavegpt scale plan --hours 2 runs/scaling/fit.json             # on the machine of "
        "the sweep\n"
        "  behavegpt scale plan --hours 24 --tflops 989 --utilization 0.4 runs/scaling/fit.json",
        _plan_arguments,
        _plan,
    ),
}

SCALE = Group(
    "scaling laws: run a sweep (`scale CONFIG.yaml`), fit the law, plan a budget",
    COMMANDS,
    default="run",
)
