"""What people should know of a log before they train on it: dates without a clock, one label
only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from behavegpt.data.bins import numbers
from behavegpt.data.schema import EventSchema
from behavegpt.data.times import DAY, MICROS, zone
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.ingest.baskets import GROUP
from behavegpt.ingest.column_names import CLOCKS, name_rank
from behavegpt.ingest.encode import Encoded
from behavegpt.ingest.sources import Logs
from behavegpt.ingest.time_join import PLUS, time_parts

_EARLY = 315_532_800  # 1980, in seconds
_NEVER = 2**63 - 1
# shares of events at midnight: the log tells no time of day, or not of all events
_ALL, _MANY = 0.99, 0.3
_FEW = 50  # labels of a feature that may be as many as the users


def without_clock(encoded: Encoded, logs: Logs) -> tuple[Encoded, str | None]:
    """The events with one slot a day where the log tells no time of day, and what to say about it.

    Slots of half an hour would put every event into the first one. Another column of `logs` may
    hold it.
    """
    schema, share = encoded.plan.schema, _share_at_midnight(encoded)
    if share < _MANY or schema.slots == 1:
        return encoded, None

    observed = (
        f"{share:.0%} of the times in {schema.time!r} are at midnight, as dates without a time of "
        "day are"
    )

    join = f"--time {schema.time}{PLUS}{_clock(schema, logs)}"
    remedy = f"if a column holds the hour or the time of day, join it: {join}"

    if share < _ALL:
        return encoded, f"{observed}; slots of the day tell nothing of these events; {remedy}"

    # somebody asked for slots: they are not taken away
    if "slot_minutes" in schema.model_fields_set:
        return encoded, f"{observed}: every event is in slot 0 of {schema.slots}; {remedy}"

    one_slot = schema.model_copy(update={"slot_minutes": 1440})
    return (
        replace(encoded, plan=replace(encoded.plan, schema=one_slot)),
        f"{observed}: the slot is left out (days have one slot, slot_minutes 1440); {remedy}",
    )


def early_times(encoded: Encoded) -> str | None:
    """What to say when all times are before the logs of our days: numbers may count something else
    than seconds."""
    first, last = _NEVER, -_NEVER
    for times in encoded.times():
        first, last = int(times.min(initial=first)), int(times.max(initial=last))
        # one late time is enough
        if last >= _EARLY * MICROS:
            return None

    begin, end = np.datetime64(first // MICROS, "s"), np.datetime64(last // MICROS, "s")
    return (
        f"all times of {encoded.plan.schema.time!r} are before 1980: {begin} to {end}; numbers "
        "that count days, or the time since something else than 1970, look so: write them as "
        "dates, or weekdays and slots mean nothing"
    )


def one_label(vocabularies: Mapping[str, Vocabulary], schema: EventSchema) -> str | None:
    """What to say when there is nothing to predict."""
    # what is predicted
    role = "event" if schema.behavior_is_event else "behavior"
    if vocabularies[role].classes != 1:
        return None
    column, label = schema.label_columns[role], vocabularies[role].values[0].as_py()
    return (
        f"every {role} of the training split is {label!r} (column {column!r}): a constant "
        "predictor is enough, it is right wherever a model is; name a column with more labels with "
        f"--{role} if there is more to predict"
    )


def not_numbers(encoded: Encoded) -> str | None:
    """What to say of values of numeric columns that are no numbers."""
    for field in encoded.plan.schema.numeric:
        labels, events = encoded.plan.labels(field), encoded.plan.events(field)
        bad = np.isnan(numbers(labels))
        if len(labels) == 1:
            return f"{field!r} has no value at all, so it tells a model nothing: leave it out"
        bad[0] = False  # null is legal
        if bad.any():
            example = labels[int(np.flatnonzero(bad)[0])].as_py()
            return (
                f"{int(events[bad].sum()):,} values of {field!r} are no numbers, such as "
                f"{example!r}: they count as missing"
            )
    return None


def without_group(encoded: Encoded) -> str | None:
    """What to say of rows that no value of the group puts into a basket."""
    if not encoded.plan.grouping:
        return None
    missing = encoded.rows - int(encoded.plan.events(GROUP).sum())
    if not missing:
        return None
    return (
        f"{missing:,} of {encoded.rows:,} rows have no {encoded.plan.schema.group!r}: a user's "
        "rows of one time are a basket then"
    )


def about_users(encoded: Encoded, vocabularies: Mapping[str, Vocabulary]) -> str | None:
    """What to say of the users' features: who has none, and which tells users apart by name."""
    if encoded.users is None:
        return None

    # users who are left out are not spoken of
    kept = pa.array(encoded.kept)
    users = encoded.plan.labels("user").filter(kept)
    there = encoded.users.has(users)  # (users,)
    if not there.any():
        raise DataError(_nobody_known(encoded.users.users, users))
    text = f"features of {int(there.sum()):,} of {len(there):,} users are known"

    for field, labels in encoded.features().items():
        labels = labels.filter(kept)
        if not vocabularies[field].classes:
            text += f"; {field!r} has no value in the training split: leave it out"
        if field in encoded.plan.schema.user_numeric:
            values = labels.drop_null()
            bad = np.isnan(numbers(values))
            if bad.any():
                example = values[int(np.flatnonzero(bad)[0])].as_py()
                text += (
                    f"; {int(bad.sum()):,} values of {field!r} are no numbers, such as {example!r}"
                )
        elif (classes := vocabularies[field].classes) > max(_FEW, there.sum() / 2):
            text += (
                f"; {field!r} has {classes:,} labels, nearly one for each user: remove it, or "
                "name it with --user-numeric if it is a number"
            )
    return text


def _nobody_known(table: pa.Array, log: pa.Array) -> str:
    """Why a table of users and a log that share none are refused."""
    examples = [", ".join(map(repr, names[:3].to_pylist())) or "none" for names in (table, log)]
    return (
        f"the table of users has no row for any of the {len(log):,} users of the log; write the "
        f"users alike in both. In the table: {examples[0]}; in the log: {examples[1]}."
    )


def _share_at_midnight(encoded: Encoded) -> float:
    """Share of the kept events at midnight, on the zone's clock or in UTC; 0 if it is small in the
    first piece."""
    local = zone(encoded.plan.schema.tz)
    # dates are at midnight on the zone's clock, those of a UTC column at midnight in UTC
    on_clock = in_utc = events = 0

    for times in encoded.times():
        seconds = times // MICROS  # (N,) of a piece
        on_clock += int((local.wall(seconds) % DAY == 0).sum())
        in_utc += int((seconds % DAY == 0).sum())
        events += len(times)

        # the first piece of an ordinary log is enough: no pass over all of it
        if max(on_clock, in_utc) < _MANY * events / 2:
            return 0.0
    return max(on_clock, in_utc) / max(1, events)


def _clock(schema: EventSchema, logs: Logs) -> str:
    """The column that could be the time of day, `hour` if there is none."""
    taken = {*time_parts(schema.time, logs), schema.user, *schema.label_columns.values()}

    ranks = {
        column: rank
        for column in logs.columns
        if column not in taken and (rank := name_rank(column, CLOCKS)) is not None
    }
    # `hour` stands for it: the sentence must show the form of the option
    return min(ranks, key=lambda column: ranks[column]) if ranks else "hour"
