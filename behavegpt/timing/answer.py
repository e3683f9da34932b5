"""When the next event of each user comes, and what happens within a horizon.

Shapes: U users, K behaviors, M moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.config import check_settings
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import ConfigError, DataError
from behavegpt.ingest.asked import seconds_of
from behavegpt.option_types import span_seconds
from behavegpt.options import WhenOptions
from behavegpt.predictions import Predictions
from behavegpt.tabular import Tabular
from behavegpt.timing.gaps import Gaps
from behavegpt.timing.moments import Moments, moments_of_histories, until

LEVELS = {"earliest_90": 0.05, "earliest_50": 0.25, "median": 0.5}
LEVELS |= {"latest_50": 0.75, "latest_90": 0.95}
OWN = 20.0  # events of everybody's mixture beside a user's own


@dataclass(frozen=True, repr=False)
class Times(Tabular):
    """When U users act next, counted from `now`, and their most probable behaviors within the
    horizon."""

    users: pa.StringArray  # (U,)
    now: np.ndarray  # (U,) int64, epoch seconds
    seconds: np.ndarray  # (U, 5) from now, columns as LEVELS; inf: it may never come
    any_within: np.ndarray  # (U,) probability of any event within the horizon
    labels: np.ndarray  # (U, k) object, the most probable first
    within: np.ndarray  # (U, k) probability of at least one such event within the horizon
    horizon: int  # seconds
    unknown: dict[str, int]  # field -> events whose label the model never saw
    rejected: dict[str, int]  # reason -> rows, or users, left out

    def __len__(self) -> int:
        return len(self.users)

    def answers(self) -> list[dict[str, Any]]:
        """The same by user, as the service tells them: times are null where they may never come."""
        names = [f"{name}_s" for name in LEVELS]
        seconds = self.seconds.astype(object)
        seconds[~np.isfinite(self.seconds)] = None
        rows = zip(self.labels.tolist(), self.within.tolist(), strict=True)
        behaviors = [
            [{"behavior": label, "within": share} for label, share in zip(*row, strict=True)]
            for row in rows
        ]
        return [
            {"now": _written(now), **dict(zip(names, row, strict=True))}
            | {"any_within": some, "behaviors": following}
            for now, row, some, following in zip(
                self.now.tolist(),
                seconds.tolist(),
                self.any_within.tolist(),
                behaviors,
                strict=True,
            )
        ]

    def to_table(self) -> pa.Table:
        """k rows a user: user, now, the seconds of LEVELS (null where it may never come),
        any_within, rank, behavior, within."""
        top = self.labels.shape[1]
        row = np.repeat(np.arange(len(self)), top)
        seconds = {
            f"{name}_s": pa.array(values[row], mask=~np.isfinite(values[row]))
            for name, values in zip(LEVELS, self.seconds.T, strict=True)
        }
        return pa.table(
            {
                "user": self.users.take(pa.array(row)),
                "now": pa.array(self.now[row], pa.timestamp("s", "UTC")),
                **seconds,
                "any_within": self.any_within[row],
                "rank": np.tile(np.arange(1, top + 1), len(self)),
                "behavior": pa.array(self.labels.ravel().tolist(), pa.string()),
                "within": self.within.ravel(),
            }
        )


def of_model(gaps: Gaps | None) -> Gaps:
    """What lies beside a trained model. Raises ConfigError where nothing does."""
    if gaps is None:
        raise ConfigError(
            "this model has not learned times (no timing.json); run `behavegpt when "
            "MODEL DATA` with its prepared folder."
        )
    return gaps


def times_of(
    learned: Callable[[], Gaps],
    tokenizer: EventTokenizer,
    read: Callable[[], EncodedHistories],
    predict: Callable[[EncodedHistories, int], Predictions],
    now: Any = None,
    **options: Any,
) -> Times:
    """The answer for the histories that `read` gives, by the gaps that were `learned` and with the
    next behaviors that `predict` says.

    `now`: the time of asking for all users, by default each one's last event; `options`:
    WhenOptions. Raises ConfigError, also what `learned` raises, and DataError.
    """
    # all options before the events are read, which may take long
    chosen = check_settings(WhenOptions, options, "when")
    gaps = learned()
    schema = tokenizer.event_schema
    moment = None if now is None else seconds_of(now, schema, "now")
    if moment is not None and moment < gaps.facts.get("end", moment):
        raise ConfigError(
            f"now: {str(now)[:60]!r} is before the end of the counted log "
            f"({_written(gaps.facts['end'])}), all of which is past; count a log that ends there."
        )

    encoded = read()
    if moment is not None:
        encoded = until(encoded, moment)
        if not len(encoded.users):
            raise DataError(f"now: {str(now)[:60]!r} is before all events; ask about a later time.")

    moments = moments_of_histories(encoded, schema)
    asked = moments.last
    then = moments.time[asked] if moment is None else np.full(len(asked), moment)
    following = predict(encoded, chosen.top_k)

    horizon = span_seconds(chosen.within)
    shares = following.probabilities.astype(float)
    return Times(
        users=encoded.users,
        now=then,
        seconds=quantiles_of(gaps, moments, asked, then),
        any_within=any_within(gaps, moments, asked, then, horizon),
        labels=following.labels,
        within=upcoming(gaps, moments, asked, then, horizon, shares)["timing"],
        horizon=horizon,
        unknown=encoded.unknown,
        rejected=encoded.rejected,
    )


def _written(seconds: int) -> str:
    """Epoch seconds as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def quantiles_of(gaps: Gaps, moments: Moments, asked: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Seconds from `now` (U,) to the next event (U, 5) after the moments `asked` (U,)."""
    location, group = (values[asked] for values in gaps.place(moments))
    elapsed = (now - moments.time[asked]).astype(float)
    levels = np.array(list(LEVELS.values()))
    return gaps.quantiles(location, group, elapsed, levels) - elapsed[:, None]


def upcoming(
    gaps: Gaps,
    moments: Moments,
    asked: np.ndarray,
    now: int | np.ndarray,
    seconds: int,
    shares: np.ndarray,
) -> dict[str, np.ndarray]:
    """Probability (U, K) of each behavior in the next `seconds`, in two ways; `shares` (U, K): of
    the next event.

    `next event`: of the next event alone. `timing`: of as many events as the user's own rate tells,
    if there is any at all.
    """
    some = any_within(gaps, moments, asked, now, seconds)[:, None]
    number = _events_if_any(moments, asked, now, seconds)[:, None]
    several = 1 - (1 - np.minimum(shares, 1 - 1e-9)) ** number
    return {"next event": some * shares, "timing": some * several}


def any_within(
    gaps: Gaps, moments: Moments, asked: np.ndarray, now: int | np.ndarray, seconds: int
) -> np.ndarray:
    """Probability (U,) of any event in the next `seconds`."""
    location, group = (values[asked] for values in gaps.place(moments))
    return gaps.within(location, group, (now - moments.time[asked]).astype(float), seconds)


def _events_if_any(
    moments: Moments, asked: np.ndarray, now: int | np.ndarray, seconds: int
) -> np.ndarray:
    """Events expected in the next `seconds` (U,) if there is one: those of a moment, and of the
    moments that the user's own rate adds."""
    span = np.maximum(now - moments.begin[asked], 1)
    size = moments.events[asked] / (moments.seen[asked] + 1)
    # of a user seen once, no rate is known: the past is at least as long as the horizon
    rate = moments.seen[asked] / np.maximum(span, seconds)
    # the first moment of the horizon comes, on average, half way through it
    return size * (1 + rate * seconds / 2)


def mixture(
    owner: np.ndarray, label: np.ndarray, users: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Share of each behavior in the events of `users` (U, K), shrunk to the training shares;
    `owner`, `label` (events,), a label below 0 is unknown."""
    classes = len(counts)
    known = label >= 0
    place = np.searchsorted(users, owner[known])
    number = np.bincount(place * classes + label[known], minlength=len(users) * classes)
    number = number.reshape(len(users), classes)

    everybody = (np.asarray(counts) + 1.0) / (np.sum(counts) + classes)
    return (number + OWN * everybody) / (number.sum(1, keepdims=True) + OWN)
