"""Count what makes code quick to read: python tools/style_counts.py [--list MEASURE] [FOLDER ...]

The default folder is behavegpt/. `--list over_50` names what a measure of the table counts, one
place a line. Goals are those the project has set itself; a number is a hint where to look and no
verdict.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# (B, T, D), x_BLD
SHAPE = re.compile(r"\([A-Z][\w' +*/-]*,[^)]*\)|\(\d?,\)|\b\w+_[BTLNDCKHRV]{2,}\b")
TEST = re.compile(r"^ *(?:async )?def test_", re.MULTILINE)
MARKS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
# columns, lines of a function, parameters, lines of a module
WIDE, LONG, MANY, SMALL = 100, 50, 7, 40
Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class Module(NamedTuple):
    """One file, read once."""

    path: Path
    lines: list[str]
    tree: ast.Module
    comments: int  # comment tokens, also those behind code

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def place(self, node: ast.AST, text: str = "") -> str:
        line = getattr(node, "lineno", 1)
        return f"{shown(self.path)}:{line} {text or getattr(node, 'name', '')}".rstrip()


class Measure(NamedTuple):
    """A row of the table; `places` names what was counted."""

    title: str
    value: str
    goal: str = ""
    places: tuple[str, ...] = ()


def shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def read(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    # by token: a `#` inside a string is no comment
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = sum(token.type == tokenize.COMMENT for token in tokens)
    return Module(path, text.splitlines(), ast.parse(text), comments)


def measure(modules: list[Module], tests: list[str]) -> dict[str, Measure]:
    """Name -> row of the table, in the order of the table; `tests` are texts of files."""
    rows: dict[str, Measure] = {}
    lines = sum(len(module.lines) for module in modules)
    sizes = [len(module.lines) for module in modules]
    functions = [(module, node) for module in modules for node in module.functions]
    lengths = sorted(length(node) for _, node in functions)

    def row(name: str, title: str, value: object, goal: str = "") -> None:
        rows[name] = Measure(title, str(value), goal)

    def listed(name: str, title: str, places: Iterator[str], goal: str = "") -> None:
        named = tuple(places)
        rows[name] = Measure(title, str(len(named)), goal, named)

    row("lines", "files / lines", f"{len(modules)} / {lines}", "22,000 lines")
    row("file", "file median / max", f"{statistics.median(sizes):.0f} / {max(sizes)}", "80-250")
    row("function", "function p50 / p90 / max", " / ".join(str(q) for q in quantiles(lengths)))
    listed("over_50", f"functions over {LONG} lines", over_long(functions), "0")
    listed("parameters", f"functions with over {MANY} parameters", over_many(functions), "0")
    row("annotated", "arguments annotated", percent(*annotated(functions)), "100 %")
    row("shapes", "functions of tensors that name a shape", percent(*shaped(functions)), "100 %")
    row("docstrings", "public functions with a docstring", percent(*documented(modules)))
    row(
        "comments", "comments / 100 lines", per_100(sum(m.comments for m in modules), lines), "8-12"
    )
    row("blank", "blank lines in bodies / 100", per_100(blank_in_bodies(functions), lines), ">= 5")
    listed("wide", f"lines over {WIDE} columns", wide(modules), "0")
    listed("any", "dict[str, Any]", uses_of_any(modules), "JSON only")
    loops = [
        (m, node) for m in modules for node in ast.walk(m.tree) if isinstance(node, Comprehension)
    ]
    row("comprehensions", "comprehensions / 100 lines", per_100(len(loops), lines))
    listed("nested", "comprehensions in comprehensions", nested(loops), "0")
    listed("unpacked", "a, b = (... for ...)", unpacked(modules))
    listed("small", f"modules under {SMALL} lines with one importer", small(modules), "0")
    public = [
        name for module in modules for name in module_names(module) if not name.startswith("_")
    ]
    row("names", "public names of modules", len(public))
    listed("marks", "TODO, FIXME, XXX, HACK", marked(modules), "0")
    # by lines alone: reading all tests as code takes seconds
    tested = sum(len(text.splitlines()) for text in tests)
    cases = sum(len(TEST.findall(text)) for text in tests)
    row("tests", "test / library lines (test functions)", f"{tested / lines:.2f} ({cases})")

    return rows


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def quantiles(lengths: list[int]) -> tuple[int, int, int]:
    """Median, 90 % and largest of sorted lengths."""
    return lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10], lengths[-1]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f} % of {whole}"


def per_100(count: int, lines: int) -> str:
    return f"{100 * count / lines:.1f}"


def arguments(node: Function) -> list[ast.arg]:
    """All parameters but self and cls."""
    every = node.args
    named = [*every.posonlyargs, *every.args, *every.kwonlyargs]
    named += [star for star in (every.vararg, every.kwarg) if star is not None]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def over_long(functions: list[tuple[Module, Function]]) -> Iterator[str]:
    for module, node in functions:
        if length(node) > LONG:
            yield module.place(node, f"{node.name}: {length(node)} lines")


def over_many(functions: list[tuple[Module, Function]]) -> Iterator[str]:
    for module, node in functions:
        if len(arguments(node)) > MANY:
            yield module.place(node, f"{node.name}: {len(arguments(node))} parameters")


def annotated(functions: list[tuple[Module, Function]]) -> tuple[int, int]:
    every = [argument for _, node in functions for argument in arguments(node)]
    return sum(argument.annotation is not None for argument in every), len(every)


def shaped(functions: list[tuple[Module, Function]]) -> tuple[int, int]:
    """Functions that take or give a tensor or are a `forward`; those that name a shape in text or
    signature."""
    named, total = 0, 0
    for module, node in functions:
        signature = "\n".join(module.lines[node.lineno - 1 : node.body[0].lineno - 1])
        if node.name == "forward" or "Tensor" in signature:
            body = "\n".join(module.lines[node.lineno - 1 : node.end_lineno])
            total += 1
            named += bool(SHAPE.search((ast.get_docstring(node) or "") + comments_of(body)))

    return named, total


def comments_of(source: str) -> str:
    return "\n".join(line.split("#", 1)[1] for line in source.splitlines() if "#" in line)


def documented(modules: list[Module]) -> tuple[int, int]:
    """Functions of modules and public classes whose name has no underscore in front."""
    bodies = [module.tree.body for module in modules]
    classes = [node for body in bodies for node in body if isinstance(node, ast.ClassDef)]
    bodies += [node.body for node in classes if not node.name.startswith("_")]
    functions = [node for body in bodies for node in body if isinstance(node, Function)]
    public = [node for node in functions if not node.name.startswith("_")]
    return sum(ast.get_docstring(node) is not None for node in public), len(public)


def blank_in_bodies(functions: list[tuple[Module, Function]]) -> int:
    """Blank lines inside functions; those of a nested function count once."""
    places = set()  # of file and line: a nested function's lines are its parent's too
    for module, node in functions:
        for number in range(node.body[0].lineno, node.end_lineno or node.lineno):
            if not module.lines[number - 1].strip():
                places.add((module.path, number))
    return len(places)


def wide(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for number, line in enumerate(module.lines, 1):
            if len(line) > WIDE:
                yield f"{shown(module.path)}:{number} {len(line)} columns"


def uses_of_any(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]":
                yield module.place(node)


def nested(loops: list[tuple[Module, Comprehension]]) -> Iterator[str]:
    for module, loop in loops:
        if any(isinstance(inner, Comprehension) for inner in ast.walk(loop) if inner is not loop):
            yield module.place(loop)


def unpacked(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Assign) or not isinstance(node.value, Comprehension):
                continue
            if isinstance(node.targets[0], ast.Tuple):
                yield module.place(node)


def small(modules: list[Module]) -> Iterator[str]:
    """Modules that only one other imports; a package's __init__ and __main__ are entries."""
    importers = defaultdict(set)
    for module in modules:
        for name in imported(module):
            importers[name].add(module.path)

    for module in modules:
        users = importers[dotted(module.path)] - {module.path}
        if len(module.lines) < SMALL and len(users) == 1 and not module.path.stem.startswith("__"):
            yield f"{shown(module.path)} {len(module.lines)} lines, for {shown(users.pop())}"


def imported(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(path: Path) -> str:
    return ".".join(shown(path).with_suffix("").parts)


def module_names(module: Module) -> Iterator[str]:
    """What a module defines by `def`, `class` or assignment."""
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def marked(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for number, line in enumerate(module.lines, 1):
            if MARKS.search(line):
                yield f"{shown(module.path)}:{number}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "behavegpt"])
    parser.add_argument("--list", dest="listed", metavar="MEASURE", help="name the places instead")
    asked = parser.parse_args(argv)
    modules = [
        read(path) for folder in asked.folders for path in sorted(folder.resolve().rglob("*.py"))
    ]
    tests = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))]
    rows = measure(modules, tests)

    if asked.listed:
        if asked.listed not in rows:
            parser.error(f"no measure {asked.listed!r}; there are {', '.join(rows)}")
        print("\n".join(rows[asked.listed].places))
        return 0

    print("| name | measure | here | goal |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row.title} | {row.value} | {row.goal} |")

    return 0


if __name__ == "__main__":
    sys.exit(main())
