"""`import behavegpt` makes transformers' Auto classes know our models, without importing
transformers itself.

The Auto classes are registered with once their modules are there: at once if they are, else right
after their import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PREFIX = "transformers.models.auto."
BLOCK = "behavegpt.model.block"  # imports the Auto classes before it has anything in it
LAYERS = "transformers.modeling_layers"  # so does this, which our blocks are made of


def register_lazily() -> None:
    """Register now, or when the modules of the Auto classes are imported."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # first of the finders, or Python's own would find the modules before it
        sys.meta_path.insert(0, _Finder())


def _register_config() -> None:
    """While transformers' own core is half imported: the config needs little of it."""
    importlib.import_module("behavegpt.model.config")  # registers itself


def _register_models() -> None:
    if f"{PREFIX}modeling_auto" not in sys.modules:
        return  # nobody has asked for the Auto classes yet

    block, layers = sys.modules.get(BLOCK), sys.modules.get(LAYERS)
    # half imported, one of them is what imports the Auto classes now: wait until it is whole
    whole = block is None or hasattr(block, "BehaveGPTBlock")
    if whole and (layers is None or hasattr(layers, "GradientCheckpointingLayer")):
        importlib.import_module("behavegpt.model.behavegpt")  # registers itself


def _register_tokenizer() -> None:
    from transformers import AutoFeatureExtractor

    from behavegpt.data.tokenizer import EventTokenizer
    from behavegpt.model.config import BehaveGPTConfig

    AutoFeatureExtractor.register(BehaveGPTConfig, EventTokenizer, exist_ok=True)


# module -> what to do after its import
_REGISTER: dict[str, Callable[[], None]] = {
    f"{PREFIX}configuration_auto": _register_config,
    f"{PREFIX}modeling_auto": _register_models,
    BLOCK: _register_models,
    LAYERS: _register_models,
    f"{PREFIX}feature_extraction_auto": _register_tokenizer,
}


class _Finder:  # not importlib.abc's: to import those takes longer than the whole package
    """Finds the Auto modules as Python does, with a loader that registers afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTER:
            return None

        # Python's own search; asking all finders would ask this one again
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader)
            spec.loader = loader
        return spec


class _Loader:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _REGISTER[module.__name__]()  # on the whole module, not before

    def __getattr__(self, name: str) -> Any:  # such as get_source, for tracebacks
        return getattr(self._loader, name)
