"""The vocabulary of an adapted model, and training of its new rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from behavegpt.adapt.settings import AdaptSettings
from behavegpt.adapt.transfer import TensorPlan
from behavegpt.data.reencode import empty_vocabulary, new_labels
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import ConfigError, DataError
from behavegpt.model import BehaveGPTForBehaviorPrediction


def grown_vocabulary(
    old: EventTokenizer, store: EventStore, options: AdaptSettings
) -> dict[str, Vocabulary]:
    """The base's vocabularies with the data's new labels appended, no id renumbered.

    With `options.new` only those behaviors are added. Raises DataError or ConfigError when a named
    behavior exists already or has no training event.
    """
    if options.new is not None:
        _refuse_names(old.behaviors, store, options.new)

    # `new` limits the classes alone: new places and events of known behaviors are always added
    behaviors = "event" if store.schema.behavior_is_event else "behavior"
    grown = {}
    for field, known in old.vocabulary.items():
        added = new_labels(known, store.vocabulary.get(field, empty_vocabulary()))
        if field == behaviors and options.new is not None:
            added = [label for label in added if label in options.new]
        grown[field] = known.grow(added)
    return grown


def refuse_nothing_new(old: EventTokenizer, new: EventTokenizer) -> None:
    """Raise ConfigError if the data hold no behavior that the base does not know."""
    if new.behaviors.classes == old.behaviors.classes:
        raise ConfigError(
            f"no new behavior: the base already knows all {old.behaviors.classes:,} "
            "behaviors of the data. Use mode=full to train it further on these data, or "
            "check the behavior column."
        )


def _refuse_names(known: Vocabulary, store: EventStore, names: Sequence[str]) -> None:
    """Raise ConfigError or DataError unless each name is a new behavior with training events."""
    known_labels, present = set(known.values.to_pylist()), store.behaviors
    counts = dict(zip(present.values.to_pylist(), present.counts.tolist(), strict=True))

    for name in names:
        if name in known_labels:
            raise ConfigError(
                f"adapt.new: the base already knows the behavior {name!r}; remove it, or "
                "use mode=full to train it further."
            )

        # without an event there is nothing to learn its row from
        if not counts.get(name):
            raise DataError(
                f"adapt.new: {store.path} contains no training event of the behavior "
                f"{name!r}; add logs with examples of it, or check its spelling (the "
                f"data's behaviors: {', '.join(list(counts)[:5])}, …)."
            )


class NewRows(nn.Module):
    """A tensor whose rows `fixed` are constants and the others parameters: only those get gradients
    and decay."""

    def __init__(self, weight: torch.Tensor, new: torch.Tensor) -> None:
        """`weight` (rows, ...), `new` (n,) int64: which of its rows are trained."""
        super().__init__()
        # buffers: not trained, not decayed, and on the model's device
        self.fixed: torch.Tensor
        self.index: torch.Tensor
        self.register_buffer("fixed", weight.detach().clone())
        self.register_buffer("index", new)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """New rows (n, ...) -> the whole tensor (rows, ...)."""
        return self.fixed.index_copy(0, self.index, rows)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The whole tensor (rows, ...) -> its new rows (n, ...), as torch's parametrization asks
        for."""
        return weight[self.index]


def train_new_rows(model: BehaveGPTForBehaviorPrediction, plan: Sequence[TensorPlan]) -> None:
    """Make the new rows of the tensors with the cell `rows` the only parameters among them."""
    for item in plan:
        if item.cell != "rows" or item.rows is None:
            continue

        # rows without one in the base
        new = (item.rows < 0).nonzero().flatten()
        module, _, name = item.name.rpartition(".")
        owner = model.get_submodule(module)

        if len(new):
            parametrize.register_parametrization(owner, name, NewRows(getattr(owner, name), new))
            # apply_transfer froze the whole tensor, of which the new rows are now the parameter
            parametrizations: Any = owner.parametrizations
            parametrizations[name].original.requires_grad_(True)


def merge_new_rows(model: BehaveGPTForBehaviorPrediction) -> BehaveGPTForBehaviorPrediction:
    """The same model with plain tensors again."""
    # a list first: removing a parametrization changes the modules that are walked
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                getattr(module, name).requires_grad_(False)
    return model
