"""The tables of a report: figures of all models, behavior by behavior, and the verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from behavegpt.figures import METRICS, MODEL, title_of
from behavegpt.report.facts import decimal, is_number, optional_json
from behavegpt.result_files import best_baseline, read_per_behavior

BASKET_METRICS = {
    name: name.replace("macro_recall", "macro recall").replace("ndcg", "NDCG")
    for name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "hit@1", "hit@5", "macro_recall@5")
}
PRIMARY = ("rec_w", "rec_m", "ndcg@3", "hr@3", "tail")  # of the first table; all in the second
# a page with more is slow to open; how many are left out is said
LISTED = 1000  # behaviors in the table of behaviors, those with the most events to predict
LEVEL = 0.005  # a relative difference that would be written as 0 %
RARE = 20  # events to predict below which a behavior's recall is mostly chance


def metric_table(
    models: dict[str, dict[str, Any]],
    unseen: int = 0,
    uncertainty: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Header, rows sorted by weighted recall (best first), the best of each column marked, and ours
    against the best.

    A row is {name, ours, cells: [(text, best)], intervals: [text], with_unseen: [text]}, the last
    with the targets that were left out as misses, empty if there were none; an interval is empty
    where `uncertainty`, what metrics.json says of it, has none; `gain` compares ours with the best
    other model, column by column; `primary` marks the columns that a first look needs. Of models of
    baskets, the figures are those of baskets, sorted by NDCG@10.
    """
    titles, first = METRICS, "rec_w"
    if models and all("basket" in figures for figures in models.values()):
        models, unseen, uncertainty = {n: f["basket"] for n, f in models.items()}, 0, None
        titles, first = BASKET_METRICS, "ndcg@10"
    # a figure that no model has takes no column
    best = {key: _best(models, key) for key in titles if _best(models, key) is not None}
    columns = list(best)
    intervals = (uncertainty or {}).get("intervals", {})

    rows = []

    for name in sorted(models, key=lambda name: -(models[name].get(first) or 0)):
        figures, spans = models[name], intervals.get(name, {})
        harder = figures["with_unseen"] if unseen else {}
        rows.append(
            {
                "name": title_of(name),
                "intervals": [_span(spans.get(key)) for key in columns],
                "ours": name == MODEL,
                "cells": [
                    # all that are equally good are marked
                    (decimal(figures.get(key)), figures.get(key) == best[key])
                    for key in columns
                ],
                "with_unseen": [decimal(harder.get(key)) for key in columns] if unseen else [],
            }
        )

    return {
        "header": [titles[key] for key in columns],
        "primary": [key in PRIMARY or titles is BASKET_METRICS for key in columns],
        "rows": rows,
        "gain": _gains(models, columns),
    }


def _best(models: dict[str, dict[str, Any]], key: str) -> Any:
    """The highest figure of any model; None where none has it."""
    return max((m[key] for m in models.values() if is_number(m.get(key))), default=None)


def _span(interval: Sequence[float] | None) -> str:
    """An interval as `0.247–0.255`; empty for none."""
    return "–".join(decimal(edge) for edge in interval) if interval else ""


def unseen_targets(metrics: dict[str, Any]) -> int:
    """Targets that an evaluation left out because training never saw their label; 0 where it did
    not say."""
    return int((metrics.get("unseen") or {}).get("targets", 0))


