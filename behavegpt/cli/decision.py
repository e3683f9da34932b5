"""The options of a model's decision rule, and `thresholds`, which learns one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Parser, given_options, show

FIGURES = ("rec_w", "rec_m", "f1_w", "f1_m")


def decision_arguments(parser: Parser) -> None:
    """`--prior-correction` and `--thresholds`."""
    parser.add_argument(
        "--prior-correction",
        type=float,
        default=0.0,
        metavar="TAU",
        help="subtract TAU * log(training frequency) from the logits, to favor rare behaviors",
    )
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="subtract the thresholds that `behavegpt thresholds` has learned instead",
    )


def _thresholds_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder; thresholds.json is written into it")
    parser.add_argument("data", type=Path, help="prepared folder; its validation split is used")
    parser.add_argument(
        "--objective", help="what to maximize: rec_m (macro recall, the default) or f1_m (macro F1)"
    )
    parser.add_argument(
        "--keep", type=float, help="share of the weighted recall to preserve (default .99)"
    )
    parser.add_argument(
        "--min-targets",
        type=int,
        help="classes with fewer validation targets share one threshold (default 20)",
    )


def _thresholds(arguments: Arguments) -> Any:
    from behavegpt.config import check_settings
    from behavegpt.console import say
    from behavegpt.data.reencode import fit_store
    from behavegpt.data.store import open_store
    from behavegpt.decision import FILE, learn_thresholds, save_thresholds
    from behavegpt.locks import lock
    from behavegpt.trained_folder import load
    from behavegpt.training.settings import DecisionSettings

    given = given_options(arguments, ("objective", "keep", "min_targets"))

    settings = check_settings(DecisionSettings, given, "thresholds")
    folder = _folder_to_write(arguments.model)
    predictor = load(folder)
    # thresholds belong to the model's classes, whatever the folder's vocabulary is
    store = fit_store(open_store(arguments.data), predictor.tokenizer)

    with lock(folder / FILE):
        thresholds = learn_thresholds(predictor.model, store, settings)
        save_thresholds(thresholds, predictor.tokenizer, folder)

    facts = thresholds.facts
    if facts["weight"] is None:
        # cross-fitting has told: what helps on the users it was learned on may do harm on others
        say("no thresholds helped on the users that they were not learned on, so all are 0")

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


def _folder_to_write(model: Path) -> Path:
    """The folder of a model of one's own. Raises ConfigError for those of the package."""
    from behavegpt.errors import ConfigError
    from behavegpt.shipped import is_universal, shipped_folder
    from behavegpt.trained_folder import model_folder
    from behavegpt.zero_shot import NO_THRESHOLDS

    if is_universal(model):
        raise ConfigError(NO_THRESHOLDS)
    # an upgrade would silently take the thresholds away again
    if shipped_folder(model):
        raise ConfigError(
            f"{model} is part of the package, which is read-only; copy its "
            "folder (see `behavegpt models`) and run this on the copy."
        )
    return model_folder(model)


COMMANDS: dict[str, Command] = {
    "thresholds": Command(
        "learn per-class thresholds on the validation split, to raise macro recall or macro F1",
        "  behavegpt thresholds runs/mine/model data/mine\n"
        "  behavegpt thresholds runs/mine/model data/mine --objective f1_m --keep 1\n"
        "  behavegpt evaluate runs/mine/model data/mine --thresholds",
        _thresholds_arguments,
        _thresholds,
    ),
}
