"""Rows -> integer codes; who is kept, which split an event belongs to, vocabularies of the training
split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from behavegpt.data.bins import Bins, numbers, vocabulary_type
from behavegpt.data.times import MICROS
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.ingest.baskets import BasketBuckets
from behavegpt.ingest.buckets import PIECE, SpilledBuckets, smallest_dtype
from behavegpt.ingest.plan import Plan
from behavegpt.ingest.reasons import MALFORMED, REASONS
from behavegpt.ingest.split import (
    SplitRule,
    parse_split,
    split_by_time,
    split_by_user,
    time_boundaries,
)
from behavegpt.ingest.user_table import UserTable


class Buckets(Protocol):
    """Accepted events by bucket of users, in the order of user codes: spilled here, or parts made
    elsewhere."""

    @property
    def buckets(self) -> int: ...

    @property
    def sorted(self) -> bool:
        """Whether `read` gives each user's events in their order."""

    def read(self, bucket: int, names: tuple[str, ...]) -> dict[str, np.ndarray]: ...

    def scan(self, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]: ...


@dataclass(frozen=True)
class Encoded:
    """All accepted events as codes, and who is kept."""

    plan: Plan
    spill: Buckets
    rows: int
    rejected: np.ndarray  # (len(REASONS),) int64
    counts: np.ndarray  # (user codes,) int64 accepted events
    kept: np.ndarray  # (user codes,) bool
    first: int  # epoch seconds of the first and last kept event
    last: int
    rejects: str  # SQL of the rejected rows
    users: UserTable | None = None  # what is known of the users

    def features(self) -> dict[str, pa.StringArray]:
        """The features of the users as labels by user code (user codes,), null where unknown."""
        return {} if self.users is None else self.users.of(self.plan.labels("user"))

    def read(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """`user` and other columns of the kept events by bucket, in no order inside it; time in
        microseconds."""
        return self._kept(
            self.spill.read(bucket, ("user", *names)) for bucket in range(self.spill.buckets)
        )

    def scan(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """The same in pieces that hold any users."""
        return self._kept(self.spill.scan(("user", *names)))

    def times(self) -> Iterator[np.ndarray]:
        """Times of the kept events (N,) int64 in microseconds."""
        return (columns["time"] for columns in self.scan("time"))

    def _kept(self, pieces: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        # the common case: no copies of the columns
        everyone = not self.counts[~self.kept].any()
        for columns in pieces:
            keep = slice(None) if everyone else self.kept[columns["user"]]
            yield {name: column[keep] for name, column in columns.items()}


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
        start, stop = self.boundaries
        return split_by_time(columns["time"], (start * MICROS, stop * MICROS))


def encode(plan: Plan, work: Path, batch_rows: int, held: int, min_events: int) -> Encoded:
    """Stream all rows into the spill: `batch_rows` at a time and `held` bytes in memory at the
    most."""
    counts = plan.events("user")  # (user codes,)
    # rejected rows are counted as well: they make a bucket smaller, never larger
    before, total = np.cumsum(counts) - counts, int(counts.sum())

    # Buckets of PIECE rows are the fastest to sort; more of them than needed only while a byte
    # holds their numbers.
    buckets = min(65_535, max(1, -(-total // batch_rows), min(256, -(-total // PIECE))))
    # (user codes,)
    # by events and not by users: a bucket must fit the memory, whoever is in it
    bucket_of_user = (before * buckets // max(1, total)).astype(smallest_dtype(buckets))
    spill = SpilledBuckets(work / "spilled", bucket_of_user, held)

    rejected = np.zeros(len(REASONS), np.int64)

    for rows in plan.batches(min(batch_rows, PIECE)):
        rejected += rows.rejected
        # they were counted in the dictionaries, which hold all rows
        np.subtract.at(counts, rows.rejected_users, 1)
        spill.append(rows.columns)

    # null is no user
    counts[0] = 0
    rejected[MALFORMED] = plan.malformed()
    return keep_users(plan, spill, rejected, counts, min_events, plan.rejects())


def keep_users(
    plan: Plan,
    spill: Buckets,
    rejected: np.ndarray,
    counts: np.ndarray,
    min_events: int,
    rejects: str,
) -> Encoded:
    """Decide whose events are kept; `counts` (user codes,) are accepted events. Raises DataError if
    nobody is left."""
    accepted = int(counts.sum())
    rows_read = accepted + int(rejected.sum())
    if not rows_read:
        raise DataError(f"{plan.source.name}: no rows; name logs that contain events.")

    # also with --min-events 0: a code whose rows were all rejected is nobody
    kept = counts >= max(1, min_events)  # (user codes,)
    if accepted and not kept.any():
        raise DataError(
            f"{plan.source.name}: no user has {min_events} events (the most is {counts.max()}); "
            "lower --min-events."
        )

    if plan.schema.has_baskets:
        spill = BasketBuckets(spill)
    encoded = Encoded(plan, spill, rows_read, rejected, counts, kept, 0, 0, rejects)
    spans = [(int(times.min()), int(times.max())) for times in encoded.times() if len(times)]
    # everybody was rejected: the caller tells why, from the rejects
    if not spans:
        return encoded

    first, last = min(low for low, _ in spans), max(high for _, high in spans)
    return replace(encoded, first=first // MICROS, last=last // MICROS)


def make_splitter(encoded: Encoded, text: str) -> Splitter:
    """The split of the kept events by the rule `text`; dates are of the schema's zone."""
    rule = parse_split(text, encoded.plan.schema.tz)
    events = int(encoded.counts[encoded.kept].sum())

    # kept events alone decide: users who are left out must not move the splits
    boundaries = time_boundaries(
        rule, encoded.times, encoded.first, encoded.last, events, per_second=MICROS
    )

    of_user = None
    if rule.kind == "user":
        # the upper half of the MD5: the lower one orders simultaneous events
        query = (
            f"SELECT md5_number_upper(label) AS hash FROM {encoded.plan.dictionary('user')} ORDER "
            "BY code"
        )
        hashes = encoded.plan.con.sql(query).fetchnumpy()["hash"].astype(np.uint64)
        of_user = np.concatenate([np.zeros(1, np.uint8), split_by_user(rule, hashes)])

    return Splitter(rule, boundaries, of_user)


def fit_vocabularies(
    encoded: Encoded, splitter: Splitter, min_count: int, max_vocabulary: int | None
) -> dict[str, Vocabulary]:
    """Vocabularies of all label fields from the training split alone. Raises DataError when there
    is nothing in it."""
    plan = encoded.plan
    labels = {field: plan.labels(field) for field in plan.fields}
    counts = {field: np.zeros(len(labels[field]), np.int64) for field in plan.fields}
    # a user's features are those of each event
    if encoded.users is not None:
        # a plan has no vocabulary of users, but their features are weighed by it
        counts["user"] = np.zeros(len(encoded.counts), np.int64)

    # one pass over the events for all fields
    for columns in encoded.scan("time", *plan.fields):
        train = splitter(columns) == 0  # (N,) bool
        for field in counts:
            # Later events count for code 0, which is no label: three times as fast as picking the
            # training events.
            np.add.at(counts[field], columns[field] * train, 1)

    if not counts["event"][1:].any():
        raise DataError(
            f"--split {splitter.rule.text!r}: no event falls into the training split; change the "
            "rule."
        )

    # a feature weighs as often as its user acts, as it is read at each event
    for field, of_users in encoded.features().items():
        labels[field], counts[field] = _added_up(of_users, counts["user"])

    result = {
        field: Bins.fit(labels[field], counts[field])
        if vocabulary_type(plan.schema, field) is Bins
        else _fit(labels[field], counts[field], min_count, max_vocabulary)
        for field in labels
    }

    _check_labels(plan, result, labels, min_count)
    return result


def _check_labels(
    plan: Plan,
    result: dict[str, Vocabulary],
    labels: dict[str, pa.StringArray],
    min_count: int,
) -> None:
    """Raise DataError for a vocabulary that holds nothing, but should."""
    # the others may be empty: all their labels are unknown then
    for field in {"event", "behavior"}.intersection(result):
        if not result[field].classes:
            raise DataError(
                f"{plan.source.name}: column {plan.columns[field]!r} ({field}) has no label with "
                f"{min_count} training events; lower --min-count or name another column."
            )

    # column -> the option that takes it as labels
    others = dict.fromkeys(plan.schema.numeric, "--extra")
    others |= dict.fromkeys(plan.schema.user_numeric, "--user-features")
    for field, option in others.items():
        if field not in result or result[field].classes or len(labels[field]) == 1:
            continue
        # a column that was added to the log later
        if not np.isnan(numbers(labels[field])).all():
            raise DataError(
                f"{plan.source.name}: column {field!r} (numeric) holds numbers only after the "
                "training split, so nothing can be learned of it; leave it out, or move the split."
            )
        raise DataError(
            f"{plan.source.name}: column {field!r} (numeric) holds no number in the training "
            f"split, but such values as {labels[field][1].as_py()!r}; write numbers with a "
            f"decimal point and no unit, or name the column with {option}."
        )


def _added_up(labels: pa.StringArray, counts: np.ndarray) -> tuple[pa.StringArray, np.ndarray]:
    """Labels (L + 1,), the first null as of a plan's codes, and events of each, of the label
    (user codes,) and the events (user codes,) of every user."""
    # -1 + 1: code 0 is null, as everywhere
    known = labels.dictionary_encode()
    codes = known.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1  # (user codes,)
    distinct = pa.concat_arrays([pa.nulls(1, pa.string()), known.dictionary])
    return distinct, np.bincount(codes, counts, len(distinct)).astype(np.int64)


def _fit(
    labels: pa.StringArray, counts: np.ndarray, min_count: int, limit: int | None
) -> Vocabulary:
    """The vocabulary of labels (codes,) and their training counts (codes,); code 0 is null."""
    known = counts >= max(1, min_count)  # (codes,)
    # null is no label
    known[0] = False
    vocabulary = Vocabulary.from_counts(labels.filter(pa.array(known)), counts[known])
    return Vocabulary(vocabulary.values[:limit], vocabulary.counts[:limit])
