"""Files of random tables, written in random ways and then often broken: read, or refused with one
clear error.

A hundred in the default run, 3,000 with `-m slow`; the seed of a failure is in its message.
"""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from behavegpt.data.schema import EventSchema
from behavegpt.errors import BehaveGPTError
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import guess_schema
from behavegpt.ingest.prepare import prepare
from behavegpt.ingest.sources import find_logs
from tests.ingest.test_fuzz import KINDS, MOMENTS, TEXTS, column

QUICK, LONG = 60, 3000
NAMES = ("user", "time", "event", "place", "n", "other", "geo.city")
SCHEMA = EventSchema(user="user", time="time", event="event")
VALUES: list[Any] = [
    None, True, 0, 7, 7.0, 1.5, -0.0, 1e17, 2**53, 2**70, float("nan"), float("inf"), [], [1, "a"],
    {}, {"a": 1}, {"city": "Rome"}, [{"key": "k", "value": {"int_value": 3}}],
    *TEXTS[:30], *MOMENTS[:20],
]  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "cp1251", "shift_jis")


def texts(rng: np.random.Generator, rows: int) -> dict[str, list[str]]:
    names = [NAMES[i] for i in range(len(NAMES)) if i < 3 or rng.random() < 0.4]
    pools = {
        "time": MOMENTS[:12] if rng.random() < 0.7 else MOMENTS,
        "user": ["a", "b", "7", "7.0", "é"],
    }
    odd = rng.random() < 0.3
    return {
        name: [str(pool[i])[:300] for i in rng.integers(0, len(pool), rows)]
        for name in names
        for pool in [
            TEXTS if odd else pools.get(name, ["x", "y", "1", "1.5", 'q"', "a,b", "two\nlines", ""])
        ]
    }


def objects(rng: np.random.Generator, rows: int) -> list[dict[str, Any]]:
    wild = rng.random() < 0.4
    table = texts(rng, rows)
    lines: list[dict[str, Any]] = [
        dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
    ]
    for line in lines:
        for name in line:
            if rng.random() < (0.5 if wild else 0.05):
                line[name] = VALUES[rng.integers(len(VALUES))]
    if rng.random() < 0.2:  # histories
        lines = [
            {
                "user": str(i),
                "time": list(table["time"]),
                "event": list(table["event"])[: None if wild else 10],
            }
            for i in range(2)
        ]
    return lines


def write_csv(rng: np.random.Generator, rows: int) -> tuple[str, bytes]:
    frame = pd.DataFrame(texts(rng, rows))
    separator = str(rng.choice([",", ";", "\t", "|"]))
    text = frame.to_csv(
        index=bool(rng.random() < 0.2),
        header=bool(rng.random() < 0.9),
        sep=separator,
        quoting=int(rng.integers(0, 2)),
    )
    if rng.random() < 0.1:
        text = f"sep={separator}\n{text}"
    if rng.random() < 0.1:
        text = text.replace("\n", f"{separator}\n")
    if rng.random() < 0.1:
        text = text.replace("\n", "\r\n")
    return ".csv", encoded(rng, text)


def write_json(rng: np.random.Generator, rows: int) -> tuple[str, bytes]:
    lines = objects(rng, rows)
    form = rng.integers(4)
    ascii_only = bool(rng.random() < 0.5)
    if form == 0:
        text = json.dumps(lines, ensure_ascii=ascii_only)
    elif form == 1:
        text = "\n".join(json.dumps(line, indent=1, ensure_ascii=ascii_only) for line in lines)
    else:
        text = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines)
    return [".json", ".json", ".jsonl", ".ndjson"][form], encoded(rng, text)


def encoded(rng: np.random.Generator, text: str) -> bytes:
    encoding = "utf-8" if rng.random() < 0.7 else ENCODINGS[rng.integers(len(ENCODINGS))]
    return text.encode(encoding, "replace")


