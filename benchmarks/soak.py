"""Honest clients of `behavegpt serve` beside hostile ones: wrong answers, failures, and the honest
ones' latency.

    python benchmarks/soak.py runs/demo/model --log behavegpt/demo/online_retail.parquet --seconds
    60

First CLIENTS ask alone, then beside five hostile ones in a process of their own: bodies of millions
of wrong items and of deep JSON; the longest generations, some given up at once; times that only
DuckDB can read and large requests; 200 connections that drip or say nothing; bodies that never end.
Every honest answer is compared with `Predictor.predict`. Rows go to benchmarks/results/soak.json.
Exit status 1 for a wrong answer, a failure, or a p99 beyond 3 times the quiet one.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from serve import bad_bodies, expected_answers, histories, load

import behavegpt

RESULT = Path(__file__).parent / "results" / "soak.json"
MB = 1 << 20


def head(path: str, length: int) -> bytes:
    """The head of a POST."""
    text = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        f"{length}\r\n\r\n"
    )
    return text.encode()


async def post(port: int, path: str, body: bytes, patience: float = 60) -> str:
    """The status of an answer, or how the connection ended."""
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(head(path, len(body)) + body)
                line = await reader.readline()
                return line.split(b" ")[1].decode() if line else "closed"
    except TimeoutError:
        return "gave up"
    except ConnectionError:
        return "reset"


async def hostile(
    port: int, kind: int, event: dict[str, Any], time_column: str, until: float
) -> collections.Counter[str]:
    """One hostile client; what it was answered."""
    counts: collections.Counter[str] = collections.Counter()
    rows = json.dumps([event] * 400)
    users = ",".join(f'{{"id":{n},"events":{rows}}}' for n in range(120))
    large = f'{{"users":[{users}]}}'.encode()
    unreadable = json.dumps({"users": [{"events": [event | {time_column: "never"}] * 50}]}).encode()
    longest = json.dumps({"users": [{"events": [event]}], "steps": 1000, "samples": 20}).encode()
    bodies = {
        0: [("/v1/predict", b'{"users":[' + b"1," * (39 * MB // 10) + b"1]}", 60.0)],
        1: [
            ("/v1/embed", b'{"users":[' + b"1," * 400_000 + b"1]}", 60.0),
            ("/v1/predict", b'{"users":' + b"[" * 400_000, 60.0),
            ("/v1/predict", b'{"users":[{"events":[' + b'{"a":[1]},' * 90_000 + b"1]}]}", 60.0),
        ],
        2: [("/v1/generate", longest, 60.0), ("/v1/generate", longest, 0.2)],
        3: [("/v1/predict", unreadable, 60.0), ("/v1/predict", large[: 8 * MB], 60.0)],
    }

    while time.time() < until:
        if kind == 4:
            counts += await drip(port)
            continue
        for path, body, patience in bodies[kind]:
            counts[await post(port, path, body, patience)] += 1

    return counts


async def drip(port: int) -> collections.Counter[str]:
    """200 connections: silent ones, heads and bodies of a byte now and then; until all are
    closed."""
    ends: collections.Counter[str] = collections.Counter()

    async def one(number: int) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((b"", b"POST /v1/pre", head("/v1/predict", 5 * MB))[number % 3])
            while not reader.at_eof():
                if number % 3:
                    writer.write(b"x")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), 0.5)
            writer.close()

        ends["dripping connection closed"] += 1

    await asyncio.gather(*(one(number) for number in range(200)))
    return ends


def attack(port: int, event: dict[str, Any], time_column: str, seconds: float) -> None:
    """Five hostile clients; prints what they were answered."""

    async def everyone() -> list[collections.Counter[str]]:
        until = time.time() + seconds
        return await asyncio.gather(
            *(hostile(port, kind, event, time_column, until) for kind in range(5))
        )

    print(json.dumps([dict(counts) for counts in asyncio.run(everyone())]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--attack", nargs=3, help=argparse.SUPPRESS, metavar=("PORT", "EVENT", "TIME")
    )
    arguments = parser.parse_args()
    if arguments.attack:
        port, event, time_column = arguments.attack
        attack(int(port), json.loads(event), time_column, arguments.seconds)
        return

    torch.set_num_threads(1)
    predictor = behavegpt.load(arguments.model, "cpu")
    asked = histories(predictor, arguments.log, 500, 30)
    users = [{"id": name, "events": rows} for name, rows in asked.items()]
    bodies = [json.dumps({"users": [user], "top_k": 5}).encode() for user in users]
    time_column = predictor.tokenizer.event_schema.time
    first = next(iter(asked.values()))
    questions = (bodies, bad_bodies(first, time_column), expected_answers(predictor, asked, 5))

    result = soak(arguments, questions, first[0], time_column)
    rows = result["rows"]
    result["p99_ratio"] = round(rows[1]["p99_ms"] / rows[0]["p99_ms"], 2)

    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    failed = any(row["wrong"] or row["bad_accepted"] or row["failed"] for row in rows)
    if failed or result["p99_ratio"] > 3:
        raise SystemExit("a wrong answer, a failure, bad input accepted, or honest clients held up")


def soak(
    arguments: argparse.Namespace,
    questions: tuple[Any, Any, Any],
    event: dict[str, Any],
    time_column: str,
) -> dict[str, Any]:
    """A row without and one with hostile clients, and how the service bore them; `questions`: good
    bodies, bad ones and the expected answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    command = [sys.executable, "-m", "behavegpt.cli", "serve", str(arguments.model)]
    command += ["--port", str(port), "--threads", "1"]
    service = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def row(hostile: int) -> dict[str, Any]:
        at = port, service.pid
        honest = load(at, arguments.clients, arguments.seconds, *questions)
        return {"hostile": hostile} | asyncio.run(honest)

    try:
        wait_until_up(port)
        asyncio.run(load((port, service.pid), 4, 3, *questions))  # warm
        rows = [row(0)]

        # in a process of their own: their work must not slow down the honest clients themselves
        attacking = [sys.executable, *sys.argv, "--attack", str(port)]
        attacking += [json.dumps(event), time_column]
        enemies = subprocess.Popen(attacking, stdout=subprocess.PIPE, text=True)
        rows.append(row(5))
        answered = json.loads(enemies.communicate(timeout=120)[0])

        memory = peak_mib(service.pid)
        service.send_signal(signal.SIGTERM)
        status = service.wait(timeout=60)
    finally:
        service.kill()

    return {
        "seconds": arguments.seconds,
        "rows": rows,
        "hostile_were_answered": answered,
        "service_peak_mib": memory,
        "stopped_with": status,
    }


def wait_until_up(port: int) -> None:
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.2)


def peak_mib(pid: int) -> int | None:
    """The largest memory that the process held, where the kernel tells."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) >> 10  # kB
    return None


if __name__ == "__main__":
    main()
