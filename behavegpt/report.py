"""The report and the model card of a run, written from its result files; what is missing is left
out.

RUN/report.html           one file: no network, no scripts, light and dark
RUN/model/README.md       the model card, as the Hugging Face Hub reads it
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from behavegpt import plots
from behavegpt.data.store import Manifest
from behavegpt.errors import DataError
from behavegpt.io import write_text
from behavegpt.markdown import code, plain
from behavegpt.report_tables import (
    behavior_tables,
    fact_list,
    metric_table,
    pick,
    protocol_list,
    unseen_targets,
    when,
)

TEMPLATES = Path(__file__).parent / "templates"
CAPTIONS = {
    "loss.png": (
        "Cross-entropy in training and on validation, and the validation figures, by optimizer "
        "step."
    ),
    "recall_by_decile.png": (
        "Macro recall of ten groups of behaviors, from the most to the least frequent in training."
    ),
    "per_behavior.png": (
        "Each point is a behavior; the lines are means over bins of the training count."
    ),
    "confusion.png": (
        "Each row shows where the events of one behavior were predicted to be, in percent of the "
        "row."
    ),
}


def write_report(run: Path) -> Path:
    """Draw RUN/figs and write RUN/report.html; returns its path. Raises DataError without
    RUN/run.json."""
    facts = read_facts(run)
    metrics = _optional_json(run / "eval" / "metrics.json", "models")
    examples = _optional_json(run / "eval" / "examples.json", "examples")
    figures = [
        {"uri": data_uri(path), "caption": CAPTIONS[path.name], "name": path.stem}
        for path in plots.draw_all(run)
    ]
    html = (
        _environment(html=True)
        .get_template("report.html.j2")
        .render(
            name=run.resolve().name,
            facts=fact_list(facts),
            run=facts,
            finished=when(facts.get("finished")),
            table=metric_table(metrics["models"], unseen_targets(metrics)) if metrics else None,
            remarks=metrics.get("remarks", []),
            rows=metrics.get("rows"),
            protocol=protocol_list(metrics),
            figures=figures,
            behaviors=behavior_tables(run / "eval" / "per_behavior.csv"),
            examples=examples.get("examples", []),
            config=yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True),
            max_length=pick(facts, "config.model.max_length")
            or metrics.get("protocol", {}).get("max_length"),
        )
    )
    write_text(run / "report.html", html)
    return run / "report.html"


def write_model_card(run: Path, data: Path | None = None) -> Path:
    """Write RUN/model/README.md and return its path.

    `data` is the prepared folder the model was trained on (default: the run's `data.path`); if it
    still holds that data, its manifest adds columns, time rules and split. Raises DataError without
    RUN/run.json.
    """
    facts = read_facts(run)
    metrics = _optional_json(run / "eval" / "metrics.json", "models")
    configured = pick(facts, "config.data.path")
    folder = data or (Path(configured) if configured else None)
    front = {
        "library_name": "behavegpt",
        "tags": [
            "user-behavior",
            "next-behavior-prediction",
            "sequential-recommendation",
            "behavegpt",
        ],
    }
    card = (
        _environment(html=False)
        .get_template("model_card.md.j2")
        .render(
            front=yaml.safe_dump(front, sort_keys=False),
            name=run.resolve().name,
            run=facts,
            facts=fact_list(facts),
            manifest=read_manifest(folder, pick(facts, "data.content_hash")) if folder else None,
            table=metric_table(metrics["models"], unseen_targets(metrics)) if metrics else None,
            remarks=metrics.get("remarks", []),
            rows=metrics.get("rows"),
            protocol=protocol_list(metrics),
            loss=pick(facts, "config.loss.name"),
            max_length=pick(facts, "config.model.max_length")
            or metrics.get("protocol", {}).get("max_length"),
        )
    )
    write_text(run / "model" / "README.md", card)
    return run / "model" / "README.md"


def read_facts(run: Path) -> dict[str, Any]:
    """RUN/run.json, what it lacks empty; raises DataError when the folder holds no run."""
    if not (run / "run.json").is_file():
        raise DataError(
            f"{run}: no run in this folder (no run.json); give the `out` folder of `behavegpt "
            "train`."
        )
    return {
        "command": "",
        "config": {},
        "seed": None,
        "versions": {},
        "data": {},
    } | plots.read_json(run / "run.json")


def read_manifest(folder: Path, content_hash: str | None) -> Manifest | None:
    """The manifest of a prepared folder, None when the folder is not here or holds other data by
    now."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        manifest = Manifest.model_validate(plots.read_json(path))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again.") from None
    return manifest if content_hash in (None, manifest.content_hash) else None


def data_uri(path: Path) -> str:
    """A PNG as text that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _optional_json(path: Path, *needed: str) -> dict[str, Any]:
    return plots.read_json(path, *needed) if path.is_file() else {}


def _environment(html: bool) -> Any:
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
