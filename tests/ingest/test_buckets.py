"""Spilling to disk: the same rows whatever stays in memory, and no more in memory than allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from behavegpt.data.ties import sort_events
from behavegpt.data.times import MICROS
from behavegpt.datasets.synthetic import generate
from behavegpt.ingest.buckets import PIECE, SpilledBuckets


@pytest.mark.parametrize("buckets", [1, 7, 300])
@pytest.mark.parametrize("limit", [0, 20_000, 10**9])
def test_buckets_hold_their_rows_in_order(tmp_path: Path, buckets: int, limit: int) -> None:
    rng = np.random.default_rng(0)
    bucket_of_user = np.sort(rng.integers(0, buckets, 1000)).astype(np.uint16)
    bucket_of_user[-1] = buckets - 1
    spill = SpilledBuckets(tmp_path / "spill", bucket_of_user, limit)
    user = rng.integers(0, 1000, 9000).astype(np.uint16)
    for rows in np.split(np.arange(9000), [10, 10, 3000, 8999]):
        spill.append({"user": user[rows], "row": rows})
        assert spill.held <= limit
    assert any((tmp_path / "spill").iterdir()) == (limit < user.nbytes + 9000 * 8)
    for bucket in range(buckets):
        found = spill.read(bucket, ("row", "user"))
        assert np.array_equal(found["row"], np.flatnonzero(bucket_of_user[user] == bucket))
        assert (
            np.array_equal(found["user"], user[found["row"]]) and found["user"].dtype == np.uint16
        )
    scanned = np.concatenate([piece["row"] for piece in spill.scan(("row",))])
    assert np.array_equal(np.sort(scanned), np.arange(9000))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_scan_comes_in_pieces(tmp_path: Path, limit: int) -> None:
    spill = SpilledBuckets(tmp_path / "spill", np.zeros(1, np.uint8), limit)
    spill.append({"user": np.zeros(2 * PIECE + 5, np.uint8)})
    assert [len(piece["user"]) for piece in spill.scan(("user",))] == [PIECE, PIECE, 5]
    assert (
        list(SpilledBuckets(tmp_path / "empty", np.zeros(1, np.uint8), limit).scan(("user",))) == []
    )


@pytest.mark.parametrize(
    ("users", "seconds"), [(1, 1), (3, 5), (200, 2**17), (2**32 - 1, 2), (2**32 - 1, 2**32 - 1)]
)
def test_sorting_agrees_with_lexsort(users: int, seconds: int) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.integers(0, users, 5000, endpoint=True).astype(np.uint32),
        "time": rng.integers(0, seconds, 5000, endpoint=True) * MICROS
        + rng.integers(0, MICROS, 5000),
        "event": rng.integers(0, 3, 5000).astype(np.uint8),
    }
    index = sort_events(columns, {"event": np.arange(4, dtype=np.uint64)}, seed=0)
    second = columns["time"] // MICROS
    expected = np.lexsort([columns["time"], second, columns["user"]])
    for name in ("user", "time"):
        assert np.array_equal(columns[name][index], columns[name][expected])
    assert np.array_equal(np.sort(index), np.arange(5000))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_peak_memory_stays_below_the_setting(tmp_path: Path) -> None:
    # more than twice of what 512 MiB lets stay in memory
    generate(tmp_path / "log.parquet", 10_000_000, seed=0)
    program = (
        "from pathlib import Path; from behavegpt.ingest.prepare import prepare\n"
        f"prepare({str(tmp_path / 'log.parquet')!r}, {str(tmp_path / 'out')!r}, memory='512MiB', "
        "threads=1)\n"
        "print(next(line.split()[1] for line in Path('/proc/self/status').open() if "
        "line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 512 * 1024  # KiB
