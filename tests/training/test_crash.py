"""Whatever ends a run, `resume` gives the weights, optimizer, journal and model folder of one that
was never stopped.

Every run here is a real `pretrain` in a process of its own (tests/runs.py).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from behavegpt.training.checkpoint import load_checkpoint, load_latest
from behavegpt.training.journal import read_journal, run_lock
from tests.helpers import random_store
from tests.runs import CRASHED, Result, quick_folder, save_store, shared_runs, tiny_settings

Record = Callable[[str, object], None]

SHORT = {"steps": 3, "checkpoint_every": 2, "valid_every": 3}  # saves twice, deletes once


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with quick_folder() as folder:
        save_store(random_store(users=60), folder / "data")
        yield folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Callable[..., dict[str, Any]]:
    """The outcome of a run that was never stopped, by its settings; made once."""
    made: dict[str, dict[str, Any]] = {}

    def outcome_of(**train: Any) -> dict[str, Any]:
        key = "-".join(["whole", *(f"{name}={value}" for name, value in train.items())])
        if key not in made:
            result = shared_runs().run(tiny_settings(place / "data", place / key, **train))
            assert result.status == 0, result.output
            made[key] = outcome(place / key)
        return made[key]

    return outcome_of


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves, to be equal bit for bit; nothing temporary may be among it."""
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    facts = json.loads((out / "run.json").read_text())
    journal = [
        {k: v for k, v in r.items() if k != "events_per_second"}
        for r in read_journal(out / "log.jsonl")
    ]
    state = {n: (out / n).read_bytes() for n in names if n.startswith(("ckpt/", "model/"))}
    return {"names": names, "journal": repr(journal), "best": facts["best_step"], "state": state}


def finish(settings: dict[str, Any]) -> dict[str, Any]:
    """Resume once, to the end."""
    result = shared_runs().run(settings, resume=True)
    assert result.status == 0, result.output
    return outcome(Path(settings["out"]))


def refused(result: Result) -> str:
    """The one paragraph of a run that stopped with a user's error."""
    assert set(result.statuses) == {2} and "Traceback" not in result.output, result.output
    return result.output


def operations(
    settings: dict[str, Any], snapshots: Path | None = None, **order: Any
) -> dict[int, str]:
    """The I/O operations of a run in its folder, numbered from 1; `snapshots` get what a crash at
    each would leave."""
    trace = Path(settings["out"] + ".trace")
    result = shared_runs().run(
        settings, trace=str(trace), snapshots=snapshots and str(snapshots), **order
    )
    assert result.status == 0, result.output
    return dict(enumerate(trace.read_text().splitlines(), 1))


def first(points: dict[int, str], *words: str) -> int:
    return next(at for at, point in points.items() if all(word in point for word in words))


def distinct(points: dict[int, str], snapshots: Path) -> dict[int, str]:
    """The first that finds each state of the run folder; a crash at the rest is the same crash."""
    states: dict[tuple[Any, ...], int] = {}
    for at in points:
        paths = sorted((snapshots / str(at)).rglob("*"))
        content = (path.read_bytes() if path.is_file() else None for path in paths)
        names = (path.relative_to(snapshots / str(at)) for path in paths)
        states.setdefault(
            tuple(zip(names, content, (path.stat().st_mode for path in paths), strict=True)), at
        )
    return {at: points[at] for at in states.values()}


def crash(settings: dict[str, Any], at: int, snapshots: Path | None, **order: Any) -> None:
    """Stop a run dead at an operation, or put what one would leave in its place."""
    if snapshots is None:
        result = shared_runs().run(settings, crash_at=at, **order)
        assert result.status == CRASHED, (at, result.output)
    elif (snapshots / str(at)).exists():
        (snapshots / str(at)).rename(settings["out"])


def test_runs_repeat_themselves(place: Path, whole: Callable[..., dict[str, Any]]) -> None:
    settings = tiny_settings(place / "data", place / "again")
    assert shared_runs().run(settings).status == 0
    assert outcome(place / "again") == whole()
    assert finish(settings) == whole()  # there is nothing left to do


