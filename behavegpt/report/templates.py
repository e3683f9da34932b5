"""Templates of the report and of the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from behavegpt.markdown import code, plain

TEMPLATES = Path(__file__).parents[1] / "templates"


def environment(html: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": plain, "code": code}
    return environment
