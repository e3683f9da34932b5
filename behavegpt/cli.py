"""`behavegpt VERB ...`: a table of verbs. Nothing heavy is imported before a verb runs.

Exit codes: 0 done, 2 a mistake the user can mend (one paragraph on standard error), 1 our bug or a failed check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from behavegpt.errors import BehaveGPTError

Parser = argparse.ArgumentParser
Arguments = argparse.Namespace


class Verb(NamedTuple):
    """One command: what it says of itself, its arguments, and what it runs (returning the JSON for `--json`)."""

    help: str
    examples: str
    arguments: Callable[[Parser], None]
    run: Callable[[Arguments], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    arguments = _parse(argv)
    try:
        result = VERBS[arguments.verb].run(arguments)
    except BehaveGPTError as error:
        if arguments.debug:
            raise
        print(f"behavegpt {arguments.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print(f"\nbehavegpt {arguments.verb}: interrupted; nothing half written was left.", file=sys.stderr)
        return 130
    if arguments.json and result is not None:
        print(json.dumps(result, indent=2, ensure_ascii=False, default=str))
    return 1 if isinstance(result, dict) and result.get("ok") is False else 0


def _parse(argv: Sequence[str] | None) -> Arguments:
    """The arguments; overrides may also stand behind options (`train CONFIG --resume train.lr=1e-4`)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.verb == "train":
        late = [item for item in rest if "=" in item and not item.startswith("-")]
        arguments.overrides += late
        rest = [item for item in rest if item not in late]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> Parser:
    import behavegpt

    parser = Parser(prog="behavegpt", description="Foundation models of user behavior, from event logs.")
    parser.add_argument("--version", action="version", version=f"behavegpt {behavegpt.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.help,
            description=verb.help,
            epilog=f"examples:\n{verb.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


# --- prepare -----------------------------------------------------------------------------------------------------


def _schema_arguments(parser: Parser) -> None:
    parser.add_argument("--schema", type=Path, metavar="YAML", help="EventSchema file instead of the options below")
    for role in ("user", "time", "event", "location", "behavior", "order"):
        parser.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role} (guessed when left out)")
    parser.add_argument("--extra", nargs="*", default=[], metavar="COLUMN", help="further categorical input columns")
    parser.add_argument("--tz", help="IANA zone in which weekday and time slot are told (default UTC)")
    parser.add_argument("--naive-time", choices=("local", "utc"), help="what a time without zone means (default local)")
    parser.add_argument("--time-unit", choices=("s", "ms", "us", "ns"), help="unit of epoch numbers (default: guessed)")
    parser.add_argument("--slot-minutes", type=int, help="length of a time slot (default 30)")


def _prepare_arguments(parser: Parser) -> None:
    parser.add_argument("logs", nargs="+", help="CSV, JSONL or parquet files, globs or folders, or hf:NAME[:SPLIT]")
    parser.add_argument("--out", type=Path, help="folder to write")
    _schema_arguments(parser)
    parser.add_argument(
        "--split",
        default="time:0.7,0.15,0.15",
        help="time:A,B,C shares of the events in time; span:A,B,C of the calendar; date:D1,D2; user:A,B,C",
    )
    parser.add_argument("--min-events", type=int, default=1, help="leave out users with fewer events")
    parser.add_argument("--min-count", type=int, default=1, help="labels seen less often in training become unknown")
    parser.add_argument("--max-vocabulary", type=int, help="keep the most frequent labels of each field")
    parser.add_argument("--max-reject-share", type=float, default=0.01, help="stop above this share of bad rows")
    parser.add_argument("--memory", default="2GiB", help="memory to stay under (default 2GiB)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--dry-run", action="store_true", help="show the guesses and counts, write nothing")


def _given(arguments: Arguments) -> dict[str, Any]:
    names = ("user", "time", "event", "location", "behavior", "order", "tz", "naive_time", "time_unit", "slot_minutes")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return given | ({"extra": tuple(arguments.extra)} if arguments.extra else {})


