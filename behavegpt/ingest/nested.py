"""Values below a column by a dotted path (`geo.city`), and lists that hold one user's events in one
row.

A step of a path is a field of a struct or JSON object, a key of a map, a number in a list, or the
`key` of a list of key-value pairs (the `event_params` of Google Analytics). Of a list of structs
the first is meant, or, where a row holds a whole history, every one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from behavegpt.data.database import literal, quoted
from behavegpt.errors import DataError

# levels below a column that are listed for people; a named path may be longer
_DEPTH = 4
# of one value, of any type
_ALTERNATIVES = ("string_value", "int_value", "double_value", "float_value", "bool_value")


class Value(NamedTuple):
    """SQL of a value, and whether it is a list with one element per event."""

    sql: str
    many: bool = False


def split_path(path: str, names: Collection[str]) -> tuple[str, list[str]] | None:
    """The column and the steps below it of a dotted path; None where no column begins it."""
    if path in names:
        return path, []

    # from the right: the longest name that is a column
    places = [i for i, letter in enumerate(path) if letter == "."]
    for place in reversed(places):  # a column may have dots in its own name
        if path[:place] in names:
            return path[:place], path[place + 1 :].split(".")
    return None


def typed_value(name: str, kind: Any, steps: Sequence[str], many: bool) -> Value:
    """The value at `steps` below a column of a DuckDB type; `many`: rows may be histories. Raises
    DataError."""
    return _typed(quoted(name), kind, list(steps), many, name)


def json_value(name: str, samples: Sequence[Any], steps: Sequence[str], many: bool) -> Value:
    """The same, as JSON, for a column of JSON whose values look like `samples` (parsed)."""
    return _json(quoted(name), [s for s in samples if s is not None], list(steps), many)


def part_sql(name: str) -> str:
    """SQL of the value that a folder called NAME=VALUE gives to the rows of its files."""
    # both slashes: Windows' paths too; Hive's word for null is no value
    pattern = f"(?:.*[/\\\\]|^){re.escape(name)}=([^/\\\\]*)[/\\\\]"
    return (
        f"nullif(url_decode(regexp_extract(behavegpt_file, {literal(pattern)}, 1)), "
        "'__HIVE_DEFAULT_PARTITION__')"
    )


def check_lengths(
    con: duckdb.DuckDBPyConnection, where: str, base: str, lists: Mapping[str, str]
) -> None:
    """Raise DataError where the lists (column -> SQL) of a row differ in length."""
    # before they are unnested side by side: DuckDB would fill the shorter one with nulls
    first, *others = lists.items()
    for column, sql in others:
        query = (
            f"SELECT len({first[1]}), len({sql}) FROM {base} WHERE len({first[1]}) <> len({sql}) "
            "LIMIT 1"
        )
        lengths = con.execute(query).fetchone()
        if lengths:
            raise DataError(
                f"{where}: each row is a history, but in one {first[0]!r} has {lengths[0]} "
                f"elements and {column!r} {lengths[1]}; write one element per event in each list."
            )


def arrow_paths(schema: pa.Schema) -> tuple[str, ...]:
    """Dotted paths of the fields of all structs."""
    return tuple(path for field in schema for path in _arrow_paths(field.name, field.type, _DEPTH))


def value_paths(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Dotted paths of the values of parsed JSON objects."""
    paths: dict[str, None] = {}  # in the order in which they are seen
    for row in rows:
        for name, value in row.items():
            if isinstance(value, (dict, list)):
                paths.update(dict.fromkeys(_value_paths(name, value, _DEPTH)))
    return tuple(paths)


def _typed(sql: str, kind: Any, steps: list[str], many: bool, where: str) -> Value:
    if not steps:
        return _whole(sql, kind, many)

    step, rest = steps[0], steps[1:]
    below = f"{where}.{step}"
    if kind.id == "struct":
        fields = dict(kind.children)
        name = _field_name(step, fields, where)
        field = f"struct_extract({sql}, {literal(name)})"
        return _typed(field, fields[name], rest, many, f"{where}.{name}")

    # a key that no row has is null, not an error: keys are data
    if kind.id == "map":
        value = f"map_extract({sql}, {literal(step)})[1]"
        return _typed(value, dict(kind.children)["value"], rest, many, below)

    if kind.id in ("list", "array"):
        return _typed_list(sql, kind, steps, many, where)

    # JSON in a column of text
    if kind.id == "varchar":
        return Value(f"json_extract_string(TRY_CAST({sql} AS JSON), {literal(_json_path(steps))})")

    raise DataError(f"column {where!r} is of type {kind}, which has no field {step!r}.")


def _field_name(step: str, fields: Collection[str], where: str) -> str:
    """The field of a struct that a step names, as DuckDB compares names: exactly first, then
    without case."""
    alike = (name for name in fields if name.lower() == step.lower())
    name = step if step in fields else next(alike, None)
    if name is None:
        raise DataError(
            f"column {where!r} has no field {step!r}. Fields: {', '.join(list(fields)[:30])}."
        )
    return name


