"""Learn from moments of a log's past, of which the following days are known, how probable expected
events are.

A small network, shared by all users and behaviors, reads the facts and says for each of DELTAS how
probable it is that the behavior happens so close to the expected time.

Shapes: E events, U users, M moments, N expected events, F facts, D deltas.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from behavegpt.data.memory_columns import Columns
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import DAY, zone
from behavegpt.errors import DataError
from behavegpt.horizon.expected import FACTS, Expected, Hours, Moments, expect, happened, hours_of
from behavegpt.metrics.horizon import DELTAS
from behavegpt.ragged import owners

LEAST_MOMENTS = 50  # without which nothing is learned
EARLIER = 0.3  # share of the events that are counted before the first moment
MOMENTS = 12_000  # that are learned from, at most
PER_USER = 8, 64  # of one user, of many users and of few: more repeat one another
CHUNK = 1000  # moments whose expected events are in memory together
WIDTH, EPOCHS, BATCH, RATE = 64, 6, 2048, 3e-3
LEAST_STEPS = 600  # of a short log, which is seen more often
FEW = 0.05  # of the average number of events: so few in the last days are a mistake
EXTREME = 5.0  # standard deviations: facts beyond are cut off
Step = Callable[[int, int], None]  # done, of


@dataclass(frozen=True)
class Forecaster:
    """What was learned from a log."""

    network: nn.Module
    mean: torch.Tensor  # (F,) of the facts that were learned from
    deviation: torch.Tensor  # (F,)
    hours: Hours
    moments: int  # that were learned from

    @torch.no_grad()
    def chances(self, facts: np.ndarray) -> np.ndarray:
        """(N, D) float32: probability of each expected event, within each of DELTAS."""
        # what is within an hour is within a day: the network gives the closest, and what is added
        shares = self.network(self._scaled(facts)).sigmoid()
        return np.asarray(shares.cummax(dim=1).values.numpy())

    def _scaled(self, facts: np.ndarray) -> torch.Tensor:
        scaled = (torch.from_numpy(facts) - self.mean) / self.deviation
        return scaled.clamp_(-EXTREME, EXTREME)


def moments_at(
    columns: Columns, offsets: np.ndarray, users: np.ndarray, now: np.ndarray, schema: EventSchema
) -> Moments:
    """The moments `now` (M,) epoch seconds of `users` (M,): all events until then are past. Users
    have one at least."""
    begin = offsets[users]
    # one key for all users, so that one search finds where each past ends
    span = int(columns.time.max()) + 2
    key = owners(np.diff(offsets)) * span + columns.time
    end = np.searchsorted(key, users * span + now, side="right")

    wall = zone(schema.tz).wall(now)
    return Moments(begin, end, now, wall % DAY // 60, (wall // DAY + 3) % 7)


def learn(
    columns: Columns,
    offsets: np.ndarray,
    schema: EventSchema,
    classes: int,
    days: int,
    *,
    seed: int = 0,
    step: Step = lambda done, of: None,
) -> Forecaster:
    """Learn from histories (U,), all of which is past; the days after each moment are part of them.

    Raises DataError where the log is too short.
    """
    end = int(columns.time.max())
    rng = np.random.default_rng(seed)
    until = end - days * DAY
    before = columns.time[columns.time <= until]
    begin = int(np.quantile(before, EARLIER)) if len(before) else until
    users, now = _draw(columns, offsets, (begin, until), rng)
    if len(users) < LEAST_MOMENTS:
        raise DataError(
            f"{len(users)} moments to learn from, {LEAST_MOMENTS} are needed: events that are "
            f"followed by {days} more days of the log. Take a longer log, or fewer days."
        )

    # counted before the first moment, so that none of them knows a later event of anybody
    hours = hours_of(columns, columns.time <= begin, classes)
    moments = moments_at(columns, offsets, users, now, schema)
    facts, came = _read(columns, hours, moments, offsets[users + 1], days, step)
    if not len(facts):
        raise DataError("no event has a behavior, so there is nothing to forecast.")
    mean = torch.from_numpy(facts.mean(0))
    deviation = torch.from_numpy(facts.std(0).clip(1e-6))
    known_now = hours_of(columns, np.ones(len(columns.time), bool), classes)
    forecaster = Forecaster(_network(seed), mean, deviation, known_now, len(now))
    known = torch.from_numpy(came).float()
    half = len(now)  # of the bar: reading, then fitting
    _fit(
        forecaster.network,
        forecaster._scaled(facts),
        known,
        lambda done, of: step(half + half * done // of, 2 * half),
        seed,
    )
    return forecaster


def _read(
    columns: Columns, hours: Hours, moments: Moments, until: np.ndarray, days: int, step: Step
) -> tuple[np.ndarray, np.ndarray]:
    """Facts (N, F) of what the moments let expect, and whether it happened (N, D); `until` (M,):
    where the events of each moment's user end."""
    facts, came = [], []
    number = len(moments.now)
    for at in range(0, number, CHUNK):
        chunk = moments.slice(at, at + CHUNK)
        expected = expect(columns, hours, chunk, days)
        facts.append(expected.facts)
        came.append(happened(columns, expected, chunk, until[at : at + CHUNK]))
        step(min(at + CHUNK, number), 2 * number)

    return np.concatenate(facts), np.concatenate(came)


