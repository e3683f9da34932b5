"""Templates of pages and cards; a page's own script is the only one that the page allows."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from behavegpt.markdown import code, plain

TEMPLATES = Path(__file__).parent / "templates"


def environment(html: bool) -> Any:
    """jinja2's environment of our templates; with `html` all text is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        # a name that a template misspells is an error, not an empty text
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": plain, "code": code}
    return environment


def page(template: str, **values: Any) -> str:
    """The page `TEMPLATE.html.j2` with the script `TEMPLATE.js` in it, and the hash by which its
    policy allows it."""
    script = (TEMPLATES / f"{template}.js").read_text(encoding="utf-8").strip()
    # the page's Content-Security-Policy names this hash, so that no other script runs in it
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    source = environment(html=True).get_template(f"{template}.html.j2")
    rendered: str = source.render(script=script, script_hash=allowed, **values)
    return rendered
