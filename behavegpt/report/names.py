"""Readable names in place of labels: a report shows product names instead of stock codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Names:
    """Label -> what the report shows for it: its name, or the label itself where it has none."""

    def __init__(self, names: Mapping[str, str]) -> None:
        # labels that share a name, or have that of another label, are told apart by their labels
        shared = Counter(names.values())
        self.shown = {
            label: name
            if name == label or (shared[name] == 1 and name not in names)
            else f"{name} ({label})"
            for label, name in names.items()
        }

    def __call__(self, label: str) -> str:
        return self.shown.get(label, label)

    def example(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """An example of examples.json with names for its events and behaviors."""
        return {
            **example,
            "history": [
                [time, self(event), self(behavior)] for time, event, behavior in example["history"]
            ],
            "predicted": [[self(label), share] for label, share in example["predicted"]],
            "actual": self(example["actual"]),
        }

    def behaviors(self, table: dict[str, Any] | None) -> dict[str, Any] | None:
        """The table of behaviors with names, None for none."""
        if table is None:
            return None
        rows = [
            {
                **row,
                "behavior": self(row["behavior"]),
                "taken_for": [(self(label), number) for label, number in row["taken_for"]],
                "examples": [self.example(example) for example in row["examples"]],
            }
            for row in table["rows"]
        ]
        return {**table, "rows": rows}
