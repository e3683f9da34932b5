"""`evaluate`: a model on held-out events of a prepared folder."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Output, Parser, show
from behavegpt.cli.decision import decision_arguments
from behavegpt.cli.models import given_argument


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
    decision_arguments(parser)
    given_argument(parser, "universal only: what is known about the event to predict")


def _evaluate(arguments: Arguments) -> Any:
    import torch
    from accelerate import PartialState

    from behavegpt.data.loader import Share
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.evaluation import compare
    from behavegpt.evaluation_summary import metrics_table
    from behavegpt.locks import lock
    from behavegpt.outputs import check_output
    from behavegpt.shipped import is_universal
    from behavegpt.trained_folder import load
    from behavegpt.training.ranks import tell_ranks

    if is_universal(arguments.model):
        return _evaluate_universal(arguments)
    if arguments.given:
        raise ConfigError(
            "--given is for `universal`; for a trained model, model.given was fixed in training."
        )

    out = arguments.out or _metrics_file(arguments)
    # started by `accelerate launch` there are several processes; alone this is one
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

    # the others have nothing to show
    if not state.is_main_process:
        return None

    show(arguments, *metrics_table(result))
    beside = "per_behavior.csv, confusion.json, examples.json"
    print(f"written: {out}, and next to it {beside}", file=sys.stderr)
    return result


def _metrics_file(arguments: Arguments) -> Path:
    """Where the figures of a split go by default: beside the model folder."""
    from behavegpt.shipped import shipped_folder
    from behavegpt.trained_folder import model_folder

    name = "metrics.json" if arguments.split == "test" else f"metrics.{arguments.split}.json"
    if shipped_folder(arguments.model):  # nothing is written into the package
        return Path(arguments.data / "eval" / f"{arguments.model}.{name}")
    return model_folder(arguments.model).parent / "eval" / name


def _evaluate_universal(arguments: Arguments) -> Any:
    from behavegpt.data.given import in_order
    from behavegpt.data.store import open_store
    from behavegpt.errors import ConfigError
    from behavegpt.evaluate_universal import evaluate_universal
    from behavegpt.evaluation_summary import metrics_table
    from behavegpt.loading import load_zero_shot
    from behavegpt.locks import lock
    from behavegpt.outputs import check_output

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
    # its mixer alone: the tables are counted anew, on the training split of this folder
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


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "evaluate a model on held-out events, next to simple baselines",
        "  behavegpt evaluate runs/mine/model data/mine --baselines\n"
        "  behavegpt evaluate runs/mine/model data/mine --out metrics.json --prior-correction 0.25",
        _evaluate_arguments,
        _evaluate,
        {"out": Output("file", (".json",))},
    ),
}
