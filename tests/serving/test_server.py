"""The socket of the service, and what it does to Python's collector."""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
from collections.abc import Callable

from behavegpt.serving.server import listen


def test_an_answer_does_not_wait_for_the_receipt_of_its_head() -> None:
    """Head and body are two writes; with Nagle's algorithm the second would wait for 40 ms."""
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_collector_walks_libraries_and_model_once(
    running: Callable[..., contextlib.AbstractContextManager[int]],
) -> None:
    """A full collection of them takes 0.3 s, in which nobody is answered."""
    before = sys.getswitchinterval()
    with running():
        assert gc.get_freeze_count() > 10_000
        assert sys.getswitchinterval() < before  # threads of large requests give way sooner
    assert gc.get_freeze_count() == 0 and sys.getswitchinterval() == before
