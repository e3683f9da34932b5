"""Commands that put a model to use elsewhere: serve, export-model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.cli.command import Arguments, Command, Output, Parser
from behavegpt.cli.models import (
    given_argument,
    load_trained,
    load_with_logs,
    log_arguments,
    refuse_users,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from behavegpt.data.user_state import UserState
    from behavegpt.labeling.predictor import LabelPredictor
    from behavegpt.predictor import Predictor
    from behavegpt.zero_shot import UniversalPredictor


# addresses that no other machine reaches
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _serve_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        help="model folder, also of a label head; or `universal`, which counts the logs",
    )
    parser.add_argument(
        "overrides",  # `cli` finds those behind options by this name
        # one list of words: logs and settings, which `_split_words` parts
        nargs="*",
        metavar="LOG | NAME=VALUE",
        help=(
            "log files, or a folder of saved states, whose users are known from the start; "
            "settings for limits and batching, see below"
        ),
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="save user states on shutdown (for `universal`, also its tables)",
    )

    given_argument(
        parser,
        "universal only: what requests say about the event to predict (`at`, `location`)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine only)",
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads of the model")
    log_arguments(parser)


def _serve(arguments: Arguments) -> Any:
    import torch

    from behavegpt.config import read_settings
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.labeling.predictor import LabelPredictor
    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings
    from behavegpt.serving.server import Server, listen

    logs, overrides = _split_words(arguments.overrides)
    settings = read_settings(ServeSettings, None, overrides)
    # events of real users: nobody on other machines sees them unless asked for
    if arguments.host not in LOOPBACK and "examples" not in settings.model_fields_set:
        settings = settings.model_copy(update={"examples": 0})

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ConfigError(f"--threads {arguments.threads}: must be at least 1.")
        torch.set_num_threads(arguments.threads)

    # the port first: loading a model to find it taken would waste minutes
    address = listen(arguments.host, arguments.port)
    predictor = _load(arguments, logs)
    save = None
    if arguments.save and not isinstance(predictor, LabelPredictor):
        save = _saver(predictor, arguments.save)

    app = make_app(predictor, settings)
    # --port 0 has the system choose one
    host, port = arguments.host, address.getsockname()[1]
    say(f"http://{host}:{port} is serving {arguments.model} (playground: /, endpoints: /docs)")

    try:
        Server(app, settings, log_level="warning").run(sockets=[address])
    finally:  # uvicorn raises the signal that stopped it again
        if save is not None:
            save(app.state.service.users.states())


def _saver(
    predictor: Predictor | UniversalPredictor, folder: Path
) -> Callable[[Iterable[UserState]], None]:
    """What writes states into a folder. Raises ConfigError, before the service starts, for a folder
    of something else."""
    from behavegpt.console import say
    from behavegpt.data import state_files
    from behavegpt.predictor import Predictor
    from behavegpt.universal import model

    if isinstance(predictor, Predictor):
        state_files.refuse_used(folder)
        # when the service ends: what was learned since it began is in memory alone
        return lambda states: say(f"written: {predictor.save_states(folder, states)} (states)")

    model.refuse_used(folder)
    return lambda states: say(f"written: {predictor.save(folder, states)} (tables and states)")


def _split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Logs and overrides, which argparse cannot tell apart: `NAME=VALUE` is no log, unless there is
    such a file."""
    overrides = [
        # an address may hold a query: hf://... or s3://...?versionId=1
        word
        for word in words
        if "=" in word and not Path(word).exists() and "://" not in word
    ]
    return [word for word in words if word not in overrides], overrides


def _load_label(arguments: Arguments, logs: list[str]) -> LabelPredictor:
    """A model with a label head. Raises ConfigError for what is about behaviors, and for logs."""
    from behavegpt.cli.models import log_changes
    from behavegpt.errors import ConfigError
    from behavegpt.labeling.predictor import load_label

    given = {"--given": arguments.given, "--save": arguments.save}
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name}: {arguments.model} says a label of users; leave it out.")
    if logs:
        raise ConfigError(
            f"{', '.join(logs)}: {arguments.model} keeps no states of users; leave logs out."
        )

    model = load_label(arguments.model, arguments.device).reading(log_changes(arguments))
    return model.with_features(arguments.users) if arguments.users else model


