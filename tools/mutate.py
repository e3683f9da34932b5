"""Mutation testing by a random sample: change one operator, constant or condition of a module and
run its tests.

    PYTHONPATH=. python tools/mutate.py --sample 150 --out mutants.jsonl [--only losses model]
    [--minutes 30]

The heavy libraries are imported once; each mutant is tried in a forked child that imports the
changed source instead of the file (which is never touched). A mutant is killed when a test fails,
an import breaks, or the CPU limit ends it. Tests that start processes of their own cannot see a
mutant, so the score is a lower bound.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# group -> sources, tests
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "model": (("model",), ("tests/model",)),
    "losses": (("losses",), ("tests/losses", "tests/baselines/test_losses.py")),
    "training": (
        ("training/trainer.py", "training/optimizer.py", "training/evaluate.py",
         "training/record.py", "training/journal.py"),
        ("tests/training/test_optimizer.py", "tests/training/test_loop.py",
         "tests/training/test_evaluate.py", "tests/training/test_journal.py"),
    ),
    "pack": (
        ("data/pack.py", "data/loader.py"),
        ("tests/data/test_pack.py", "tests/training/test_evaluate.py"),
    ),
    "metrics": (("metrics",), ("tests/metrics",)),
    "predictor": (
        ("predictor.py", "decision.py"),
        ("tests/test_predictor.py", "tests/test_prior_correction.py", "tests/test_decision.py",
         "tests/test_evaluation.py"),
    ),
}  # fmt: skip
CPU_SECONDS = 120
LIBRARIES = (
    "accelerate",
    "datasets",
    "pandas",
    "sklearn.metrics",
    "torchmetrics.retrieval",
    "transformers",
    "hypothesis",
)
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "argmin": "argmax",
    "argmax": "argmin",
}


@dataclass(frozen=True)
class Mutant:
    """A change of one node."""

    group: str
    path: str  # below behavegpt/
    line: int
    before: str
    after: str
    code: str  # the whole changed module


class _Sites(ast.NodeVisitor):
    """Nodes of a module that can be changed, without annotations, messages, docstrings and
    `Field(...)`."""

    def __init__(self) -> None:
        self.found: list[ast.AST] = []

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            return
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Field"
        ):
            return
        if changes(node):
            self.found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params"):
                continue
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    self.visit(part)


def changes(node: ast.AST) -> list[ast.AST]:  # noqa: C901 - one table
    """What may stand in a node's place."""
    match node:
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in SWAPS:
            return [_with(node, op=SWAPS[type(node.op)]())]
        case ast.Compare() if type(node.ops[0]) in SWAPS:
            return [_with(node, ops=[SWAPS[type(node.ops[0])](), *node.ops[1:]])]
        case ast.Constant(value=bool()):
            return [_with(node, value=not node.value)]
        case ast.Constant(value=int()):
            return [_with(node, value=node.value + 1)]
        case ast.Constant(value=float()):
            return [_with(node, value=node.value * 2 + (node.value == 0))]
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            return [node.operand]
        case ast.If() | ast.IfExp():
            return [_with(node, test=ast.UnaryOp(ast.Not(), node.test))]
        case ast.Attribute() if node.attr in NAMES:
            return [_with(node, attr=NAMES[node.attr])]
        case ast.Name() if node.id in NAMES:
            return [_with(node, id=NAMES[node.id])]
        case ast.Expr(value=ast.Call()):
            return [ast.Pass()]
    return []


def _with(node: ast.AST, **parts: Any) -> ast.AST:
    new = copy.copy(node)
    for name, value in parts.items():
        setattr(new, name, value)
    return new


def mutants(group: str) -> Iterator[Mutant]:
    """All single changes of a group's sources."""
    for source in GROUPS[group][0]:
        base = ROOT / "behavegpt" / source
        for path in sorted(base.glob("*.py")) if base.is_dir() else [base]:
            sites = _Sites()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            sites.visit(tree)
            for node in sites.found:
                for new in changes(node):
                    changed = ast.unparse(_Replace(node, new).visit(_Copy(node).of(tree)))
                    yield Mutant(
                        group,
                        str(path.relative_to(ROOT / "behavegpt")),
                        getattr(node, "lineno", 0),
                        _brief(node),
                        _brief(new),
                        changed,
                    )


def unchanged(group: str) -> Mutant:
    """A module as it is, which the tests must let pass."""
    base = ROOT / "behavegpt" / GROUPS[group][0][0]
    path = base / "__init__.py" if base.is_dir() else base
    name = str(path.relative_to(ROOT / "behavegpt"))
    return Mutant(group, name, 0, "", "", ast.unparse(ast.parse(path.read_text(encoding="utf-8"))))


class _Copy:
    """A copy of a tree that shares one node with it, so that the node can be found in it."""

    def __init__(self, keep: ast.AST) -> None:
        self.memo = {id(keep): keep}

    def of(self, tree: ast.AST) -> ast.AST:
        return copy.deepcopy(tree, self.memo)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        if node is self.old:
            return ast.copy_location(self.new, self.old)
        return super().generic_visit(node)


def _brief(node: ast.AST) -> str:
    text = (
        ast.unparse(ast.fix_missing_locations(node)) if not isinstance(node, ast.Pass) else "pass"
    )
    return text.splitlines()[0][:100]


class Overlay(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from changed source."""

    def __init__(self, mutant: Mutant) -> None:
        parts = ["behavegpt", *Path(mutant.path).with_suffix("").parts]
        self.path = str(ROOT / "behavegpt" / mutant.path)
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.is_folder = parts[-1] == "__init__"
        self.code = mutant.code

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


def survives(mutant: Mutant, tests: tuple[str, ...]) -> bool:
    """Run the tests on a mutant in a forked child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            sys.meta_path.insert(0, Overlay(mutant))
            import pytest

            options = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-m",
                "not slow",
                "-k",
                "not torchrun and not launch",
            ]
            status = int(pytest.main([*options, *tests]))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after so long, with what was tried by then"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSONL: a line for each mutant that was tried"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    chance = random.Random(arguments.seed)
    chosen: list[Mutant] = []
    for group in arguments.only:
        found = list(mutants(group))
        chosen += chance.sample(found, min(arguments.sample // len(arguments.only), len(found)))
        print(f"{group}: {len(found):,} mutants", flush=True)
    chance.shuffle(chosen)
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for library in LIBRARIES:
        importlib.import_module(library)
    importlib.import_module("torch").set_num_threads(1)
    for group in arguments.only:
        if not survives(unchanged(group), GROUPS[group][1]):
            sys.exit(f"{group}: its tests fail without any change")
    killed: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    with open(arguments.out, "w", encoding="utf-8") as out:
        for mutant in chosen:
            if time.monotonic() - began > 60 * arguments.minutes:
                break
            alive = survives(mutant, GROUPS[mutant.group][1])
            tried[mutant.group] += 1
            killed[mutant.group] += not alive
            row = {
                name: getattr(mutant, name) for name in ("group", "path", "line", "before", "after")
            }
            out.write(json.dumps(row | {"killed": not alive}) + "\n")
            out.flush()
            if alive:
                print(
                    f"survived {mutant.path}:{mutant.line}: {mutant.before}  ->  {mutant.after}",
                    flush=True,
                )
    for group in tried:
        print(f"{group}: {killed[group]} of {tried[group]} killed")
    print(f"all: {sum(killed.values())} of {sum(tried.values())} killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
