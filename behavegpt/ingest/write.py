"""Codes on disk -> the files of a prepared folder: columns, users, vocabularies, manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.digest import UsersDigest, content_hash
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import FORMAT, Manifest
from behavegpt.data.ties import count_ties
from behavegpt.data.times import MICROS, calendar
from behavegpt.data.vocabulary import UNKNOWN, Vocabulary
from behavegpt.ingest.baskets import basket_numbers, count_baskets, sort_index
from behavegpt.ingest.buckets import ColumnWriter, smallest_dtype
from behavegpt.ingest.card import CardFacts
from behavegpt.ingest.encode import Encoded, Splitter
from behavegpt.ingest.reasons import named_rejects

# of a row group: what is written depends on it, so it never changes
USERS_HELD = 1 << 20


def write_folder(
    encoded: Encoded, splitter: Splitter, vocabularies: dict[str, Vocabulary], folder: Path
) -> CardFacts:
    """Sort each bucket, append it to the columns, and write users, vocabularies and the
    manifest."""
    schema, counts = encoded.plan.schema, encoded.counts[encoded.kept]

    writers = _open_columns(folder / "columns", schema, vocabularies, counts)
    sizes, unknown, ties, baskets = _write_events(encoded, splitter, vocabularies, writers)
    # of what was written, on the way: no file is read again
    digests = {name: writer.close() for name, writer in writers.items()}

    (folder / "vocabulary").mkdir()
    for field, vocabulary in vocabularies.items():
        vocabulary.save(folder / "vocabulary" / f"{field}.parquet")

    digests["users"] = _write_users(encoded, folder / "users.parquet")

    hashes = {field: vocabulary.hash for field, vocabulary in vocabularies.items()}

    is_by_user = splitter.of_user is not None
    manifest = Manifest(
        format=FORMAT,
        event_schema=schema,
        events=int(counts.sum()),
        users=len(counts),
        time_origin=encoded.first,
        split={
            "rule": splitter.rule.text,
            "boundaries": [] if is_by_user else list(splitter.boundaries),
            "events": sizes.tolist(),
        },
        columns={name: str(writer.dtype) for name, writer in sorted(writers.items())},
        vocabulary=hashes,
        rejected=named_rejects(encoded.rejected),
        ties=ties,
        baskets=baskets if schema.has_baskets else None,
        content_hash=content_hash(schema, hashes, digests),
    )
    written = manifest.model_dump_json(indent=2) + "\n"
    (folder / "dataset.json").write_text(written, encoding="utf-8")

    name = encoded.plan.source.name
    of_users = encoded.counts, encoded.kept, encoded.last
    return CardFacts(name, manifest, vocabularies, unknown, *of_users)


def _open_columns(
    folder: Path, schema: EventSchema, vocabularies: dict[str, Vocabulary], counts: np.ndarray
) -> dict[str, ColumnWriter]:
    """Writers of all columns; `counts` (users,) are the events per user, `offsets` is written from
    them."""
    folder.mkdir()

    dtypes = {field: smallest_dtype(len(vocabulary)) for field, vocabulary in vocabularies.items()}
    # seconds since the first event fit 32 bits: a time range is at most 136 years
    dtypes |= {"time": np.dtype(np.uint32), "slot": smallest_dtype(schema.slots)}
    dtypes |= {"weekday": np.dtype(np.uint8), "split": np.dtype(np.uint8)}
    if schema.has_baskets:
        dtypes["basket"] = np.dtype(np.uint32)

    writers = {
        name: ColumnWriter(folder / f"{name}.npy", dtype, int(counts.sum()))
        for name, dtype in dtypes.items()
    }

    offsets = np.concatenate([[0], np.cumsum(counts)])  # (users + 1,)
    writers["offsets"] = ColumnWriter(folder / "offsets.npy", np.dtype(np.int64), len(offsets))
    # known before any event is written
    writers["offsets"].write(offsets)

    return writers


def _write_events(
    encoded: Encoded,
    splitter: Splitter,
    vocabularies: dict[str, Vocabulary],
    writers: dict[str, ColumnWriter],
) -> tuple[np.ndarray, dict[str, np.ndarray], int, int]:
    """Write all events; returns events per split (3,), per field those with an unknown label (3,),
    ties and baskets."""
    plan = encoded.plan
    # code -> id by a table: one gather per column, no text
    features = encoded.features()
    ids, source = {}, {}  # where the codes of a field stand: a feature's are its users'
    for field, vocabulary in vocabularies.items():
        labels = features[field] if field in features else plan.labels(field)
        ids[field] = vocabulary.encode(labels).astype(writers[field].dtype)
        source[field] = "user" if field in features else field

    # parts that workers made are sorted already
    order = ("order",) if plan.schema.order and not encoded.spill.sorted else ()
    hashes = {} if encoded.spill.sorted else plan.hashes()

    sizes, unknown = np.zeros(3, np.int64), {field: np.zeros(3, np.int64) for field in ids}
    ties = baskets = 0

    for columns in encoded.read("time", *order, *plan.grouping, *plan.fields):
        if not encoded.spill.sorted:
            index = sort_index(columns, hashes, plan.schema)
            columns = {name: column[index] for name, column in columns.items()}

        # after sorting: neighbors of one user and moment
        ties += count_ties(columns)
        seconds = columns["time"] // MICROS  # (N,) of a bucket
        weekday, slot = calendar(seconds, plan.schema)
        split = splitter(columns)  # (N,)

        rows = {"time": seconds - encoded.first, "weekday": weekday, "slot": slot, "split": split}
        rows |= {field: table[columns[source[field]]] for field, table in ids.items()}
        if plan.grouping:
            rows["basket"] = basket_numbers(columns)
            baskets += count_baskets(columns["user"], rows["basket"])

        sizes += np.bincount(split, minlength=3)
        for field in ids:
            unknown[field] += np.bincount(split[rows[field] == UNKNOWN], minlength=3)

        for name, values in rows.items():
            writers[name].write(values)

    return sizes, unknown, ties, baskets


def _write_users(encoded: Encoded, path: Path) -> str:
    """Labels of the kept users in code order; returns a digest of them."""
    digest = UsersDigest()
    query = f"SELECT label AS user FROM {encoded.plan.dictionary('user')} ORDER BY code"

    # code 0 is null, which is no user
    start, waiting = 1, pa.table({"user": pa.array([], pa.string())})

    with pq.ParquetWriter(path, waiting.schema) as writer:
        for batch in encoded.plan.con.sql(query).to_arrow_reader(USERS_HELD):
            kept = pa.array(encoded.kept[start : start + len(batch)])
            users = batch["user"].cast(pa.string()).filter(kept)

            start += len(batch)
            waiting = pa.concat_tables([waiting, pa.table({"user": users})])
            while len(waiting) >= USERS_HELD:  # row groups that depend on the kept users alone
                writer.write_table(waiting[:USERS_HELD], USERS_HELD)
                waiting = waiting[USERS_HELD:]
            digest.update(users)
        writer.write_table(waiting)

    return digest.hexdigest()
