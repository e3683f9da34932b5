"""The BehaveGPT model. Names are imported when first used: the mixer alone needs no transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from behavegpt.model.behavegpt import BehaveGPTForBehaviorPrediction, BehaveGPTModel, BehaviorOutput
    from behavegpt.model.cache import EventCache
    from behavegpt.model.config import BehaveGPTConfig

__all__ = ["BehaveGPTConfig", "BehaveGPTForBehaviorPrediction", "BehaveGPTModel", "BehaviorOutput", "EventCache"]
_MODULES = {"BehaveGPTConfig": "config", "EventCache": "cache"}  # of the others: behavegpt


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'behavegpt')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
