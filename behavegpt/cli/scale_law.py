"""Commands of scaling laws from the rows of sweeps: `scale fit`, `scale plan`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, show

if TYPE_CHECKING:  # --help reads no settings
    from behavegpt.config import S

COUNTS = ("total", "without_embeddings")
# attribute of a fit -> how it is shown
FIGURES = {
    "alpha": "alpha (N)",
    "beta": "beta (D)",
    "L_0": "L_0 (nats)",
    "C_N": "C_N",
    "C_D": "C_D",
    "ratio": "D_opt / N_opt at the largest run",
    "share": "N_opt grows as FLOP **",
}


def checked_options(kind: type[S], arguments: Arguments) -> S:
    """The numbers of the command line that `kind` has. Raises ConfigError."""
    from behavegpt.config import check_settings

    given = {name: getattr(arguments, name) for name in kind.model_fields if name in arguments}
    return check_settings(kind, given, "options")


def device_arguments(parser: Parser, speed: str) -> None:
    """`--tflops`, whose help is `speed`, and the share of it that training reaches."""
    parser.add_argument("--tflops", type=float, help=speed)
    parser.add_argument(
        "--utilization",
        type=float,
        default=0.4,
        help="fraction of --tflops that is achieved (default 0.4)",
    )


def _fit_arguments(parser: Parser) -> None:
    parser.add_argument(
        "rows",
        type=Path,
        nargs="+",
        help="rows.jsonl of sweeps, with params, events and loss",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="fit.json to write, with figures next to it"
    )
    parser.add_argument(
        "--count", choices=COUNTS, default="total", help="which parameters N counts (default total)"
    )
    parser.add_argument(
        "--min-events",
        type=float,
        default=0,
        help="leave out runs with fewer events, which have hardly learned",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=1e-3,
        help="delta of the Huber loss on log residuals (default 1e-3)",
    )
    parser.add_argument("--draws", type=int, default=400, help="bootstrap samples (default 400)")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        help="confidence level of the intervals (default 0.95)",
    )
    parser.add_argument(
        "--floor",
        type=float,
        help="loss of the best possible prediction, if known; drawn in the figures",
    )
    parser.add_argument("--no-plots", action="store_true", help="write only fit.json")
    parser.add_argument(
        "--name",
        help="fit only the runs with this name; others are drawn, not fitted (default: all)",
    )


def _fit(arguments: Arguments) -> Any:
    from behavegpt.errors import DataError
    from behavegpt.options import FitOptions
    from behavegpt.scaling.fit import Bootstrap, fit_rows, write_fit
    from behavegpt.scaling.rows import usable_rows

    checked_options(FitOptions, arguments)

    rows = [
        row
        for row in usable_rows(arguments.rows, arguments.count)
        if row["events"] >= arguments.min_events
    ]
    # rows of other names are drawn beside the law and do not take part in it
    fitted = [row for row in rows if arguments.name in (None, row.get("name"))]
    if not fitted:
        names = ", ".join(sorted({str(row.get("name")) for row in rows}))
        raise DataError(
            f"--name {arguments.name!r}: no such runs with enough events; there are "
            f"{names or 'none'}."
        )

    how = Bootstrap(arguments.draws, arguments.confidence)
    fit = fit_rows(fitted, arguments.count, arguments.delta, how)
    write_fit(fit, arguments.out)
    intervals = {text: getattr(fit, name).model_dump() for name, text in FIGURES.items()}
    _show_intervals(arguments, intervals, ".4g")
    print(
        f"{fit.rows} runs, median error {fit.error:.2%}, {fit.confidence:.0%} intervals, N: "
        f"{fit.count}",
        file=sys.stderr,
    )
    for text in fit.warnings:
        print(f"warning: {text}", file=sys.stderr)

    if not arguments.no_plots:
        from behavegpt.scaling.plots import draw_sweep

        folder = arguments.out.with_name(f"{arguments.out.stem}_figs")
        figures = draw_sweep(rows, fit, folder, arguments.floor)
        print(f"figures: {', '.join(str(path) for path in figures)}", file=sys.stderr)

    # hundreds of refits, which fit.json holds for the figures
    return fit.model_dump(exclude={"draws"})


def _show_intervals(
    arguments: Arguments, intervals: dict[str, dict[str, float]], form: str
) -> None:
    rows = []
    for text, interval in intervals.items():
        rows.append([text, *(format(value, form) for value in interval.values())])
    show(arguments, ("", "value", "low", "high"), rows)


def _plan_arguments(parser: Parser) -> None:
    parser.add_argument("fit", type=Path, metavar="FIT", help="fit.json")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--compute", type=float, metavar="FLOP", help="training compute in FLOP")
    budget.add_argument("--events", type=float, help="available training events, for one pass")
    budget.add_argument("--hours", type=float, help="training time in hours")
    device_arguments(parser, "peak speed of all devices (default: that of the sweep's machine)")


def _plan(arguments: Arguments) -> Any:
    from behavegpt.errors import ConfigError
    from behavegpt.options import PlanOptions
    from behavegpt.scaling import plan
    from behavegpt.scaling.fit import read_fit

    checked_options(PlanOptions, arguments)

    fit = read_fit(arguments.fit)

    if arguments.compute is not None:
        result = plan.plan_compute(fit, arguments.compute)
    elif arguments.events is not None:
        result = plan.plan_events(fit, arguments.events)
    else:
        # without a device: as fast as the sweep's largest run was
        speed = fit.flops_per_second
        if arguments.tflops:
            speed = arguments.tflops * 1e12 * arguments.utilization
        if speed is None:
            raise ConfigError(
                "--hours: the rows do not record their speed; add --tflops (one H200, bf16: 989)."
            )

        result = plan.plan_hours(fit, arguments.hours, speed)

    names = {
        "params": f"parameters ({fit.count})",
        "events": "events",
        "ratio": "events per parameter",
        "loss": "loss",
    }

    _show_intervals(arguments, {text: result[name] for name, text in names.items()}, ",.4g")
    print(f"{result['flops']:.3g} training operations", file=sys.stderr)
    for text in result["warnings"]:
        print(f"warning: {text}", file=sys.stderr)

    return result


COMMANDS: dict[str, Command] = {
    "fit": Command(
        "fit L(N, D) = C_N N^-alpha + C_D D^-beta + L_0 to rows, with intervals and figures",
        "  behavegpt scale fit runs/scaling/rows.jsonl --out runs/scaling/fit.json\n"
        "  behavegpt scale fit a/rows.jsonl b/rows.jsonl --out fit.json --count without_embeddings",
        _fit_arguments,
        _fit,
        {"out": Output("file", (".json",))},
    ),
    "plan": Command(
        "plan model size, events and expected loss for a budget",
        "  behavegpt scale plan --compute 1e18 runs/scaling/fit.json\n"
        "  behavegpt scale plan --events 6e8 runs/scaling/fit.json\n"
        "  behavegpt scale plan --hours 2 runs/scaling/fit.json             # on the machine of "
        "the sweep\n"
        "  behavegpt scale plan --hours 24 --tflops 989 --utilization 0.4 runs/scaling/fit.json",
        _plan_arguments,
        _plan,
    ),
}
