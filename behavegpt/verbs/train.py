"""Verbs that train."""

from __future__ import annotations

import json
import sys
from typing import Any

from behavegpt.verbs.verb import Arguments, Parser, Verb


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


VERBS: dict[str, Verb] = {
    "train": Verb(
        "pretrain a model (one process; on several GPUs: accelerate launch train.py ...)",
        "  behavegpt train configs/small.yaml data.path=data/mine out=runs/mine\n"
        "  behavegpt train configs/small.yaml data.path=data/mine out=runs/mine loss.name=cross_entropy train.seed=1\n"
        "  behavegpt train configs/small.yaml data.path=data/mine out=runs/mine --resume",
        _train_arguments,
        _train,
    ),
}
