"""A model folder that carries the model's code, for transformers where behavegpt is not installed:
`AutoModel.from_pretrained(OUT, ...)` with its option to trust remote code.

`behavegpt/model/` imports torch, transformers and itself alone, so its files work as they are once
their imports of one another are relative.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from behavegpt.decision import save_thresholds
from behavegpt.errors import ConfigError
from behavegpt.io import write_json
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model import __file__ as package
from behavegpt.predictor import Predictor
from behavegpt.training.model_folder import save_model

AUTO_MAP = {
    "AutoConfig": "config.BehaveGPTConfig",
    "AutoModel": "body.BehaveGPTModel",
    "AutoModelForTokenClassification": "behavegpt.BehaveGPTForBehaviorPrediction",
}
# how the modules of that folder import one another, and nothing else
OURS = re.compile(r"^(\s*)from behavegpt\.model\.(\w+) import", re.MULTILINE)


def export_code(predictor: Predictor, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write OUT: weights, config, tokenizer and the code that they need. Returns the names of the
    code's files.

    Raises ConfigError for a baseline, and for a folder that is there.
    """
    model = predictor.model
    if model.config.model_type != "behavegpt":
        raise ConfigError(
            f"a {model.config.model_type} model cannot be exported; name the folder of a BehaveGPT."
        )
    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: already exists; choose another folder, or pass --overwrite.")

    sources = _sources()

    def write(_: BehaveGPTForBehaviorPrediction, folder: Path) -> None:
        for name, text in sources.items():
            (folder / name).write_text(text, encoding="utf-8")

        # which class of which file each Auto class makes
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", config | {"auto_map": AUTO_MAP})
        if predictor.thresholds:
            save_thresholds(predictor.thresholds, predictor.tokenizer, folder)

    save_model(model, predictor.tokenizer, out, write)
    return {"out": str(out), "code": sorted(sources)}


def _sources() -> dict[str, str]:
    """The files that the classes of AUTO_MAP need, by name, with relative imports."""
    found: dict[str, str] = {}
    pending = {place.partition(".")[0] for place in AUTO_MAP.values()}
    # from the three classes on: what nobody imports is not copied
    while pending:
        name = pending.pop()
        text = Path(package).with_name(f"{name}.py").read_text(encoding="utf-8")
        found[f"{name}.py"] = OURS.sub(r"\1from .\2 import", text)
        needed = {match[2] for match in OURS.finditer(text)}
        pending |= {other for other in needed if f"{other}.py" not in found}
    return found
