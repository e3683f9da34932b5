"""The data card: what is in a prepared folder, for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from behavegpt.data.store import SPLITS, Manifest
from behavegpt.data.ties import describe_ties
from behavegpt.data.times import DST_RULE
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.ingest.baskets import describe_baskets
from behavegpt.markdown import plain

MANY_UNKNOWN = 0.1  # share of test events beyond which the card says what helps


@dataclass(frozen=True)
class CardFacts:
    """What `write_card` tells, beside the manifest."""

    source: str
    manifest: Manifest
    vocabularies: dict[str, Vocabulary]
    unknown: dict[str, np.ndarray]  # field -> events with an unknown label per split (3,)
    counts: np.ndarray  # (U,) accepted events of every user in the logs
    kept: np.ndarray  # (U,) bool: users in the folder
    last: int  # epoch seconds of the last event


@dataclass(frozen=True)
class Imbalance:
    """How uneven training counts are."""

    top5: float  # share of the five most frequent
    gini: float  # 0 even, towards 1 uneven
    effective: float  # exp of the entropy: as many even classes would be as hard
    rarest: int  # events of the rarest class


def imbalance(counts: np.ndarray) -> Imbalance:
    """Imbalance of class counts (K,), K >= 1, all positive."""
    # descending, for the five most frequent; Gini's sum takes it the other way round
    share = np.sort(counts)[::-1] / counts.sum()
    k = len(share)  # K
    # area between the Lorenz curve and the diagonal, twice
    gini = float((k + 1 - 2 * np.cumsum(share[::-1]).sum()) / k)
    effective = float(np.exp(-(share * np.log(share)).sum()))

    return Imbalance(float(share[:5].sum()), gini, effective, int(counts.min()))


def write_card(
    path: Path, card: CardFacts, *, min_events: int, min_count: int, remarks: Sequence[str] = ()
) -> None:
    """Write the data card as Markdown; `remarks` are what people should know first."""
    manifest = card.manifest
    sections = [
        f"# Data card\n\nPrepared from {plain(card.source)}. Content hash "
        f"`{manifest.content_hash}`.",
        *(
            ["## Remarks\n\n" + "\n".join(f"- {plain(remark)}" for remark in remarks)]
            if remarks
            else []
        ),
        "## Columns and time\n\n" + _schema(manifest),
        "## Counts\n\n" + _counts(card, min_events),
        "## Fields\n\n" + _fields(card, min_count),
        "## Imbalance of the behavior (training)\n\n" + _imbalance(card),
        "## Split\n\n" + _split(card),
        "## Rejected rows\n\n"
        + markdown_table(("reason", "rows"), list(manifest.rejected.items()) or [("none", 0)]),
    ]

    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _schema(manifest: Manifest) -> str:
    # also those left at their defaults: nobody has to look up what a default was
    settings = manifest.event_schema.model_dump(mode="json")
    return (
        markdown_table(("setting", "value"), [(name, value) for name, value in settings.items()])
        + f"\n\n{DST_RULE}"
    )


def _counts(card: CardFacts, min_events: int) -> str:
    manifest = card.manifest
    # users with events, but fewer than asked for
    left_out = card.counts[(card.counts > 0) & ~card.kept]
    # method="lower": numbers of events that users have, and none between two of them
    quantiles = np.quantile(card.counts[card.kept], [0, 0.25, 0.5, 0.75, 0.95, 1], method="lower")

    spread = ", ".join(
        f"{q} {v:,}"
        for q, v in zip(("min", "25%", "50%", "75%", "95%", "max"), quantiles, strict=True)
    )

    lines = [
        f"- {manifest.events:,} events of {manifest.users:,} users",
        f"- from {_moment(manifest.time_origin)} to {_moment(card.last)}",
        "- events per split: "
        + ", ".join(
            f"{name} {size:,}"
            for name, size in zip(SPLITS, _integers(manifest, "events"), strict=True)
        ),
        f"- events per user: {spread}",
    ]

    ties = describe_ties(manifest)
    if ties:
        lines.append(f"- {ties}")
    if manifest.baskets is not None:
        lines.append(f"- {describe_baskets(manifest.baskets, manifest.events, manifest.users)}")
    if len(left_out):
        lines.append(
            f"- left out: {len(left_out):,} users below {min_events} events "
            f"({int(left_out.sum()):,} events)"
        )

    return "\n".join(lines)


def _fields(card: CardFacts, min_count: int) -> str:
    sizes = [max(1, size) for size in _integers(card.manifest, "events")]
    rows = []
    for field, vocabulary in card.vocabularies.items():
        shares = [f"{n / size:.2%}" for n, size in zip(card.unknown[field], sizes, strict=True)]
        rows.append((field, f"{vocabulary.classes:,}", *shares))

    head = ("field", "labels", *(f"unknown in {name}" for name in SPLITS))
    return markdown_table(head, rows) + (
        f"\n\nLabels with fewer than {min_count} training events, labels first seen after the "
        "training split and missing labels are unknown." + _advice(card, sizes)
    )


def _advice(card: CardFacts, sizes: list[int]) -> str:
    """What to do about unknown events, where behaviors are a column of their own."""
    share = card.unknown["event"][-1] / sizes[-1]
    # where the event is what is predicted, an unknown one tells nothing either way
    if "behavior" not in card.vocabularies or share < MANY_UNKNOWN:
        return ""
    return (
        f"\n\n{share:.0%} of the test events are unknown, which says nothing of their behaviors: "
        "try `model.inputs=with_behavior`."
    )


def _imbalance(card: CardFacts) -> str:
    behaviors = card.vocabularies.get("behavior") or card.vocabularies["event"]
    measured = imbalance(behaviors.counts)

    most = zip(behaviors.values[:5].to_pylist(), behaviors.counts[:5], strict=True)
    listed = ", ".join(f"{plain(label)} {int(count):,}" for label, count in most)
    lines = [
        f"- {behaviors.classes:,} classes, {measured.effective:,.1f} effective (exp of the "
        "entropy)",
        f"- five most frequent: {measured.top5:.1%} of the events ({listed})",
        f"- Gini coefficient {measured.gini:.3f}; the rarest class has {measured.rarest:,} events",
    ]
    return "\n".join(lines)


def _split(card: CardFacts) -> str:
    manifest = card.manifest
    lines = [f"Rule `{manifest.split['rule']}`."]
    names = ("Validation", "Test")
    lines += [
        f"{n} from {_moment(b)} on."
        for n, b in zip(names, _integers(manifest, "boundaries"), strict=False)
    ]
    lines.append("Vocabularies and counts come from the training split alone.")

    unseen = card.unknown.get("behavior", card.unknown["event"])
    parts = zip(names, _integers(manifest, "events")[1:], unseen[1:].tolist(), strict=True)
    return "\n\n".join([" ".join(lines), *(_unseen(*part) for part in parts if part[2])])


def _unseen(split: str, events: int, unseen: int) -> str:
    return (
        f"{split}: the behavior of {unseen:,} of {events:,} events ({unseen / events:.1%}) is "
        "unknown from training. Evaluation leaves them out of its figures, and counts them as "
        "misses in those named `with unseen`."
    )


def _integers(manifest: Manifest, name: str) -> list[int]:
    return [int(value) for value in manifest.split[name]]


def markdown_table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; cells are any values, on one line each."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(plain, line)) + " |" for line in lines)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
