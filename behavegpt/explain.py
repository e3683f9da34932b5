"""Why a prediction: which counts of the memory carried it, and which past events.

Experts: what each adds to the behavior's logit over that of the other behaviors, weighed as the
model expects them: gate_j * (log P_j(c) - mean of log P_j(b)). The mixture, an expert itself, is
divided among those that it mixes. The last one, `network` or without one `rest`, is what the
network and the judge of candidates add. Events:
how far the behavior's log-probability falls when the history lacks the event. Shared tables are
left as they are.

Shape letters: U users, n of a piece, T events, J experts, K behaviors, M candidates, N last events,
V variants of histories.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from behavegpt.data.given import Moment
from behavegpt.data.memory_past import EXPERTS
from behavegpt.data.memory_shares import LENGTHS
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import DataError
from behavegpt.explain_text import Told, because, event_text
from behavegpt.explanations import Explanations
from behavegpt.filters import TAKEN_OUT, Choice
from behavegpt.ingest.users import as_states
from behavegpt.model.mixer import FLOOR, Memory, Mixer
from behavegpt.ragged import owners, positions, ranges

EVENTS = 2_000_000  # of histories that lack an event, made at a time
Pieces = Iterator[tuple[np.ndarray, torch.Tensor]]


class Source(NamedTuple):
    """A model that is asked for explanations."""

    # histories (U,) and what is given of what follows -> users (n,) and logits (n, K), in pieces
    pieces: Callable[[EncodedHistories, Moment | None], Pieces]
    tokenizer: EventTokenizer
    mixer: Mixer | None = None  # of its memory, which is called once for each piece
    shares: np.ndarray | None = None  # (B, J) of the experts in the mixture
    looks_back: int | None = None  # events; None: all of them


class Why(NamedTuple):
    """What is asked: which prediction, and how many of the last events are left out in turn."""

    choice: Choice
    shift: torch.Tensor  # (K,) of the decision rule
    last: int


def refuse_states(events: Any) -> None:
    """Raise DataError for states, which hold no events that could be left out."""
    if as_states(events) is not None:
        raise DataError(
            "explain: a state holds no history, of which events could be left out; give the "
            "events of the users themselves."
        )


def explain(
    source: Source, encoded: EncodedHistories, why: Why, asked: Moment | None = None
) -> Explanations:
    """Why each history (U,) is predicted to go on as it is; `asked`: what is given of what
    follows."""
    # + 1: what no expert adds, so that the columns sum to the whole
    users, width = len(encoded.users), 0 if source.mixer is None else len(EXPERTS) + 1
    classes = np.zeros(users, np.int64)
    probabilities = np.zeros(users, np.float32)
    contributions = np.zeros((users, width), np.float32)

    mixer = source.mixer
    with _listening(mixer) as calls:
        for piece, logits in source.pieces(encoded, asked):
            ruled = (logits - why.shift).softmax(-1)
            value, best = why.choice.best(ruled, piece)
            first = value.argmax(1, keepdim=True)  # of groups, the best one
            chosen = best.gather(1, first)[:, 0]
            classes[piece] = chosen.numpy()
            probabilities[piece] = value.gather(1, first)[:, 0].numpy()
            if mixer is not None and source.shares is not None:
                gates = _gates(mixer, calls.pop())
                contributions[piece] = _contributions(gates, logits, chosen, source.shares).numpy()

    # a behavior that was ruled out has probability 0
    log_p = np.log(np.maximum(probabilities, FLOOR))
    effects = log_p[:, None] - _without_each(source, encoded, why, asked, classes)
    last_name = "rest" if mixer is None or mixer.network is None else "network"
    names = (*EXPERTS, last_name) if width else ()

    labels, nothing = source.tokenizer.labels(classes), probabilities == TAKEN_OUT
    labels[nothing], probabilities[nothing] = None, np.nan
    contributions[nothing], effects[nothing] = 0, np.nan
    told = Told(source.tokenizer, encoded, classes, names, contributions, effects, asked or {})
    return Explanations(
        encoded.users,
        labels,
        probabilities,
        because(told),
        names,
        contributions,
        effects,
        event_text(told),
    )


@contextmanager
def _listening(mixer: Mixer | None) -> Iterator[list[Any]]:
    """What the mixer is called with meanwhile, by this thread."""
    calls: list[Any] = []
    here = threading.get_ident()

    def heard(_: Any, given: Any) -> None:
        if threading.get_ident() == here:  # a service predicts in another thread meanwhile
            calls.append(given)

    # a hook: the forward pass need not return what only explanations look at
    hook = None if mixer is None else mixer.register_forward_pre_hook(heard)
    try:
        yield calls
    finally:
        if hook is not None:
            hook.remove()


class Gates(NamedTuple):
    """How far each expert was believed, and what it said."""

    gate: torch.Tensor  # (n, J)
    memory: Memory
    log_prior: torch.Tensor  # (K,)


@torch.no_grad()
def _gates(mixer: Mixer, given: Any) -> Gates:
    """Of what the mixer was called with, on the CPU."""
    memory, log_prior, state = (*given, None)[:3]
    situation: torch.Tensor = mixer.situation(memory, len(log_prior), state)
    # as the mixer computes it, from the same input
    gate: torch.Tensor = mixer.weight + mixer.gate(situation)
    of_cpu = {name: values.cpu() for name, values in memory._asdict().items()}
    return Gates(gate.float().cpu(), Memory(**of_cpu), log_prior.cpu())


def _contributions(
    gates: Gates, logits: torch.Tensor, chosen: torch.Tensor, shares: np.ndarray
) -> torch.Tensor:
    """(n, J + 1) what each expert but the mixture, and the rest, add to the classes chosen (n,), of
    logits (n, K)."""
    memory, rows = gates.memory, torch.arange(len(chosen))

    # how the model weighs the other classes, (n, K)
    others = logits.clone()
    others[rows, chosen] = -torch.inf
    weight = others.softmax(1).nan_to_num()

    # log P_j of the chosen class (n, J): a candidate's own, or by the prior
    log_rest = torch.log(memory.rest + FLOOR)
    log_chance = torch.log(memory.probability + FLOOR)
    is_chosen = memory.classes == chosen[memory.owner]
    said = log_rest + gates.log_prior[chosen][:, None]
    said[memory.owner[is_chosen]] = log_chance[is_chosen]

    # the mean of log P_j over the others (n, J): candidates, then those that are none
    of_candidate = weight[memory.owner, memory.classes]
    mean = torch.zeros_like(said).index_add(0, memory.owner, of_candidate[:, None] * log_chance)
    weight[memory.owner, memory.classes] = 0
    mean = mean + weight.sum(1, keepdim=True) * log_rest + (weight @ gates.log_prior)[:, None]

    # the mixture's part goes to those who made it say so
    added = gates.gate * (said - mean)
    bucket = np.searchsorted(LENGTHS, memory.context[:, 0].numpy(), side="right")
    part = torch.from_numpy(shares[bucket]) * said[:, :-1].exp()
    added_by_mixed = part / part.sum(1, keepdim=True).clamp(min=FLOOR) * added[:, -1:]
    experts = added[:, :-1] + added_by_mixed

    known = torch.where(torch.isinf(others), 0, others)
    whole = logits[rows, chosen] - (others.softmax(1).nan_to_num() * known).sum(1)
    return torch.cat([experts, (whole - experts.sum(1))[:, None]], 1)


def _without_each(
    source: Source,
    encoded: EncodedHistories,
    why: Why,
    asked: Moment | None,
    classes: np.ndarray,
) -> np.ndarray:
    """Log-probability (U, N) of the classes (U,) when the history lacks each of its last N events;
    NaN where there is none, or it is the only one."""
    end = encoded.offsets[1:]
    length = np.diff(encoded.offsets)
    if source.looks_back is not None:  # one more, which moves up when another is left out
        length = np.minimum(length, source.looks_back + 1)
    number = np.where(length > 1, np.minimum(length, why.last), 0)  # (U,)
    found = np.full((len(length), why.last), np.nan, np.float32)

    # users at a time whose variants are few enough
    chunk = np.cumsum(number * length) // EVENTS
    for value in np.unique(chunk[number > 0]):
        users = np.flatnonzero(chunk == value)
        user, back = users[owners(number[users])], positions(number[users])  # (V,)
        event = ranges(end[user] - length[user], length[user])
        event = event[event != np.repeat(end[user] - 1 - back, length[user])]
        variants = EncodedHistories(
            encoded.users.take(pa.array(user)),
            np.concatenate([[0], np.cumsum(length[user] - 1)]),
            {name: values[event] for name, values in encoded.columns.items()},
            {},
            {},
        )
        told = asked and {field: ids[user] for field, ids in asked.items()}
        for piece, logits in source.pieces(variants, told):
            log_p = (logits - why.shift).log_softmax(-1)
            chosen = torch.from_numpy(classes[user[piece]])[:, None]
            found[user[piece], back[piece]] = log_p.gather(1, chosen)[:, 0].numpy()
    return found
