"""Updates a second of users' states on this machine: in Python, and as requests to the service.

    python benchmarks/states.py runs/mine/model --log my_logs.parquet --seconds 8

A second of the wall tells little on a machine that does other work; updates a CPU second do: with
service and clients on a core each, the smaller of their rates is what two idle cores would reach.

In Python: `model.update` of one event at a time, labels and times read; and of events in ids, the
counting alone. Over HTTP: CLIENTS connections send the histories of users of the log to POST
/v1/users/ID/events, a request as soon as the one before is answered, each with a few events; every
answer must tell the right number of events, and at the end the service's predictions of some users
must be those of `Predictor.predict` of what was sent (1e-5). Clients and service share the machine.
`model` may be `universal`, which counts the log. Rows go to benchmarks/results/states.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from serve import ask, cpu_of, histories, service

import behavegpt
from behavegpt.zero_shot import UniversalPredictor

RESULT = Path(__file__).parent / "results" / "states.json"
TOLERANCE = 1e-5
CHECKED = 20  # users whose predictions are compared
Rows = list[dict[str, Any]]


def clocks() -> tuple[float, float]:
    """Seconds of the wall and of this process's CPU."""
    return time.perf_counter(), time.process_time()


def _rates(done: int, began: tuple[float, float]) -> dict[str, int]:
    now = clocks()
    wall, cpu = now[0] - began[0], now[1] - began[1]
    return {"per_s": round(done / wall), "per_cpu_s": round(done / cpu)}


def in_python(predictor: Any, asked: dict[str, Rows], seconds: float) -> dict[str, Any]:
    """Updates a second: of raw events one at a time, and of events in ids."""
    events = events_of(asked)
    states: dict[str, Any] = {}
    done, began = 0, clocks()

    while clocks()[0] - began[0] < seconds:
        user, number, row = next(events)
        if not number:
            states[user] = predictor.state(user, new=True)
        predictor.update(states[user], row)
        done += 1

    raw = _rates(done, began)

    users = predictor.users
    # read once: what is measured is the counting alone
    pieces = []
    for user, rows in asked.items():
        columns = users.read(user, rows).columns
        pieces += [(user, i, _event(columns, i)) for i in range(len(columns["time"]))]

    done, began = 0, clocks()

    while clocks()[0] - began[0] < seconds:
        for user, i, piece in pieces:
            if not i:
                states[user] = users.spec.new(user)
            users.spec.take_up(states[user], piece)
        done += len(pieces)

    return {"raw": raw, "ids": _rates(done, began)}


def _event(columns: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Event `index` of a history, as columns (1,)."""
    return {name: values[index : index + 1] for name, values in columns.items()}


def events_of(asked: dict[str, Rows]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """User, number and row of each event, again and again."""
    while True:
        for user, rows in asked.items():
            for number, row in enumerate(rows):
                yield user, number, row


async def send(
    port: int, clients: int, seconds: float, asked: dict[str, Rows], each: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Send events for some seconds; figures of one row, and how many events of each user count."""
    latencies: list[float] = []
    sent = dict.fromkeys(asked, 0)
    counts = {"updates": 0, "failed": 0}
    until = time.perf_counter() + seconds

    async def client(users: list[str]) -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        while users:
            for user in users:
                begin = sent[user] if sent[user] < len(asked[user]) else 0
                part = asked[user][begin : begin + each]
                body = json.dumps({"events": part, "new": begin == 0}).encode()
                began = time.perf_counter()
                status, text = await ask(streams, body, f"/v1/users/{user}/events")
                latencies.append(time.perf_counter() - began)
                sent[user] = begin + len(part)
                known = json.loads(text)["users"][0]["events"] if status == 200 else None
                counts["updates" if known == sent[user] else "failed"] += len(part)

                if time.perf_counter() > until:
                    streams[1].close()
                    return

    names = list(asked)
    began = time.perf_counter()
    await asyncio.gather(*(client(names[i::clients]) for i in range(clients)))
    wall = time.perf_counter() - began
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    row = {
        "clients": clients,
        "events_a_request": each,
        "updates": counts["updates"],
        "updates_per_s": round(counts["updates"] / wall),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "failed": counts["failed"],
    }

    return row, sent


def differing(predictor: Any, url: str, asked: dict[str, Rows], sent: dict[str, int]) -> list[str]:
    """Users whose answer is not that of the events that were sent."""
    wrong = []
    for user in [user for user, number in sent.items() if number][:CHECKED]:
        answer = httpx.post(f"{url}/v1/users/{user}/predict", json={"top_k": 5}).json()
        behaviors = answer["users"][0]["behaviors"]
        probabilities = [behavior["probability"] for behavior in behaviors]
        column = predictor.tokenizer.event_schema.user
        rows = [row | {column: user} for row in asked[user][: sent[user]]]
        expected = predictor.predict(rows, 5).probabilities[0]
        if not np.allclose(probabilities, expected, atol=TOLERANCE):
            wrong.append(user)

    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--events", type=int, nargs="+", default=[1, 10], help="of a request")
    parser.add_argument("--beside", default="", help="what else the machine did, for the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    predictor: Any = behavegpt.load(arguments.model, "cpu")
    logs = []
    if isinstance(predictor, UniversalPredictor):
        predictor, logs = predictor.fit_tables(arguments.log), [str(arguments.log)]

    time_column = predictor.tokenizer.event_schema.time
    asked = {
        user: _apart_in_time(rows, time_column)
        for user, rows in histories(predictor, arguments.log, 500, 400).items()
    }

    result: dict[str, Any] = {
        "model": "universal" if logs else predictor.model.config.model_type,
        "memory": bool(logs) or bool(predictor.model.config.memory),
        "seconds": arguments.seconds,
        "beside": arguments.beside,
        "in_python": in_python(predictor, asked, arguments.seconds),
        "over_http": [],
    }

    wrong: list[str] = []
    with service(arguments.model, [*logs, "--threads", "1"]) as (port, process):
        for each in arguments.events:
            for clients in arguments.clients:
                before = clocks()[1], cpu_of(process)
                row, sent = asyncio.run(send(port, clients, arguments.seconds, asked, each))
                updates = row.pop("updates")
                row["per_cpu_s_of_service"] = round(updates / (cpu_of(process) - before[1]))
                row["per_cpu_s_of_clients"] = round(updates / (clocks()[1] - before[0]))
                wrong += differing(predictor, f"http://127.0.0.1:{port}", asked, sent)
                result["over_http"].append(row)

    _write(result)
    if wrong or any(row["failed"] for row in result["over_http"]):
        raise SystemExit(f"a wrong answer or a failure: {wrong}")


def _apart_in_time(rows: Rows, time_column: str) -> Rows:
    """The rows without those of the same time as the one before: simultaneous events count in the
    order of the calls, which differs."""
    later = [b for a, b in itertools.pairwise(rows) if a[time_column] != b[time_column]]
    return [rows[0], *later]


def _write(result: dict[str, Any]) -> None:
    """Into the results, in place of an earlier row of such a model."""
    earlier = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else []
    kind = (result["model"], result["memory"])
    kept = [other for other in earlier if (other["model"], other["memory"]) != kind]
    RESULT.write_text(json.dumps([*kept, result], indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
