"""Dynamic batching: one thread runs the model, on all requests that came while it was busy or,
where several come at a time, within a few ms."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple


class Busy(Exception):
    """Too many requests wait, or the service is stopping."""


class Waiting(NamedTuple):
    """A request in the queue."""

    key: Hashable  # None: not with others
    size: int
    payload: Any
    result: Future[Any]


class Batcher:
    """Calls `work` with lists of payloads of the same key, of `most` in size, from one thread of
    its own."""

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        most: int,
        wait: float,
        most_waiting: int,
    ) -> None:
        """`wait` in seconds; `work` gives a result or an exception for each payload."""
        self._work, self._most, self._wait, self._limit = work, most, wait, most_waiting
        # None: nothing comes any more
        self._queue: queue.Queue[Waiting | None] = queue.Queue()
        self._held: list[Waiting] = []  # taken from the queue for a later batch
        self._crowd = False  # whether the last batch held several, so that others may be near
        self._closing = False
        # daemon: a batch that hangs must not keep the process from ending
        self._thread = threading.Thread(target=self._run, name="behavegpt-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that no batch holds yet."""
        return self._queue.qsize() + len(self._held)

    def submit(self, key: Hashable, size: int, payload: Any) -> Future[Any]:
        """The future result; a cancelled one is not computed. Raises Busy."""
        # a refusal at once is better than an answer that comes too late
        if self._closing or self.waiting >= self._limit:
            raise Busy
        result: Future[Any] = Future()
        self._queue.put(Waiting(key, size, payload, result))
        return result

    def close(self) -> None:
        """Answer what waits, take nothing more."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_ or self._held:
            open_ = self._take(open_)
            # what was cancelled while it waited is dropped here; from now on it cannot be
            batch = [item for item in self._next() if item.result.set_running_or_notify_cancel()]
            self._crowd = len(batch) > 1 or bool(self._held)
            if not batch:
                continue
            try:
                results = self._work([item.payload for item in batch])
            # the thread must outlive any batch
            except Exception as error:
                results = [error] * len(batch)
            for item, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    item.result.set_exception(result)
                else:
                    item.result.set_result(result)

    def _take(self, open_: bool) -> bool:
        """Move requests from the queue to the held ones until a batch is full or has waited; False
        once closed.

        A lone client is not kept waiting: what is there is all that comes.
        """
        wait = self._wait if self._crowd else 0.0
        until = time.monotonic() + wait
        while open_ and sum(item.size for item in self._held) < self._most:
            left = until - time.monotonic()
            try:  # with nothing to do, wait for ever
                item = self._queue.get(timeout=max(left, 0)) if self._held else self._queue.get()
            except queue.Empty:
                return True
            if item is None:
                return False
            # the time runs from the first request of a batch, not from the last batch
            if not self._held:
                until = time.monotonic() + wait
            self._held.append(item)
        return open_

    def _next(self) -> list[Waiting]:
        """The oldest request and those held with its key, up to the size of a batch."""
        batch: list[Waiting] = []
        rest: list[Waiting] = []
        size = 0
        for item in self._held:
            # the first one always goes, however large it is: it would wait for ever
            together = not batch or (item.key is not None and item.key == batch[0].key)
            if together and (not batch or size + item.size <= self._most):
                batch.append(item)
                size += item.size
            else:
                rest.append(item)
        self._held = rest
        return batch
