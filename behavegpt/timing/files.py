"""MODEL/timing.json: what was learned of gaps, beside a model's weights and known to its
manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from behavegpt.checksums import put
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError
from behavegpt.io import read_json
from behavegpt.timing.gaps import FACTS, LOCATIONS, POINTS, SPREADS, Gaps

FILE = "timing.json"
FORMAT = 1
LEARN = "learn it again with `behavegpt when MODEL DATA`"
# a gap is told in seconds of log scale: the sixth digit is a millionth of it
DIGITS = 6


def save_gaps(gaps: Gaps, tokenizer: EventTokenizer, folder: Path) -> None:
    """Write FOLDER/timing.json, numbers to six decimals."""
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(gaps):
        value = getattr(gaps, field.name)
        if field.name != "facts":
            arrays[field.name] = np.round(value, DIGITS).tolist()

    header = {"format": FORMAT, "tokenizer_hash": tokenizer.hash, "facts": gaps.facts}
    # into the model's manifest too: a damaged file must not become a wrong time
    put(folder, FILE, json.dumps(header | arrays, ensure_ascii=False) + "\n")


def load_gaps(folder: Path, tokenizer: EventTokenizer) -> Gaps | None:
    """What `save_gaps` wrote; None where there is no such file. Raises CheckpointError when it is
    damaged, or of other labels."""
    path = folder / FILE
    if not path.is_file():
        return None

    remedy = f"delete it and {LEARN}"
    read = read_json(path, CheckpointError, remedy)
    if read.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {read.get('format')!r} is not known to this version; {remedy}."
        )
    if read.get("tokenizer_hash") != tokenizer.hash:
        raise CheckpointError(f"{path}: of a model with other labels; {remedy}.")

    values: dict[str, Any] = {}
    for name, shape in _shapes(tokenizer).items():
        # a ragged or non-numeric list fails like one of the wrong length
        try:
            values[name] = np.array(read.get(name), float)
        except (TypeError, ValueError):
            values[name] = np.zeros(0)
        if values[name].shape != shape or not np.isfinite(values[name]).all():
            raise CheckpointError(f"{path}: {name} is no finite array of shape {shape}; {remedy}.")

    if (np.diff(values["grid"]) <= 0).any() or not isinstance(read.get("facts"), dict):
        raise CheckpointError(f"{path}: grid or facts are damaged; {remedy}.")
    # numbers of no dimension
    numbers = {name: float(value) for name, value in values.items() if not value.ndim}
    return Gaps(**(values | numbers), facts=read["facts"])


def _shapes(tokenizer: EventTokenizer) -> dict[str, tuple[int, ...]]:
    """Array -> its shape."""
    return {
        "mean": (),
        "spread": (),
        "longest": (),
        "label": (len(tokenizer.behaviors),),
        "slot": (7 * tokenizer.event_schema.slots,),
        "weight": (FACTS,),
        "location_edges": (LOCATIONS - 1,),
        "spread_edges": (SPREADS - 1,),
        "grid": (POINTS,),
        "cdf": (LOCATIONS * SPREADS, POINTS),
    }
