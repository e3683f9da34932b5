"""Commands that ask a model about the users of a log: predict, embed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import TABLES, Arguments, Command, Output, Parser, give, show
from behavegpt.cli.decision import decision_arguments
from behavegpt.cli.filters import filter_arguments, read_filters
from behavegpt.cli.generate import tell_next
from behavegpt.cli.label import predict_labels
from behavegpt.cli.models import load_with_logs, log_arguments, say_unread
from behavegpt.cli.when import tell_when, when_arguments

if TYPE_CHECKING:
    from behavegpt.predictions import Predictions


def _predict_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        help="model folder; or `universal`, which needs no training and counts these logs",
    )
    parser.add_argument(
        "logs",
        nargs="*",
        help="log files with the training log's columns; any log with `universal`",
    )
    parser.add_argument(
        "--top-k", type=int, default=5, help="behaviors per user (default 5; at most all)"
    )
    decision_arguments(parser)
    filter_arguments(parser)
    _moment_arguments(parser)
    parser.add_argument(
        "--out", type=Path, help="parquet, CSV or JSONL file (default: print the first users)"
    )
    parser.add_argument(
        "--explain",
        nargs="?",
        const=16,
        type=int,
        metavar="N",
        help=(
            "explain each user's top behavior: which counts, and which of the last N events, "
            "carried it (default 16, at most 64)"
        ),
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="universal only: save count tables and user states; FOLDER is a model",
    )
    log_arguments(parser)


def _moment_arguments(parser: Parser) -> None:
    """Of when and where the next behavior is asked, and how many of them."""
    parser.add_argument(
        "--at",
        metavar="TIME",
        help=(
            "predict what happens at this time: '2026-11-28 18:30', local time in the log's "
            "zone; only its weekday and time slot matter. For `universal` and for models "
            "trained with model.given. With a label head: ignore events from this time on"
        ),
    )
    parser.add_argument(
        "--location-now", metavar="PLACE", help="predict what happens at this place, likewise"
    )
    when_arguments(parser)
    parser.add_argument(
        "--next",
        type=int,
        metavar="K",
        help=(
            "the next K events as a sequence with times: each time the most probable "
            "behavior, after the user's median gap; for random futures use `behavegpt "
            "generate`"
        ),
    )


def _predict(arguments: Arguments) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.errors import ConfigError
    from behavegpt.labeling.folder import holds_label_model

    # a folder says itself what is asked of it; `--task` would be one word more to get wrong
    if holds_label_model(arguments.model):
        return predict_labels(arguments)
    if arguments.when or arguments.within or arguments.now:
        return tell_when(arguments)
    if arguments.next is not None:
        return tell_next(arguments)

    filters = read_filters(arguments)
    predictor, logs = load_with_logs(arguments)
    save = getattr(predictor, "save", None)  # trained models keep nothing of the logs
    if arguments.save and save is None:
        raise ConfigError(
            f"--save is for the universal model's tables; {arguments.model} is a trained model."
        )

    # an answer of its own: probabilities are those of the top behavior alone
    if arguments.explain is not None:
        return _explain(arguments, predictor, logs, filters)

    with progress("predict", 100) as advance:
        predictions = predictor.predict(
            logs,
            arguments.top_k,
            prior_correction=arguments.prior_correction,
            thresholds=arguments.thresholds,
            on_user=lambda done, of: advance(100 * done // of, f"% of {of:,} users"),
            at=arguments.at,
            location=arguments.location_now,
            **filters,
        )

    say_unread(predictions.unknown, predictions.rejected)
    if predictions.empty:
        say(f"no behavior passes the filters for {predictions.empty:,} users; they are left out")
    if arguments.save and save:
        say(f"written: {save(arguments.save)} (tables and states)")

    return _given_or_shown(arguments, predictions)


def _given_or_shown(arguments: Arguments, predictions: Predictions) -> Any:
    """What the command gives; None once the first users were shown."""
    facts = {name: getattr(predictions, name) for name in ("unknown", "rejected", "empty")}
    given = give(arguments, predictions, **facts)
    if given is not None:
        return given

    rows = predictions.to_table()
    # the first 20 users, with all their ranks
    shown = rows.slice(0, 20 * predictions.labels.shape[1]).to_pylist()
    # four digits: more say nothing, and fewer make rare behaviors equal
    texts = [row | {"probability": f"{row['probability']:.4f}"} for row in shown]
    show(arguments, rows.column_names, [list(map(str, row.values())) for row in texts])
    return None


def _explain(arguments: Arguments, predictor: Any, logs: Any, filters: Mapping[str, Any]) -> Any:
    from behavegpt.errors import ConfigError

    if arguments.save:
        raise ConfigError("--explain and --save cannot be combined; run predict twice.")
    found = predictor.explain(
        logs,
        arguments.explain,
        prior_correction=arguments.prior_correction,
        thresholds=arguments.thresholds,
        at=arguments.at,
        location=arguments.location_now,
        **filters,
    )
    given = give(arguments, found)
    if given is not None:
        return given

    rows = found.to_table()
    names = ("user", "behavior", "probability", "because")
    texts = [row | {"probability": f"{row['probability']:.4f}"} for row in rows[:20].to_pylist()]
    show(arguments, names, [[row[name] for name in names] for row in texts])
    return None


def _embed_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder; or `universal`, which counts these logs"
    )
    parser.add_argument(
        "logs",
        nargs="*",
        help="log files with the training log's columns; any log with `universal`",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="parquet file with the columns user and vector"
    )
    log_arguments(parser)


def _embed(arguments: Arguments) -> Any:
    from behavegpt.data.store import write_table

    predictor, logs = load_with_logs(arguments)
    # float32 as computed; `export` writes float16 and is made for millions of users
    embedded = predictor.embed(logs)
    users, width = embedded.vectors.shape
    write_table(embedded.to_table(), arguments.out)
    print(f"{users:,} users x {width}, written: {arguments.out}", file=sys.stderr)
    return {"users": users, "width": width, "out": str(arguments.out)}


COMMANDS: dict[str, Command] = {
    "predict": Command(
        "predict the most probable next behaviors of each user in a log",
        "  behavegpt predict runs/mine/model new_logs.parquet --top-k 5 --out predictions.parquet\n"
        "  behavegpt predict runs/mine/model new_logs.csv --json\n"
        "  behavegpt predict runs/mine/model new_logs.csv --when --within 7d\n"
        "  behavegpt predict runs/mine/model new_logs.csv --next 3   # a sequence, with times\n"
        "  behavegpt predict universal my_logs.csv                  # without training\n"
        "  behavegpt predict demo shop.parquet                      # a model that ships; see "
        "`behavegpt models`\n"
        "  behavegpt predict universal my_logs.csv --at '2026-11-28 18:30'   # what then?\n"
        "  behavegpt predict universal my_logs.csv --explain                 # and why?\n"
        "  behavegpt predict universal shop.csv --exclude-seen --exclude @sold_out.txt\n"
        "  behavegpt predict universal my_logs.csv --save counted   # then: behavegpt serve "
        "counted",
        _predict_arguments,
        _predict,
        {"out": Output("file", TABLES), "save": Output("whole")},
    ),
    "embed": Command(
        "compute a vector for each user in a log",
        "  behavegpt embed runs/mine/model new_logs.parquet --out vectors.parquet\n"
        "  behavegpt embed universal my_logs.csv --out vectors.parquet",
        _embed_arguments,
        _embed,
        {"out": Output("file", (".parquet", ".jsonl", ".ndjson"))},  # CSV has no lists
    ),
}
