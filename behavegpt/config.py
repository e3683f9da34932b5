"""Settings: YAML files with `base:` and dotted overrides, checked by pydantic into frozen objects.

    base: small.yaml          # read first, path relative to this file; a list is read left to right
    train: {lr: 1e-3}         # merged over it, key by key
    data: {mine: null}        # null takes back a group of settings that the base gave

Each component owns its settings class (a subclass of `Settings`); `read_settings` puts them together.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from behavegpt.errors import ConfigError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A frozen, validated group of settings; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class _Loader(yaml.SafeLoader):
    """YAML that reads `1e-3` as a number (YAML 1.1 wants `1.0e-3`) and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ConfigError(f"{node.start_mark.name}: the key {twice[0]!r} is written twice; keep one.")
        return super().construct_mapping(node, deep)


_FLOAT = r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+.0123456789"))


def read_settings(cls: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Read `path` (with its `base:` files), apply `a.b=value` overrides in order, and validate as `cls`.

    Raises ConfigError naming the file, the setting, the value and the nearest known name.
    """
    tree = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    return check_settings(cls, tree, str(path) if path else "overrides")


def check_settings(cls: type[S], values: Mapping[str, Any], source: str) -> S:
    """Validate `values` as `cls`; `source` is named in the ConfigError, beside setting, value and nearest name."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(cls, error, source)) from None


def read_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The merged tree of a YAML file and its bases, unvalidated."""
    path = Path(path)
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: `base:` goes round in a circle; remove one of the links.")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(_named(text, path), Loader=_Loader) or {}  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of settings, found {type(tree).__name__}.")
    bases = tree.pop("base", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = _merge(merged, read_yaml(path.parent / base, (*_seen, path.resolve())))
    return _merge(merged, tree)


def dump_settings(settings: Settings) -> str:
    """The resolved settings as YAML; `read_settings` of it gives the same object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def closest(name: str, known: Sequence[str]) -> str:
    """' Did you mean x?' for a near miss, else the known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."


def _named(text: str, path: Path) -> Any:
    """A stream whose name PyYAML puts into its error messages."""
    stream = io.StringIO(text)
    stream.name = str(path)
    return stream


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        section = isinstance(merged.get(key), dict)
        if section and value is None:
            del merged[key]
        else:
            merged[key] = _merge(merged[key], value) if section and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in `tree`; the value is read as YAML, so numbers, lists and null work."""
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{override!r} is not an override; write name=value, for example train.lr=1e-3.")
    for key in keys[:-1]:
        if not isinstance(tree.setdefault(key, {}), dict):
            raise ConfigError(f"{override!r}: {key!r} is a single value, not a group of settings.")
        tree = tree[key]
    try:
        tree[keys[-1]] = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        tree[keys[-1]] = text


def _explain(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            known = _fields_at(cls, item["loc"][:-1])
            lines.append(f"{source}: unknown setting {where!r}. {closest(str(item['loc'][-1]), known)}")
        elif item["type"] == "missing":
            lines.append(f"{source}: {where!r} is required; add it or pass {where}=VALUE.")
        else:
            lines.append(f"{source}: {where} = {_short(item['input'])}: {item['msg'].removeprefix('Value error, ')}.")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**80 else "a huge number"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings of the nested model at `loc`."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        cls = inner
    return list(cls.model_fields)
