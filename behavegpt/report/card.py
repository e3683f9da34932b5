"""RUN/model/README.md: the model card, as the Hugging Face Hub reads it."""

from __future__ import annotations

from pathlib import Path

import yaml

from behavegpt.io import write_text
from behavegpt.pages import environment
from behavegpt.report.facts import (
    boundaries,
    fact_list,
    given_of,
    kind_of,
    optional_json,
    pick,
    protocol_list,
    read_facts,
    read_manifest,
    window_of,
)
from behavegpt.report.tables import metric_table, unseen_targets


def write_model_card(run: Path, data: Path | None = None) -> Path:
    """Write RUN/model/README.md and return its path.

    `data` is the prepared folder the model was trained on (default: the run's `data.path`); if it
    still holds that data, its manifest adds columns, time rules and split. Raises DataError without
    RUN/run.json.
    """
    record = read_facts(run)

    metrics = optional_json(run / "eval" / "metrics.json", "models")
    configured = pick(record, "config.data.path")
    # the data may have moved since: the card then leaves out what it told
    folder = data or (Path(configured) if configured else None)
    # what the Hub's search looks for
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
        environment(html=False)
        .get_template("model_card.md.j2")
        .render(
            front=yaml.safe_dump(front, sort_keys=False),
            name=run.resolve().name,
            run=record,
            facts=fact_list(record),
            kind=kind_of(record),
            manifest=read_manifest(folder, pick(record, "data.content_hash")) if folder else None,
            boundaries=boundaries,
            table=metric_table(metrics["models"], unseen_targets(metrics)) if metrics else None,
            remarks=metrics.get("remarks", []),
            rows=metrics.get("rows"),
            protocol=protocol_list(metrics),
            given=given_of(run),
            loss=pick(record, "config.loss.name"),
            max_length=window_of(record, metrics or {}),
        )
    )

    write_text(run / "model" / "README.md", card)
    return run / "model" / "README.md"