@pytest.mark.parametrize("kills", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_at_random_times(
    kills: int, place: Path, whole: Callable[..., dict[str, Any]], record_property: Record
) -> None:
    expected = whole()
    rng = random.Random(kills)
    longest = shared_runs().run(tiny_settings(place / "data", place / "timed")).seconds
    killed = finished = 0
    while killed < kills:
        settings = tiny_settings(place / "data", place / f"killed-{kills}-{finished}")
        resume = False
        while True:
            after = rng.uniform(0, longest) if killed < kills else None
            order: dict[str, Any] = {} if after is None else {"kill_after": after}
            result = shared_runs().run(settings, resume=resume, **order)
            resume = True
            if result.status == 0:
                break
            assert result.status == -signal.SIGKILL, result.output
            killed += 1
        assert outcome(Path(settings["out"])) == expected, f"after {killed} kills"
        shutil.rmtree(settings["out"])
        finished += 1
    record_property("kills", killed)
    record_property("runs finished bitwise equal", finished)


EVERY = [False, pytest.param(True, marks=pytest.mark.slow)]


@pytest.mark.parametrize("every", EVERY)
def test_crash_at_every_io_operation(
    every: bool, place: Path, whole: Callable[..., dict[str, Any]], record_property: Record
) -> None:
    """At every operation a run really stops dead; the quick trial takes what one run had left by
    each of them."""
    train = {"keep": 2, "select": "cross_entropy"} if every else SHORT
    snapshots = None if every else place / "snapshots"
    points = operations(
        tiny_settings(place / "data", place / f"traced-{every}", **train), snapshots=snapshots
    )
    assert len(points) > 80 and sum("torn" in point for point in points.values()) >= 7
    # the quick trial takes every other state of the folder
    chosen = points if snapshots is None else dict(list(distinct(points, snapshots).items())[::2])
    for at, point in chosen.items():
        settings = tiny_settings(place / "data", place / f"crash-{every}-{at}", **train)
        crash(settings, at, snapshots)
        assert finish(settings) == whole(**train), (at, point)
        shutil.rmtree(settings["out"])
    record_property("crash points", f"{len(chosen)} of {len(points)}")


@pytest.mark.parametrize("every", EVERY)
def test_crash_at_every_io_operation_of_a_resume(
    every: bool, place: Path, whole: Callable[..., dict[str, Any]], record_property: Record
) -> None:
    """From a run that crashed while it wrote its second checkpoint, with a journal that is ahead of
    the first one."""
    points = operations(tiny_settings(place / "data", place / f"fresh-{every}", **SHORT))
    crashed = tiny_settings(place / "data", place / f"crashed-{every}", **SHORT)
    torn = first(points, "save_file torn", "step_00000003", "optimizer")
    assert shared_runs().run(crashed, crash_at=torn).status == CRASHED
    copy = tiny_settings(place / "data", place / f"copy-{every}", **SHORT)
    shutil.copytree(crashed["out"], copy["out"])
    snapshots = None if every else place / "snapshots of a resume"
    points = operations(copy, resume=True, snapshots=snapshots)
    assert any("log.jsonl.tmp" in point for point in points.values())
    assert any(
        "os.rmdir" in point and ".tmp-new-step_00000003" in point for point in points.values()
    )
    chosen = points
    if snapshots is not None:  # once the first save begins, all is as in a fresh run
        chosen = {
            at: point
            for at, point in distinct(points, snapshots).items()
            if at <= first(points, "save_file")
        }
    for at, point in chosen.items():
        settings = tiny_settings(place / "data", place / f"resumed-{every}-{at}", **SHORT)
        if snapshots is None:
            shutil.copytree(crashed["out"], settings["out"])
        crash(settings, at, snapshots, resume=True)
        assert finish(settings) == whole(**SHORT), (at, point)
        shutil.rmtree(settings["out"])
    record_property("crash points of a resume", f"{len(chosen)} of {len(points)}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_tells_by_the_exit_code(
    number: signal.Signals, place: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    settings = tiny_settings(place / "data", place / number.name)
    result = shared_runs().run(settings, signal=[number, 5, 0])
    assert result.status == (130 if number == signal.SIGINT else 143), result.output
    assert "--resume" in result.output and "Traceback" not in result.output
    checkpoint = load_latest(place / number.name / "ckpt")
    assert checkpoint is not None
    steps = [
        r["step"] for r in read_journal(place / number.name / "log.jsonl") if r["kind"] == "train"
    ]
    # the fifth line is of step 4 or 5; at most the step under way is done
    assert checkpoint.step == steps[-1] <= 6
    assert not (place / number.name / "model").exists()
    # else a best step would tell of the signal for ever
    assert checkpoint.trainer["progress"]["stopped"] is None
    assert finish(settings) == whole()


def test_one_of_two_ranks_is_killed(place: Path) -> None:
    whole = tiny_settings(place / "data", place / "ranks")
    assert shared_runs().run(whole, world=2).status == 0
    settings = tiny_settings(place / "data", place / "ranks-killed")
    for rank, lines in ((0, 5), (1, 9)):
        result = shared_runs().run(
            settings, world=2, resume=rank > 0, signal=[signal.SIGKILL, lines, rank]
        )
        assert result.statuses[rank] == -signal.SIGKILL and 0 not in result.statuses, result.output
    assert shared_runs().run(settings, world=2, resume=True).status == 0
    assert outcome(place / "ranks-killed") == outcome(place / "ranks")


def test_kill_after_an_early_stop(place: Path) -> None:
    train = {"steps": 30, "valid_every": 1, "checkpoint_every": 4, "patience": 2, "lr": 1e-6}
    points = operations(tiny_settings(place / "data", place / "early", **train))
    expected = outcome(place / "early")
    steps = [r["step"] for r in read_journal(place / "early" / "log.jsonl")]
    assert steps[-1] < 30, "the run was to stop early"
    last = first(points, "preprocessor_config")
    settings = tiny_settings(place / "data", place / "early-killed", **train)
    assert shared_runs().run(settings, crash_at=last).status == CRASHED
    assert finish(settings) == expected


def test_started_anew_after_a_kill_before_the_first_checkpoint(
    place: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    settings = tiny_settings(place / "data", place / "anew", **SHORT)
    points = operations(tiny_settings(place / "data", place / "unused", **SHORT))
    assert shared_runs().run(settings, crash_at=first(points, "save_file")).status == CRASHED
    assert read_journal(place / "anew" / "log.jsonl")
    result = shared_runs().run(settings)
    assert result.status == 0, result.output
    assert outcome(place / "anew") == whole(**SHORT)


# lines of the journal after which it is stopped: at a step that is saved anyway, or is not
@pytest.mark.parametrize("lines", [9, 11])
@pytest.mark.parametrize("name", ["optimizer.safetensors", "MANIFEST.json"])
def test_damaged_checkpoint_is_passed_over(
    name: str, lines: int, place: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    settings = tiny_settings(place / "data", place / f"damaged-{name}-{lines}", keep=2)
    assert shared_runs().run(settings, signal=[signal.SIGTERM, lines, 0]).status == 143
    [older, newest] = sorted((Path(settings["out"]) / "ckpt").glob("step_*"))[-2:]
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 4
    (newest / name).write_bytes(content)
    result = shared_runs().run(settings, resume=True)
    assert result.status == 0 and str(newest / name) in result.output.replace("\n", ""), (
        result.output
    )
    assert f"resumed from step {int(older.name[5:])}" in result.output
    assert outcome(Path(settings["out"])) == whole(keep=2)


def test_full_disk_stops_with_a_reason(place: Path, whole: Callable[..., dict[str, Any]]) -> None:
    settings = tiny_settings(place / "data", place / "full", keep=2)
    assert shared_runs().run(settings, signal=[signal.SIGTERM, 5, 0]).status == 143
    before = load_latest(place / "full" / "ckpt")
    size = (before.path / "optimizer.safetensors").stat().st_size if before else 0
    message = refused(shared_runs().run(settings, resume=True, file_limit=size - 1))
    assert (
        "could not be written" in message and "File too large" in message and "--resume" in message
    )
    after = load_latest(place / "full" / "ckpt")
    assert before and after and before.path == after.path
    assert finish(settings) == whole(keep=2)


@pytest.mark.parametrize(
    ("what", "world"), [("loss", 1), ("hidden", 1), ("gradient", 1), ("loss", 2), ("gradient", 2)]
)
def test_non_finite_stops_before_the_update(
    what: str, world: int, place: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    out = place / f"poisoned-{what}-{world}"
    settings = tiny_settings(place / "data", out)
    message = refused(shared_runs().run(settings, world=world, poison=[what, 5, world - 1]))
    assert message.count("the weights are the same") == world and "HAVE CHANGED" not in message
    named = re.search(
        r"step 6: the (loss|gradient).* rows (\d+)-(\d+) of epoch (\d+) \(seed 0\)", message
    )
    assert named, message
    assert [r["step"] for r in read_journal(out / "log.jsonl") if r["kind"] == "train"] == [
        1,
        2,
        3,
        4,
        5,
    ]
    checkpoint = load_latest(out / "ckpt")
    assert checkpoint is not None and all(
        torch.isfinite(t).all() for t in checkpoint.model.values()
    )
    if world == 1:
        assert finish(settings) == whole()


def test_second_run_is_refused(place: Path) -> None:
    out = place / "taken"
    out.mkdir()
    with run_lock(out):
        message = refused(shared_runs().run(tiny_settings(place / "data", out)))
    assert f"in use by process {os.getpid()} on" in message and list(out.iterdir()) == []
    assert shared_runs().run(tiny_settings(place / "data", out)).status == 0


def test_used_folder_needs_resume(place: Path, whole: Callable[..., dict[str, Any]]) -> None:
    settings = tiny_settings(place / "data", place / "used")
    assert shared_runs().run(settings).status == 0
    assert "--resume" in refused(shared_runs().run(settings))
    assert outcome(place / "used") == whole()


def test_checkpoint_of_other_data_or_settings_is_refused(place: Path) -> None:
    other = save_store(random_store(seed=1, users=60, events=13), place / "other")
    out = place / "refused"
    settings = tiny_settings(place / "data", out)
    assert shared_runs().run(settings, signal=[signal.SIGTERM, 5, 0]).status == 143
    before = outcome_files(out / "ckpt")
    message = refused(shared_runs().run(tiny_settings(other, out), resume=True))
    assert "data.content_hash: checkpoint random-0, now random-1" in message
    assert "data.vocabulary.event: checkpoint" in message and "another out=" in message
    for group, name, value in (
        ("model", "dropout", 0.3),
        ("loss", "floor", 0.1),
        ("train", "seed", 3),
    ):
        changed = tiny_settings(place / "data", out)
        changed[group] |= {name: value}
        message = refused(shared_runs().run(changed, resume=True))
        assert re.search(rf"{group}\.{name}: checkpoint \S+, now {value}\n", message), message
    assert outcome_files(out / "ckpt") == before


def outcome_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_model_folder_holds_the_best_checkpoint(place: Path) -> None:
    out = place / "best"
    assert shared_runs().run(tiny_settings(place / "data", out, keep=1)).status == 0
    best = json.loads((out / "run.json").read_text())["best_step"]
    weights = load_file(out / "model" / "model.safetensors")
    kept = load_checkpoint(out / "ckpt" / f"step_{best:08d}").model
    assert all(torch.equal(weights[name], kept[name]) for name in weights)
