"""Training of a label head: users in shuffled batches, the best epoch by users held out.

Shapes: U users, n users of a batch, A aggregates, O outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.data.loader import row_length_for
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.history_batches import Histories, history_batches
from behavegpt.labeling.settings import LabelSettings
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.model.config import BehaveGPTConfig
from behavegpt.model.label import BehaveGPTForUserLabels, BehaveGPTLabelConfig
from behavegpt.ragged import ranges

BATCHES = 1024  # users at once where nothing is trained
STEPS = 600  # about so many by default


class Examples(NamedTuple):
    """Users with what is known of them before a moment."""

    histories: EncodedHistories  # of U users
    aggregates: np.ndarray  # (U, A) float32

    def of(self, chosen: np.ndarray) -> Examples:
        """Users (n,), in that order."""
        return Examples(_taken(self.histories, chosen), self.aggregates[chosen])


class Answers(NamedTuple):
    """What is to be said of users."""

    target: np.ndarray  # (U,) int64 classes or float64 numbers
    classes: tuple[str, ...]  # empty for numbers
    label: str


def make_model(
    base: BehaveGPTForBehaviorPrediction, answers: Answers, train: Examples, seed: int
) -> BehaveGPTForUserLabels:
    """The base's transformer with a fresh head, scaled by the training users."""
    shape: dict[str, Any] = {name: getattr(base.config, name) for name in _SHAPE}
    if not answers.classes:
        shape |= {"mean": float(answers.target.mean()), "spread": float(answers.target.std())}
    classes = list(answers.classes) or None
    config = BehaveGPTLabelConfig(**shape, label=answers.label, classes=classes)

    # of the head alone: the transformer's first weights are replaced below
    torch.manual_seed(seed)
    model = BehaveGPTForUserLabels(config)
    model.model.load_state_dict(base.model.state_dict())
    torch.nn.Module.to(model, base.device)
    features = _features(model, train)
    # of the training users alone: those held out must not decide how they are scaled
    model.center.copy_(features.mean(0))
    # a dimension that never varies is left at its 0, and not divided by it
    model.scale.copy_(features.std(0, unbiased=False).clamp_min(1e-6))
    return model


