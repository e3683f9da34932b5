"""`finetune --mode label`, and `predict` by a model with a label head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import Arguments, Parser, give, named_logs, show
from behavegpt.cli.probe import figure_cells

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor
    from behavegpt.probing.result import ProbeResult

MODE = "label"
SHOWN = 20  # users
_OPTIONS = ("labels", "at", "label", "label_user", "users")
# options of `predict` that choose between behaviors
_WITHOUT = (
    *("prior_correction", "thresholds", "location_now", "save", "when", "within", "now", "next"),
    *("explain", "among", "exclude", "exclude_seen", "per_group"),
)


def label_arguments(parser: Parser) -> None:
    """Options of `finetune --mode label`."""
    group = parser.add_argument_group("options of --mode label, for a user label such as churn")
    group.add_argument(
        "--labels",
        type=Path,
        metavar="TABLE",
        help="CSV, JSONL or parquet file with one row per user",
    )
    group.add_argument("--at", metavar="DATE", help="use only events before it, as in `probe`")
    group.add_argument(
        "--label", metavar="COLUMN", help="label column (default: the only other column)"
    )
    group.add_argument(
        "--label-user",
        metavar="COLUMN",
        help="user column of the labels file (default: named as in the log)",
    )
    group.add_argument(
        "--users",
        metavar="TABLE",
        help="user table, one row per user; for models whose data were prepared with --users",
    )


def refuse_label_options(arguments: Arguments) -> None:
    """Raise ConfigError for options of the mode without it."""
    from behavegpt.errors import ConfigError

    for name in _OPTIONS:
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} is an option of --mode label; add --mode "
                "label, or remove the option."
            )


def finetune_label_command(arguments: Arguments) -> Any:
    """`finetune MODEL LOG ... --mode label`. Raises ConfigError for what is missing."""
    from behavegpt.config import read_settings
    from behavegpt.console import progress, say
    from behavegpt.labeling.run import BESIDE, finetune_label
    from behavegpt.labeling.settings import LabelSettings

    logs, out, words = _split_words(arguments)
    settings = read_settings(LabelSettings, None, words)
    # fits: each fold's network, the one of all users, and the probes beside them
    total = settings.folds * settings.seeds + 1 + 2 * len(BESIDE) * bool(settings.seeds)
    with progress("fine-tune", total) as advance:
        finished = 0

        def step(name: str) -> None:
            nonlocal finished
            finished += 1
            # a probe more than was thought of must not end the work
            advance(min(finished, total), name)

        result = finetune_label(
            _base(arguments),
            named_logs(arguments, logs),
            arguments.labels,
            arguments.at,
            out,
            label=arguments.label,
            label_user=arguments.label_user,
            step=step,
            **settings.model_dump(),
        )
    _tell(arguments, result)
    say(f"model: {Path(out) / 'model'}; predict with it: behavegpt predict {out} LOG")
    return result.to_dict()


def _base(arguments: Arguments) -> str | Predictor:
    """The model that is fine-tuned, with what is known of its users."""
    from behavegpt.cli.models import refuse_users
    from behavegpt.shipped import is_universal
    from behavegpt.trained_folder import load

    model: str = arguments.config
    if not arguments.users:
        return model
    if is_universal(model):
        arguments.model = model
        refuse_users(arguments)
    return load(model).with_features(arguments.users)


def _split_words(arguments: Arguments) -> tuple[list[str], str, list[str]]:
    """Logs, the run's folder and settings, which come in one list. Raises ConfigError for what is
    missing."""
    from behavegpt.errors import ConfigError

    # a file may have `=` in its name
    logs = [word for word in arguments.overrides if "=" not in word or Path(word).exists()]
    words = [word for word in arguments.overrides if word not in logs]
    outs = [word.partition("=")[2] for word in words if word.startswith("out=")]
    # argparse cannot ask for them: the other modes do without
    needed = {
        "LOG, behind the model": logs,
        "--labels TABLE": arguments.labels,
        "--at DATE": arguments.at,
        "out=RUN": outs,
    }
    for name, given in needed.items():
        if not given:
            raise ConfigError(f"finetune --mode label: {name} is missing; add it.")
    if arguments.resume:
        raise ConfigError(
            "--resume does not work with --mode label, which takes minutes; start it again."
        )
    # the last one given, as for every other setting
    return logs, outs[-1], [word for word in words if not word.startswith("out=")]


def _tell(arguments: Arguments, result: ProbeResult) -> None:
    from behavegpt.console import say

    facts = result.facts
    say(f"{facts['users']:,} labeled users with events before {facts['at']}")
    if facts["trained_on_later_events"]:
        say(
            "warning: the model was trained on events after --at, so it may have seen "
            "what it is to predict; choose a later date."
        )
    if result.scores.rows:
        metrics = result.metrics
        rows = figure_cells(result.scores.rows, metrics, lambda row: (row.features,))
        show(arguments, ("features", "by", *metrics), rows, f"predicting {facts['label']}")
        rows = figure_cells(result.differences.rows, metrics, lambda row: (row.against or "",), "+")
        title = "label head minus, fold by fold"
        show(arguments, ("features", "by", *metrics), rows, title)


def predict_labels(arguments: Arguments) -> Any:
    """`predict` by a model with a label head. Raises ConfigError for options about behaviors."""
    from behavegpt.errors import ConfigError
    from behavegpt.labeling.predictor import load_label

    for name in _WITHOUT:
        if getattr(arguments, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is about behaviors, but {arguments.model} "
                "predicts a user label; remove the option."
            )
    if not arguments.logs:
        raise ConfigError(f"predict {arguments.model}: add the log files after the model.")

    from behavegpt.cli.models import log_changes, say_unread

    model = load_label(arguments.model).reading(log_changes(arguments))
    if arguments.users:
        model = model.with_features(arguments.users)
    said = model.predict(named_logs(arguments, arguments.logs), at=arguments.at)
    say_unread(said.unknown, said.rejected)
    given = give(arguments, said)
    if given is not None:
        return given

    rows = said.to_table()
    cells = [list(map(_text, row.values())) for row in rows.slice(0, SHOWN).to_pylist()]
    show(arguments, rows.column_names, cells)
    return None


def _text(value: Any) -> str:
    # probabilities and regressed values alike
    return f"{value:.4f}" if isinstance(value, float) else str(value)