def _prepare(arguments: Arguments) -> Any:
    from behavegpt.console import say, table
    from behavegpt.data.guess import guess_schema
    from behavegpt.data.prepare import prepare, preview
    from behavegpt.data.schema import read_schema
    from behavegpt.errors import ConfigError

    if arguments.schema:
        if _given(arguments):
            raise ConfigError(
                f"--schema and --{next(iter(_given(arguments)))} together: put it into {arguments.schema}."
            )
        schema = read_schema(arguments.schema)
    else:
        schema, guesses = guess_schema(arguments.logs, _given(arguments))
        rows = [[g.column, g.role or "-", g.type, f"{g.nulls:,}", f"{g.distinct:,}", str(g.example)] for g in guesses]
        table(("column", "role", "type", "nulls", "distinct", "example"), rows, "columns, from up to 100,000 rows")
    if arguments.dry_run:
        seen = preview(
            arguments.logs,
            schema,
            split=arguments.split,
            min_events=arguments.min_events,
            memory=arguments.memory,
        )
        say(f"{seen.rows:,} rows, {seen.users:,} users; events by split: {_counted(seen.split)}")
        say(f"rejected: {_counted(seen.rejected) or 'none'}")
        say("nothing was written; the same with --out FOLDER prepares the data.")
        return {
            "rows": seen.rows,
            "users": seen.users,
            "split": seen.split,
            "rejected": seen.rejected,
            "schema": seen.schema.model_dump(mode="json"),
        }
    if arguments.out is None:
        raise ConfigError("--out FOLDER is needed (or --dry-run to look first).")
    store = prepare(
        arguments.logs,
        arguments.out,
        schema,
        split=arguments.split,
        min_events=arguments.min_events,
        min_count=arguments.min_count,
        max_vocabulary=arguments.max_vocabulary,
        max_reject_share=arguments.max_reject_share,
        memory=arguments.memory,
        overwrite=arguments.overwrite,
        progress=say,
    )
    say(f"{store.manifest.events:,} events of {store.manifest.users:,} users in {arguments.out} (see data_card.md)")
    say(f"next: behavegpt train configs/small.yaml data.path={arguments.out} out=runs/my-run")
    return store.manifest.model_dump(mode="json")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


# --- train, evaluate, predict ------------------------------------------------------------------------------------


def _train_arguments(parser: Parser) -> None:
    parser.add_argument("config", help="YAML file, for example configs/small.yaml")
    parser.add_argument("overrides", nargs="*", help="settings, for example data.path=DIR out=RUN train.lr=3e-4")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of out=RUN")


