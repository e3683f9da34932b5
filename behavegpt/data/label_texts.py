"""The rules of labels.py for a few texts, without a database: what its SQL writes, in Python.

Tests compare the two. DuckDB writes a double as Python's `repr` does, and both read its text to the
nearest one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import pyarrow as pa

from behavegpt.data.labels import (
    EXACT,
    FLOAT_TEXT,
    INTEGER,
    MIDNIGHT,
    MOMENT,
    NUMBER,
    SCALES,
    TEXT,
    choose_rule,
)

_NO_NUMBERS = ("inf", "-inf", "nan")  # texts of doubles that the pattern of numbers does not match


class TextRule(NamedTuple):
    """Whether a label may be written so, and how; what is not of its kind stays as it is."""

    fits: Callable[[str], bool]
    written: Callable[[str], str]

    def keeps(self, text: str) -> bool:
        """Whether a label may be written so, and is already."""
        return self.fits(text) and self.written(text) == text


def labels_of(texts: Collection[str], rule: str | None) -> dict[str, str] | None:
    """Text -> label of the distinct texts of a column; `rule` is the stored one, None without one.

    None where `check_exact` refuses a text: a float that cannot hold its integer.
    """
    # only where texts are numbers does a float stand for an integer
    numeric = rule in ("integer", "number") if rule else all(map(_is_number, texts))
    if numeric and any(map(_is_inexact, texts)):
        return None

    if rule is None:
        fitting = [name for name, other in TEXT_RULES.items() if all(map(other.fits, texts))]
        rule = choose_rule(fitting if texts else None)

    written = TEXT_RULES[rule].written
    return {text: written(text) for text in texts}


def infer_rules(vocabularies: Mapping[str, pa.Array]) -> dict[str, str]:
    """Rules of fields whose labels were written before rules were stored: those that leave every
    label as it is."""
    rules = {}
    for field, labels in vocabularies.items():
        texts = labels.to_pylist()
        kept = (name for name, rule in TEXT_RULES.items() if all(map(rule.keeps, texts)))
        # without labels there is nothing to tell it by, and all rules would do
        rules[field] = next(kept, TEXT) if texts else TEXT
    return rules


def number_text(value: float) -> str:
    """A double before any rule: whole ones as integers."""
    if abs(value) < EXACT["DOUBLE"] and value == math.trunc(value):
        return str(int(value))
    return repr(value)


def _full(pattern: str) -> Callable[[str], bool]:
    matches = re.compile(pattern).fullmatch
    return lambda text: matches(text) is not None


_is_number, _is_integer, _is_float_text = _full(NUMBER), _full(INTEGER), _full(FLOAT_TEXT)
_is_midnight, _is_moment = _full(MIDNIGHT), _full(MOMENT)
_is_long_integer, _is_zero = _full("-?[0-9]+[.]0+|-0"), _full("-0([.]0+)?")
_is_decimal = _full(INTEGER + "([.][0-9]+)?")


def _is_inexact(text: str) -> bool:
    return _is_float_text(text) and EXACT["DOUBLE"] <= abs(float(text)) < math.inf


def _integer(text: str) -> str:
    # 1.0 is what a float column writes for the integer 1
    if not _is_long_integer(text):
        return text
    return "0" if _is_zero(text) else text.partition(".")[0]


def _fits_number(text: str) -> bool:
    if not _is_number(text):
        return text in _NO_NUMBERS
    value = float(text)
    return (_is_integer(text) and abs(value) < EXACT["DOUBLE"]) or text == repr(value)


def _number(text: str) -> str:
    if not _is_number(text) or abs(float(text)) >= EXACT["DOUBLE"]:
        return text
    # + 0 turns -0.0 into 0.0, as the SQL does
    return repr(float(text) + 0)


def _decimal(scale: int) -> TextRule:
    def written(text: str) -> str:
        whole, _, decimals = text.partition(".")
        decimals = decimals.rstrip("0")
        if not _is_decimal(text) or len(decimals) > scale:
            return text
        return f"{whole}.{decimals.ljust(scale, '0')}"

    return TextRule(_full(f"{INTEGER}[.][0-9]{{{scale}}}"), written)


def _boolean(text: str) -> str:
    return text.lower() if text.lower() in ("true", "false") else text


def _moment(text: str) -> str:
    if not _is_moment(text):
        return text
    if len(text) == len("2024-05-01"):
        return f"{text} 00:00:00"

    # microseconds lose their trailing zeros, and the point when none are left
    cut = re.sub(r"([.][0-9]*[1-9])0+$", r"\1", text.replace("T", " "))
    return re.sub(r"[.]0+$", "", cut)


# In the order of labels.RULES.
TEXT_RULES: dict[str, TextRule] = {
    "integer": TextRule(_full(INTEGER + "([.]0)?"), _integer),
    "number": TextRule(_fits_number, _number),
    **{f"decimal:{scale}": _decimal(scale) for scale in SCALES},
    "boolean": TextRule(lambda text: text.lower() in ("true", "false"), _boolean),
    "date": TextRule(_is_midnight, lambda text: text[:10] if _is_midnight(text) else text),
    "timestamp": TextRule(_is_moment, _moment),
    TEXT: TextRule(lambda text: True, lambda text: text),
}
