"""When a user acts next: the command that learns it, and `predict --when`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Parser, give, given_options, show
from behavegpt.cli.models import load_with_logs, say_unread

COMPARED = ("brier", "calibration_error", "mean")
FIGURES = ("pinball", "median_pinball", "coverage_50", "coverage_90")
SHOWN = 20  # users
DAY = 86400


def when_arguments(parser: Parser) -> None:
    """Options of `predict` about times."""
    parser.add_argument(
        "--when",
        action="store_true",
        help=(
            "predict the time to the next event, with 50%% and 90%% intervals, and the "
            "behaviors within a horizon; needs `behavegpt when`, or `universal`"
        ),
    )
    parser.add_argument(
        "--within", metavar="SPAN", help="horizon for --when: 7d (the default), '36 hours'"
    )
    parser.add_argument(
        "--now",
        metavar="TIME",
        help=(
            "current time for --when; later events are ignored (default: each user's last event)"
        ),
    )


# options of `predict` that change which behaviors it lists
_WITHOUT = (
    *("prior_correction", "thresholds", "at", "location_now", "save", "explain"),
    *("among", "exclude", "exclude_seen", "per_group", "next"),
)


def tell_when(arguments: Arguments) -> Any:
    """`predict --when`. Raises ConfigError for options that it does not know."""
    from behavegpt.errors import ConfigError

    if not arguments.when:
        raise ConfigError("--within and --now need --when; add it, or remove them.")
    for name in _WITHOUT:
        if getattr(arguments, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} cannot be combined with --when; remove one of them."
            )

    given = given_options(arguments, ("within", "now"))
    predictor, logs = load_with_logs(arguments)
    times = predictor.when(logs, top_k=arguments.top_k, **given)
    say_unread(times.unknown, times.rejected)

    result = give(arguments, times, horizon_s=times.horizon)
    if result is not None:
        return result

    rows = times.to_table()
    cells = []
    for row in rows.slice(0, SHOWN * times.labels.shape[1]).to_pylist():
        spans = [_span(row[f"{name}_s"]) for name in ("earliest_90", "median", "latest_90")]
        chances = [f"{row[name]:.4f}" for name in ("any_within", "within")]
        cells.append([row["user"], *spans, chances[0], row["behavior"], chances[1]])

    span = _span(times.horizon)
    columns = ("user", "5%", "median", "95%", f"any in {span}", "behavior", f"in {span}")
    show(arguments, columns, cells)
    return None


def _span(seconds: float | None) -> str:
    """Seconds in words; None: longer than any gap of training."""
    # no quantile is known there: the longest gaps of training ended below it
    if seconds is None:
        return "beyond training"
    for unit, size in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _when_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder; timing.json is written into it")
    parser.add_argument(
        "data", type=Path, help="prepared folder: training fits, validation calibrates"
    )
    parser.add_argument("--within", metavar="SPAN", help="horizon for the evaluation (default 7d)")


def _when(arguments: Arguments) -> Any:
    from behavegpt.config import check_settings
    from behavegpt.console import say
    from behavegpt.data.baskets import refuse_baskets
    from behavegpt.data.reencode import fit_store
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.locks import lock
    from behavegpt.option_types import span_seconds
    from behavegpt.options import WhenOptions
    from behavegpt.shipped import is_universal, shipped_folder
    from behavegpt.timing.evaluate import evaluate_gaps, evaluate_within
    from behavegpt.timing.files import FILE, save_gaps
    from behavegpt.timing.fit import fit_gaps
    from behavegpt.trained_folder import load, model_folder

    # before the model and the data are opened: a mistyped span costs nothing
    given = given_options(arguments, ("within",))
    seconds = span_seconds(check_settings(WhenOptions, given, "when").within)
    if is_universal(arguments.model):
        raise ConfigError(
            f"{arguments.model} learns times from the log that it counts; run: behavegpt "
            f"predict {arguments.model} LOG --when"
        )
    if shipped_folder(arguments.model):
        raise ConfigError(
            f"{arguments.model} is part of the package, which is read-only; copy its "
            "folder (see `behavegpt models`) and run this on the copy."
        )

    folder = model_folder(arguments.model)
    predictor = load(folder)
    tokenizer = predictor.tokenizer
    refuse_baskets(tokenizer.event_schema, "when")
    # the model's ids: its gaps are learned by its behaviors
    store = fit_store(open_store(arguments.data), tokenizer)
    with lock(folder / FILE):
        gaps = fit_gaps(store)
        save_gaps(gaps, tokenizer, folder)

    # what a model is given of the next event is not known before it comes
    following = None if predictor.given else predictor.shares
    figures = {
        "gaps": evaluate_gaps(gaps, store),
        "within": evaluate_within(gaps, store, seconds, following),
    }
    _show_figures(arguments, figures)
    say(f"written: {folder / FILE}; use it with predict --when")
    return {"out": str(folder / FILE), "learned": gaps.facts, **figures}


def _show_figures(arguments: Arguments, figures: dict[str, Any]) -> None:
    titles = {
        "gaps": f"{figures['gaps']['moments']:,} moments; pinball loss of log seconds",
        "within": f"{figures['within']['users']:,} users; each behavior within "
        f"{_span(figures['within']['seconds'])}",
    }
    for kind, names in (("gaps", FIGURES), ("within", COMPARED)):
        rows = [
            [name, *(f"{found[figure]:.5f}" for figure in names)]
            for name, found in figures[kind]["models"].items()
        ]
        show(arguments, ("test", *names), rows, titles[kind])


COMMANDS: dict[str, Command] = {
    "when": Command(
        "learn when users act next, from the gaps between events in a prepared folder",
        "  behavegpt when runs/mine/model data/mine\n"
        "  behavegpt predict runs/mine/model new_logs.csv --when --within 7d",
        _when_arguments,
        _when,
    ),
}
