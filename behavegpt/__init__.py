"""BehaveGPT: foundation models of user behavior. Public names are imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

from behavegpt.auto import register_lazily
from behavegpt.collector import paused_collector

__version__ = "0.2.0"

# public name -> module it comes from; imported on first use, so `import behavegpt` takes no torch
_PUBLIC = {
    "BehaveGPTError": "behavegpt.errors",
    "EventSchema": "behavegpt.data.schema",
    "open_store": "behavegpt.data.store",
    "prepare": "behavegpt.ingest.prepare",
    "EventTokenizer": "behavegpt.data.tokenizer",
    "BehaveGPTConfig": "behavegpt.model",
    "BehaveGPTModel": "behavegpt.model",
    "BehaveGPTForBehaviorPrediction": "behavegpt.model",
    "UserEmbeddings": "behavegpt.user_embeddings",
    "Predictor": "behavegpt.predictor",
    "load": "behavegpt.loading",
    "fit": "behavegpt.fitting",
    "forecast": "behavegpt.horizon.forecast",
    "probe": "behavegpt.probing.run",
    "finetune_label": "behavegpt.labeling.run",
    "load_label": "behavegpt.labeling.predictor",
    "update": "behavegpt.updating.run",
    "undo_update": "behavegpt.updating.run",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        with paused_collector():
            return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'behavegpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


register_lazily()
