"""Commands that change what a trained model may predict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from behavegpt.cli.command import Arguments, Command, Group, Output, Parser
from behavegpt.cli.filters import read_labels


def _change_arguments(parser: Parser, labels: str) -> None:
    """What `add` and `retire` take; `labels`: what is named."""
    parser.add_argument("model", type=Path, help="model folder; it is not changed")
    parser.add_argument(
        "labels", nargs="+", metavar="LABEL", help=f"{labels}; @FILE reads them, one per line"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new model")


def _retire(arguments: Arguments) -> Any:
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.retire import retire
    from behavegpt.shipped import is_universal

    if is_universal(arguments.model):
        raise ConfigError(
            f"{arguments.model} has the labels of the log that it counts; use --exclude, "
            "or count a log without these behaviors."
        )

    told = retire(arguments.model, read_labels(arguments.labels), arguments.out)
    say(f"{told['retired']:,} of {told['behaviors']:,} behaviors retired: {arguments.out}")
    return {"out": str(arguments.out), **told}


def _add(arguments: Arguments) -> Any:
    from behavegpt.console import say
    from behavegpt.errors import ConfigError
    from behavegpt.extend import add_behaviors
    from behavegpt.shipped import is_universal

    if is_universal(arguments.model):
        raise ConfigError(
            f"{arguments.model} has the labels of the log that it counts; count a log "
            "that contains them."
        )

    told = add_behaviors(arguments.model, read_labels(arguments.labels), arguments.out)
    back = f", {told['back']:,} retired ones are back" if told["back"] else ""
    say(f"{told['added']:,} behaviors added to {told['known']:,}{back}: {arguments.out}")
    for name in told["left"]:
        say(f"not copied, because it covers only the old behaviors: {name}")
    return {"out": str(arguments.out), **told}


VOCABULARY = Group(
    "change which behaviors a trained model can predict",
    {
        "retire": Command(
            "never predict these behaviors again (histories may still contain them)",
            "  behavegpt vocabulary retire runs/mine/model news mail --out runs/mine/without\n"
            "  behavegpt vocabulary retire runs/mine/model @sold_out.txt --out runs/mine/without",
            partial(_change_arguments, labels="behaviors"),
            _retire,
            {"out": Output("whole")},
        ),
        "add": Command(
            "add new behaviors without training (predicted once a history contains them)",
            "  behavegpt vocabulary add runs/mine/model podcast maps --out runs/mine/with\n"
            "  behavegpt vocabulary add runs/mine/model @new_items.txt --out runs/mine/with",
            partial(_change_arguments, labels="new behaviors"),
            _add,
            {"out": Output("whole")},
        ),
    },
)
