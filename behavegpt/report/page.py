"""RUN/report.html: one file that needs nothing else, light and dark, with its own small script."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import yaml

from behavegpt import plots
from behavegpt.io import write_text
from behavegpt.pages import page
from behavegpt.report.facts import (
    data_facts,
    fact_list,
    given_of,
    optional_json,
    protocol_list,
    read_facts,
    when,
    window_of,
)
from behavegpt.report.names import Names
from behavegpt.report.tables import (
    behavior_table,
    group_tables,
    metric_table,
    unseen_targets,
    verdict,
)

# figure -> what a reader who was not there must know to read it
CAPTIONS = {
    "loss.png": (
        "Cross-entropy on training and validation data, and validation metrics, by optimizer step."
    ),
    "tradeoff.png": (
        "Each point is a model: recall over all events, and averaged over behaviors. No other "
        "model is better in both than those on the dashed frontier. Much weaker models are left "
        "out."
    ),
    "recall_by_decile.png": (
        "Macro recall of ten groups of behaviors, from the most to the least frequent in training."
    ),
    "per_behavior.png": (
        "Each point is a behavior; the lines are means over bins of the training count."
    ),
    "calibration.png": (
        "Predictions in ten groups by probability: on the dashed line, 70 of 100 "
        "predictions with a probability of 70 % are correct."
    ),
    "confusion.png": (
        "Each row shows how the events of one behavior were predicted, in percent of the row."
    ),
}


def write_report(run: Path, names: Mapping[str, str] | None = None) -> Path:
    """Draw RUN/figs and write RUN/report.html; returns its path. `names` (label -> readable name)
    replace labels of events and behaviors. Raises DataError without RUN/run.json."""
    record, named = read_facts(run), Names(names or {})

    metrics = optional_json(run / "eval" / "metrics.json", "models")
    examples = optional_json(run / "eval" / "examples.json", "examples")

    # in the page itself: a report is sent by mail, and its folder is not
    figures = [
        {"uri": data_uri(path), "caption": CAPTIONS[path.name], "name": path.stem}
        for path in plots.draw_all(run, named)
    ]
    # `None` and empty lists: a run that was not evaluated has a report of its training
    html = page(
        "report",
        name=run.resolve().name,
        facts=fact_list(record),
        data=data_facts(record),
        run=record,
        finished=when(record.get("finished")),
        verdict=verdict(metrics["models"], metrics.get("rows"), metrics.get("uncertainty"))
        if metrics
        else [],
        table=metric_table(metrics["models"], unseen_targets(metrics), metrics.get("uncertainty"))
        if metrics
        else None,
        draws=(metrics.get("uncertainty") or {}).get("draws"),
        remarks=metrics.get("remarks", []),
        rows=metrics.get("rows"),
        calibration=metrics.get("calibration"),
        protocol=protocol_list(metrics),
        given=given_of(run),
        figures=figures,
        behaviors=named.behaviors(behavior_table(run)),
        groups=group_tables(metrics or {}),
        examples=[named.example(example) for example in examples.get("examples", [])],
        # whole: the run can be done again from the page alone
        config=yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True),
        max_length=window_of(record, metrics or {}),
    )

    write_text(run / "report.html", html)
    return run / "report.html"


def data_uri(path: Path) -> str:
    """A PNG as text that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
