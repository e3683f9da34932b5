"""Settings: YAML files with `base:` and dotted overrides, checked by pydantic into frozen objects.

    base: small.yaml          # read first, path relative to this file; a list is read left to right
    train: {lr: 1e-3}         # merged over it, key by key
    data: {mine: null}        # null takes back a group of settings that the base gave

Each component owns its settings class (a subclass of `Settings`); `read_settings` puts them
together.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from behavegpt.bounded_yaml import MOST_DEPTH, NotYaml, load_yaml
from behavegpt.errors import ConfigError
from behavegpt.paths import local_path

S = TypeVar("S", bound="Settings")

SHIPPED = Path(__file__).parent / "configs"  # in a checkout a link to the configs/ of its top
MOST_BASES = 20  # files, each the base of another
MOST_LINES = 20  # mistakes of one message


class Settings(BaseModel):
    """A frozen, validated group of settings; unknown keys and wrong types are refused."""

    # frozen: a run's settings are written down once, and must stay what was written
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def _path_text(text: str) -> str:
    if not text.strip():
        raise ValueError("empty path; name a file or folder")
    # `~` in a YAML file or an override, which no shell has seen
    return os.path.expanduser(text)


PathText = Annotated[str, AfterValidator(_path_text)]
"""A setting that is a path."""


def read_settings(cls: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Read `path` (with its `base:` files), apply `a.b=value` overrides in order, and validate as
    `cls`.

    Raises ConfigError naming the file, the setting, the value and the nearest known name.
    """
    # overrides on the tree, before validation: they may mend what a file lacks
    tree = read_yaml(find_config(path)) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    return check_settings(cls, tree, str(path) if path else "overrides")


def find_config(name: str | Path) -> Path:
    """A file as it is; otherwise a shipped one by its name: `small`, `adapt/new_behavior`,
    `configs/small.yaml`.

    >>> find_config("small").name, find_config("configs/adapt/new_behavior.yaml").parent.name
    ('small.yaml', 'adapt')
    """
    path = local_path(name)

    # a path that exists, or can only be a path, is not looked up by name
    if path.is_file() or path.is_absolute() or ".." in path.parts:
        return path
    # `configs/small.yaml`, as one writes it in a checkout, also works from the wheel
    inside = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    shipped = SHIPPED / inside.parent / f"{inside.name.removesuffix('.yaml')}.yaml"
    return shipped if shipped.is_file() else path


def check_settings(cls: type[S], values: Mapping[str, Any], source: str) -> S:
    """Validate `values` as `cls`; `source` is named in the ConfigError, beside setting, value and
    nearest name."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(cls, error, source)) from None


def shipped() -> list[str]:
    """Names of the configurations that come with the package, for `find_config`."""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml")
    )


def read_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The merged tree of a YAML file and its bases, unvalidated."""
    path = local_path(path)
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: circular `base:`; remove one of the links.")
    if len(_seen) > MOST_BASES:
        raise ConfigError(
            f"{path}: more than {MOST_BASES} files, each the `base:` of the next; merge some "
            "of them."
        )

    try:
        text = path.read_text(encoding="utf-8")
        tree = load_yaml(text, str(path))
    except FileNotFoundError:
        # a shipped name is the usual mistake: it is given without a path
        near = difflib.get_close_matches(path.stem, shipped(), n=1)
        meant = f" Did you mean {near[0]!r}, which comes with the package?" if near else ""
        raise ConfigError(f"{path}: no such configuration file; check the path.{meant}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None

    # an empty file has no settings
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: the top level must be a mapping of settings, found {type(tree).__name__}."
        )

    merged: dict[str, Any] = {}
    for base in _bases(path, tree.pop("base", [])):
        # bases left to right, each over those before it, and the file itself over all
        merged = _merge(merged, read_yaml(path.parent / local_path(base), (*_seen, path.resolve())))
    return _merge(merged, tree)


def _bases(path: Path, written: Any) -> list[str]:
    """The names under `base:`, one or a list."""
    bases = [written] if isinstance(written, str) else written
    is_list = isinstance(bases, list)
    if not is_list or not all(isinstance(b, str) and b.isprintable() and b for b in bases):
        raise ConfigError(
            f"{path}: base = {_short(written)}: must be a file name, or a list of file names."
        )
    return bases


def dump_settings(settings: Settings) -> str:
    """The resolved settings as YAML; `read_settings` of it gives the same object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def closest(name: str, known: Sequence[str]) -> str:
    """' Did you mean x?' for a near miss, else the known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`high` over `low`, group by group; null takes a whole group back."""
    merged = dict(low)
    for key, value in high.items():
        is_group = isinstance(merged.get(key), dict)
        if is_group and value is None:
            del merged[key]
        elif is_group and isinstance(value, dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in `tree`; the value is read as YAML, so numbers, lists and null work.

    null takes back a group of settings, as it does in a file over its base.
    """
    name, equals, text = override.partition("=")
    keys = name.split(".")
    # as deep as a file may be nested: a thousand dots are no name
    if not equals or not all(keys) or len(keys) > MOST_DEPTH:
        raise ConfigError(
            f"{override!r} is not an override; write name=value, for example train.lr=1e-3."
        )
    if not text.strip():  # as an unset variable of a shell gives
        raise ConfigError(f"{override!r} has no value; write {name}=null for none.")

    for key in keys[:-1]:
        # a group that the file lacks is made; a single value is not overwritten by one
        if not isinstance(tree.setdefault(key, {}), dict):
            raise ConfigError(f"{override!r}: {key!r} is a single value, not a group of settings.")
        tree = tree[key]

    last, value = keys[-1], _value(text, name)
    if value is None and isinstance(tree.get(last), dict):
        del tree[last]
    else:
        tree[last] = value


def _value(text: str, name: str) -> Any:
    """An override's value: YAML, or the text as it stands where it is none (`a: b: c`)."""
    try:
        return load_yaml(text, name)
    except NotYaml:
        return text


def _explain(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    """pydantic's findings, a line each: where, what is wrong, and what may be meant."""
    lines = []
    # all of them: whoever edits a file wants to mend it once
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            known = _fields_at(cls, item["loc"][:-1])
            lines.append(
                f"{source}: unknown setting {where!r}. {closest(str(item['loc'][-1]), known)}"
            )
        elif item["type"] == "missing":
            lines.append(f"{source}: {where!r} is required; add it or pass {where}=VALUE.")
        else:
            lines.append(
                f"{source}: {where} = {_short(item['input'])}: "
                f"{item['msg'].removeprefix('Value error, ')}."
            )

    # a file of another program is wrong in every line
    more = len(lines) - MOST_LINES
    if more > 0:
        lines[MOST_LINES:] = [f"{source}: and {more} more."]
    return "\n".join(lines)


def _short(value: Any) -> str:
    """A value as Python writes it, cut to 100 characters."""
    # Python refuses to write integers of more than 4,300 digits
    is_huge = isinstance(value, int) and abs(value) >= 10**80
    text = "a huge number" if is_huge else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings of the nested model at `loc`."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break  # a list or a union has no fields of its own
        cls = inner
    return list(cls.model_fields)
