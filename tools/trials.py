"""Tests on a mutant, in a forked child.

A changed function gets its new code there; for a change outside of functions the package is
imported anew, from the changed source instead of the file (which is never touched).
"""

from __future__ import annotations

import ast
import gc
import importlib.abc
import importlib.util
import os
import resource
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from mutants import ROOT, Mutant

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
    functions of each file."""
    path = ROOT / "behavegpt" / mutant.path
    before = compile(ast.unparse(ast.parse(path.read_text(encoding="utf-8"))), str(path), "exec")
    after = compile(mutant.write(), str(path), "exec")
    if beside_functions(before) != beside_functions(after):
        return False

    pairs = zip(functions_of(before), functions_of(after), strict=True)
    changed = {old.co_qualname: new for old, new in pairs if old != new}
    names = [code.co_qualname for code in functions_of(before)]
    affected = [
        function for function in known[str(path)] if function.__code__.co_qualname in changed
    ]
    # overloads share a name, and a function that is not alive cannot be given code
    if any(names.count(name) > 1 for name in changed) or len(affected) < len(changed):
        return False

    # Python refuses code that closes over other variables
    for function in affected:
        if function.__code__.co_freevars != changed[function.__code__.co_qualname].co_freevars:
            return False

    for function in affected:
        function.__code__ = changed[function.__code__.co_qualname]

    return True


def known_functions() -> dict[str, list[FunctionType]]:
    """Functions of the imported package, by their file."""
    by_file: dict[str, list[FunctionType]] = defaultdict(list)
    # modules do not list closures and methods of local classes; the garbage collector knows all
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(ROOT)):
            by_file[thing.__code__.co_filename].append(thing)
    return by_file


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


def try_out(
    mutant: Mutant, tests: Sequence[str], limit: int, known: dict[str, list[FunctionType]]
) -> Trial:
    """Run tests, paths below tests/, on a mutant in a forked child that may take `limit` seconds of
    CPU; `known`: the functions of each file."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_tests(mutant, tests, limit, writing, known)

    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()

    _, status, usage = os.wait4(child, 0)
    seconds = round(usage.ru_utime + usage.ru_stime, 1)
    if not status:
        return Trial("survived", "", seconds)
    if os.WIFSIGNALED(status):
        return Trial("time", "", seconds)

    test = lines[0] if lines else ""
    return Trial("failed" if test else "broken", test, seconds)


def _run_tests(
    mutant: Mutant,
    tests: Sequence[str],
    limit: int,
    pipe: int,
    known: dict[str, list[FunctionType]],
) -> None:
    """Does not return: the process ends with pytest's status."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(20 * limit)  # a mutant may also wait for ever
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)

        if not put_in_place(mutant, known):
            # imported anew, package and tests, from the changed source
            for name, module in list(sys.modules.items()):
                if (getattr(module, "__file__", None) or "").startswith(PACKAGES):
                    del sys.modules[name]
            sys.meta_path.insert(0, Overlay(mutant))

        paths = [str(ROOT / "tests" / name) for name in tests]
        status = int(pytest.main(["-x", *OPTIONS, *paths], plugins=[_FirstFailure(pipe)]))
    finally:
        os._exit(status)  # no clean-up of the parent's state in the child
