"""All single changes of a module: an operator, a constant, a condition, or a statement left out."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
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

    part: str  # of the package: a module, or a folder of them
    path: str  # below behavegpt/
    line: int
    before: str
    after: str
    write: Callable[[], str]  # the module's source with the change


def sources(part: str, parts: Collection[str]) -> list[Path]:
    """The modules of a part, without those that are a part of their own."""
    base = ROOT / "behavegpt" / part
    paths = sorted(base.glob("*.py")) if base.is_dir() else [base]
    return [path for path in paths if path == base or _name(path) not in parts]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "behavegpt"))


def mutants(part: str, parts: Collection[str]) -> Iterator[Mutant]:
    """All single changes of a part's modules."""
    for path in sources(part, parts):
        sites = _Sites()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sites.visit(tree)

        for node in sites.nodes:
            line = getattr(node, "lineno", 0)
            for new in changes(node):
                # written when it is tried: thousands of sources need not be in memory
                write = partial(_changed, tree, node, new)
                yield Mutant(part, _name(path), line, _brief(node), _brief(new), write)


def unchanged(part: str, parts: Collection[str]) -> Mutant:
    """A module as it is, which the tests must let pass."""
    path = sources(part, parts)[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return Mutant(part, _name(path), 0, "", "", partial(ast.unparse, tree))


class _Sites(ast.NodeVisitor):
    """Nodes of a module that can be changed, without annotations, messages, docstrings and
    `Field(...)`."""

    def __init__(self) -> None:
        self.nodes: list[ast.AST] = []

    def generic_visit(self, node: ast.AST) -> None:
        # no test is meant to notice another wording, another bound of a message or an assert less
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            return
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Field"
        ):
            return

        if changes(node):
            self.nodes.append(node)

        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params"):  # nothing runs by them
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
            # 0.0 doubled would be no change
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


def _changed(tree: ast.Module, node: ast.AST, new: ast.AST) -> str:
    return ast.unparse(_Replace(node, new).visit(_Copy(node).of(tree)))


class _Copy:
    """A copy of a tree that shares one node with it, so that the node can be found in it."""

    def __init__(self, keep: ast.AST) -> None:
        self.memo = {id(keep): keep}  # deepcopy takes what is there for the copy

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