def _train(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.pretrain import PretrainSettings, pretrain

    run = pretrain(read_settings(PretrainSettings, arguments.config, arguments.overrides), resume=arguments.resume)
    print(f"model: {run / 'model'}", file=sys.stderr)
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def _evaluate_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder, for example runs/demo/model")
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument(
        "--out",
        type=Path,
        help="metrics file; more results go beside it (default: eval/metrics.json beside the model folder)",
    )
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which events to predict")
    parser.add_argument("--baselines", action="store_true", help="also the count baselines, on the same rows")
    parser.add_argument("--prior-correction", type=float, default=0.0, help="subtract TAU * log(training frequency)")


def _evaluate(arguments: Arguments) -> Any:
    import torch
    from accelerate import PartialState

    from behavegpt.compare import compare, metrics_table
    from behavegpt.data.store import open_store
    from behavegpt.predictor import load

    name = "metrics.json" if arguments.split == "test" else f"metrics.{arguments.split}.json"
    out = arguments.out or arguments.model.parent / "eval" / name
    state = PartialState(cpu=not torch.cuda.is_available())
    result = compare(
        load(arguments.model, state.device),
        open_store(arguments.data),
        out,
        split=arguments.split,
        baselines=arguments.baselines,
        prior_correction=arguments.prior_correction,
        rank=state.process_index,
        world=state.num_processes,
    )
    if not state.is_main_process:
        return None
    _show(arguments, *metrics_table(result))
    print(f"written: {out}; beside it per_behavior.csv, confusion.json, examples.json", file=sys.stderr)
    return result


def _show(arguments: Arguments, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A result as a table on standard output, unless JSON was asked for."""
    from behavegpt.console import table

    if not arguments.json:
        table(columns, rows, title, sys.stdout)


def _predict_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("logs", nargs="+", help="files with the training log's columns")
    parser.add_argument("--top-k", type=int, default=5, help="behaviors for each user")
    parser.add_argument("--prior-correction", type=float, default=0.0, help="subtract TAU * log(training frequency)")
    parser.add_argument("--out", type=Path, help="parquet, CSV or JSONL file (default: print the first users)")


def _predict(arguments: Arguments) -> Any:
    from behavegpt.console import progress, say
    from behavegpt.data.store import write_table
    from behavegpt.predictor import load

    predictor = load(arguments.model)
    with progress("predict", 100) as show:
        found = predictor.predict(
            arguments.logs,
            arguments.top_k,
            arguments.prior_correction,
            on_user=lambda done, of: show(100 * done // of, f"% of {of:,} users"),
        )
    for what, counted in (("unknown labels", found.unknown), ("rows left out", found.rejected)):
        for name, number in counted.items():
            if number:
                say(f"{what}: {name}: {number:,}")
    rows = found.to_table()
    if arguments.out:
        write_table(rows, arguments.out)
        say(f"{len(found):,} users, written: {arguments.out}")
        return {"users": len(found), "out": str(arguments.out), "unknown": found.unknown, "rejected": found.rejected}
    if arguments.json:
        return rows.to_pylist()
    shown = rows.slice(0, 20 * found.labels.shape[1]).to_pylist()
    _show(
        arguments,
        ("user", "rank", "behavior", "probability"),
        [[r["user"], str(r["rank"]), r["behavior"], f"{r['probability']:.4f}"] for r in shown],
    )
    return None


def _embed_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("logs", nargs="+", help="files with the training log's columns")
    parser.add_argument("--out", type=Path, required=True, help="parquet file with the columns user and vector")


def _embed(arguments: Arguments) -> Any:
    import pyarrow as pa

    from behavegpt.data.store import write_table
    from behavegpt.predictor import load

    found = load(arguments.model).embed(arguments.logs)
    width = found.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.vectors.ravel()), width)
    write_table(pa.table({"user": found.users, "vector": vectors}), arguments.out)
    print(f"{len(found.users):,} users x {width}, written: {arguments.out}", file=sys.stderr)
    return {"users": len(found.users), "width": width, "out": str(arguments.out)}


# --- the rest ----------------------------------------------------------------------------------------------------


def _report_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder with log.jsonl and eval/metrics.json")


def _report(arguments: Arguments) -> Any:
    from behavegpt.report import write_model_card, write_report

    report = write_report(arguments.run)
    write_model_card(arguments.run)
    print(f"written: {report}", file=sys.stderr)
    return {"report": str(report)}


def _info_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")


def _info(arguments: Arguments) -> Any:
    from behavegpt.doctor import describe_model

    return _shown(arguments, describe_model(arguments.model))


def _doctor_arguments(parser: Parser) -> None:
    parser.add_argument("--folder", type=Path, default=Path(), help="folder to check for space and write permission")


def _doctor(arguments: Arguments) -> Any:
    from behavegpt.doctor import examine

    return _shown(arguments, examine(arguments.folder))


def _shown(arguments: Arguments, facts: dict[str, Any]) -> dict[str, Any]:
    _show(arguments, ("", ""), [[name, str(value)] for name, value in facts.items()])
    return facts


def _demo_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default runs/demo)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: about a minute on 2 cores)")


def _demo(arguments: Arguments) -> Any:
    from behavegpt.demo.run import run_demo

    return run_demo(arguments.out, arguments.steps)


def _convert_arguments(parser: Parser) -> None:
    parser.add_argument("name", help="tsinghua_app, lsapp, foursquare_tsmc, gowalla, retailrocket, taobao, recsys2025")
    parser.add_argument("source", type=Path, help="the downloaded file or folder")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write; its schema goes beside it")


def _convert(arguments: Arguments) -> Any:
    from behavegpt.data.converters import convert

    schema = convert(arguments.name, arguments.source, arguments.out)
    beside = arguments.out.with_suffix(".schema.yaml")
    print(f"next: behavegpt prepare {arguments.out} --schema {beside} --out DIR", file=sys.stderr)
    return schema.model_dump(mode="json")


def _synthesize_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--events", type=int, default=1_000_000, help="about how many events")
    parser.add_argument("--users", type=int, help="users (default: events / 30)")
    parser.add_argument("--seed", type=int, default=0)


def _synthesize(arguments: Arguments) -> Any:
    from behavegpt.data.synthetic import generate

    generate(arguments.out, events=arguments.events, users=arguments.users, seed=arguments.seed)
    print(f"next: behavegpt prepare {arguments.out} --out DIR", file=sys.stderr)
    return {"out": str(arguments.out)}


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "pretrain, evaluate and report on the shop logs that ship with the package (about 3 minutes)",
        "  behavegpt demo\n  behavegpt demo --out runs/try --steps 100",
        _demo_arguments,
        _demo,
    ),
    "prepare": Verb(
        "turn event logs into a folder to train on",
        "  behavegpt prepare my_logs.parquet --dry-run\n"
        "  behavegpt prepare 'logs/*.csv' --out data/mine --user uid --time ts --event app --tz Europe/London\n"
        "  behavegpt prepare logs/ --schema schema.yaml --split date:2024-05-10,2024-05-25 --out data/mine",
        _prepare_arguments,
        _prepare,
    ),
    "train": Verb(
        "pretrain a model (one process; on several GPUs: accelerate launch train.py ...)",
        "  behavegpt train configs/small.yaml data.path=data/mine out=runs/mine\n"
        "  behavegpt train configs/small.yaml data.path=data/mine out=runs/mine loss.name=cross_entropy train.seed=1\n"
        "  behavegpt train configs/small.yaml data.path=data/mine out=runs/mine --resume",
        _train_arguments,
        _train,
    ),
    "evaluate": Verb(
        "score a model on held-out events, beside simple baselines",
        "  behavegpt evaluate runs/mine/model data/mine --baselines\n"
        "  behavegpt evaluate runs/mine/model data/mine --out metrics.json --prior-correction 0.25",
        _evaluate_arguments,
        _evaluate,
    ),
    "predict": Verb(
        "the most probable next behaviors of each user of a log",
        "  behavegpt predict runs/mine/model new_logs.parquet --top-k 5 --out predictions.parquet\n"
        "  behavegpt predict runs/mine/model new_logs.csv --json",
        _predict_arguments,
        _predict,
    ),
    "embed": Verb(
        "a vector for each user of a log",
        "  behavegpt embed runs/mine/model new_logs.parquet --out vectors.parquet",
        _embed_arguments,
        _embed,
    ),
    "report": Verb(
        "figures, report.html and model card of a run",
        "  behavegpt report runs/mine",
        _report_arguments,
        _report,
    ),
    "info": Verb("what a model folder holds", "  behavegpt info runs/mine/model", _info_arguments, _info),
    "doctor": Verb(
        "check this machine: versions, devices, kernels, disk, and a ten-step self-test",
        "  behavegpt doctor\n  behavegpt doctor --json",
        _doctor_arguments,
        _doctor,
    ),
    "convert": Verb(
        "turn a known public data set's download into a log to prepare",
        "  behavegpt convert foursquare_tsmc dataset_TSMC2014_NYC.txt --out nyc.parquet",
        _convert_arguments,
        _convert,
    ),
    "synthesize": Verb(
        "write phone-log-like events with known structure",
        "  behavegpt synthesize --events 10000000 --out logs.parquet",
        _synthesize_arguments,
        _synthesize,
    ),
}

if __name__ == "__main__":
    sys.exit(main())