def _load(arguments: Arguments, logs: list[str]) -> Predictor | UniversalPredictor | LabelPredictor:
    from behavegpt.cli.command import named_logs
    from behavegpt.data.state_files import holds_states
    from behavegpt.errors import ConfigError
    from behavegpt.labeling.folder import holds_label_model
    from behavegpt.loading import load_zero_shot
    from behavegpt.shipped import is_universal

    if holds_label_model(arguments.model):
        return _load_label(arguments, logs)
    universal = None
    if is_universal(arguments.model):
        refuse_users(arguments)
        universal = load_zero_shot(arguments.model)
    if universal is not None and not universal.counted:
        # where the helper of the other commands looks for them
        arguments.logs = logs
        return load_with_logs(arguments)[0]
    if arguments.given:
        raise ConfigError(
            "--given is for a log that `universal` counts; for a trained model, "
            "model.given was fixed in training, and for a saved folder, when its log was "
            "counted."
        )
    if universal is None:
        trained = load_trained(arguments, arguments.device)
        if not logs:
            return trained
        # one folder that a service has saved, or logs to take the users' states from
        is_saved = len(logs) == 1 and holds_states(Path(logs[0]))
        return trained.with_states(logs[0] if is_saved else named_logs(arguments, logs))
    if logs:
        raise ConfigError(
            f"{', '.join(logs)}: {arguments.model} already contains its log; settings are "
            "written NAME=VALUE."
        )

    return universal


def _export_model_arguments(parser: Parser) -> None:
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument(
        "out", type=Path, help="output folder: the model file, its tokenizer, io.json"
    )
    parser.add_argument(
        "--format",
        choices=("onnx", "torch", "transformers"),
        default="onnx",
        help="onnx (default), a torch.export program, or a transformers folder with the model's "
        "code, for machines without behavegpt",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def _export_model(arguments: Arguments) -> Any:
    from behavegpt.console import say
    from behavegpt.trained_folder import load

    if arguments.format == "transformers":
        from behavegpt.export_code import export_code

        written = export_code(load(arguments.model, "cpu"), arguments.out, arguments.overwrite)
        say(
            f"written: {arguments.out}; open it with transformers' AutoModel or "
            "AutoModelForTokenClassification and trust_remote_code"
        )
        return written

    from behavegpt.export_model import export_model

    summary = export_model(
        # on a CPU: a file that was traced on a GPU would ask for one
        load(arguments.model, "cpu"),
        arguments.out,
        arguments.format,
        arguments.overwrite,
    )
    difference = summary["largest_difference"]
    # an optional library: the file is as good without it, but nobody has run it
    checked = (
        "not checked: no onnxruntime"
        if difference is None
        else f"differs from the model by {difference:.1e}"
    )
    say(f"written: {arguments.out / summary['file']}, {checked}; inputs and outputs in io.json")

    return summary


COMMANDS: dict[str, Command] = {
    "serve": Command(
        "serve predictions, vectors and simulations over HTTP, with a playground",
        "  behavegpt serve runs/mine/model --port 8000\n"
        "  behavegpt serve universal my_logs.csv --save counted       # later: behavegpt "
        "serve counted --save counted\n"
        "  behavegpt serve runs/mine/model my_logs.csv --save kept     # later: "
        "behavegpt serve runs/mine/model kept --save kept\n"
        "  behavegpt serve runs/mine/model --host 0.0.0.0 batch_users=512 wait_ms=10 "
        "timeout_s=5\n"
        "  curl localhost:8000/v1/predict -H 'content-type: application/json' -d "
        '\'{"users": [{"id": "7", "events": [{"timestamp": "2024-05-01 08:10", "app": '
        '"news"}]}]}\'\n'
        "\n"
        "Limits, timeouts and batching are settings, listed in docs/serving.md and by "
        "GET /v1/model.\n"
        "There is no login: put an authenticating proxy in front before you expose the "
        "service.",
        _serve_arguments,
        _serve,
        {"save": Output("whole")},
    ),
    "export-model": Command(
        "export a model for other runtimes: ONNX, torch.export, or transformers with its code",
        "  behavegpt export-model runs/mine/model portable\n"
        "  behavegpt export-model runs/mine/model portable --format torch\n"
        "  behavegpt export-model runs/mine/model hub --format transformers",
        _export_model_arguments,
        _export_model,
        {"out": Output("whole")},
    ),
}
