"""The BehaveGPT model. `import behavegpt` registers it with transformers' Auto classes: see
`behavegpt/auto.py`.

Its names are imported when first used: the Auto classes ask for the config while transformers
itself is half imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from behavegpt.model.behavegpt import BehaveGPTForBehaviorPrediction, BehaveGPTModel
    from behavegpt.model.cache import EventCache
    from behavegpt.model.config import BehaveGPTConfig
    from behavegpt.model.label import BehaveGPTForUserLabels
    from behavegpt.model.output import BehaviorOutput

_HOMES = {
    "BehaveGPTConfig": "config",
    "BehaveGPTForBehaviorPrediction": "behavegpt",
    "BehaveGPTForUserLabels": "label",
    "BehaveGPTModel": "behavegpt",
    "BehaviorOutput": "output",
    "EventCache": "cache",
}
__all__ = [
    "BehaveGPTConfig",
    "BehaveGPTForBehaviorPrediction",
    "BehaveGPTForUserLabels",
    "BehaveGPTModel",
    "BehaviorOutput",
    "EventCache",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
