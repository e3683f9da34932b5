"""The journal loses nothing and repeats nothing; the lock lets one run in."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from behavegpt.errors import BehaveGPTError
from behavegpt.training.journal import Journal, read_journal, run_lock


def test_floats_round_trip_exactly(tmp_path: Path) -> None:
    rng = random.Random(0)
    patterns = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(2000)]
    values = [0.1 + 0.2, 5e-324, -0.0, 1e308, math.inf, *(x for x in patterns if x == x)]
    journal = Journal(tmp_path / "log.jsonl")
    for step, value in enumerate(values):
        journal.append({"step": step, "loss": value, "note": "é\n\u2028"})
    read = read_journal(journal.path)
    assert [struct.pack("<d", r["loss"]) for r in read] == [struct.pack("<d", v) for v in values]
    assert {r["note"] for r in read} == {"é\n\u2028"} and len(
        journal.path.read_text().splitlines()
    ) == len(values)


def test_truncate_drops_later_steps_and_keeps_bytes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.truncate_after(3)  # nothing there yet
    for step in range(1, 11):
        journal.append({"kind": "train", "step": step, "loss": step / 7})
        if step % 5 == 0:
            journal.append({"kind": "valid", "step": step})
    journal.append({"kind": "note"})
    before = journal.path.read_bytes().splitlines()
    journal.truncate_after(5)
    assert journal.path.read_bytes().splitlines() == [*before[:6], before[-1]]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_line_torn_at_any_byte_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.append({"step": 1, "loss": 0.5})
    whole = journal.path.stat().st_size
    journal.append({"step": 2, "loss": 1.25, "text": "é"})
    content = journal.path.read_bytes()
    for size in range(whole, len(content) + 1):
        journal.path.write_bytes(content[:size])
        complete = size >= len(content) - 1  # all but the line's end
        assert [r["step"] for r in read_journal(journal.path)] == ([1, 2] if complete else [1])
        journal.truncate_after(2)
        journal.append({"step": 3})
        assert [r["step"] for r in read_journal(journal.path)] == (
            [1, 2, 3] if complete else [1, 3]
        )


def test_damage_further_up_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(BehaveGPTError, match=r"log\.jsonl, line 2"):
        read_journal(path)
    with pytest.raises(BehaveGPTError, match=r"log\.jsonl, line 2"):
        Journal(path).truncate_after(1)
    with pytest.raises(BehaveGPTError, match="training log cannot be read"):
        read_journal(tmp_path / "absent.jsonl")


def test_unwritable_journal_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BehaveGPTError, match="cannot be written"):
        Journal(tmp_path / "absent" / "log.jsonl").append({"step": 1})
    journal = Journal(tmp_path / "log.jsonl")
    journal.append({"step": 1})
    (tmp_path / ".log.jsonl.tmp").mkdir()
    with pytest.raises(BehaveGPTError, match="cannot be written"):
        journal.truncate_after(0)
    assert read_journal(journal.path) == [{"step": 1}]


HOLD = """
import sys, time
from pathlib import Path
from behavegpt.training.journal import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        for _ in range(2):
            with pytest.raises(BehaveGPTError) as caught, run_lock(tmp_path):
                raise AssertionError("two runs in one folder")
            assert f"process {first.pid} on {socket.gethostname()}" in str(caught.value)
            assert str(tmp_path) in str(caught.value) and "another out=" in str(caught.value)
        first.send_signal(signal.SIGKILL)
        first.wait()
        with run_lock(tmp_path):
            owner = json.loads((tmp_path / ".lock.json").read_text())
            assert owner == {"pid": os.getpid(), "host": socket.gethostname()}
    finally:
        first.kill()
        first.wait()


def test_lock_is_freed_on_an_error_and_in_one_process_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        with pytest.raises(BehaveGPTError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
            pass
        raise ZeroDivisionError
    with run_lock(tmp_path):
        (tmp_path / ".lock.json").write_text("{")
        with pytest.raises(BehaveGPTError, match="just starting or ending"), run_lock(tmp_path):
            pass
    assert not (tmp_path / ".lock.json").exists()


def test_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / ".lock.json.tmp").mkdir()
    for _ in range(2):
        with pytest.raises(BehaveGPTError, match="cannot be locked"), run_lock(tmp_path):
            pass
    (tmp_path / ".lock.json.tmp").rmdir()
    with run_lock(tmp_path):
        pass
    (tmp_path / ".lock").unlink(missing_ok=True)
    (tmp_path / ".lock").mkdir()
    with pytest.raises(BehaveGPTError, match="cannot be locked"), run_lock(tmp_path):
        pass
