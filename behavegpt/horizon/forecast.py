"""`behavegpt.forecast`: what each user of a log will do in the days to come, and when.

>>> import behavegpt                                                            # doctest: +SKIP
>>> week = behavegpt.forecast("my_logs.csv", days=7)                            # doctest: +SKIP
>>> week.to_pandas()                                                            # doctest: +SKIP

Shapes: U users, N expected events, D deltas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from behavegpt.config import check_settings
from behavegpt.data.memory_columns import memory_columns
from behavegpt.data.times import DAY, zone
from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
from behavegpt.errors import DataError
from behavegpt.horizon.expected import Expected
from behavegpt.horizon.learn import Step, expected_of, learn, moments_at, warn_of_few
from behavegpt.ingest.asked import seconds_of
from behavegpt.ingest.whole_log import read_whole_log
from behavegpt.options import ForecastOptions
from behavegpt.tabular import Tabular
from behavegpt.timing.moments import until

CHANCES = ("within_1h", "within_6h", "within_1d")  # of metrics.horizon.DELTAS


@dataclass(frozen=True, repr=False)
class Forecast(Tabular):
    """Expected events of U users, by user and time; each column (N,)."""

    users: pa.StringArray  # (U,)
    user: np.ndarray  # (N,) int64 index
    time: np.ndarray  # (N,) int64 epoch seconds: the user's usual hour of a day to come
    labels: np.ndarray  # (N,) object
    # (N, D) float32: probability that the behavior happens within an hour, six hours, a day of it
    chances: np.ndarray
    now: int  # epoch seconds: the days begin here
    days: int
    tz: str  # zone of `local_time`: the log's
    learned_from: int  # moments of the log's past
    rejected: dict[str, int]  # reason -> rows, or users, left out

    def __len__(self) -> int:
        return len(self.users)

    def to_table(self) -> pa.Table:
        """Columns user, time (UTC), local_time (of `tz`), behavior, and the probabilities
        CHANCES."""
        return pa.table(
            {
                "user": self.users.take(pa.array(self.user)),
                "time": pa.array(self.time, pa.timestamp("s", "UTC")),
                "local_time": pa.array(zone(self.tz).wall(self.time), pa.timestamp("s")),
                "behavior": pa.array(self.labels, pa.string()),
                **dict(zip(CHANCES, self.chances.T, strict=True)),
            }
        )


def forecast(
    log: Any,
    days: int = 7,
    *,
    now: Any = None,
    columns: Mapping[str, Any] | None = None,
    step: Step = lambda done, of: None,
    **options: Any,
) -> Forecast:
    """Learn from a log, in seconds, and forecast all its users: what they do, and when, in the next
    `days` days.

    `log`: files, a DataFrame, an Arrow table, a mapping of columns or a list of event dicts;
    `columns`: settings of EventSchema that are not guessed, such as {"user": "uid"}; `now`: where
    the days begin, by default the log's last event; later events are left out. `options`: top_k,
    least, seed (ForecastOptions). Raises ConfigError and DataError.
    """
    chosen = check_settings(ForecastOptions, {"days": days, **options}, "forecast")
    tokenizer, encoded = read_whole_log(log, columns or {}, "a forecast")

    schema = tokenizer.event_schema
    moment = int(encoded.columns["time"].max())
    if now is not None:
        moment = seconds_of(now, schema, "now")
        encoded = until(encoded, moment)
        if not len(encoded.users):
            raise DataError(f"now: {str(now)[:60]!r} is before all events; ask about a later time.")

    histories = memory_columns(encoded.columns, schema.slot_minutes)
    warn_of_few(histories.time, moment, chosen.days)
    forecaster = learn(
        histories,
        encoded.offsets,
        schema,
        tokenizer.behaviors.classes,
        chosen.days,
        seed=chosen.seed,
        step=step,
    )

    users = np.arange(len(encoded.users))
    asked = moments_at(histories, encoded.offsets, users, np.full(len(users), moment), schema)
    expected, chances = expected_of(forecaster, histories, asked, chosen.days, chosen.top_k)
    kept = np.flatnonzero(chances[:, -1] >= chosen.least)
    kept = kept[np.lexsort((expected.days[kept], expected.moment[kept]))]
    return _answer(
        encoded, tokenizer, expected, chances, kept, (moment, chosen.days, forecaster.moments)
    )


def _answer(
    encoded: EncodedHistories,
    tokenizer: EventTokenizer,
    expected: Expected,
    chances: np.ndarray,
    kept: np.ndarray,
    facts: tuple[int, int, int],
) -> Forecast:
    """The kept events with labels and times; `facts`: now, days, moments that were learned from."""
    now, days, moments = facts
    return Forecast(
        users=encoded.users,
        user=expected.moment[kept],
        time=now + np.round(expected.days[kept] * DAY).astype(np.int64),
        labels=tokenizer.labels(expected.behavior[kept]),
        chances=chances[kept],
        now=now,
        days=days,
        tz=tokenizer.event_schema.tz,
        learned_from=moments,
        rejected=encoded.rejected,
    )
