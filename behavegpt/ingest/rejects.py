"""Rows that cannot be used: written beside the prepared data, and refused where they are too
many."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.database import literal, one_row, reading
from behavegpt.errors import DataError
from behavegpt.ingest.encode import Encoded
from behavegpt.ingest.reasons import (
    BAD_ORDER,
    BAD_TIME,
    LATE,
    NO_EVENT,
    NO_TIME,
    NO_USER,
    named_rejects,
)

_MOST_BAD = 0.5  # share of rejected rows beyond which none of them is to be allowed


def write_rejects(encoded: Encoded, folder: Path, max_share: float, out: Path | None) -> None:
    """Write rejects.parquet if there are any; raise DataError when they are too many, leaving them
    beside `out`."""
    bad = int(encoded.rejected.sum())
    if not bad:
        return

    file = folder / "rejects.parquet"
    con = encoded.plan.con

    with reading(encoded.plan.source.name, encoded.plan.source.files):
        rows = con.sql(encoded.rejects).to_arrow_reader(1 << 17)
        # all columns as text: a value of the wrong type is shown as it was written
        text = pa.schema([(name, pa.string()) for name in rows.schema.names])
        # batch by batch: a log may be rejected as a whole
        with pq.ParquetWriter(file, text) as writer:
            for batch in rows:
                columns = [column.cast(pa.string()) for column in batch.columns]
                writer.write_batch(pa.record_batch(columns, schema=text))

    # also with every row allowed: a folder without events is of no use
    if bad <= max_share * encoded.rows and encoded.kept.any():
        return

    lines = [
        f"{reason}: {count:,} rows, for example {_example(encoded, file, reason)}"
        for reason, count in named_rejects(encoded.rejected).items()
    ]

    where = ""
    if out is not None:
        beside = out.with_name(out.name + ".rejects.parquet")
        # beside the folder, which is not made
        os.replace(file, beside)
        where = f" They are in {beside}."

    raise DataError(
        f"{encoded.plan.source.name}: {bad:,} of {encoded.rows:,} rows cannot be used "
        f"({bad / encoded.rows:.1%}, allowed {max_share:.1%}): {'; '.join(lines)}.{where} "
        f"{_remedy(encoded)}"
    )


def _remedy(encoded: Encoded) -> str:
    """What to do about too many rejected rows: allowing more helps only where most rows are
    good."""
    schema, share = encoded.plan.schema, encoded.rejected.sum() / encoded.rows
    # the most frequent reason is what to look at first
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
    # where most rows are bad it is the column that is wrong, not the rows
    enough = math.ceil(100 * share) / 100
    return (
        f"{remedy}, or fix the rows, or leave them out with --max-reject-share {enough:.2f}."
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
        f"{name} = {'null' if value is None else repr(str(value)[:60])}"
        for name, value in zip(names, row[1:], strict=True)
    )
    return f"{shown} in {row[0]}"
