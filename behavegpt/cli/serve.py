"""Commands that put a model to use elsewhere: serve, export-model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Output, Parser


def _serve_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="limits and batching, see below")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--threads", type=int, help="threads of the model on a CPU")


def _serve(arguments: Arguments) -> Any:
    import torch

    from behavegpt.config import read_settings
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.predictor import load
    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings
    from behavegpt.serving.server import Server, listen

    settings = read_settings(ServeSettings, None, arguments.overrides)
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ConfigError(f"--threads {arguments.threads}: at least one thread is needed.")
        torch.set_num_threads(arguments.threads)
    address = listen(arguments.host, arguments.port)
    predictor = load(arguments.model, arguments.device)
    host, port = arguments.host, address.getsockname()[1]
    say(f"http://{host}:{port} answers for {arguments.model} on {predictor.model.device}; its page is /docs")
    Server(make_app(predictor, settings), settings, log_level="warning").run(sockets=[address])


def _export_model_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("out", type=Path, help="folder to write: the model file, its tokenizer, io.json")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="onnx, or torch.export's program")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def _export_model(arguments: Arguments) -> Any:
    from behavegpt.console import say
    from behavegpt.export_model import export_model
    from behavegpt.predictor import load

    facts = export_model(load(arguments.model, "cpu"), arguments.out, arguments.format, arguments.overwrite)
    difference = facts["largest_difference"]
    checked = "not checked: no onnxruntime" if difference is None else f"differs from the model by {difference:.1e}"
    say(f"written: {arguments.out / facts['file']}, {checked}; inputs and outputs in io.json")
    return facts


COMMANDS: dict[str, Command] = {
    "serve": Command(
        "answer predict, embed and generate over HTTP",
        "  behavegpt serve runs/mine/model --port 8000\n"
        "  behavegpt serve runs/mine/model --host 0.0.0.0 batch_users=512 wait_ms=10 timeout_s=5\n"
        "  curl localhost:8000/v1/predict -H 'content-type: application/json' -d "
        '\'{"users": [{"id": "7", "events": [{"timestamp": "2024-05-01 08:10", "app": "news"}]}]}\'\n'
        "limits, time-outs and batching are settings, listed in docs/serving.md and by GET /v1/model.\n"
        "There is no login: put a proxy in front before others can reach it.",
        _serve_arguments,
        _serve,
    ),
    "export-model": Command(
        "prediction and embedding as one file for other runtimes: ONNX or torch.export",
        "  behavegpt export-model runs/mine/model portable\n"
        "  behavegpt export-model runs/mine/model portable --format torch",
        _export_model_arguments,
        _export_model,
        {"out": Output("whole")},
    ),
}
