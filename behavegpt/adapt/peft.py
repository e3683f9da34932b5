"""Low-rank adapters with PEFT: attach to a model, save in PEFT's own files, open and merge.

FOLDER/adapter_config.json, adapter_model.safetensors    PEFT's
FOLDER/behavegpt.json                                    the base the adapter belongs to, by the
                                                         hash of its weights
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behavegpt.adapt.mode_table import PARTS, TRAINED, part_of
from behavegpt.adapt.settings import LoraSettings
from behavegpt.adapt.transfer import Counts, TensorPlan
from behavegpt.checksums import seal
from behavegpt.data.memory_files import load_counts, save_counts
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError, first_line
from behavegpt.io import read_json, scratch, write_json
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.paths import local_path
from behavegpt.training.model_folder import DAMAGED, check_files, open_model, weight_files

if TYPE_CHECKING:
    from peft import PeftModel

FACTS, WEIGHTS = "behavegpt.json", "adapter_model.safetensors"


def attach(
    model: BehaveGPTForBehaviorPrediction, plan: Sequence[TensorPlan], settings: LoraSettings
) -> PeftModel:
    """Put adapters beside the plan's `adapted` layers, in place; what it trains whole is saved with
    them."""
    from peft import LoraConfig, get_peft_model

    # a plan is by tensor, PEFT's settings are by module
    adapted, whole = _modules(plan, "adapted"), _modules(plan, *TRAINED)
    # modules that own buffers alone have nothing to train
    parameters = [name for name, _ in model.named_parameters()]
    saved = [
        name for name in whole if any(parameter.startswith(f"{name}.") for parameter in parameters)
    ]

    # PEFT finds modules by the ends of their names; these are whole names
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        use_rslora=settings.rank_stabilized,
        use_dora=settings.weight_decomposed,
        target_modules=adapted,
        modules_to_save=saved,
    )

    with _quietly():
        return get_peft_model(model, config)


def _modules(plan: Sequence[TensorPlan], *kinds: str) -> list[str]:
    """The modules that own the tensors of some cells; the history gate is one module, and the
    mixer."""
    names = [
        item.name.rpartition(".")[0] for item in plan if item.cell in kinds and item.part != "prior"
    ]
    # PEFT saves modules, and these work as one
    for whole in ("head.history_gate", "head.memory"):
        names = [whole if name.startswith(whole) else name for name in names]
    return list(dict.fromkeys(names))


def adapter_counts(counts: Sequence[Counts], model: BehaveGPTForBehaviorPrediction) -> list[Counts]:
    """The numbers by part with the adapters' own, which are new and train."""
    own = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            own[part_of(name)] += parameter.numel()

    return [
        count._replace(new=count.new + own[count.part], trained=count.trained + own[count.part])
        for count in counts
    ]


def save_adapter(adapter: PeftModel, folder: Path, base: Path) -> None:
    """Write PEFT's files, the hash of the base's weights and a manifest as `folder`, complete or
    not at all."""
    # PEFT reads the base from its own file, open_adapter from ours, which also knows the weights
    adapter.peft_config["default"].base_model_name_or_path = str(base)

    with scratch(folder) as temporary:
        adapter.save_pretrained(str(temporary))
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's template, with nothing filled in
        write_json(temporary / FACTS, {"base": str(base), "weights": weights_hash(base)})

        # of the adapter's log: they are no weights, and PEFT would leave them out
        counts: Any = adapter.get_base_model().counts
        if counts is not None:
            save_counts(counts, temporary)
        seal(temporary)


def open_adapter(
    folder: str | Path, base: str | Path | None = None
) -> tuple[BehaveGPTForBehaviorPrediction, EventTokenizer]:
    """The base with the adapter merged into it, and its tokenizer; `base` defaults to the recorded
    one.

    Raises CheckpointError when the adapter is damaged, or the base is missing or not the one it was
    trained on.
    """
    from peft import PeftModel

    folder = local_path(folder)
    check_files(
        folder,
        ("adapter_config.json", WEIGHTS, FACTS),
        "an adapter of ours; give the `adapter` folder of a run",
    )
    facts = read_json(folder / FACTS, CheckpointError, DAMAGED)
    try:
        recorded, weights = str(facts["base"]), str(facts["weights"])
    except KeyError as error:
        raise CheckpointError(f"{folder / FACTS}: lacks {error}; {DAMAGED}.") from None

    # the recorded path may be of another machine: whoever opens it may name the base
    path = local_path(base) if base is not None else _recorded_base(folder, recorded)
    model, tokenizer = open_model(path)
    # after it was opened, which looks for damage: other weights are another base, not a broken one
    if weights_hash(path) != weights:
        raise CheckpointError(
            f"{folder}: the adapter was trained on the weights of {recorded}, but {path} "
            "has other weights; use the base it belongs to, or fine-tune again."
        )

    try:
        with _quietly():
            adapted: Any = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
        # merged: predictions cost what the base's do, and the model saves like any other
        merged = adapted.merge_and_unload()
    except Exception as error:  # PEFT raises whatever a strange adapter_config.json leads to
        raise CheckpointError(
            f"{folder}: cannot be loaded ({first_line(error)}); {DAMAGED}."
        ) from None

    # of the adapter's data: the base's counts are those of its own log
    if merged.config.memory:
        merged.counts = load_counts(folder)
    return merged, tokenizer


@contextmanager
def _quietly() -> Iterator[None]:
    """PEFT asks transformers for a name that is going away; and only warns of weights that are not
    there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("error", "Found missing adapter keys")
        yield


def weights_hash(model: Path) -> str:
    """SHA-256 of a model folder's weights; of several shards, of their hashes."""
    hashes = []
    for path in weight_files(model):
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _recorded_base(folder: Path, recorded: str) -> Path:
    """Where the base is now: beside the adapter, if the run made one, else where it was."""
    # a run can be moved as a whole, so what lies beside it comes first
    beside = folder.parent / "base"
    return beside if beside.is_dir() else Path(recorded)
