"""A small trained model, its service in the process, and its service on a port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import pytest

import behavegpt
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from tests.helpers import random_store
from tests.runs import save_store, tiny_settings

Answer = TypeVar("Answer")


def answered_until_sigterm(words: list[str], ask: Callable[[str], Answer]) -> Answer:
    """`behavegpt serve WORDS` in this process, in the main thread as a command is, until `ask(url)`
    has its answer and SIGTERM ends it."""
    import httpx

    from behavegpt.cli import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, over = f"http://127.0.0.1:{port}", threading.Event()
    answers: list[Answer] = []

    def client() -> None:
        while not over.is_set():
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").is_success:
                    break
            time.sleep(0.02)
        try:
            answers.append(ask(url))
        finally:
            if not over.is_set():  # else the signal would end the tests
                os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=client)
    asking.start()
    try:
        status = main(["serve", *words, f"--port={port}"])
    finally:
        over.set()
        asking.join()
    assert status == 143
    return answers[0]


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("serving")
    save_store(random_store(0), folder / "data")
    settings = tiny_settings(folder / "data", folder / "run", steps=4)
    settings["model"] |= {"history_head": True, "next_heads": ["event", "location", "gap"]}
    pretrain(PretrainSettings.model_validate(settings))
    return behavegpt.load(folder / "run" / "model", "cpu")


@pytest.fixture
def running(predictor: Predictor) -> Callable[..., AbstractContextManager[int]]:
    """`with running(timeout_s=1) as port:` the service as `behavegpt serve` starts it."""
    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings
    from behavegpt.serving.server import Server, listen

    @contextlib.contextmanager
    def run(**limits: Any) -> Iterator[int]:
        settings = ServeSettings(**limits)
        address = listen("127.0.0.1", 0)
        server = Server(make_app(predictor, settings), settings, log_level="critical")
        thread = threading.Thread(target=server.run, args=([address],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield address.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()

    return run
