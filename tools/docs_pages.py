"""Pages of the site that are not files of docs/: mkdocs calls `on_files` and `on_page_markdown`
(see mkdocs.yml).

The README and its neighbors become pages; the commands' reference comes from their parsers, that of
the settings from their models, and that of the Python API from the public names. Links to other
files become plain text.
"""

from __future__ import annotations

import argparse
import importlib
import posixpath
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import behavegpt
from behavegpt.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
SETTINGS = {
    "Columns and times of a log (`--schema FILE`, `fit`)": "behavegpt.data.schema.EventSchema",
    "Pretraining (`train`)": "behavegpt.pretrain.PretrainSettings",
    "Adaptation (`finetune`)": "behavegpt.finetune.FinetuneSettings",
    "Generation (`generate`)": "behavegpt.generation.settings.GenerationSettings",
    "Export of user vectors (`export`)": "behavegpt.embeddings.export.ExportSettings",
    "Benchmark (`benchmark`)": "behavegpt.benchmark.settings.BenchmarkSettings",
    "Scaling (`scale`)": "behavegpt.scaling.settings.SweepSettings",
    "Profiles (`profile`)": "behavegpt.profiles.settings.ProfileSettings",
    "Probe of user vectors (`probe`)": "behavegpt.probing.settings.ProbeSettings",
    "Daily operation (`update`)": "behavegpt.updating.settings.UpdateSettings",
    "Service (`serve`)": "behavegpt.serving.requests.ServeSettings",
    "The universal model (`pretrain-universal`)": "behavegpt.universal.train.UniversalSettings",
}
RESULTS = (
    "behavegpt.fitting.FittedPredictor",
    "behavegpt.fitting.Evaluation",
    "behavegpt.predictions.Predictions",
    "behavegpt.explanations.Explanations",
    "behavegpt.generation.result.Generated",
    "behavegpt.probing.result.ProbeResult",
    "behavegpt.probing.result.Scores",
    "behavegpt.updating.result.UpdateResult",
    "behavegpt.tabular.Tabular",
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in PAGES.items()}
    pages |= {
        "reference/commands.md": commands(),
        "reference/settings.md": settings(),
        "reference/api.md": api(),
    }

    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are in the repository, made links of the site."""
    source = page.file.src_uri
    # pages that are made from the root's files link as from the root
    home = dict.fromkeys(PAGES.values(), "").get(source, posixpath.dirname(f"docs/{source}"))
    known = {file.src_uri for file in files}

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or source.startswith("reference/"):
            return match[0]

        path = posixpath.normpath(posixpath.join(home, target))
        place = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place in known:
            return f"[{text}]({posixpath.relpath(place, posixpath.dirname(source) or '.')}{anchor})"

        # a file that the site lacks: its path, unless the text names it already
        return text if text == path or "`" in text else f"{text} (`{path}`)"

    return LINK.sub(link, markdown)


def commands() -> str:
    """Each command's help, as its parser prints it."""
    pages = [
        f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
        for parser in _parsers(_parser())
    ]
    return "\n".join(
        ["# Commands\n\nEach page of `--help`, from the parsers themselves.\n", *pages]
    )


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those below it, depth first."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _parsers(child)


def settings() -> str:
    """A table of each group of settings."""
    parts = [
        "# Settings\n\nWhat a configuration file may say, and `NAME=VALUE` on the command line. A "
        "setting in a group is written `train: {lr: 1e-3}` in YAML and `train.lr=1e-3` on the "
        "command line.\n"
    ]
    for title, name in SETTINGS.items():
        module, _, model = name.rpartition(".")
        cls = getattr(importlib.import_module(module), model)
        parts.append(
            f"## {title}\n\n{_first(cls)}\n\n| setting | type | default | |\n|---|---|---|---|"
        )
        parts += [*_rows(cls, ""), ""]

    return "\n".join(parts)


def _rows(cls: type[BaseModel], prefix: str) -> Iterator[str]:
    """A row of the table for each setting, those of groups by their dotted names."""
    for name, field in cls.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
            continue

        # a bar in a cell would end it
        cells = (f"`{prefix}{name}`", _type(inner), _default(field), field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(annotation: Any) -> str:
    """A type as users write its values: choices in full, without validators and module paths."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, inner))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, inner))}]"

    names = {type(None): "null", Ellipsis: "..."}  # as YAML writes them
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{'null' if value is None else value}`"


def _first(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())


def api() -> str:
    """The public names, each with its docstring."""
    names = [f"{module}.{name}" for name, module in behavegpt._PUBLIC.items()]
    pages = (f"::: {name}\n" for name in [*names, *RESULTS])
    return "\n".join(
        ["# Python API\n\nThe public names of `behavegpt`, and the results they give.\n", *pages]
    )
