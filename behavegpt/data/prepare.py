"""Logs -> a prepared folder (`data/store.py`), larger than memory, the same bytes for any order,
files and format.

rows -> integer codes (plan.py) -> columns by bucket of users, in memory or on disk (buckets.py) ->
who is kept, where the splits lie -> vocabularies of the training split -> each bucket sorted and
appended to the .npy columns -> os.replace.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.checksums import seal
from behavegpt.config import check_settings
from behavegpt.data.card import write_card
from behavegpt.data.database import connect, literal, one_row, reading
from behavegpt.data.encode import Encoded, Splitter, encode, fit_vocabularies, make_splitter
from behavegpt.data.events import count_ties, read_events
from behavegpt.data.guess import ColumnGuess, guess_columns, guess_schema
from behavegpt.data.plan import (
    BAD_ORDER,
    BAD_TIME,
    LATE,
    NO_EVENT,
    NO_TIME,
    NO_USER,
    TIME_RANGE,
    named_rejects,
    plan_events,
)
from behavegpt.data.remarks import early_times, one_label, without_clock
from behavegpt.data.schema import EventSchema
from behavegpt.data.sources import Logs, find_logs
from behavegpt.data.split import parse_split
from behavegpt.data.store import SPLITS, EventStore, open_store
from behavegpt.data.ties import MANY, describe_ties, tell_ties
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.data.write import write_folder
from behavegpt.errors import DataError
from behavegpt.io import check_output, scratch, target, temporary_folder
from behavegpt.options import PrepareOptions
from behavegpt.paths import local_path

__all__ = ["ColumnGuess", "Preview", "guess_schema", "prepare", "preview", "read_events"]

_MOST_BAD = 0.5  # share of rejected rows beyond which none of them is to be allowed
_LEAST_MEMORY = 256 * 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
    split: str = "time:0.7,0.15,0.15",
    min_events: int = 1,
    min_count: int = 1,
    max_vocabulary: int | None = None,
    max_reject_share: float = 0.01,
    time_range: tuple[str, str] = TIME_RANGE,
    memory: str = "2GiB",
    threads: int | None = None,
    overwrite: bool = False,
    engine: Literal["local", "spark"] = "local",
    spark_master: str | None = None,
    progress: Callable[[str], None] | None = None,
    encoding: str | None = None,
) -> EventStore:
    """Write the prepared folder `out` and open it; columns are guessed without a schema. Raises
    DataError.

    Users with fewer than `min_events` events are left out before anything is counted; labels with
    fewer than `min_count` training events, or beyond the `max_vocabulary` most frequent, become
    unknown. Both engines write the same bytes; with Spark the logs and `out` must be seen by all
    workers under the same path (docs/clusters.md). `encoding` is that of text files, UTF-8 by
    default.
    """
    tell = progress or (lambda line: None)
    budget = _checked(
        split, memory, min_events, min_count, max_vocabulary, max_reject_share, threads
    )
    out = target(local_path(out))
    with _workspace(out, overwrite) as (folder, work), connect(work, budget // 2, threads) as con:
        found = find_logs(logs, encoding)
        tell(f"reading {found.name} ({found.format})")
        schema = schema or guess_schema(found, {})[0]
        encoded = _encode(
            con, found, schema, work, time_range, min_events, budget, engine, spark_master, tell
        )
        tell(f"{encoded.rows:,} rows, {int(encoded.rejected.sum()):,} rejected")
        _write_rejects(encoded, folder, max_reject_share, out)
        read = _fit(encoded, found, split, min_count, max_vocabulary)
        tell(
            "vocabularies: " + ", ".join(f"{f} {v.classes:,}" for f, v in read.vocabularies.items())
        )
        for remark in read.remarks:
            tell(f"note: {remark}")
        facts = write_folder(read.encoded, read.splitter, read.vocabularies, folder)
        write_card(
            folder / "data_card.md",
            facts,
            min_events=min_events,
            min_count=min_count,
            remarks=read.remarks,
        )
        ties = describe_ties(facts.manifest, MANY)
        if ties:
            tell(f"note: {ties}")
        tell(
            f"{facts.manifest.events:,} events of {facts.manifest.users:,} users, hash "
            f"{facts.manifest.content_hash}"
        )
    return open_store(out)


def preview(
    logs: str | Path | Sequence[str | Path] | Logs,
    schema: EventSchema | None = None,
    *,
    out: str | Path | None = None,
    split: str = "time:0.7,0.15,0.15",
    min_events: int = 1,
    min_count: int = 1,
    max_vocabulary: int | None = None,
    max_reject_share: float = 0.01,
    time_range: tuple[str, str] = TIME_RANGE,
    memory: str = "2GiB",
    threads: int | None = None,
    overwrite: bool = False,
    engine: Literal["local", "spark"] = "local",
    spark_master: str | None = None,
    encoding: str | None = None,
) -> Preview:
    """Read the logs as `prepare` would and tell what would come of it; writes nothing that stays.

    Raises the DataError that `prepare` with the same arguments would raise.
    """
    budget = _checked(
        split, memory, min_events, min_count, max_vocabulary, max_reject_share, threads
    )
    if out is not None:
        _check_free(Path(out), overwrite)
    with temporary_folder() as work, connect(work, budget // 2, threads) as con:
        found = find_logs(logs, encoding)
        schema = schema or guess_schema(found, {})[0]
        encoded = _encode(
            con,
            found,
            schema,
            work,
            time_range,
            min_events,
            budget,
            engine,
            spark_master,
            lambda line: None,
        )
        _write_rejects(encoded, work, max_reject_share, None)
        encoded, splitter, vocabularies, remarks = _fit(
            encoded, found, split, min_count, max_vocabulary
        )
        sizes = sum(np.bincount(splitter(columns), minlength=3) for columns in encoded.scan("time"))
        ties = tell_ties(
            _count_ties(encoded), int(encoded.counts[encoded.kept].sum()), encoded.plan.schema, MANY
        )
        return Preview(
            guess_columns(found, encoded.plan.schema),
            encoded.plan.schema,
            encoded.rows,
            named_rejects(encoded.rejected),
            int(encoded.kept.sum()),
            dict(zip(SPLITS, map(int, np.asarray(sizes)), strict=True)),
            splitter.boundaries,
            {field: vocabulary.classes for field, vocabulary in vocabularies.items()},
            (*remarks, *([ties] if ties else [])),
        )


def _checked(split: str, memory: str, *numbers: float | None) -> int:
    """Bytes of `memory`, when all options make sense. Raises ConfigError and DataError."""
    parse_split(split)
    check_settings(
        PrepareOptions, dict(zip(PrepareOptions.model_fields, numbers, strict=True)), "prepare"
    )
    return _bytes(memory)


def _count_ties(encoded: Encoded) -> int:
    """Kept events that share user and time with another."""
    total = 0
    for columns in encoded.read("time"):
        index = np.lexsort([columns["time"], columns["user"]])
        total += count_ties({name: column[index] for name, column in columns.items()})
    return total


def _encode(
    con: duckdb.DuckDBPyConnection,
    logs: Logs,
    schema: EventSchema,
    work: Path,
    time_range: tuple[str, str],
    min_events: int,
    budget: int,
    engine: str,
    spark_master: str | None,
    tell: Callable[[str], None],
) -> Encoded:
    if engine == "spark":
        from behavegpt.data.spark import encode_on_spark

        return encode_on_spark(
            con, logs, schema, work, time_range, min_events, budget, spark_master, tell
        )
    plan = plan_events(con, logs, schema, work, time_range=time_range)
    return encode(plan, work, _batch_rows(budget), budget // 8, min_events)


def _fit(
    encoded: Encoded, logs: Logs, split: str, min_count: int, max_vocabulary: int | None
) -> _Read:
    """Splits and vocabularies, and what people should know of the logs. Raises DataError."""
    encoded, clock = without_clock(encoded, logs)
    splitter = make_splitter(encoded, split)
    vocabularies = fit_vocabularies(encoded, splitter, min_count, max_vocabulary)
    told = (
        encoded.plan.time.remark,
        early_times(encoded),
        clock,
        one_label(vocabularies, encoded.plan.schema),
    )
    return _Read(encoded, splitter, vocabularies, tuple(filter(None, told)))


def _write_rejects(encoded: Encoded, folder: Path, max_share: float, out: Path | None) -> None:
    """Write rejects.parquet if there are any; raise DataError when they are too many, leaving them
    beside `out`."""
    bad = int(encoded.rejected.sum())
    if not bad:
        return
    file = folder / "rejects.parquet"
    con = encoded.plan.con
    with reading(encoded.plan.source.name, encoded.plan.source.files):
        rows = con.sql(encoded.rejects).to_arrow_reader(1 << 17)
        text = pa.schema([(name, pa.string()) for name in rows.schema.names])
        with pq.ParquetWriter(file, text) as writer:
            for batch in rows:
                writer.write_batch(
                    pa.record_batch(
                        [column.cast(pa.string()) for column in batch.columns], schema=text
                    )
                )
    if bad <= max_share * encoded.rows and encoded.kept.any():
        return
    lines = [
        f"{reason}: {count:,} rows, for example {_example(encoded, file, reason)}"
        for reason, count in named_rejects(encoded.rejected).items()
    ]
    where = ""
    if out is not None:
        beside = out.with_name(out.name + ".rejects.parquet")
        os.replace(file, beside)
        where = f" They are in {beside}."
    raise DataError(
        f"{encoded.plan.source.name}: {bad:,} of {encoded.rows:,} rows cannot be used "
        f"({bad / encoded.rows:.1%}, "
        f"allowed {max_share:.1%}): {'; '.join(lines)}.{where} {_remedy(encoded)}"
    )


def _remedy(encoded: Encoded) -> str:
    """What to do about too many rejected rows: allowing more helps only where most rows are
    good."""
    schema, share = encoded.plan.schema, encoded.rejected.sum() / encoded.rows
    most = int(np.argmax(encoded.rejected))
    remedies = {
        NO_USER: f"Name another column than {schema.user!r} with --user",
        NO_TIME: f"Name another column than {schema.time!r} with --time",
        BAD_TIME: f"Name the form of the times in {schema.time!r} with --time-format, such as "
        "'%d/%m/%Y %H:%M', or another column with --time",
        LATE: (
            f"Name the unit of the times in {schema.time!r} with --time-unit, or another column "
            "with --time"
        ),
        NO_EVENT: f"Name another column than {schema.event!r} with --event",
        BAD_ORDER: f"Name another column than {schema.order!r} with --order",
    }
    remedy = remedies.get(most, "Mend the rows")
    return (
        f"{remedy}, or mend the rows, or allow more with --max-reject-share."
        if share <= _MOST_BAD
        else f"{remedy}."
    )


def _example(encoded: Encoded, file: Path, reason: str) -> str:
    """The first rejected row with this reason, as text."""
    names = [name for name in pq.read_schema(file).names if name not in ("file", "reason")]
    values = ", ".join(f'"{name}"' for name in names)
    row = one_row(
        encoded.plan.con,
        f"SELECT file, {values} FROM read_parquet({literal(file)}) WHERE reason = "
        f"{literal(reason)}",
    )
    shown = ", ".join(
        f"{name} = {str(value)[:60]!r}" for name, value in zip(names, row[1:], strict=True)
    )
    return f"{shown} in {row[0]}"


def _batch_rows(budget: int) -> int:
    """Rows that are held at a time: a row takes some 150 bytes while its bucket is sorted."""
    return max(1 << 16, min(1 << 20, budget >> 11))


def _bytes(memory: str) -> int:
    """Bytes of a text like 2GiB, 512MB or 4G (all in powers of two). Raises DataError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", memory, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < _LEAST_MEMORY:
        raise DataError(f"--memory {memory!r}: write a size of at least 256MiB, for example 2GiB.")
    return size


@contextmanager
def _workspace(out: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """A folder beside `out` that becomes `out` on success and vanishes on any error, and a scratch
    folder in it."""
    check_output(out, "whole")
    with scratch(out) as folder:
        _check_free(out, overwrite)
        work = folder / "work"
        work.mkdir()
        yield folder, work
        shutil.rmtree(work)
        seal(folder)


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "dataset.json").is_file():
        raise DataError(f"{out}: exists and is not a prepared folder; name another one with --out.")
    if not overwrite:
        raise DataError(
            f"{out}: holds prepared data already; name another folder or pass --overwrite."
        )