def _gains(models: dict[str, dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Ours against the best of the others in each column, in percent; empty without ours or without
    others."""
    others = {name: figures for name, figures in models.items() if name != MODEL}
    if MODEL not in models or not others:
        return []

    gains = []
    for key in columns:
        ours = models[MODEL].get(key)
        best = _best(others, key)
        gains.append(
            f"{100 * (ours / best - 1):+.0f} %".replace("-", "−")
            if is_number(ours) and best
            else "–"
        )

    return gains


def behavior_table(run: Path) -> dict[str, Any] | None:
    """Recall, precision and what it is taken for of each behavior with events to predict, beside
    the baseline with the best macro recall; most events first. None without the file.

    A row is {behavior, cells: [(text, number)], taken_for: [(behavior, events)], examples, few}:
    `few` where too few events were predicted for the figures to say much.
    """
    path = run / "eval" / "per_behavior.csv"
    rows = read_per_behavior(path) if path.is_file() else []
    rows = [row for row in rows if row["support"] > 0]
    ours = [row for row in rows if row["model"] == MODEL]
    if not ours:
        return None

    other = best_baseline(rows)
    theirs = {row["behavior"]: row["recall"] for row in rows if row["model"] == other}
    taken_for = optional_json(run / "eval" / "confusion.json").get("taken_for", {})
    shown = optional_json(run / "eval" / "examples.json").get("by_behavior", {})
    # ties by what training saw, so that the order is the same every time
    ours.sort(key=lambda row: (-row["support"], -row["train_count"]))
    header = ["to predict", "recall", "precision", "in training"]
    if other:
        # beside our recall
        header.insert(2, f"recall, {title_of(other)}")

    return {
        "header": header,
        "rows": [_behavior(row, theirs, taken_for, shown) for row in ours[:LISTED]],
        "left_out": max(0, len(ours) - LISTED),
        "other": title_of(other) if other else None,
    }


def _behavior(
    row: dict[str, Any],
    theirs: dict[str, float],
    taken_for: dict[str, Any],
    shown: dict[str, Any],
) -> dict[str, Any]:
    figures: list[tuple[str, Any]] = [
        (f"{row['support']:,.0f}", row["support"]),
        (decimal(row["recall"]), row["recall"]),
        (decimal(row["precision"]), row["precision"]),
        (f"{row['train_count']:,.0f}", row["train_count"]),
    ]
    if theirs:
        # a baseline that was added later may lack behaviors
        recall = theirs.get(row["behavior"])
        figures.insert(2, (decimal(recall), recall))

    return {
        "behavior": row["behavior"],
        # the number is what the page sorts by; -1 puts what has no value last
        "cells": [(text, number if is_number(number) else -1) for text, number in figures],
        "taken_for": taken_for.get(row["behavior"], []),
        "examples": shown.get(row["behavior"], []),
        "few": row["support"] < RARE,
    }


def group_tables(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A table for each kind of group that metrics.json tells of: {title, header, rows}, a row
    {group, cells: [text]}. Next to ours stands the other model with the largest weighted recall of
    those that were evaluated by group."""
    models = metrics.get("models", {})
    kinds = (metrics.get("groups") or {}).values()
    by_group = {name for lines in kinds for line in lines for name in line["rec_w"]}
    others = {
        name: models[name]["rec_w"]
        for name in sorted(by_group & models.keys() - {MODEL})
        if is_number(models[name].get("rec_w"))
    }
    # two models: every further one is two columns more
    shown = [MODEL, *([max(others, key=lambda name: others[name])] if others else [])]
    header = ["to predict", "users"]
    header += [f"{METRICS[key]}, {title_of(name)}" for key in ("rec_w", "ndcg@3") for name in shown]

    def cells(line: dict[str, Any]) -> list[str]:
        figures = [line[key].get(name) for key in ("rec_w", "ndcg@3") for name in shown]
        return [f"{line['rows']:,}", f"{line['users']:,}", *map(decimal, figures)]

    return [
        {
            "title": kind,
            "header": header,
            "rows": [{"group": line["group"], "cells": cells(line)} for line in lines],
        }
        for kind, lines in (metrics.get("groups") or {}).items()
    ]


def verdict(
    models: dict[str, dict[str, Any]],
    rows: int | None,
    uncertainty: dict[str, Any] | None = None,
) -> list[str]:
    """What the figures say, in sentences: how often ours is right, whether it beats the best of
    the others, and whether that may be chance: by the intervals of metrics.json where it has them,
    else by a rule of thumb."""
    ours = models.get(MODEL)
    if ours is None or not is_number(ours.get("rec_w")):
        return []

    on = f" of {rows:,} events" if rows else " of the events"
    sentences = [f"The top prediction is correct for {ours['rec_w']:.1%}{on}."]
    if is_number(ours.get("hr@3")):
        # one sentence: the full stop makes way
        sentences[0] = (
            f"{sentences[0][:-1]}; the true behavior is among the top three for {ours['hr@3']:.1%}."
        )

    others = {name: figures for name, figures in models.items() if name != MODEL}
    if not others:
        return sentences

    for key, what in (("rec_w", "Overall,"), ("tail", "On the rarest third of the behaviors,")):
        known = {name: m[key] for name, m in others.items() if is_number(m.get(key))}
        if known and is_number(ours.get(key)):
            best = max(known, key=lambda name: known[name])
            # each against its own best: another model may lead on rare behaviors
            sentences.append(_compared(what, ours[key], known[best], title_of(best)))

    # models whose rows were drawn together with ours; a row that was added later has none
    differences = {
        name: found
        for name, found in (uncertainty or {}).get("differences", {}).items()
        if name in others
    }
    best = max(differences or others, key=lambda name: others[name]["rec_w"])
    if differences:
        return [*sentences, _how_sure(differences[best]["rec_w"], title_of(best))]

    # one standard error of a share over so many events, as if they were independent
    spread = (ours["rec_w"] * (1 - ours["rec_w"]) / rows) ** 0.5 if rows else 0
    if rows and abs(ours["rec_w"] - others[best]["rec_w"]) < 2 * spread:
        sentences.append(
            f"With {rows:,} events, an overall difference of less than {200 * spread:.1f} "
            "percentage points may be due to chance."
        )

    return sentences


def _how_sure(difference: dict[str, float], name: str) -> str:
    """One sentence on the interval of a difference in weighted recall."""
    low, high = 100 * difference["low"], 100 * difference["high"]
    span = f"{low:+.1f} to {high:+.1f} percentage points".replace("-", "−")
    said = f"The overall difference from {name} has a 95 % interval over users of {span}"
    return f"{said}, so it may be due to chance." if low <= 0 <= high else f"{said}."


def _compared(what: str, ours: float, theirs: float, name: str) -> str:
    """One sentence: ours against the best of the others."""
    if ours == theirs or (theirs > 0 and abs(ours / theirs - 1) < LEVEL):
        return (
            f"{what} it is level with the best of the others ({ours:.1%} against "
            f"{theirs:.1%}, {name})."
        )

    where = "ahead of" if ours > theirs else "behind"
    # of nothing no share: a baseline may be right never
    share = f" by {abs(ours / theirs - 1):.0%}" if theirs > 0 and ours > 0 else ""
    return (
        f"{what} it is {where} the best of the others{share} ({ours:.1%} against "
        f"{theirs:.1%}, {name})."
    )
