"""YAML of settings, with bounds on what a file may make of itself; every fault is one line that
names the place.

Plain values alone: numbers (`1e-3` too, which YAML 1.1 would read as text), text, true/false, null,
lists, mappings. A date stays text. Aliases may repeat a part of a file, but not blow it up (each
repetition counts).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

from behavegpt.errors import ConfigError

MOST_BYTES = 1 << 20
MOST_DEPTH = 32  # of lists and mappings in each other
MOST_NODES = 20_000  # values and keys, aliases written out
LARGEST_INTEGER = (1 << 63) - 1  # of a signed 64-bit number
# YAML 1.1 wants a dot and a sign in the exponent, people write 1e-3
_FLOAT = r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"


class NotYaml(ConfigError):
    """The text breaks the rules of YAML, so that it can only be text."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with dates as text and `1e-3` as a number."""


def _without_dates(resolvers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]


_Loader.yaml_implicit_resolvers = {
    first: _without_dates(resolvers)
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+.0123456789"))


def load_yaml(text: str, source: str) -> Any:
    """What a YAML text holds; None if it is empty. Raises ConfigError naming `source` and the
    fault."""
    if len(text) > MOST_BYTES:
        raise ConfigError(
            f"{source}: {len(text):,} characters; settings may have at most {MOST_BYTES:,}."
        )

    try:
        _check_depth(text, source)
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None
        _check_tree(node, source, [0])
        value = _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise NotYaml(
            f"{source}{_place(error.problem_mark)}: not valid YAML ({_said(error)})."
        ) from None
    # characters that YAML forbids; `!!int x`, `!!timestamp x`
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise NotYaml(f"{source}: not valid YAML ({' '.join(str(error).split())[:200]}).") from None

    _check_numbers(value, source)
    return value


def _check_depth(text: str, source: str) -> None:
    """Refuse deep nesting while reading, before anything recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise ConfigError(
                f"{source}{_place(event.start_mark)}: more than {MOST_DEPTH} levels in each other."
            )


def _check_tree(node: yaml.Node, source: str, counted: list[int], depth: int = 0) -> None:
    """Refuse a key written twice, and a tree whose aliases, written out, are too many or stand
    within themselves."""
    # the count runs on through aliases, as a tree is walked and not the graph behind it
    counted[0] += 1
    if depth > MOST_DEPTH or counted[0] > MOST_NODES:
        raise ConfigError(
            f"{source}{_place(node.start_mark)}: with its aliases (*name) written out the text has "
            f"more than {MOST_NODES:,} values or {MOST_DEPTH} levels; write less."
        )

    if isinstance(node, yaml.MappingNode):
        # PyYAML would keep the last one without a word; `<<` merges and may be repeated
        names = Counter(
            key.value
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode) and key.value != "<<"
        )

        name, times = names.most_common(1)[0] if names else ("", 0)
        if times > 1:
            raise ConfigError(
                f"{source}{_place(node.start_mark)}: the key {name!r} is written twice; keep one."
            )

        for key, value in node.value:
            _check_tree(key, source, counted, depth + 1)
            _check_tree(value, source, counted, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_tree(value, source, counted, depth + 1)


def _check_numbers(value: Any, source: str) -> None:
    """Refuse integers that no setting can hold; PyYAML reads any length."""
    if isinstance(value, dict):
        for part in (*value.keys(), *value.values()):
            _check_numbers(part, source)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            _check_numbers(part, source)
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ConfigError(
            f"{source}: an integer of {value.bit_length()} bits; settings hold at most 64."
        )


def _place(mark: Any) -> str:
    """`, line 3, column 5` of PyYAML's mark, which counts from 0; nothing without one."""
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _said(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML objects to, in one line."""
    return " ".join(f"{error.context or ''} {error.problem or ''}".split())[:200]
