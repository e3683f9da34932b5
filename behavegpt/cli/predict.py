"""Commands that use a trained model: evaluate, predict, embed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from behavegpt.cli.command import TABLES, Arguments, Command, Output, Parser, give, show
from behavegpt.cli.filters import filter_arguments, read_filters
from behavegpt.cli.generate import tell_next
from behavegpt.cli.label import predict_labels
from behavegpt.cli.models import given_argument, load_with_logs, log_arguments, say_unread
from behavegpt.cli.when import tell_when, when_arguments


def _decision_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--prior-correction",
        type=float,
        default=0.0,
        help="subtract TAU * log(training frequency) from the logits, to favor rare behaviors",
    )
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="subtract the thresholds that `behavegpt thresholds` has learned instead",
    )


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder, for example runs/mine/model; or `universal`, `demo`"
    )
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument(
        "--out",
        type=Path,
        help=(
            "metrics file; more results are written next to it (default: "
            "eval/metrics.json next to the model folder)"
        ),
    )
    parser.add_argument(
        "--split",
        choices=("valid", "test"),
        default="test",
        help="which events to predict (default test)",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also evaluate the count baselines, on the same rows",
    )
    _decision_arguments(parser)
    given_argument(parser, "universal only: what is known about the event to predict")


def _evaluate(arguments: Arguments) -> Any:
    from contextlib import nullcontext

    import torch
    from accelerate import PartialState

    from behavegpt.data.loader import Share
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.evaluation import compare, metrics_table
    from behavegpt.locks import lock
    from behavegpt.outputs import check_output
    from behavegpt.predictor import load
    from behavegpt.training.ranks import tell_ranks
    from behavegpt.zero_shot import is_universal

    if is_universal(arguments.model):
        return _evaluate_universal(arguments)
    if arguments.given:
        raise ConfigError(
            "--given is for `universal`; for a trained model, model.given was fixed in training."
        )

    out = arguments.out or _metrics_file(arguments)
    state = PartialState(cpu=not torch.cuda.is_available())
    tell_ranks(state)
    check_output(out, "file")

    # all processes score their share of the rows; one writes the result
    with lock(out) if state.is_main_process else nullcontext():
        result = compare(
            load(arguments.model, state.device),
            open_store(arguments.data),
            out,
            split=arguments.split,
            baselines=arguments.baselines,
            prior_correction=arguments.prior_correction,
            thresholds=arguments.thresholds,
            share=Share(state.process_index, state.num_processes),
        )

    if not state.is_main_process:
        return None

    show(arguments, *metrics_table(result))
    print(
        f"written: {out}, and next to it per_behavior.csv, confusion.json, examples.json",
        file=sys.stderr,
    )
    return result


def _metrics_file(arguments: Arguments) -> Path:
    """Where the figures of a split go by default: beside the model folder."""
    from behavegpt.predictor import model_folder
    from behavegpt.shipped import shipped_folder

    name = "metrics.json" if arguments.split == "test" else f"metrics.{arguments.split}.json"
    if shipped_folder(arguments.model):  # nothing is written into the package
        return Path(arguments.data / "eval" / f"{arguments.model}.{name}")
    return model_folder(arguments.model).parent / "eval" / name


def _evaluate_universal(arguments: Arguments) -> Any:
    from behavegpt.data.given import in_order
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.evaluate_universal import evaluate_universal
    from behavegpt.evaluation import metrics_table
    from behavegpt.locks import lock
    from behavegpt.outputs import check_output
    from behavegpt.zero_shot import load_zero_shot

    if arguments.prior_correction or arguments.thresholds:
        raise ConfigError(
            "--prior-correction and --thresholds are for trained models; remove them "
            "with `universal`."
        )

    given = in_order(arguments.given or ())
    # what is known of the target is in the file's name: other figures, another file
    name = f"universal_given_{'_'.join(given)}" if given else "universal"
    name += ".json" if arguments.split == "test" else f".{arguments.split}.json"
    out = arguments.out or arguments.data / "eval" / name
    check_output(out, "file")
    model = load_zero_shot(arguments.model).model

    with lock(out):
        result = evaluate_universal(
            model,
            open_store(arguments.data),
            out,
            split=arguments.split,
            baselines=arguments.baselines,
            given=given,
        )

    show(arguments, *metrics_table(result))
    print(f"written: {out}", file=sys.stderr)
    return result


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
    parser.add_argument("--top-k", type=int, default=5, help="behaviors per user (default 5)")
    _decision_arguments(parser)
    filter_arguments(parser)
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


def _predict(arguments: Arguments) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.errors import ConfigError
    from behavegpt.labeling.folder import holds_label_model

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

    facts = {name: getattr(predictions, name) for name in ("unknown", "rejected", "empty")}
    given = give(arguments, predictions, **facts)
    if given is not None:
        return given

    rows = predictions.to_table()
    # the first 20 users, with all their ranks
    shown = rows.slice(0, 20 * predictions.labels.shape[1]).to_pylist()
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
    embedded = predictor.embed(logs)
    users, width = embedded.vectors.shape
    write_table(embedded.to_table(), arguments.out)
    print(f"{users:,} users x {width}, written: {arguments.out}", file=sys.stderr)
    return {"users": users, "width": width, "out": str(arguments.out)}


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "evaluate a model on held-out events, next to simple baselines",
        "  behavegpt evaluate runs/mine/model data/mine --baselines\n"
        "  behavegpt evaluate runs/mine/model data/mine --out metrics.json --prior-correction 0.25",
        _evaluate_arguments,
        _evaluate,
        {"out": Output("file", (".json",))},
    ),
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
