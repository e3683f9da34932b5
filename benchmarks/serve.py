"""Load test of `behavegpt serve` on this machine: requests a second, latencies, and every answer
checked.

    python benchmarks/serve.py runs/demo/model --log behavegpt/demo/online_retail.parquet --seconds
    20

The service runs in a process of its own; CLIENTS connections ask, each as soon as it has its
answer, for the next behaviors of a user of the log (or of several). One request in ten is bad, of
ten kinds, and must be refused with 4xx. Answers are compared with `Predictor.predict` of all users
at once: the same behaviors, unless their probabilities differ by less than 1e-6, and the same
probabilities to 1e-6. Clients and service share the machine, so rows also tell requests a CPU
second of each: a second of the wall tells little on a machine that does other work. Rows go to
benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import torch

import behavegpt
from behavegpt.serving.answers import columns_of

RESULT = Path(__file__).parent / "results" / "serve.json"
BAD_EVERY = 10
PATH = "/v1/predict"
TOLERANCE = 1e-6


def histories(predictor: Any, log: Path, users: int, most: int) -> dict[str, list[dict[str, Any]]]:
    """User -> rows as JSON holds them, of `users` users spread over the log, their last `most`
    events."""
    schema = predictor.tokenizer.event_schema
    columns = [schema.user, *dict.fromkeys(columns_of(schema).values())]
    table = pq.read_table(log, columns=columns).to_pandas()
    table = table.sort_values([schema.user, schema.time], kind="stable")
    chosen = np.sort(table[schema.user].unique())
    chosen = chosen[:: max(1, len(chosen) // users)][:users]

    by_user = {}
    for user, rows in table[table[schema.user].isin(chosen)].groupby(schema.user):
        rows = rows.tail(most).astype(str).drop(columns=schema.user)
        by_user[str(user)] = rows.where(rows != "nan", None).to_dict("records")

    return by_user


def expected_answers(predictor: Any, asked: dict[str, Any], top: int) -> dict[str, Any]:
    """User -> labels and probabilities, one more than asked for: a tie may stand behind the
    last."""
    user = predictor.tokenizer.event_schema.user
    events = [row | {user: name} for name, rows in asked.items() for row in rows]
    predictions = predictor.predict(events, top + 1)
    answers = zip(predictions.labels, predictions.probabilities, strict=True)
    return dict(zip(predictions.users.to_pylist(), answers, strict=True))


def is_right(answer: dict[str, Any], expected: Any) -> bool:
    """Whether an answer for a user agrees with the Predictor's."""
    labels, probabilities = expected
    known = dict(zip(labels.tolist(), probabilities.tolist(), strict=True))
    return all(
        abs(got["probability"] - probabilities[i]) <= TOLERANCE
        and abs(known.get(got["behavior"], 9.0) - got["probability"]) <= TOLERANCE
        for i, got in enumerate(answer["behaviors"])
    )


