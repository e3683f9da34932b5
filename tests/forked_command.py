"""A `behavegpt` for shells that starts at once: it hands its arguments and streams to a process
that has imported everything, which forks.

`python -m tests.forked_command SOCKET` serves; the script that `install` writes is the client.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
order = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(order).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(server.makefile().readline()))
"""


def install(folder: Path, address: Path) -> None:
    """Write the client into a folder for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "behavegpt"
    script.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    script.chmod(0o755)


def serve(address: str) -> None:
    """Obey one client after the other, in forks."""
    import pandas  # noqa: F401
    import torch
    import transformers.modeling_utils  # noqa: F401

    import behavegpt.challenge.evaluate
    import behavegpt.evaluation
    import behavegpt.report
    import behavegpt.scaling.fit
    import behavegpt.scaling.plots
    import behavegpt.scaling.sweep
    import behavegpt.zero_shot  # noqa: F401

    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        with client:
            _obey(client)


def _obey(client: socket.socket) -> None:
    message, streams, _, _ = socket.recv_fds(client, 1 << 16, 3)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 16)
    child = os.fork()
    if child == 0:
        _work(json.loads(message), streams)
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _work(order: dict, streams: list[int]) -> None:
    """Run the command as its own process would, and leave without the interpreter's clean-up."""
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from behavegpt.cli import main

        status = main(order["argv"])
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