def write_table(rng: np.random.Generator, rows: int) -> tuple[str, bytes]:
    kinds = list(KINDS)
    table = {
        name: column(rng, "text" if rng.random() < 0.4 else kinds[rng.integers(len(kinds))], rows)
        for name in NAMES[:6]
    }
    if rng.random() < 0.6:
        table["time"] = column(rng, "moment", rows)
    made, sink = pa.table(table), pa.BufferOutputStream()
    if rng.random() < 0.5:
        pq.write_table(made, sink)
        return ".parquet", sink.getvalue().to_pybytes()
    with (pa.ipc.new_file if rng.random() < 0.5 else pa.ipc.new_stream)(
        sink, made.schema
    ) as writer:
        writer.write_table(made)
    return str(rng.choice([".feather", ".arrow"])), sink.getvalue().to_pybytes()


WRITERS: list[Callable[[np.random.Generator, int], tuple[str, bytes]]] = [
    write_csv,
    write_csv,
    write_json,
    write_json,
    write_table,
]


def broken(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut off, with a changed byte, a stray quote, or the same bytes twice."""
    if not data or rng.random() < 0.5:
        return data
    place = int(rng.integers(len(data)))
    before, after = data[:place], data[place:]
    ways = (
        before,
        before + bytes([int(rng.integers(256))]) + data[place + 1 :],
        before + b'"' + after,
        before + after * 2,
        before + b"\n" + after,
        before + b"\0" + after,
    )
    return ways[rng.integers(len(ways))]


def packed(rng: np.random.Generator, name: str, data: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.7 or not name.endswith((".csv", ".json", ".jsonl", ".ndjson")):
        return name, data
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    ending, packer = [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda _: sink.getvalue().to_pybytes()),
    ][rng.integers(3)]
    return name + (ending if rng.random() < 0.7 else ""), packer(data)


def trial(seed: int, folder: Path) -> bool:
    """Write and read one log of a random kind; returns whether events came of it."""
    rng = np.random.default_rng(seed)
    files = int(rng.integers(1, 3)) if rng.random() < 0.2 else 1
    writer = WRITERS[rng.integers(len(WRITERS))]
    for number in range(files):
        ending, data = writer(rng, int(rng.integers(0, 12)))
        name, data = packed(rng, f"{number}{ending}", broken(rng, data))
        place = folder / str(rng.choice(["", "user=a", "time=2024-03-01/user=x%20y"]))
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(broken(rng, data) if rng.random() < 0.2 else data)
    encoding = None if rng.random() < 0.7 else str(rng.choice(ENCODINGS))
    schema = SCHEMA
    if rng.random() < 0.4:
        extra = {
            "location": str(rng.choice(["place", "geo.city", "other.a", "event.k"])),
            "order": "n" if rng.random() < 0.3 else None,
        }
        schema = SCHEMA.model_copy(update=extra)
    steps: list[Callable[[], object]] = [
        lambda: guess_schema(find_logs(folder, encoding), {}),
        lambda: read_events(find_logs(folder, encoding), schema, threads=1),
    ]
    if rng.random() < 0.2:
        out = folder.parent / f"{folder.name} out"
        steps.append(
            lambda: prepare(folder, out, schema, max_reject_share=1.0, threads=1, encoding=encoding)
        )
    done = False
    for step in steps:
        try:
            step()
            done = True
        except BehaveGPTError as error:
            assert 0 < len(str(error)) < 3000
    return done


def run(seeds: range, folder: Path) -> int:
    read = 0
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        try:
            read += trial(seed, place)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        shutil.rmtree(place)
    return read


def test_random_files(tmp_path: Path) -> None:
    assert run(range(QUICK), tmp_path) > QUICK // 5


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_three_thousand_random_files(part: int, tmp_path: Path) -> None:
    assert (
        run(range(QUICK + part * LONG // 6, QUICK + (part + 1) * LONG // 6), tmp_path) > LONG // 30
    )
