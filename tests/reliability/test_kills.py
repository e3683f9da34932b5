"""Whenever a verb is stopped, the next run into the same place leaves what an undisturbed one
leaves, and no more.

Training, at every I/O operation: tests/training/test_crash.py. The figures of the long trial:
docs/reliability.md.
"""

from __future__ import annotations

import collections
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.forks import commands
from tests.reliability.makers import contents
from tests.reliability.verbs import VERBS, VOLATILE, argv_of, lay_out

Record = Callable[[str, object], None]
CODES = {
    signal.SIGKILL: {0, -signal.SIGKILL},
    signal.SIGTERM: {0, 143, -signal.SIGTERM},  # the last: before the command line was read
    signal.SIGINT: {0, 130},
}
SLOW = (
    "benchmark",
    "demo",
    "export-model",
    "scale fit",
    "scale run",
)  # ten seconds each, demo a minute
QUICK = ("prepare", "predict", "export", "profile")


@pytest.fixture(scope="module")
def whole(place: Path) -> Callable[[str], tuple[dict[str, bytes], float]]:
    """What a verb that was not disturbed leaves, and its seconds; done once."""
    known: dict[str, tuple[dict[str, bytes], float]] = {}

    def outcome_of(verb: str) -> tuple[dict[str, bytes], float]:
        if verb not in known:
            seconds = []
            for _ in range(2):  # the first may also compile
                lay_out(place, verb)
                ended = commands().run(argv_of(verb, "out"), place)
                assert ended.status == 0, ended.output
                seconds.append(ended.seconds)
            known[verb] = (contents(place / "out", VOLATILE), min(seconds))
        return known[verb]

    return outcome_of


@pytest.mark.parametrize("kills", [3, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_leaves_nothing_after_the_next_run(
    verb: str,
    kills: int,
    place: Path,
    whole: Callable[[str], tuple[dict[str, bytes], float]],
    tmp_path: Path,
    record_property: Record,
) -> None:
    if kills == 3 and verb not in QUICK:
        pytest.skip("in the long trial")
    kills = 2 if verb == "demo" else kills // 3 if verb in SLOW else kills
    expected, seconds = whole(verb)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    rng, found, landed, number = random.Random(kills), collections.Counter[str](), 0, 0
    while landed < kills:  # a signal that came after the end does not count
        assert number < 4 * kills, found
        out = lay_out(place, verb)
        stop = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        after = rng.uniform(0, seconds)
        ended = commands().run(
            argv_of(verb, "out"), place, signal=int(stop), after=after, temporary=str(temporary)
        )
        assert ended.status in CODES[stop], ended.output
        assert "Traceback" not in ended.output, ended.output
        found[f"{stop.name} {ended.status}"] += 1
        number, landed = number + 1, landed + (ended.status != 0)
        if stop != signal.SIGKILL and out.exists():
            left = [name for name in contents(out) if ".tmp" in name or ".lock" in name]
            assert not left, (left, ended.output)
        again = commands().run(argv_of(verb, "out"), place, temporary=str(temporary))
        assert again.status == 0, again.output
        assert contents(out, VOLATILE).keys() == expected.keys(), ended
        assert contents(out, VOLATILE) == expected
        assert not list(temporary.iterdir()), ended
    shutil.rmtree(place / "out")
    record_property(verb, dict(found))


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", ["prepare", "export", "export-model"])
def test_a_kill_while_replacing_leaves_the_old_folder_or_the_new_one(
    verb: str, kills: int, place: Path, whole: Callable[[str], tuple[dict[str, bytes], float]]
) -> None:
    if kills == 4 and verb in SLOW:
        pytest.skip("in the long trial")
    kills = kills // 5 if verb in SLOW else kills
    new, seconds = whole(verb)
    old = {name: b"old " + content for name, content in new.items()}
    rng = random.Random(kills)
    for _ in range(kills):
        out = lay_out(place, verb)
        for name, content in old.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        folder = next(path for path in out.iterdir())
        after = rng.uniform(0.6, 1.0) * seconds  # where the folders change places
        commands().run(argv_of(verb, "out"), place, signal=int(signal.SIGKILL), after=after)
        held = {f"{folder.name}/{name}": content for name, content in contents(folder).items()}
        assert held in (old, new)
    shutil.rmtree(place / "out")


SERVE = ["serve", "universal", "log.parquet", "--port", "0", "--save", "out/counted"]


@pytest.mark.parametrize("kills", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_a_service_that_is_killed_while_it_saves(
    kills: int, place: Path, record_property: Record
) -> None:
    """A service ends by a signal: while it starts, while it answers, while it writes what it
    counted."""
    (place / "out").mkdir(exist_ok=True)
    stop = {"signal": int(signal.SIGTERM), "once": "is serving", "after": 0.3}
    whole = commands().run(SERVE, place, **stop)
    assert whole.status in (143, -signal.SIGTERM) and "written" in whole.output, whole.output
    expected = contents(place / "out")
    rng, landed, number = random.Random(kills), 0, 0
    while landed < kills:
        assert number < 4 * kills
        shutil.rmtree(place / "out")
        (place / "out").mkdir()
        early = number % 4 == 3  # before it answers, else between the signal and the end
        order = stop | {"once": "" if early else stop["once"], "after": rng.uniform(0, 0.4)}
        ended = commands().run(SERVE, place, killed_after=rng.uniform(0, 0.3), **order)
        assert "Traceback" not in ended.output, ended.output
        number, landed = number + 1, landed + (ended.status == -signal.SIGKILL)
        again = commands().run(SERVE, place, **stop)
        assert "written" in again.output, again.output
        assert contents(place / "out") == expected, ended
    shutil.rmtree(place / "out")
    record_property("serve", f"{landed} killed of {number}")
