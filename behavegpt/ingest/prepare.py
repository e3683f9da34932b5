"""Logs -> a prepared folder (`data/store.py`), larger than memory, the same bytes for any order,
files and format.

rows -> integer codes (plan.py) -> columns by bucket of users, in memory or on disk (buckets.py) ->
who is kept, where the splits lie -> vocabularies of the training split -> each bucket sorted and
appended to the .npy columns -> os.replace.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import duckdb
import numpy as np

from behavegpt.checksums import seal
from behavegpt.data.database import connect
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import SPLITS, EventStore, Manifest, open_store
from behavegpt.data.ties import MANY, count_ties, describe_ties, tell_ties
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.ingest.baskets import (
    BASKET_KEYS,
    basket_numbers,
    count_baskets,
    describe_baskets,
)
from behavegpt.ingest.card import write_card
from behavegpt.ingest.encode import Encoded, Splitter, encode, fit_vocabularies, make_splitter
from behavegpt.ingest.events import read_events
from behavegpt.ingest.guess import ColumnGuess, guess_columns, guess_schema
from behavegpt.ingest.plan import plan_events
from behavegpt.ingest.preparation import Preparation, PrepareArguments, check_free
from behavegpt.ingest.reasons import named_rejects
from behavegpt.ingest.rejects import write_rejects
from behavegpt.ingest.remarks import (
    about_users,
    early_times,
    not_numbers,
    one_label,
    without_clock,
    without_group,
)
from behavegpt.ingest.sources import Logs, find_logs
from behavegpt.ingest.user_table import read_user_table, with_features
from behavegpt.ingest.write import write_folder
from behavegpt.io import scratch, temporary_folder
from behavegpt.outputs import check_output
from behavegpt.paths import local_path, target

__all__ = ["ColumnGuess", "Preview", "guess_schema", "prepare", "preview", "read_events"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Preview:
    """What `prepare` would do."""

    guesses: list[ColumnGuess]
    schema: EventSchema  # as it would be stored: unit and form of the times resolved
    rows: int
    rejected: dict[str, int]  # reason -> rows
    users: int
    split: dict[str, int]  # split -> events
    boundaries: tuple[int, int]  # epoch seconds
    labels: dict[str, int]  # field -> labels of its vocabulary
    remarks: tuple[str, ...]  # what people should know first


class _Read(NamedTuple):
    """Logs that `prepare` would accept."""

    encoded: Encoded
    splitter: Splitter
    vocabularies: dict[str, Vocabulary]
    remarks: tuple[str, ...]


def prepare(
    logs: str | Path | Sequence[str | Path] | Logs,
    out: str | Path,
    schema: EventSchema | None = None,
    *,
    progress: Tell | None = None,
    **options: Unpack[PrepareArguments],
) -> EventStore:
    """Write the prepared folder `out` and open it; without a schema, columns are guessed. Raises
    DataError.

    The options are those of Preparation: `split`, `min_events`, `min_count`, `max_vocabulary`,
    `max_reject_share`, `time_range`, `memory`, `threads`, `overwrite`, `engine`, `spark_master`,
    `encoding` and `users`, a table of user features. Both engines write the same bytes; with Spark,
    all workers must see the logs and `out` under the same path (docs/clusters.md).
    """
    tell, chosen = progress or _say_nothing, Preparation(**options)
    chosen.check()

    out = target(local_path(out))
    # half of the budget is DuckDB's, the rest numpy's
    with (
        _workspace(out, chosen) as (folder, work),
        connect(work, chosen.budget // 2, chosen.threads) as con,
    ):
        # inside the workspace: a folder that cannot be written is refused before the log is looked
        # for
        logs = find_logs(logs, chosen.encoding)
        tell(f"reading {logs.name} ({logs.format})")
        schema = schema or guess_schema(logs, {})[0]

        encoded = _encode(con, logs, schema, work, chosen, tell)
        tell(f"{encoded.rows:,} rows, {int(encoded.rejected.sum()):,} rejected")
        # before the vocabularies: too many bad rows end the work here
        write_rejects(encoded, folder, chosen.max_reject_share, out)

        read = _fit(encoded, logs, chosen)
        sizes = (f"{field} {v.classes:,}" for field, v in read.vocabularies.items())
        tell("vocabularies: " + ", ".join(sizes))
        for remark in read.remarks:
            tell(f"note: {remark}")

        card = write_folder(read.encoded, read.splitter, read.vocabularies, folder)
        counted = {"min_events": chosen.min_events, "min_count": chosen.min_count}
        write_card(folder / "data_card.md", card, **counted, remarks=read.remarks)
        _tell_result(card.manifest, tell)

    # only now: the workspace has become `out` with the end of the block
    return open_store(out)


def preview(
    logs: str | Path | Sequence[str | Path] | Logs,
    schema: EventSchema | None = None,
    *,
    out: str | Path | None = None,
    **options: Unpack[PrepareArguments],
) -> Preview:
    """Read the logs as `prepare` would and tell what would come of it; writes nothing that stays.

    Raises the DataError that `prepare` with the same arguments would raise.
    """
    chosen = Preparation(**options)
    chosen.check()

    if out is not None:
        check_free(Path(out), chosen.overwrite)

    with temporary_folder() as work, connect(work, chosen.budget // 2, chosen.threads) as con:
        logs = find_logs(logs, chosen.encoding)
        schema = schema or guess_schema(logs, {})[0]
        encoded = _encode(con, logs, schema, work, chosen, _say_nothing)
        # raises as `prepare` would, and leaves no file beside any output
        write_rejects(encoded, work, chosen.max_reject_share, None)

        encoded, splitter, vocabularies, remarks = _fit(encoded, logs, chosen)

        schema = encoded.plan.schema

        split = sum(np.bincount(splitter(columns), minlength=3) for columns in encoded.scan("time"))
        kept = int(encoded.counts[encoded.kept].sum())
        ties = tell_ties(_count_ties(encoded), kept, schema, MANY)

        return Preview(
            guess_columns(logs, schema),
            schema,
            encoded.rows,
            named_rejects(encoded.rejected),
            int(encoded.kept.sum()),
            dict(zip(SPLITS, map(int, np.asarray(split)), strict=True)),
            splitter.boundaries,
            {field: vocabulary.classes for field, vocabulary in vocabularies.items()},
            # what `prepare` says at its end, of the folder that it wrote
            (*remarks, *([ties] if ties else []), *_baskets(encoded)),
        )


def _tell_result(manifest: Manifest, tell: Tell) -> None:
    ties = describe_ties(manifest, MANY)
    if ties:
        tell(f"note: {ties}")
    if manifest.baskets is not None:
        tell(f"note: {describe_baskets(manifest.baskets, manifest.events, manifest.users)}")
    tell(f"{manifest.events:,} events of {manifest.users:,} users, hash {manifest.content_hash}")


def _say_nothing(line: str) -> None:
    pass


def _count_ties(encoded: Encoded) -> int:
    """Kept events that share user and time with another."""
    total = 0
    for columns in encoded.read("time"):
        # a user's events are all in one bucket, so ties never cross two
        index = np.lexsort([columns["time"], columns["user"]])  # (N,) of a bucket
        total += count_ties({name: column[index] for name, column in columns.items()})
    return total


def _baskets(encoded: Encoded) -> tuple[str, ...]:
    """What to say of the kept events' baskets; nothing where there are none."""
    if not encoded.plan.grouping:
        return ()
    baskets = events = 0
    for columns in encoded.read(*BASKET_KEYS[1:]):
        index = np.lexsort([columns[name] for name in reversed(BASKET_KEYS)])  # (N,) of a bucket
        ordered = {name: column[index] for name, column in columns.items()}
        baskets += count_baskets(ordered["user"], basket_numbers(ordered))
        events += len(index)
    return (describe_baskets(baskets, events, int(encoded.kept.sum())),)


