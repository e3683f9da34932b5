"""Rows -> integer codes on disk; who is kept, which split an event belongs to, vocabularies of the training split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from behavegpt.data.database import one_row
from behavegpt.data.plan import MALFORMED, REASONS, Plan
from behavegpt.data.spill import Spill
from behavegpt.data.split import SplitRule, parse_split, split_by_time, split_by_user, time_boundaries
from behavegpt.data.times import MICROS
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """All accepted events as codes on disk, and who is kept."""

    plan: Plan
    spill: Spill
    rows: int
    rejected: np.ndarray  # (len(REASONS),) int64
    counts: np.ndarray  # (user codes,) int64 accepted events
    kept: np.ndarray  # (user codes,) bool
    first: int  # epoch seconds of the first and last kept event
    last: int

    def read(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """Columns of the kept events by bucket, in no order inside it; time as read, in microseconds."""
        for bucket in range(self.spill.buckets):
            columns = self.spill.read(bucket, tuple(dict.fromkeys(("user", *names))))
            keep = self.kept[columns["user"]]
            yield columns if keep.all() else {name: column[keep] for name, column in columns.items()}

    def seconds(self) -> Iterator[np.ndarray]:
        """Times of the kept events (N,) int64 in seconds, by bucket."""
        for columns in self.read("time"):
            yield columns["time"] // MICROS


@dataclass(frozen=True)
class Splitter:
    """Assigns events to splits."""

    rule: SplitRule
    boundaries: tuple[int, int]
    of_user: np.ndarray | None  # (user codes,) uint8 for a user rule

    def __call__(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Split (N,) uint8 of events with `user` and `time`."""
        if self.of_user is not None:
            return self.of_user[columns["user"]]
        return split_by_time(columns["time"] // MICROS, self.boundaries)


def encode(plan: Plan, work: Path, batch_rows: int, min_events: int) -> Encoded:
    """Stream all rows into the spill, then count events per user."""
    table = plan.dictionary("user")
    total, users = one_row(plan.con, f"SELECT coalesce(sum(events), 0)::BIGINT, count(*) FROM {table}")
    buckets = min(65_535, max(1, -(-total // batch_rows)))
    bucket_of_user = np.zeros(users + 1, np.uint16)
    if buckets > 1:
        share = f"((sum(events) OVER (ORDER BY code) - events) * {buckets} // {total})::USMALLINT AS bucket"
        bucket_of_user[1:] = plan.con.sql(f"SELECT {share} FROM {table} ORDER BY code").fetchnumpy()["bucket"]
    spill = Spill(work / "spilled", bucket_of_user)
    rejected, accepted = np.zeros(len(REASONS), np.int64), 0
    for rows in plan.batches(batch_rows):
        rejected += rows.rejected
        accepted += len(rows.columns["user"])
        spill.append(rows.columns)
    rejected[MALFORMED] = plan.malformed()
    rows_read = accepted + int(rejected.sum())
    if not rows_read:
        raise DataError(f"{plan.source.name}: no rows; name logs that hold events.")
    counts = _events_per_user(spill, users + 1)
    kept = counts >= max(1, min_events)
    if accepted and not kept.any():
        raise DataError(
            f"{plan.source.name}: no user has {min_events} events (the most is {counts.max()}); lower --min-events."
        )
    encoded = Encoded(plan, spill, rows_read, rejected, counts, kept, 0, 0)
    spans = [(int(seconds.min()), int(seconds.max())) for seconds in encoded.seconds() if len(seconds)]
    return replace(encoded, first=min(s[0] for s in spans), last=max(s[1] for s in spans)) if spans else encoded


def _events_per_user(spill: Spill, users: int) -> np.ndarray:
    """Events (users,) int64 by user code; a bucket holds a range of codes."""
    counts = np.zeros(users, np.int64)
    for bucket in range(spill.buckets):
        codes = spill.read(bucket, ("user",))["user"]
        if len(codes):
            found = np.bincount(codes - codes.min())
            counts[codes.min() : codes.min() + len(found)] += found
    return counts


def make_splitter(encoded: Encoded, text: str) -> Splitter:
    """The split of the kept events by the rule `text`; dates are of the schema's zone."""
    rule = parse_split(text, encoded.plan.schema.tz)
    events = int(encoded.counts[encoded.kept].sum())
    boundaries = time_boundaries(rule, encoded.seconds, encoded.first, encoded.last, events)
    of_user = None
    if rule.kind == "user":
        query = f"SELECT md5_number_upper(label) AS hash FROM {encoded.plan.dictionary('user')} ORDER BY code"
        hashes = encoded.plan.con.sql(query).fetchnumpy()["hash"].astype(np.uint64)
        of_user = np.concatenate([np.zeros(1, np.uint8), split_by_user(rule, hashes)])
    return Splitter(rule, boundaries, of_user)


def fit_vocabularies(
    encoded: Encoded, splitter: Splitter, min_count: int, max_vocabulary: int | None
) -> dict[str, Vocabulary]:
    """Vocabularies of all label fields from the training split alone. Raises DataError when there is nothing in it."""
    plan = encoded.plan
    labels = {field: plan.labels(field) for field in plan.fields}
    counts = {field: np.zeros(len(labels[field]), np.int64) for field in plan.fields}
    for columns in encoded.read("time", *plan.fields):
        train = splitter(columns) == 0
        for field in plan.fields:
            counts[field] += np.bincount(columns[field][train], minlength=len(counts[field]))
    if not counts["event"].any():
        raise DataError(f"--split {splitter.rule.text!r}: no event falls into the training split; change the rule.")
    result = {f: _fit(labels[f], counts[f], min_count, max_vocabulary) for f in plan.fields}
    for field in {"event", "behavior"}.intersection(result):
        if not result[field].classes:
            raise DataError(
                f"{plan.source.name}: column {plan.columns[field]!r} ({field}) has no label with {min_count} training "
                "events; lower --min-count or name another column."
            )
    return result


def _fit(labels: pa.StringArray, counts: np.ndarray, min_count: int, limit: int | None) -> Vocabulary:
    """The vocabulary of labels (codes,) and their training counts (codes,); code 0 is null."""
    known = counts >= max(1, min_count)
    known[0] = False
    vocabulary = Vocabulary.from_counts(labels.filter(pa.array(known)), counts[known])
    return Vocabulary(vocabulary.values[:limit], vocabulary.counts[:limit])
