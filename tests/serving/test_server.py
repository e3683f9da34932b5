"""The socket of the service."""

from __future__ import annotations

import socket

from behavegpt.serving.server import listen


def test_an_answer_does_not_wait_for_the_receipt_of_its_head() -> None:
    """Head and body are two writes; with Nagle's algorithm the second would wait for 40 ms."""
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
