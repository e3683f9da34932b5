"""Commands that use a trained model: evaluate, predict, embed, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import TABLES, Arguments, Command, Output, Parser, show
from behavegpt.cli.models import load_trained, load_with_logs, log_arguments

if TYPE_CHECKING:
    from behavegpt.predictor import Predictor
    from behavegpt.zero_shot import UniversalPredictor


def _decision_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--prior-correction", type=float, default=0.0, help="subtract TAU * log(training frequency)"
    )
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="subtract the model's own thresholds instead; `behavegpt thresholds` learns them",
    )


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder, for example runs/demo/model; or `universal`"
    )
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument(
        "--out",
        type=Path,
        help=(
            "metrics file; more results go beside it (default: eval/metrics.json beside the model "
            "folder)"
        ),
    )
    parser.add_argument(
        "--split", choices=("valid", "test"), default="test", help="which events to predict"
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also the count baselines, on the same rows"
    )
    _decision_arguments(parser)


def _evaluate(arguments: Arguments) -> Any:
    from contextlib import nullcontext

    import torch
    from accelerate import PartialState

    from behavegpt.data.store import open_store
    from behavegpt.evaluation import compare, metrics_table
    from behavegpt.io import check_output, lock
    from behavegpt.predictor import load, model_folder
    from behavegpt.training.ranks import tell_ranks
    from behavegpt.zero_shot import is_universal

    if is_universal(arguments.model):
        return _evaluate_universal(arguments)
    name = "metrics.json" if arguments.split == "test" else f"metrics.{arguments.split}.json"
    out = arguments.out or model_folder(arguments.model).parent / "eval" / name
    state = PartialState(cpu=not torch.cuda.is_available())
    tell_ranks(state)
    check_output(out, "file")
    with lock(out) if state.is_main_process else nullcontext():
        result = compare(
            load(arguments.model, state.device),
            open_store(arguments.data),
            out,
            split=arguments.split,
            baselines=arguments.baselines,
            prior_correction=arguments.prior_correction,
            thresholds=arguments.thresholds,
            rank=state.process_index,
            world=state.num_processes,
        )
    if not state.is_main_process:
        return None
    show(arguments, *metrics_table(result))
    print(
        f"written: {out}; beside it per_behavior.csv, confusion.json, examples.json",
        file=sys.stderr,
    )
    return result


def _evaluate_universal(arguments: Arguments) -> Any:
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.evaluate_universal import evaluate_universal
    from behavegpt.evaluation import metrics_table
    from behavegpt.io import check_output, lock
    from behavegpt.zero_shot import load_zero_shot

    if arguments.prior_correction or arguments.thresholds:
        raise ConfigError(
            "--prior-correction and --thresholds are for trained models; leave them out with "
            "`universal`."
        )
    name = "universal.json" if arguments.split == "test" else f"universal.{arguments.split}.json"
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
        )
    show(arguments, *metrics_table(result))
    print(f"written: {out}", file=sys.stderr)
    return result


def _predict_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder; or `universal`: no training, tables from these logs"
    )
    parser.add_argument(
        "logs", nargs="*", help="files with the training log's columns; any log with `universal`"
    )
    parser.add_argument("--top-k", type=int, default=5, help="behaviors for each user")
    _decision_arguments(parser)
    parser.add_argument(
        "--out", type=Path, help="parquet, CSV or JSONL file (default: print the first users)"
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="of `universal`: keep tables and users' states; FOLDER is a model",
    )
    log_arguments(parser)


def _predict(arguments: Arguments) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.data.store import write_table
    from behavegpt.errors import ConfigError

    predictor, logs = load_with_logs(arguments)
    save = getattr(predictor, "save", None)
    if arguments.save and save is None:
        raise ConfigError(
            f"--save keeps what the universal model counted; {arguments.model} is a trained model."
        )
    with progress("predict", 100) as advance:
        found = predictor.predict(
            logs,
            arguments.top_k,
            arguments.prior_correction,
            thresholds=arguments.thresholds,
            on_user=lambda done, of: advance(100 * done // of, f"% of {of:,} users"),
        )
    for what, counted in (("unknown labels", found.unknown), ("rows left out", found.rejected)):
        for name, number in counted.items():
            if number:
                say(f"{what}: {name}: {number:,}")
    if arguments.save and save:
        say(f"tables and states, written: {save(arguments.save)}")
    rows = found.to_table()
    if arguments.out:
        write_table(rows, arguments.out)
        say(f"{len(found):,} users, written: {arguments.out}")
        return {
            "users": len(found),
            "out": str(arguments.out),
            "unknown": found.unknown,
            "rejected": found.rejected,
        }
    if arguments.json:
        return rows.to_pylist()
    shown = rows.slice(0, 20 * found.labels.shape[1]).to_pylist()
    show(
        arguments,
        ("user", "rank", "behavior", "probability"),
        [[r["user"], str(r["rank"]), r["behavior"], f"{r['probability']:.4f}"] for r in shown],
    )
    return None


def _embed_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder; or `universal`: tables from these logs"
    )
    parser.add_argument(
        "logs", nargs="*", help="files with the training log's columns; any log with `universal`"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="parquet file with the columns user and vector"
    )
    log_arguments(parser)


def _embed(arguments: Arguments) -> Any:
    from behavegpt.data.store import write_table

    predictor, logs = load_with_logs(arguments)
    found = predictor.embed(logs)
    width = found.vectors.shape[1]
    write_table(found.to_table(), arguments.out)
    print(f"{len(found.users):,} users x {width}, written: {arguments.out}", file=sys.stderr)
    return {"users": len(found.users), "width": width, "out": str(arguments.out)}


def _generate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", type=Path, help="model folder; or `universal`: tables from these logs"
    )
    parser.add_argument(
        "logs", nargs="*", help="each user's history: files with the training log's columns"
    )
    parser.add_argument(
        "--out", type=Path, help="parquet, CSV or JSONL file (default: print the first events)"
    )
    parser.add_argument(
        "--steps", type=int, help="events for each user (default 50; with --until, at most 10,000)"
    )
    parser.add_argument(
        "--until", help="stop this long after each user's last event, for example '2 days'"
    )
    parser.add_argument("--samples", type=int, help="futures for each user (default 1)")
    parser.add_argument(
        "--temperature", type=float, help="below 1: closer to the most probable; 0: only those"
    )
    parser.add_argument(
        "--top-p", type=float, help="draw from the smallest set of this probability (default 1)"
    )
    parser.add_argument("--seed", type=int, help="same seed, same futures (default 0)")
    parser.add_argument(
        "--policy",
        nargs="+",
        default=[],
        metavar="[time=|place=]NAME",
        help="where times and places come from: head, observed (random own ones) or typical (own "
        "median gap, most frequent place); default: the model's heads, observed where it has none",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="another prepared folder to learn from what goes together, and gaps by the hour",
    )
    parser.add_argument(
        "--probabilities",
        type=int,
        help="also write the N most probable behaviors of each step, beside --out",
    )
    log_arguments(parser)


def _generate(arguments: Arguments) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.data.store import write_table

    predictor, logs = load_with_logs(arguments)
    options = {
        n: getattr(arguments, n)
        for n in ("samples", "temperature", "top_p", "until", "seed", "probabilities")
    }
    if arguments.data:
        options["links"] = _links(predictor, arguments.data)
    with progress("generate", 100) as advance:
        found = predictor.generate(
            logs,
            (10_000 if arguments.until else 50) if arguments.steps is None else arguments.steps,
            on_user=lambda done, of: advance(100 * done // of, f"% of {of:,} futures"),
            **options,
            **_policies(arguments.policy),
        )
    for field, policy in found.policies.items():
        say(f"{field}: {policy}")
    for what, counted in (("unknown labels", found.unknown), ("rows left out", found.rejected)):
        for name, number in counted.items():
            if number:
                say(f"{what}: {name}: {number:,}")
    rows = found.to_table()
    if arguments.out is None:
        if arguments.json:
            return rows.to_pylist()
        shown = rows.slice(0, 20).to_pylist()
        show(
            arguments,
            rows.column_names,
            [["" if v is None else str(v) for v in row.values()] for row in shown],
        )
        return None
    write_table(rows, arguments.out)
    if arguments.probabilities:
        beside = arguments.out.with_name(
            f"{arguments.out.stem}.probabilities{arguments.out.suffix}"
        )
        write_table(found.probabilities_table(), beside)
    say(f"{len(found):,} events of {len(found.users):,} users, written: {arguments.out}")
    return {
        "users": len(found.users),
        "events": len(found),
        "out": str(arguments.out),
        "policies": found.policies,
    }


def _links(predictor: Predictor | UniversalPredictor, data: Path) -> Any:
    from behavegpt.data.reencode import fit_store
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.generation.constraints import learn_links
    from behavegpt.zero_shot import UniversalPredictor

    if isinstance(predictor, UniversalPredictor):
        raise ConfigError(
            "--data is for trained models; the universal model looks at the log itself."
        )
    return learn_links(predictor.model, fit_store(open_store(data), predictor.tokenizer))


def _policies(words: list[str]) -> dict[str, Any]:
    """`observed` for both, or `time=observed place=head`."""
    named: dict[str, Any] = {}
    for word in words:
        field, equals, policy = word.rpartition("=")
        named |= {field: policy} if equals else {"time": policy, "place": policy}
    return named


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument(
        "events", nargs="+", help="prepared folder, or files with the training log's columns"
    )
    parser.add_argument(
        "out", type=Path, help="folder to write: client_ids.npy, embeddings.npy, export.json"
    )
    parser.add_argument(
        "--pool", metavar="PART+PART", help="parts of a vector (default last+mean), see below"
    )
    parser.add_argument("--half-life", type=float, help="days, for the decayed parts (default 7)")
    parser.add_argument("--scale", choices=("standard", "unit", "none"), help="default: standard")
    parser.add_argument(
        "--clients", type=Path, metavar="NPY", help="whose vectors, in which order (default: all)"
    )
    parser.add_argument(
        "--fill", choices=("mean", "zeros", "empty-history"), help="clients without events"
    )
    parser.add_argument("--dtype", choices=("float16", "float32"), help="default: float16")
    parser.add_argument(
        "--block-users",
        type=int,
        help="users at a time, kept when the run is killed (default 8192)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    log_arguments(parser)


def _export(arguments: Arguments) -> Any:
    import datetime

    import torch
    from accelerate import PartialState

    from behavegpt.config import check_settings
    from behavegpt.console import progress, say
    from behavegpt.embeddings.export import ExportSettings, export
    from behavegpt.training.ranks import tell_ranks
    from behavegpt.user_embeddings import open_array

    names = ("pool", "half_life", "scale", "fill", "dtype", "block_users")
    given = {
        name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None
    }
    if "pool" in given:
        given["pool"] = given["pool"].split("+")
    settings = check_settings(ExportSettings, given, "export")
    # one process may prepare or assemble for hours while the others wait
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(days=7))
    tell_ranks(state)
    predictor = load_trained(arguments, state.device)
    with progress("export", 100) as advance:
        facts = export(
            predictor.model,
            predictor.tokenizer,
            arguments.events,
            arguments.out,
            settings,
            encoding=arguments.encoding,
            clients=open_array(arguments.clients) if arguments.clients else None,
            overwrite=arguments.overwrite,
            state=state,
            progress=lambda done, of: advance(100 * done // of, f"% of {of:,} users"),
        )
    if not state.is_main_process:
        return None
    say(f"{facts['vectors']:,} vectors, written: {arguments.out}")
    if facts["missing"]:
        say(
            f"{facts['missing']:,} of them have no events and were filled by the rule "
            f"{settings.fill} (missing.npy)"
        )
    return facts


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "score a model on held-out events, beside simple baselines",
        "  behavegpt evaluate runs/mine/model data/mine --baselines\n"
        "  behavegpt evaluate runs/mine/model data/mine --out metrics.json --prior-correction 0.25",
        _evaluate_arguments,
        _evaluate,
        {"out": Output("file", (".json",))},
    ),
    "predict": Command(
        "the most probable next behaviors of each user of a log",
        "  behavegpt predict runs/mine/model new_logs.parquet --top-k 5 --out predictions.parquet\n"
        "  behavegpt predict runs/mine/model new_logs.csv --json\n"
        "  behavegpt predict universal my_logs.csv                  # without training\n"
        "  behavegpt predict universal my_logs.csv --save counted   # then: behavegpt serve "
        "counted",
        _predict_arguments,
        _predict,
        {"out": Output("file", TABLES), "save": Output("whole")},
    ),
    "embed": Command(
        "a vector for each user of a log",
        "  behavegpt embed runs/mine/model new_logs.parquet --out vectors.parquet\n"
        "  behavegpt embed universal my_logs.csv --out vectors.parquet",
        _embed_arguments,
        _embed,
        {"out": Output("file", (".parquet", ".jsonl", ".ndjson"))},  # CSV has no lists
    ),
    "generate": Command(
        "each user's next events: times, places, events and behaviors",
        "  behavegpt generate runs/mine/model history.parquet --steps 50 --out future.parquet\n"
        "  behavegpt generate runs/mine/model history.parquet --until '2 days' --samples 5 "
        "--top-p .95\n"
        "  behavegpt generate runs/mine/model history.csv --policy observed --temperature 0.8 "
        "--json\n"
        "  behavegpt generate universal my_logs.csv --steps 10",
        _generate_arguments,
        _generate,
        {"out": Output("file", TABLES)},
    ),
    "export": Command(
        "user vectors for millions of users, as an entry to the RecSys Challenge 2025 (also under "
        "accelerate launch)",
        "  behavegpt export runs/mine/model data/mine vectors\n"
        "  behavegpt export runs/mine/model data/mine entry --clients input/relevant_clients.npy "
        "--pool mean+decayed\n"
        "  accelerate launch -m behavegpt.cli export runs/mine/model new_logs.parquet vectors\n"
        "parts: last, mean, decayed: hidden states at the last event, averaged, averaged with "
        "--half-life;\n"
        "bag, recent_bag: averages of the embedded events; behaviors: log-probabilities of the "
        "next behavior.\n"
        "A run that was killed goes on where it was when it is started again.",
        _export_arguments,
        _export,
        {"out": Output("whole")},
    ),
}
