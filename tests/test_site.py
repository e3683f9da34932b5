"""The site: pages that are made from the code, and links that lead somewhere (`make docs` builds
it)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from behavegpt.cli import COMMANDS
from tests.conftest import ROOT

NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "tools" / "docs_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(nav: Any) -> Iterator[str]:
    for item in nav:
        for target in item.values():
            yield from [target] if isinstance(target, str) else listed(target)


def test_every_page_is_in_the_navigation(pages: ModuleType) -> None:
    made = {
        *pages.PAGES.values(),
        "reference/commands.md",
        "reference/settings.md",
        "reference/api.md",
    }
    docs = ROOT / "docs"
    written = [*docs.glob("*.md"), *docs.glob("howto/*.md")]
    assert set(listed(NAV)) == made | {path.relative_to(docs).as_posix() for path in written}


def test_every_command_and_its_choices_are_in_the_reference(pages: ModuleType) -> None:
    text = pages.commands()
    assert not [name for name in COMMANDS if f"## behavegpt {name}" not in text]
    assert "new_behavior,cross_domain" in text and "behavegpt challenge leaderboard" in text


def test_settings_have_a_type_a_default_and_a_description(pages: ModuleType) -> None:
    text = pages.settings()
    assert "| `train.lr` | float | " in text
    assert "| `out` | str | required | run folder; created if absent |" in text
    assert "`cosine`, `linear`, `constant`" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert not re.search(r"Annotated|Optional|FieldInfo|0x|\btyping\b", text)
    assert "| `language_model` | str \\| null |" in text


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "[data](docs/data.md)", "[data](data.md)"),
        ("index.md", "[shape](docs/data.md#time)", "[shape](data.md#time)"),
        ("index.md", "[license](LICENSE)", "license (`LICENSE`)"),
        ("data.md", "[log](../CHANGELOG.md)", "[log](changelog.md)"),
        (
            "data.md",
            "[the worlds](../behavegpt/universal/worlds.py)",
            "the worlds (`behavegpt/universal/worlds.py`)",
        ),
        ("data.md", "[site](https://example.org/a.md)", "[site](https://example.org/a.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(pages, page, link, expected) -> None:
    files = [SimpleNamespace(src_uri=name) for name in ("index.md", "data.md", "changelog.md")]
    assert (
        pages.on_page_markdown(
            link, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, files
        )
        == expected
    )
