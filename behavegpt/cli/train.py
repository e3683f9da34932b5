"""Commands that train."""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from behavegpt.adapt.modes import Mode
from behavegpt.cli.command import Arguments, Command, Parser, encoding_argument
from behavegpt.cli.label import (
    MODE,
    finetune_label_command,
    label_arguments,
    refuse_label_options,
)


def _train_arguments(parser: Parser) -> None:
    parser.add_argument("config", help="YAML file, or the name of a shipped one, such as small")
    parser.add_argument(
        "overrides", nargs="*", help="settings, for example data.path=DIR out=RUN train.lr=3e-4"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the latest checkpoint of out=RUN"
    )


def _train(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.pretrain import PretrainSettings, pretrain

    run = pretrain(
        read_settings(PretrainSettings, arguments.config, arguments.overrides),
        resume=arguments.resume,
    )
    print(f"model: {run / 'model'}", file=sys.stderr)

    # as it was written: a run may have been finished before, and is not trained again
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def _finetune_arguments(parser: Parser) -> None:
    parser.add_argument(
        "config",
        help=(
            "YAML file, or the name of a shipped one, such as adapt/new_behavior; with "
            "--mode label: the model folder"
        ),
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help=(
            "settings, for example base=runs/mine/model data.path=DIR out=RUN; with --mode "
            "label: also the log files"
        ),
    )
    parser.add_argument(
        "--mode",
        choices=(*get_args(Mode), MODE),
        help="which weights are reused and which are trained; overrides the configuration",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the latest checkpoint of out=RUN"
    )
    label_arguments(parser)
    encoding_argument(parser)


def _finetune(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.finetune import FinetuneSettings, finetune

    if arguments.mode == MODE:
        return finetune_label_command(arguments)
    refuse_label_options(arguments)

    # the option first: an override of the same name wins
    overrides = [*([f"mode={arguments.mode}"] if arguments.mode else []), *arguments.overrides]
    run = finetune(
        read_settings(FinetuneSettings, arguments.config, overrides), resume=arguments.resume
    )
    print(f"model: {run / 'model'}", file=sys.stderr)

    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def _universal_arguments(parser: Parser) -> None:
    parser.add_argument(
        "config", help="YAML file, or the name of a shipped one, such as universal/shipped"
    )
    parser.add_argument(
        "overrides", nargs="*", help="settings, for example out=DIR questions.git.path=data/git"
    )


def _universal(arguments: Arguments) -> Any:
    from behavegpt.config import read_settings
    from behavegpt.universal.train import UniversalSettings, pretrain_universal

    out = pretrain_universal(
        read_settings(UniversalSettings, arguments.config, arguments.overrides)
    )
    print(f"universal model: {out}", file=sys.stderr)
    return {"out": str(out)}


COMMANDS: dict[str, Command] = {
    "train": Command(
        "pretrain a model (one process; on several GPUs: accelerate launch train.py ...)",
        "  behavegpt train memory data.path=data/mine out=runs/mine\n"
        "  behavegpt train small data.path=data/mine out=runs/mine "
        "loss.name=cross_entropy train.seed=1\n"
        "  behavegpt train small data.path=data/mine out=runs/mine --resume",
        _train_arguments,
        _train,
    ),
    "pretrain-universal": Command(
        "train the universal model's mixer on several logs at once",
        "  behavegpt pretrain-universal universal/shipped out=runs/universal\n"
        "  behavegpt pretrain-universal universal/tiny out=runs/try worlds=10",
        _universal_arguments,
        _universal,
    ),
    "finetune": Command(
        "adapt a pretrained model to new behaviors, another domain, or a user label",
        "  behavegpt finetune adapt/new_behavior base=runs/mine/model data.path=data/new "
        "out=runs/new\n"
        "  behavegpt finetune adapt/cross_domain base=runs/mine/model "
        "data.path=data/shop out=runs/shop\n"
        "  behavegpt finetune adapt/cross_domain --mode lora base=runs/mine/model "
        "data.path=data/shop out=runs/lora adapt.lora.rank=16\n"
        "  behavegpt finetune runs/mine/model log.parquet --mode label --labels "
        "churn.csv --at 2026-09-01 out=runs/churn",
        _finetune_arguments,
        _finetune,
    ),
}
