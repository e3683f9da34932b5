"""What a run's files tell, as words for people; what is missing is left out."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from behavegpt.data.store import Manifest
from behavegpt.errors import DataError
from behavegpt.result_files import read_json


def read_facts(run: Path) -> dict[str, Any]:
    """RUN/run.json, what it lacks empty; raises DataError when the folder holds no run."""
    if not (run / "run.json").is_file():
        raise DataError(
            f"{run}: not a run folder (no run.json); name the `out` folder of `behavegpt train`."
        )

    # files of earlier versions lack some of them
    return {
        "command": "",
        "config": {},
        "seed": None,
        "versions": {},
        "data": {},
    } | read_json(run / "run.json")


def read_manifest(folder: Path, content_hash: str | None) -> Manifest | None:
    """The manifest of a prepared folder, None when the folder is not here or holds other data by
    now."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None

    try:
        manifest = Manifest.model_validate(read_json(path))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again.") from None

    # after a new preparation the folder describes other data than the model's
    return manifest if content_hash in (None, manifest.content_hash) else None


def fact_list(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of a run's facts for people; unknown ones are left out."""
    # every entry may be missing: a report of an old run is better than none
    data, config = record["data"], record["config"]
    size = [
        f"{data[key]:,} {key}"
        for key in ("events", "users", "behaviors")
        if data.get(key) is not None
    ]

    # a format for each setting that is set; the switches are words of their own
    shape = {
        "num_hidden_layers": "{} layers",
        "embedding_size": "d = {}",
        "max_length": "up to {} events",
        "memory": "memory" if pick(config, "model.memory") else "",
        "history_head": "history head" if pick(config, "model.history_head") else "",
    }

    model = [f"{record['parameters']:,} parameters"] if record.get("parameters") is not None else []
    model += [
        text.format(pick(config, f"model.{key}"))
        for key, text in shape.items()
        if pick(config, f"model.{key}")
    ]

    # 0 too: the start was never beaten, and there is nothing to tell
    best = record.get("best_step")
    training = [
        f"{record['steps']:,} steps" if record.get("steps") is not None else "",
        f"best at {best:,}" if best else "",
        f"loss {pick(config, 'loss.name') or '?'}",
    ]

    listed = {
        "data": ": ".join(filter(None, [str(data.get("path", "")), ", ".join(size)])),
        "model": ", ".join(filter(None, model)),
        "training": ", ".join(filter(None, training)),
        "seed": "" if record["seed"] is None else str(record["seed"]),
        "time": duration(record.get("seconds")),
        "device": str(record.get("device") or ""),
        "started": when(record.get("started")),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        # 16 digits tell any two apart, and fit the line
        "data hash": str(data.get("content_hash", ""))[:16],
    }

    return [(name, text) for name, text in listed.items() if text]


def kind_of(record: dict[str, Any]) -> str:
    """What the model is, in words."""
    model = pick(record, "config.model") or {}
    # a model of counts alone has no blocks; memory adds a small network over them
    if model.get("num_hidden_layers") != 0:
        return (
            "a GPT-style transformer over user events (weekday, time slot, location, event and "
            "further fields where the log has them)"
        )
    if model.get("memory"):
        return (
            "a small trained network, without transformer blocks, over counts of a user's whole "
            "past"
        )

    return "a model without transformer blocks over the event at hand and counts of the past"


def data_facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of the prepared data, if the folder is still there and holds what was used."""
    folder, known = pick(record, "config.data.path"), pick(record, "data.content_hash")
    manifest = read_manifest(Path(folder), known) if folder else None
    # the report says nothing of other data than the model's
    if manifest is None:
        return []

    schema, split = manifest.event_schema, manifest.split

    columns = {"user": schema.user, "time": schema.time} | schema.label_columns
    if schema.group is not None:
        columns["group"] = schema.group
    numbers = [
        f"{number:,} {name}"
        for name, number in zip(("training", "validation", "test"), split["events"], strict=False)
    ]
    listed = {
        "columns": ", ".join(f"{name}: {column}" for name, column in columns.items()),
        "events by split": ", ".join(numbers),
        **({} if manifest.baskets is None else {"baskets": f"{manifest.baskets:,}"}),
        "boundaries": boundaries(split.get("boundaries")),
        "time zone": schema.tz,
        "rejected rows": ", ".join(
            f"{count:,} {why}" for why, count in manifest.rejected.items() if count
        ),
    }

    return [(name, text) for name, text in listed.items() if text]


def boundaries(moments: Any) -> str:
    """Times of a split in seconds since 1970, readable; other values as they are."""
    # a split by users or by dates has no times here
    if not isinstance(moments, list) or not all(is_number(moment) for moment in moments):
        return "" if moments is None else json.dumps(moments, ensure_ascii=False)

    try:
        times = [datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in moments]
    except (OverflowError, OSError, ValueError):
        # numbers beyond the calendar are shown as they are
        return json.dumps(moments)

    return ", ".join(time.strftime("%Y-%m-%d %H:%M UTC") for time in times)


def given_of(run: Path) -> list[str]:
    """What the run's model is given of the event that it predicts."""
    return optional_json(run / "model" / "config.json").get("given") or []


def protocol_list(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of the evaluation protocol as the evaluation wrote it."""
    return [
        (str(key).replace("_", " "), _text(key, value))
        for key, value in (metrics.get("protocol") or {}).items()
        if value is not None
    ]


def _text(key: str, value: Any) -> str:
    if key == "boundaries":
        return boundaries(value)
    if key == "thresholds":
        return (
            f"learned on {value['rows']:,} validation events to maximize {value['objective']}, "
            f"keeping {value['keep']:.1%} of weighted recall"
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float | None) -> str:
    """132.4 -> '2 min 12 s'; empty for None."""
    if seconds is None:
        return ""

    # of hours no seconds: nobody needs them
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    parts = [
        f"{hours} h" if hours else "",
        f"{minutes} min" if minutes else "",
        f"{left} s" if not hours else "",
    ]

    return " ".join(filter(None, parts))


def when(text: str | None) -> str:
    """An ISO time to the minute, with its zone; other text as it is."""
    try:
        return datetime.datetime.fromisoformat(text or "").strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text or ""


def decimal(value: Any) -> str:
    """Three decimals; a dash for what has no value."""
    return f"{value:.3f}" if is_number(value) else "–"


def pick(tree: dict[str, Any], path: str) -> Any:
    """The value at `a.b.c`, None when any part is missing."""
    value: Any = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def optional_json(path: Path, *needed: str) -> dict[str, Any]:
    return read_json(path, *needed) if path.is_file() else {}


def is_number(value: Any) -> bool:
    # NaN is no number here: JSON of other programs may hold it
    return isinstance(value, (int, float)) and value == value


def window_of(record: dict[str, Any], metrics: dict[str, Any]) -> int | None:
    """Events that the model reads of a user at most; None where it counts the whole past too, or
    nothing tells."""
    if pick(record, "config.model.memory"):
        return None
    length = pick(record, "config.model.max_length")
    # a shape that took the default is told by the evaluation alone
    return length or metrics.get("protocol", {}).get("max_length")
