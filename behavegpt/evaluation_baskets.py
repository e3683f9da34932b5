"""What an evaluation tells of baskets beside the figures of their single behaviors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.metrics.baskets import basket_figures
from behavegpt.metrics.bootstrap import TargetRanks

# figures of a screen's width; metrics.json has all
SHOWN = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "hit@1", "hit@5", "macro_recall@5")


def add_basket_figures(
    result: dict[str, Any], store: EventStore, ranks: Mapping[str, TargetRanks]
) -> None:
    """Put the figures of metrics/baskets.py under `basket` of each model in a result; nothing
    without baskets."""
    if store.baskets is None:
        return
    for name, of_model in ranks.items():
        rows = of_model.rows
        # of the targets alone: a basket without a known behavior is not asked for
        basket = store.baskets.number_of(rows)
        target = store.column("behavior")[rows].astype(np.int64) - FIRST
        result["models"][name]["basket"] = basket_figures(of_model.ranks, basket, target)


def basket_table(
    result: dict[str, Any],
) -> tuple[tuple[str, ...], list[list[str]], str] | None:
    """Columns, rows (best ndcg@10 first) and title of a result's table of baskets; None without
    baskets."""
    figures = {
        name: of_model["basket"]
        for name, of_model in result["models"].items()
        if "basket" in of_model
    }
    if not figures:
        return None
    ordered = sorted(figures.items(), key=lambda item: -item[1]["ndcg@10"])
    rows = [[name, *(f"{shown[figure]:.4f}" for figure in SHOWN)] for name, shown in ordered]
    # the same for all: they were scored on the same rows
    number = next(iter(figures.values()))["baskets"]
    return ("model", *SHOWN), rows, f"{number:,} baskets, what is in them"