def cpu_of(process: int) -> float:
    """CPU seconds that another process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bad_bodies(rows: list[dict[str, Any]], time_column: str) -> list[bytes]:
    """Ten kinds of requests that must be refused."""
    broken = [
        {}, {"users": []}, {"users": [{"events": []}]}, {"users": [{"events": [{}]}]},
        {"users": "all"},
        {"users": [{"events": rows}], "top_k": 0}, {"users": [{"events": rows, "name": 1}]},
        {"users": [{"events": [row | {time_column: "never"} for row in rows]}]},
        {"users": [{"events": rows[:1] * 2001}]},
    ]  # fmt: skip
    return [b"{broken", *(json.dumps(body).encode() for body in broken)]


async def ask(streams: Any, body: bytes, path: str = PATH) -> tuple[int, bytes]:
    """Status and body of a POST on an open connection; httpx would cost more than the service."""
    reader, writer = streams
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        f"{len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])

    return int(answer.split(b" ")[1]), await reader.readexactly(length)


async def load(
    at: tuple[int, int], clients: int, seconds: float, bodies: Any, bad: Any, expected: Any
) -> dict[str, Any]:
    """Ask the service (port, process) for some seconds; figures of one row."""
    port, process = at
    latencies: list[float] = []
    counts = {"right": 0, "wrong": 0, "refused": 0, "bad_accepted": 0, "failed": 0}
    numbers = itertools.count()
    until = time.perf_counter() + seconds

    async def client() -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            number = next(numbers)
            # bad requests between the good ones: a batch may hold both
            if number % BAD_EVERY == 0:
                status, _ = await ask(streams, bad[number // BAD_EVERY % len(bad)])
                counts["refused" if 400 <= status < 500 else "bad_accepted"] += 1
                continue

            began = time.perf_counter()
            status, text = await ask(streams, bodies[number % len(bodies)])
            latencies.append(time.perf_counter() - began)

            if status != 200:
                counts["failed"] += 1
                continue

            right = all(is_right(user, expected[user["id"]]) for user in json.loads(text)["users"])
            counts["right" if right else "wrong"] += 1

        streams[1].close()

    began, used, own = time.perf_counter(), cpu_of(process), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall = time.perf_counter() - began
    asked = sum(counts.values())
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    rate = round((counts["right"] + counts["wrong"]) / wall, 1)

    return {
        "clients": clients,
        "requests_per_s": rate,
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "per_cpu_s_of_service": round(asked / (cpu_of(process) - used)),
        "per_cpu_s_of_clients": round(asked / (time.process_time() - own)),
        **counts,
    }


@contextlib.contextmanager
def service(model: str | Path, options: list[str]) -> Iterator[tuple[int, int]]:
    """Port and process of a service; it must stop when it is told to, and say so."""
    # a free port, taken again by the service: nobody else on this machine is in a hurry
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    command = [sys.executable, "-m", "behavegpt.cli", "serve", str(model), *options]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )

    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
                break
            except httpx.TransportError:
                if process.poll() is not None:
                    raise SystemExit("the service did not start") from None
                time.sleep(0.2)

        yield port, process.pid
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise SystemExit(f"the service stopped with {status}")
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--users", type=int, default=1, help="users of a request")
    parser.add_argument("--events", type=int, default=30, help="events of a history")
    parser.add_argument(
        "--options", nargs="*", default=[], help="of behavegpt serve, such as wait_ms=10"
    )
    parser.add_argument("--beside", default="", help="what else the machine did, for the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    predictor = behavegpt.load(arguments.model, "cpu")
    asked = histories(predictor, arguments.log, 500, arguments.events)
    expected = expected_answers(predictor, asked, 5)
    users = [{"id": name, "events": rows} for name, rows in asked.items()]
    groups = [users[i : i + arguments.users] for i in range(0, len(users), arguments.users)]
    bodies = [json.dumps({"users": group, "top_k": 5}).encode() for group in groups]
    bad = bad_bodies(users[0]["events"], predictor.tokenizer.event_schema.time)

    with service(arguments.model, ["--threads", "1", *arguments.options]) as at:
        rows = [
            asyncio.run(load(at, n, arguments.seconds, bodies, bad, expected))
            for n in arguments.clients
        ]
        metrics = httpx.get(f"http://127.0.0.1:{at[0]}/metrics").text

    _write(arguments, predictor.model.config, rows)
    batches = [line for line in metrics.splitlines() if "batch_" in line and "bucket" not in line]
    print("\n".join(batches))
    if any(row["wrong"] or row["bad_accepted"] or row["failed"] for row in rows):
        raise SystemExit("a wrong answer, a failure, or bad input accepted")


def _write(arguments: argparse.Namespace, config: Any, rows: list[dict[str, Any]]) -> None:
    """The rows with what they were measured on, into the results and on standard output."""
    shape = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    result = {
        "model": f"{shape}, {config.num_behaviors} behaviors",
        "users_a_request": arguments.users,
        "events_a_history": arguments.events,
        "options": arguments.options,
        "seconds": arguments.seconds,
        "beside": arguments.beside,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
