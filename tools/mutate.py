"""Mutation testing by a random sample: change one operator, constant or condition of a module and
run its tests.

    PYTHONPATH=. python tools/mutate.py --sample 150 --out mutants.jsonl
        [--only losses training/run.py] [--minutes 30] [--again earlier.jsonl]

Libraries, package and tests are imported once. Each mutant is tried in a forked child: a changed
function there gets its new code, and for a change outside of functions the package is imported
anew, from the changed source instead of the file (which is never touched). A mutant is killed when
a test fails, an import breaks, or the CPU limit ends it. Tests that start processes of their own
cannot see a mutant, so the score is a lower bound.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from mutants import ROOT, Mutant, mutants, sources, unchanged

# what is changed, below behavegpt/ -> the tests that should notice, below tests/, those that are
# likely to and quick first; of two parts that hold a module the narrower one counts
TESTS: dict[str, tuple[str, ...]] = {
    "data/loader.py": ("data/test_pack.py", "training/test_evaluate.py"),
    "data/pack.py": ("data/test_pack.py", "training/test_evaluate.py"),
    "data/collate.py": ("data/test_pack.py", "training/test_evaluate.py"),
    "decision.py": ("test_decision.py", "test_prior_correction.py"),
    "losses": ("losses", "baselines/test_losses.py"),
    "metrics/generation.py": ("metrics/test_generation.py",),
    "metrics/prediction.py": ("metrics/test_prediction.py",),
    "model": ("model/test_formulas.py", "model/test_model.py", "model", "test_ecosystem.py"),
    "model/attention.py": ("model/test_attention.py", "model/test_model.py"),
    "model/cache.py": ("model/test_cache.py",),
    "model/generation.py": ("model/test_cache.py", "test_ecosystem.py"),
    "model/head.py": ("model/test_formulas.py", "model"),
    "model/head_loss.py": ("model/test_formulas.py", "model"),
    "model/history.py": ("model/test_model.py", "model/test_cache.py", "model/test_formulas.py"),
    "model/mixer.py": ("model/test_formulas.py", "model/test_memory.py"),
    "metrics": ("metrics",),
    "predictions.py": ("test_predictor.py", "test_prior_correction.py"),
    "predictor.py": (
        "test_predictor.py",
        "test_prior_correction.py",
        "test_decision.py",
        "test_ecosystem.py",
    ),
    "training/checkpoint.py": ("training/test_checkpoint.py", "training/test_steps.py"),
    "training/evaluate.py": ("training/test_evaluate.py", "test_prior_correction.py"),
    "training/journal.py": ("training/test_journal.py", "training/test_steps.py"),
    "training/optimizer.py": ("training/test_optimizer.py",),
    "training/progress.py": ("training/test_loop.py", "training/test_steps.py"),
    "training/record.py": ("training/test_run.py", "training/test_loop.py"),
    "training/run.py": ("training/test_run.py", "training/test_steps.py"),
    "training/setup.py": ("training/test_setup.py", "training/test_run.py"),
    "training/trainer.py": ("training/test_steps.py", "training/test_loop.py"),
}
CPU_SECONDS = 60  # at least; three times what the tests take without a change
ELSEWHERE = ("torchrun", "launch", "import_behavegpt", "may_be_the_first", "importing")
OPTIONS = ("-q", "-p", "no:cacheprovider", "-m", "not slow")
OPTIONS += ("-k", " and ".join(f"not {name}" for name in ELSEWHERE))  # start processes
PACKAGES = (str(ROOT / "behavegpt"), str(ROOT / "tests"))
IN_FUNCTION = 0x2  # of a code object's flags: it has locals of its own, unlike a class's body


@dataclass(frozen=True)
class Trial:
    """What the tests made of a mutant."""

    end: str  # survived; failed; broken: no test ran; time: the CPU limit ended it
    test: str  # the first that failed
    seconds: float  # of CPU

    @property
    def killed(self) -> bool:
        return self.end != "survived"


def same_as(earlier: Path, found: list[Mutant]) -> list[Mutant]:
    """The mutants of an earlier file that survived, wherever they stand now; all that
    look alike."""
    rows = [json.loads(line) for line in earlier.read_text(encoding="utf-8").splitlines()]
    wanted = {(row["path"], row["before"], row["after"]) for row in rows if not row["killed"]}
    return [mutant for mutant in found if (mutant.path, mutant.before, mutant.after) in wanted]


class Overlay(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from changed source."""

    def __init__(self, mutant: Mutant) -> None:
        parts = ["behavegpt", *Path(mutant.path).with_suffix("").parts]
        self.path = str(ROOT / "behavegpt" / mutant.path)
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.is_folder = parts[-1] == "__init__"
        self.code = mutant.write()

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        where = [str(Path(self.path).parent)] if self.is_folder else None
        return importlib.util.spec_from_file_location(
            name, self.path, loader=self, submodule_search_locations=where
        )

    def get_filename(self, name: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.code.encode()

    def get_code(self, name: str) -> CodeType:
        return compile(self.code, self.path, "exec")


def functions_of(code: CodeType) -> Iterator[CodeType]:
    """The code of the functions of a module and of its classes."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            if part.co_flags & IN_FUNCTION:
                yield part
            else:
                yield from functions_of(part)


def beside_functions(code: CodeType) -> tuple[Any, ...]:
    """What a module's or a class's body does beside the bodies of its functions."""
    rest = [part for part in code.co_consts if not isinstance(part, CodeType)]
    parts = [part for part in code.co_consts if isinstance(part, CodeType)]
    inner = [beside_functions(part) for part in parts if not part.co_flags & IN_FUNCTION]
    return code.co_code, code.co_names, repr(rest), *inner


def put_in_place(mutant: Mutant, known: dict[str, list[FunctionType]]) -> bool:
    """Give imported functions the changed code; False where that is not enough. `known`: the
    the functions of each file."""
    path = ROOT / "behavegpt" / mutant.path
    before = compile(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))), str(path), "exec")
    after = compile(mutant.write(), str(path), "exec")
    if beside_functions(before) != beside_functions(after):
        return False

    pairs = zip(functions_of(before), functions_of(after), strict=True)
    changed = {old.co_qualname: new for old, new in pairs if old != new}
    names = [code.co_qualname for code in functions_of(before)]
    found = [f for f in known[str(path)] if f.__code__.co_qualname in changed]
    if any(names.count(name) > 1 for name in changed) or len(found) < len(changed):
        return False
    if any(f.__code__.co_freevars != changed[f.__code__.co_qualname].co_freevars for f in found):
        return False

    for function in found:
        function.__code__ = changed[function.__code__.co_qualname]

    return True


def known_functions() -> dict[str, list[FunctionType]]:
    """Functions of the imported package, by their file."""
    found: dict[str, list[FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(ROOT)):
            found[thing.__code__.co_filename].append(thing)
    return found


class _FirstFailure:
    """Tells the parent which test failed first, or that none was collected."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, report.nodeid.encode()[:4000] + b"\n")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, b"\n")


def try_out(mutant: Mutant, limit: int, known: dict[str, list[FunctionType]]) -> Trial:
    """Run the tests on a mutant in a forked child that may take `limit` seconds of CPU; `known`:
    the functions of each file."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_tests(mutant, limit, writing, known)

    os.close(writing)
    with open(reading, encoding="utf-8") as told:
        lines = told.read().splitlines()

    _, status, usage = os.wait4(child, 0)
    seconds = round(usage.ru_utime + usage.ru_stime, 1)
    if not status:
        return Trial("survived", "", seconds)
    if os.WIFSIGNALED(status):
        return Trial("time", "", seconds)

    test = lines[0] if lines else ""
    return Trial("failed" if test else "broken", test, seconds)


def _run_tests(mutant: Mutant, limit: int, pipe: int, known: dict[str, list[FunctionType]]) -> None:
    """Does not return: the process ends with pytest's status."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(20 * limit)  # a mutant may also wait for ever
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)

        if not put_in_place(mutant, known):
            for name, module in list(sys.modules.items()):
                if (getattr(module, "__file__", None) or "").startswith(PACKAGES):
                    del sys.modules[name]
            sys.meta_path.insert(0, Overlay(mutant))

        tests = [str(ROOT / "tests" / name) for name in TESTS[mutant.part]]
        status = int(pytest.main(["-x", *OPTIONS, *tests], plugins=[_FirstFailure(pipe)]))
    finally:
        os._exit(status)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=150, help="of all mutants, each alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=TESTS, default=list(TESTS))
    parser.add_argument("--again", type=Path, help="the survivors of this file instead of a sample")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after so long, with what was tried by then"
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="seconds of CPU for each; without, three times what the tests take, which are then "
        "seen to pass without a change",
    )

    parser.add_argument(
        "--out", type=Path, required=True, help="JSONL: a line for each mutant that was tried"
    )
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants to try, in random order."""
    found = [mutant for part in arguments.only for mutant in mutants(part, TESTS)]
    print(f"{len(found):,} mutants", flush=True)
    if arguments.again:
        return same_as(arguments.again, found)
    return random.Random(arguments.seed).sample(found, min(arguments.sample, len(found)))


def limits(parts: set[str], known: dict[str, list[FunctionType]]) -> dict[str, int]:
    """Seconds of CPU for the tests of each part, which must pass without a change."""
    found = {}
    for part in sorted(parts):
        trial = try_out(unchanged(part, TESTS), 10 * CPU_SECONDS, known)
        if trial.killed:
            sys.exit(f"{part}: its tests fail without any change ({trial.end} {trial.test})")
        print(f"{part}: {trial.seconds} s without a change", flush=True)
        found[part] = max(CPU_SECONDS, round(3 * trial.seconds))

    return found


def import_all(parts: set[str]) -> dict[str, list[FunctionType]]:
    """Import the package and the tests of some parts; returns the package's functions by file."""
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    importlib.import_module("torch").set_num_threads(1)
    tests = sorted({str(ROOT / "tests" / name) for part in parts for name in TESTS[part]})
    if pytest.main(["--collect-only", "-qq", "--no-summary", *OPTIONS, *tests]):
        sys.exit("the tests cannot be collected")

    for part in parts:
        for path in sources(part, TESTS):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))

    gc.collect()
    known = known_functions()
    gc.freeze()  # so that a child's collections do not copy all our memory

    return known


def main() -> int:
    arguments = parse_arguments()
    began = time.monotonic()
    chosen = choose(arguments)
    parts = {mutant.part for mutant in chosen}
    known = import_all(parts)
    limit = dict.fromkeys(parts, arguments.limit) if arguments.limit else limits(parts, known)
    killed: Counter[str] = Counter()
    tried: Counter[str] = Counter()

    with open(arguments.out, "w", encoding="utf-8") as out:
        for mutant in chosen:
            if time.monotonic() - began > 60 * arguments.minutes:
                break

            trial = try_out(mutant, limit[mutant.part], known)
            tried[mutant.path] += 1
            killed[mutant.path] += trial.killed
            row = {name: getattr(mutant, name) for name in ("path", "line", "before", "after")}
            out.write(json.dumps(row | {"killed": trial.killed} | vars(trial)) + "\n")
            out.flush()

            if not trial.killed:
                place = f"{mutant.path}:{mutant.line}"
                print(f"survived {place}: {mutant.before}  ->  {mutant.after}", flush=True)

    for path in sorted(tried):
        print(f"{path}: {killed[path]} of {tried[path]} killed")

    print(f"all: {sum(killed.values())} of {sum(tried.values())} killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