# what of a config belongs to the prediction of behaviors; all else shapes the transformer
_OF_BEHAVIORS = {
    *("memory", "memory_experts", "history_head", "tied_head", "next_heads", "given", "retired"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
}
_SHAPE = tuple(name for name in BehaveGPTConfig.__annotations__ if name not in _OF_BEHAVIORS)


def train_label(
    base: BehaveGPTForBehaviorPrediction,
    examples: Examples,
    answers: Answers,
    settings: LabelSettings,
) -> tuple[BehaveGPTForUserLabels, dict[str, Any]]:
    """A model fine-tuned on all users of `examples` but those held out, and its losses by epoch.

    With `body_lr` 0 the transformer stays as it is. The same arguments give the same weights.
    """
    generator = np.random.default_rng(settings.seed)
    users = generator.permutation(len(answers.target))
    # by users: a user's label stands for all of their events
    held = max(1, round(settings.held_out * len(users)))
    held_out, train = np.sort(users[:held]), np.sort(users[held:])
    model = make_model(
        base, answers._replace(target=answers.target[train]), examples.of(train), settings.seed
    )

    target = scaled(answers.target, model.config)

    model.model.requires_grad_(settings.body_lr > 0)
    groups = _groups(model, settings)
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)

    steps = -(-len(train) // settings.batch_users)  # of an epoch
    epochs = settings.epochs or min(max(10, STEPS // steps), 100)
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, epochs * steps, pct_start=0.1)

    losses: list[float] = []
    # before the first epoch: what is left where every loss is NaN
    best = copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        order = generator.permutation(train)
        for first in range(0, len(order), settings.batch_users):
            chosen = order[first : first + settings.batch_users]
            optimizer.zero_grad()
            _add_gradients(model, examples.of(chosen), target[chosen])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()

        losses.append(_loss(model, examples.of(held_out), target[held_out]))
        if losses[-1] == min(losses):
            best = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    facts = {"held_out_loss": losses, "best_epoch": int(np.argmin(losses)) + 1}
    return model.eval(), facts


def _add_gradients(model: BehaveGPTForUserLabels, users: Examples, target: torch.Tensor) -> None:
    """Add the gradient of the mean loss of a batch of users (n,)."""
    # in pieces that fit the memory, each with its share of the mean
    for part, arguments in _batches(model, users):
        share = len(part) / len(target)
        (share * model(**arguments, labels=target[part]).loss).backward()


def _groups(model: BehaveGPTForUserLabels, settings: LabelSettings) -> list[dict[str, Any]]:
    """Parameters with their peak rates: a head learns from nothing, the transformer knows."""
    body = list(model.model.parameters()) if settings.body_lr else []
    head = list(model.label_head.parameters())
    rates = ((head, settings.lr), (body, settings.body_lr))
    return [{"params": parameters, "lr": rate} for parameters, rate in rates if parameters]


def scaled(target: np.ndarray, config: BehaveGPTLabelConfig) -> torch.Tensor:
    """Classes (U,) as they are, numbers in the spread of training."""
    if config.classes:
        return torch.from_numpy(target)
    # one learning rate fits ages and amounts alike
    return torch.from_numpy((target - config.mean) / (config.spread or 1.0)).float()


@torch.no_grad()
def outputs(model: BehaveGPTForUserLabels, examples: Examples) -> np.ndarray:
    """Probabilities (U, O) of classes, or numbers (U, 1)."""
    model.eval()
    config, found = model.config, []
    for first in range(0, len(examples.aggregates), BATCHES):
        users = np.arange(first, min(first + BATCHES, len(examples.aggregates)))
        # by index: `_batches` packs users by the lengths of their histories
        piece = np.zeros((len(users), len(config.classes or (0,))))
        for part, arguments in _batches(model, examples.of(users)):
            logits = model(**arguments).logits.double()
            said = logits.softmax(-1) if config.classes else logits * config.spread + config.mean
            piece[part] = said.cpu().numpy()
        found.append(piece)
    return np.concatenate(found)


@torch.no_grad()
def _features(model: BehaveGPTForUserLabels, examples: Examples) -> torch.Tensor:
    """What the head reads of users (U, 2 C + A), in any order."""
    model.eval()
    return torch.cat([model(**part).hidden_states[0] for _, part in _batches(model, examples)])


@torch.no_grad()
def _loss(model: BehaveGPTForUserLabels, examples: Examples, target: torch.Tensor) -> float:
    model.eval()
    total = 0.0
    for part, arguments in _batches(model, examples):
        total += len(part) * float(model(**arguments, labels=target[part]).loss)
    return total / len(target)


def _batches(
    model: BehaveGPTForUserLabels, examples: Examples
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Indices (n,) of users, and what the model takes of them."""
    offsets = examples.histories.offsets
    histories = Histories(examples.histories.columns, offsets[:-1], offsets[1:])
    aggregates = torch.from_numpy(examples.aggregates).to(model.device)
    shape: Any = model  # of which config and device are read
    cells = row_length_for(model.config.max_length)
    for users, batch, _, _ in history_batches(shape, histories, cells_per_user=cells):
        yield users, batch.arguments | {"aggregates": aggregates[torch.from_numpy(users)]}


def _taken(histories: EncodedHistories, chosen: np.ndarray) -> EncodedHistories:
    """The histories of users (n,), one after the other."""
    length = np.diff(histories.offsets)[chosen]
    offsets = np.append(0, np.cumsum(length))
    event = ranges(histories.offsets[chosen], length)
    columns = {name: column[event] for name, column in histories.columns.items()}
    users = histories.users.take(chosen)
    return EncodedHistories(users, offsets, columns, histories.unknown, histories.rejected)
