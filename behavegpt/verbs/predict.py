"""Verbs that use a trained model: evaluate, predict, embed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from behavegpt.verbs.verb import Arguments, Parser, Verb, show


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
    show(arguments, *metrics_table(result))
    print(f"written: {out}; beside it per_behavior.csv, confusion.json, examples.json", file=sys.stderr)
    return result


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
    with progress("predict", 100) as advance:
        found = predictor.predict(
            arguments.logs,
            arguments.top_k,
            arguments.prior_correction,
            on_user=lambda done, of: advance(100 * done // of, f"% of {of:,} users"),
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
    show(
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


VERBS: dict[str, Verb] = {
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
}
