"""The options of a model's decision rule, and `thresholds`, which learns one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Parser, given_options, show

FIGURES = ("rec_w", "rec_m", "f1_w", "f1_m")


def decision_arguments(parser: Parser) -> None:
    """`--prior-correction` and `--thresholds`."""
    parser.add_argument(
        "--prior-correction", type=float, default=0.0, help="subtract TAU * log(training frequency)"
    )
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="subtract the model's own thresholds instead; `behavegpt thresholds` learns them",
    )


def _thresholds_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder, which gets thresholds.json")
    parser.add_argument("data", type=Path, help="prepared folder, of which validation is read")
    parser.add_argument(
        "--objective", help="rec_m, macro recall (the default), or f1_m, macro F1: what is lifted"
    )
    parser.add_argument(
        "--keep", type=float, help="least share of weighted recall that must stay (default .99)"
    )
    parser.add_argument(
        "--min-targets",
        type=int,
        help="validation targets below which a class shares its move with others (default 20)",
    )


def _thresholds(arguments: Arguments) -> Any:
    from behavegpt.config import check_settings
    from behavegpt.console import say
    from behavegpt.data.reencode import fit_store
    from behavegpt.data.store import open_store
    from behavegpt.decision import FILE, learn_thresholds, save_thresholds
    from behavegpt.errors import ConfigError
    from behavegpt.locks import lock
    from behavegpt.shipped import is_universal, shipped_folder
    from behavegpt.trained_folder import load, model_folder
    from behavegpt.training.settings import DecisionSettings
    from behavegpt.zero_shot import NO_THRESHOLDS

    given = given_options(arguments, ("objective", "keep", "min_targets"))
    settings = check_settings(DecisionSettings, given, "thresholds")
    if is_universal(arguments.model):
        raise ConfigError(NO_THRESHOLDS)
    if shipped_folder(arguments.model):
        raise ConfigError(
            f"{arguments.model} lies in the package, where nothing is written; copy its folder "
            "(`behavegpt models` names it) and learn thresholds there."
        )
    folder = model_folder(arguments.model)
    predictor = load(folder)
    store = fit_store(open_store(arguments.data), predictor.tokenizer)

    with lock(folder / FILE):
        thresholds = learn_thresholds(predictor.model, store, settings)
        save_thresholds(thresholds, predictor.tokenizer, folder)

    facts = thresholds.facts
    if facts["weight"] is None:
        say("no thresholds did better on the half of the users they were not learned on: all are 0")

    rows = []
    for name, figures in facts["validation"].items():
        rows.append([name.replace("_", " "), *(f"{figures[figure]:.4f}" for figure in FIGURES)])

    show(
        arguments,
        ("validation", *FIGURES),
        rows,
        f"{facts['rows']:,} rows; cross-fitted: learned on one half of the users, scored on "
        "the other",
    )

    say(f"written: {folder / FILE}; use them with --thresholds")
    return {"out": str(folder / FILE), **facts}


COMMANDS: dict[str, Command] = {
    "thresholds": Command(
        "learn thresholds of the classes on the validation split, to lift macro recall or macro F1",
        "  behavegpt thresholds runs/mine/model data/mine\n"
        "  behavegpt thresholds runs/mine/model data/mine --objective f1_m --keep 1\n"
        "  behavegpt evaluate runs/mine/model data/mine --thresholds",
        _thresholds_arguments,
        _thresholds,
    ),
}