def _encode(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    schema: EventSchema,
    work: Path,
    chosen: Preparation,
    tell: Tell,
) -> Encoded:
    if chosen.users is None and schema.features:
        raise DataError(
            f"the schema lists user features ({', '.join(schema.features)}), which come "
            "from a user table; pass it with --users TABLE."
        )
    if schema.has_baskets and chosen.engine == "spark":
        raise DataError(
            f"the group {schema.group!r}: --engine spark makes no baskets; take --engine local, "
            "which needs no more memory than --memory allows."
        )
    # before the log is read, which may take long
    if chosen.users is not None:
        schema = with_features(schema, chosen.users)

    if chosen.engine == "spark":
        from behavegpt.ingest.spark import encode_on_spark

        encoded = encode_on_spark(con, logs, schema, work, chosen, tell)
    else:
        # an eighth of the budget for rows in memory: DuckDB has half, and sorting takes copies
        plan = plan_events(con, logs, schema, work, time_range=chosen.time_range)
        held = chosen.budget // 8
        encoded = encode(plan, work, _batch_rows(chosen.budget), held, chosen.min_events)
    return encoded if chosen.users is None else _with_users(encoded, chosen.users)


def _with_users(encoded: Encoded, table: Any) -> Encoded:
    """The events with what a table says of their users, whose labels are written as the log's."""
    plan = encoded.plan
    users = read_user_table(table, plan.schema)
    rules = plan.schema.label_rules | users.rules
    schema = plan.schema.model_copy(update={"label_rules": rules})
    return replace(encoded, plan=replace(plan, schema=schema), users=users)


def _fit(encoded: Encoded, logs: Logs, chosen: Preparation) -> _Read:
    """Splits and vocabularies, and what people should know of the logs. Raises DataError."""
    # first: a weekday that says nothing must not be among the fields
    encoded, clock = without_clock(encoded, logs)

    splitter = make_splitter(encoded, chosen.split)
    vocabularies = fit_vocabularies(encoded, splitter, chosen.min_count, chosen.max_vocabulary)

    remarks = (
        encoded.plan.time.remark,
        early_times(encoded),
        clock,
        one_label(vocabularies, encoded.plan.schema),
        not_numbers(encoded),
        without_group(encoded),
        about_users(encoded, vocabularies),
    )

    return _Read(encoded, splitter, vocabularies, tuple(filter(None, remarks)))


def _batch_rows(budget: int) -> int:
    """Rows that are held at a time: a row takes some 150 bytes while its bucket is sorted."""
    return max(1 << 16, min(1 << 20, budget >> 11))


@contextmanager
def _workspace(out: Path, chosen: Preparation) -> Iterator[tuple[Path, Path]]:
    """A folder beside `out` that becomes `out` on success and vanishes on any error, and a scratch
    folder in it."""
    check_output(out, "whole")
    with scratch(out) as folder:
        # inside of the workspace, which another call cannot enter: what is free stays free
        check_free(out, chosen.overwrite)
        work = folder / "work"
        work.mkdir()
        yield folder, work
        shutil.rmtree(work)
        # checksums last, when every other file is complete
        seal(folder)
