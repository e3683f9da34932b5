"""The command line in processes of its own that a trial may kill or starve, without seconds of
imports for each.

`python -m tests.reliability.forks` imports all of it and forks a child for each order: one JSON
line in, one out.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STOPS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 300.0  # seconds after which a command is hung


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (negative: a signal), seconds, and what it printed."""

    status: int
    seconds: float
    output: str


class Commands:
    """The test's end of the server."""

    def __init__(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(self, argv: list[str], cwd: Path, **order: Any) -> Ended:
        """Run a command line and wait for its end. What an order may ask for:

        signal=NUMBER, after=SECONDS: send it, the seconds counted once=TEXT has been printed, if
        that is asked; killed_after=SECONDS: SIGKILL so much later; file_limit=BYTES: no file may
        grow beyond; user=ID: run as that user; temporary=FOLDER: in place of the system's.
        """
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(order | {"argv": argv, "cwd": str(cwd)}) + "\n")
        self.server.stdin.flush()
        return Ended(**json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(PATIENCE)


@cache
def commands() -> Commands:
    """One server for all tests."""
    server = Commands()
    atexit.register(server.close)
    return server


# ---- the server


def serve() -> None:
    import duckdb  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.modeling_utils  # noqa: F401

    import behavegpt.challenge.evaluate
    import behavegpt.embeddings.export
    import behavegpt.evaluation
    import behavegpt.export_model
    import behavegpt.finetune
    import behavegpt.profiles.pipeline
    import behavegpt.scaling.fit
    import behavegpt.scaling.plots
    import behavegpt.serving.app  # noqa: F401

    torch.set_num_threads(1)
    # which a shell's background jobs ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        print(json.dumps(vars(_obey(json.loads(line)))), flush=True)
    os._exit(0)


def _obey(order: dict[str, Any]) -> Ended:
    began = time.monotonic()
    printed, end = os.pipe()  # no file: the trials of full disks would stop it too
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until the child is where the trial begins
    child = os.fork()
    if child == 0:
        os.close(printed)
        _work(order, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    os.close(end)
    os.set_blocking(printed, False)
    output = bytearray()
    signals = [(order["after"], order["signal"])] if "signal" in order else []
    if "killed_after" in order:
        signals.append((order["after"] + order["killed_after"], signal.SIGKILL))
    once, counted_from = order.get("once", "").encode(), None
    while True:
        _drain(printed, output)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        now = time.monotonic()
        if counted_from is None and once in output:
            counted_from = now if once else began
        while signals and counted_from is not None and now - counted_from >= signals[0][0]:
            os.kill(child, signals.pop(0)[1])
        if now - began > PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    _drain(printed, output)
    os.close(printed)
    return Ended(
        os.waitstatus_to_exitcode(status), time.monotonic() - began, output.decode(errors="replace")
    )


def _drain(pipe: int, output: bytearray) -> None:
    """Take what has been printed so far."""
    try:
        while piece := os.read(pipe, 1 << 16):
            output += piece
    except BlockingIOError:
        return


def _work(order: dict[str, Any], end: int) -> None:
    """Run the command as `python -m behavegpt.cli` would, and leave without the interpreter's
    clean-up."""
    status = 1
    try:
        for stream in (1, 2):
            os.dup2(end, stream)
        os.chdir(order["cwd"])
        if "file_limit" in order:
            # Python does not notice that a .pyc was cut short, and fails ever after
            sys.dont_write_bytecode = True
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], hard))
        if "temporary" in order:
            tempfile.tempdir = os.environ["TMPDIR"] = order["temporary"]
        if "user" in order:
            os.setuid(order["user"])
        from behavegpt.cli import main

        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        status = main(order["argv"])
    except SystemExit as left:
        status = int(left.code or 0)
    except KeyboardInterrupt:  # before the command line had looked at its arguments
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