def _typed_list(sql: str, kind: Any, steps: list[str], many: bool, where: str) -> Value:
    step, rest, below = steps[0], steps[1:], f"{where}.{steps[0]}"
    element = kind.children[0][1]
    inner = dict(element.children) if element.id == "struct" else {}

    # event_params and the like: the element whose key is the step
    if {"key", "value"} <= inner.keys():
        # the first of them, as Google Analytics writes each key once
        pair = f"list_filter({sql}, lambda x: x.key = {literal(step)})[1].value"
        return _typed(pair, inner["value"], rest, many, below)

    # DuckDB counts from 1, paths from 0
    if step.isdecimal():
        return _typed(f"{sql}[{int(step) + 1}]", element, rest, many, below)

    if many:
        value = _typed("x", element, steps, False, where)
        return Value(f"list_transform({sql}, lambda x: {value.sql})", True)

    return _typed(f"{sql}[1]", element, steps, many, where)


def _whole(sql: str, kind: Any, many: bool) -> Value:
    # one value with a field for each type, of which one is set (Google Analytics)
    if kind.id == "struct" and {name for name, _ in kind.children} <= set(_ALTERNATIVES):
        texts = (f"struct_extract({sql}, {literal(name)})::VARCHAR" for name, _ in kind.children)

        return Value(f"coalesce({', '.join(texts)})")
    # a list that is one value of one event stays whole, and is refused as a label later
    return Value(sql, many and kind.id in ("list", "array"))


def _json(sql: str, samples: list[Any], steps: list[str], many: bool) -> Value:
    # by the values that were seen: JSON has no types that could be asked
    lists = bool(samples) and all(isinstance(sample, list) for sample in samples)

    if not steps:
        if samples and all(
            isinstance(s, dict) and s and s.keys() <= set(_ALTERNATIVES) for s in samples
        ):
            texts = (f"json_extract_string({sql}, '$.{name}')" for name in _ALTERNATIVES)
            return Value(f"to_json(coalesce({', '.join(texts)}))")
        return Value(sql, many and lists)

    step, rest = steps[0], steps[1:]

    if not lists:
        below = [s.get(step) for s in samples if isinstance(s, dict)]
        return _json(
            f"json_extract({sql}, {literal(_json_path([step]))})", _there(below), rest, many
        )

    elements = [element for sample in samples for element in sample]
    if elements and all(isinstance(e, dict) and {"key", "value"} <= e.keys() for e in elements):
        pairs = (
            f"list_filter({json_list(sql)}, lambda x: json_extract_string(x, '$.key') = "
            f"{literal(step)})"
        )
        below = [e["value"] for e in elements if e["key"] == step]
        return _json(f"json_extract({pairs}[1], '$.value')", _there(below), rest, many)

    if step.isdecimal():
        below = [s[int(step)] for s in samples if len(s) > int(step)]
        return _json(f"json_extract({sql}, '$[{step}]')", _there(below), rest, many)

    if many:
        value = _json("x", _there(elements), steps, False)
        return Value(f"list_transform({json_list(sql)}, lambda x: {value.sql})", True)

    return _json(f"json_extract({sql}, '$[0]')", _there([s[0] for s in samples if s]), steps, many)


def json_list(sql: str) -> str:
    """SQL of a JSON array as a list of JSON; a single value is a list of one."""
    return (
        f"CASE WHEN json_type({sql}) = 'ARRAY' THEN from_json({sql}, '[\"JSON\"]') ELSE [{sql}] END"
    )


def _json_path(steps: Sequence[str]) -> str:
    return "$" + "".join(
        '."' + step.replace("\\", "\\\\").replace('"', '\\"') + '"' for step in steps
    )


def _there(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _arrow_paths(name: str, kind: pa.DataType, depth: int) -> Iterator[str]:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
        # its keys are data, not names: unknown without reading rows
        if pa.types.is_struct(kind) and {"key", "value"} <= {field.name for field in kind}:
            return
    # bounded: a type may hold itself over many levels, and people read the list
    if pa.types.is_struct(kind) and depth:
        for field in kind:
            path = f"{name}.{field.name}"
            yield path
            yield from _arrow_paths(path, field.type, depth - 1)


def _value_paths(name: str, value: Any, depth: int) -> Iterator[str]:
    if not depth:
        return
    if isinstance(value, list):
        # the first hundred tell enough: they are shown to people as columns to name
        for element in value[:100]:
            if isinstance(element, dict) and {"key", "value"} <= element.keys():
                yield f"{name}.{element['key']}"
            elif isinstance(element, dict):
                yield from _value_paths(name, element, depth)
    elif isinstance(value, dict):
        for key, below in value.items():
            yield f"{name}.{key}"
            if isinstance(below, (dict, list)):
                yield from _value_paths(f"{name}.{key}", below, depth - 1)
