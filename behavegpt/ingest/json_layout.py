"""How a JSON file is laid out (lines, an array, objects over many lines), and its first objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from behavegpt.errors import DataError

_OBJECTS = 1000  # objects whose keys name the columns


def json_layout(path: Path, head: str) -> str:
    # some writers put a line break or spaces first
    start = head.lstrip()
    if start.startswith("["):
        return "array"

    if ".json" not in path.suffixes and path.suffix != ".json":
        return "newline_delimited"

    # .json: objects on lines of their own, or one over many lines
    try:
        json.loads(start.partition("\n")[0])
        return "newline_delimited"
    except (ValueError, RecursionError):
        return "unstructured"  # one object, or several, over many lines


def json_objects(where: str, head: str, layout: str, whole: bool) -> Iterator[dict[str, Any]]:
    """The first objects of the text of a JSON file. Raises DataError for what is no object, or has
    a key twice."""

    def keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # a dict would keep the last of them without a word
        known = dict(pairs)
        if len(known) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in known if names.count(key) > 1)
            raise DataError(f"{where}: the key {twice!r} occurs twice in one object; keep one.")
        return known

    decoder = json.JSONDecoder(object_pairs_hook=keys)

    place, separators = (head.index("[") + 1, " \t\r\n,") if layout == "array" else (0, " \t\r\n")

    for _ in range(_OBJECTS):
        while place < len(head) and head[place] in separators:
            place += 1
        if place >= len(head) or (layout == "array" and head[place] == "]"):
            return

        # of the object's beginning, for errors
        line = head.count("\n", 0, place) + 1
        try:
            value, place = decoder.raw_decode(head, place)
        except (ValueError, RecursionError) as error:
            if not whole and (layout != "newline_delimited" or "\n" not in head[place:]):
                return  # the object goes on behind what was looked at
            raise DataError(
                f"{where}, line {line}: not JSON ({error}); write one object per line."
            ) from None

        if not isinstance(value, dict):
            raise DataError(
                f"{where}, line {line}: {type(value).__name__} found; write one object per line."
            )
        yield value
