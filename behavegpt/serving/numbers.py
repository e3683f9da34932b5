"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

# Prometheus' own bounds, and 30 s, the default of `timeout_s`
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Histogram:
    """Cumulative counts below each bound."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self.bounds = name, text, bounds
        # one more than the bounds: what lies beyond the last of them
        self.counts, self.total = [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self) -> list[str]:
        """The histogram as text."""
        # the format asks for what is at or below each bound, so counts are summed up here and not
        # where each of them is taken
        found, seen = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} histogram"], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            found.append(f'{self.name}_bucket{{le="{bound}"}} {seen}')
        return [*found, f"{self.name}_sum {self.total}", f"{self.name}_count {seen}"]


class Numbers:
    """What the service tells of itself; written from two threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # (path, status) -> answers
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds = Histogram(
            "behavegpt_request_seconds", "time from request to answer", SECONDS
        )
        self._batch = Histogram("behavegpt_batch_users", "users answered together", SIZES)
        self._work = Histogram(
            "behavegpt_batch_seconds", "time of a batch in the model's thread", SECONDS
        )

    def request(self, path: str, code: int, seconds: float) -> None:
        """Count an answered or refused request."""
        # the event loop counts requests and the model's threads batches
        with self._lock:
            self._requests[path, code] = self._requests.get((path, code), 0) + 1
            self._seconds.add(seconds)

    def batch(self, users: int, seconds: float) -> None:
        """Count a batch."""
        with self._lock:
            self._batch.add(users)
            self._work.add(seconds)

    def text(self, waiting: int) -> str:
        """All of it, one number a line."""
        name = "behavegpt_requests_total"
        with self._lock:
            lines = [f"# HELP {name} answered and refused requests", f"# TYPE {name} counter"]
            lines += [
                f'{name}{{path="{p}",code="{c}"}} {n}'
                for (p, c), n in sorted(self._requests.items())
            ]
            lines += [
                "# HELP behavegpt_waiting requests in the queue",
                "# TYPE behavegpt_waiting gauge",
            ]
            lines += [f"behavegpt_waiting {waiting}"]
            return (
                "\n".join(
                    [*lines, *self._seconds.lines(), *self._batch.lines(), *self._work.lines()]
                )
                + "\n"
            )
