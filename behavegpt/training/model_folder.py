"""The model folder: weights, config and tokenizer, written in one piece and read with suspicion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CONFIG_MAPPING, AutoModelForTokenClassification
from transformers.utils.logging import disable_progress_bar

from behavegpt.checksums import MANIFEST, Damage, is_sealed, seal, verify
from behavegpt.data.memory_files import load_counts, save_counts
from behavegpt.data.tokenizer import TOKENIZER_FILE, EventTokenizer
from behavegpt.errors import CheckpointError, first_line
from behavegpt.io import read_json, scratch
from behavegpt.model import BehaveGPTForBehaviorPrediction

DAMAGED = (
    f"restore the folder as it was written, or, if the change was meant, delete its {MANIFEST}"
)

log = logging.getLogger(__name__)

WEIGHTS, SHARDED = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder's weights: one, or the shards that `save_pretrained` makes of
    large models."""
    # none of the shards: one file
    return sorted(folder.glob("model-*-of-*.safetensors")) or [folder / WEIGHTS]


def save_model(
    model: BehaveGPTForBehaviorPrediction,
    tokenizer: EventTokenizer,
    folder: Path,
    *beside: Callable[[BehaveGPTForBehaviorPrediction, Path], None],
) -> None:
    """Weights, config and tokenizer as a folder for `from_pretrained`; an existing one is replaced
    at the end.

    Each of `beside` adds files, given the model and the folder, before that gets its name.
    """
    disable_progress_bar()  # transformers shows one for writing a file
    with scratch(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save(temporary)
        if model.counts is not None:
            save_counts(model.counts, temporary)

        # what comes beside is sealed with the rest
        for write in beside:
            write(model, temporary)

        # the manifest last: it covers all files
        seal(temporary)


class Trained(NamedTuple):
    """A model and what turns logs into its ids."""

    model: BehaveGPTForBehaviorPrediction
    tokenizer: EventTokenizer


def open_model(folder: Path) -> Trained:
    """What `save_model` wrote, on the CPU. Raises CheckpointError when the folder is not a model,
    or is damaged."""
    sharded = (folder / SHARDED).is_file()
    check_files(
        folder,
        ("config.json", SHARDED if sharded else WEIGHTS, TOKENIZER_FILE),
        "a model folder; give the `model` folder of a run",
    )

    # before the weights are touched: the config's class is ours, not the folder's
    _refuse_foreign_type(folder)

    # the class by the folder's model_type: BehaveGPT, or a baseline where those are imported
    model, tokenizer = read_pretrained(
        AutoModelForTokenClassification, folder, trust_remote_code=False
    )
    # counts are beside the weights: they are large, and transformers does not know them
    if model.config.memory:
        model.counts = load_counts(folder)
    return Trained(model, tokenizer)


def read_pretrained(kind: Any, folder: Path, **options: Any) -> tuple[Any, EventTokenizer]:
    """A model as the class `kind` reads it, and its tokenizer. Raises CheckpointError for a folder
    whose files do not belong together."""
    disable_progress_bar()
    try:
        # no code and no pickle: a folder may come from anywhere
        model, loaded = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        tokenizer = EventTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever a strange config leads to
        raise CheckpointError(
            f"{folder}: cannot be loaded ({first_line(error)}); {DAMAGED}."
        ) from None

    # transformers would fill them with new weights and only warn
    if loaded["missing_keys"]:
        names = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise CheckpointError(
            f"{folder}: model.safetensors lacks {names}, which config.json asks for; {DAMAGED}."
        )

    # ids of another vocabulary would give sensible-looking nonsense
    if model.config.tokenizer_hash not in (None, tokenizer.hash):
        raise CheckpointError(
            "the model's config.json and preprocessor_config.json do not belong together "
            f"(vocabulary hash {model.config.tokenizer_hash} and {tokenizer.hash}); restore the "
            "folder as it was written."
        )
    return model, tokenizer


def check_files(folder: Path, names: Sequence[str], what: str) -> None:
    """Raise CheckpointError unless a folder has these files, and all that its manifest names as
    they were written."""
    # what is missing is said before what is damaged: a folder of something else has no manifest
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: not {what} ({name} is missing).")
    if is_sealed(folder):
        verify(folder, Damage(CheckpointError, DAMAGED))
    else:
        log.warning("%s: no %s next to the weights, so damage would go unnoticed", folder, MANIFEST)


def _refuse_foreign_type(folder: Path) -> None:
    """Only our own classes are made from a folder, whatever its config.json asks for."""
    named = read_json(folder / "config.json", CheckpointError, DAMAGED).get("model_type")
    if named == "behavegpt_label":
        raise CheckpointError(
            f"{folder}: a model with a label head, which predicts a user label; use "
            "`behavegpt predict`, or behavegpt.load_label."
        )
    ours = isinstance(named, str) and named in CONFIG_MAPPING
    if not ours or not CONFIG_MAPPING[str(named)].__module__.startswith("behavegpt."):
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {named!r} is not a BehaveGPT model, "
            "and code in a model folder is never run. Name the `model` folder of a run."
        )