def warn_of_few(time: np.ndarray, end: int, days: int) -> None:
    """Warn where the `days` days before `end` hold hardly any of the events at `time` (E,): a log
    that ends with a few wrong dates ends too late."""
    early = time <= end
    recent = int((time[early] > end - days * DAY).sum())
    usual = early.sum() * min(days * DAY / max(int(np.ptp(time[early])), 1), 1.0)
    if recent < FEW * usual:
        written = datetime.fromtimestamp(end, UTC).isoformat()
        warnings.warn(
            f"only {recent:,} events in the {days} days before {written}, of {usual:,.0f} on "
            "average: if the log really ends earlier, say where with --now (now=).",
            stacklevel=3,
        )


def expected_of(
    forecaster: Forecaster, columns: Columns, moments: Moments, days: int, top_k: int | None = None
) -> tuple[Expected, np.ndarray]:
    """The events of the next `days` days of each moment, or its `top_k` most probable ones, and
    their probabilities (N, D)."""
    found, chances = [], []
    for at in range(0, len(moments.now), CHUNK):
        part = expect(columns, forecaster.hours, moments.slice(at, at + CHUNK), days)
        sure = forecaster.chances(part.facts)
        # what is not asked for, and the facts, go chunk by chunk: of a million users they would
        # fill the memory
        kept = slice(None) if top_k is None else _likeliest(part.moment, sure, top_k)
        chances.append(sure[kept])
        found.append((part.moment[kept] + at, part.behavior[kept], part.days[kept]))

    moment, behavior, place = (np.concatenate(column) for column in zip(*found, strict=True))
    none = np.zeros((len(moment), 0), np.float32)
    return Expected(moment, behavior, place, none), np.concatenate(chances)


def _likeliest(moment: np.ndarray, chances: np.ndarray, top_k: int) -> np.ndarray:
    """Indices, ascending, of the `top_k` most probable events of each moment."""
    order = np.lexsort((-chances.mean(axis=1), moment))
    place = np.arange(len(order)) - np.searchsorted(moment[order], moment[order])
    return np.sort(order[place < top_k])


def _draw(
    columns: Columns, offsets: np.ndarray, window: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Users (M,) and moments (M,) of the window, its end included: half of them at an event, half
    between an event and the next one, as users are asked about."""
    begin, until = window
    lengths = np.diff(offsets)
    owner = owners(lengths)
    fits = np.flatnonzero((columns.time > begin) & (columns.time <= until))

    # as many of each user at most, drawn by a shuffle
    fits = fits[rng.permutation(len(fits))]
    fits = fits[np.argsort(owner[fits], kind="stable")]
    turn = np.arange(len(fits)) - np.searchsorted(owner[fits], owner[fits])
    fits = fits[turn < np.clip(MOMENTS // len(lengths), *PER_USER)]
    fits = np.sort(rng.permutation(fits)[:MOMENTS])

    now = columns.time[fits].astype(np.int64)
    last = fits + 1 == offsets[owner[fits] + 1]
    following = columns.time[np.minimum(fits + 1, len(owner) - 1)].astype(np.int64)
    ends = np.minimum(np.where(last, until, following - 1), until)
    between = now + (rng.random(len(now)) * np.maximum(ends - now, 0)).astype(np.int64)
    return owner[fits], np.where(rng.random(len(now)) < 0.5, now, between)


def _network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(len(FACTS), WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, len(DELTAS)),
        )


def _fit(
    network: nn.Module, facts: torch.Tensor, known: torch.Tensor, step: Step, seed: int
) -> None:
    """Minimise the cross-entropy of what happened."""
    size = min(BATCH, len(facts))
    epochs = max(EPOCHS, -(-LEAST_STEPS // (len(facts) // size)))
    steps = epochs * (len(facts) // size)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)

    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(facts), generator=generator)
        for batch in order[: len(facts) // size * size].split(size):
            loss = F.binary_cross_entropy_with_logits(network(facts[batch]), known[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
        step(done, steps)
