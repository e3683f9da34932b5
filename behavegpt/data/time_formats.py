"""The strptime formats that a column of times is written in, told from the shapes of its texts.

A shape is a text with 9 for each digit: `01/Apr/2024:13:05:22 +0000` is
`99/Apr/9999:99:99:99 +9999`. Shapes are counted over all rows, so that neither the order of rows
nor that of files decides.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from behavegpt.errors import DataError

# a few broken rows must not decide, and are rejected later
ENOUGH = 0.99  # share of the values that must be of one form before it is the column's
DIRECTIVES = frozenset("aAbBdHIjmMfpSyYzZ%")
# times written as numbers, by length
DIGITS = {14: "%Y%m%d%H%M%S", 12: "%Y%m%d%H%M", 10: "%Y%m%d%H", 8: "%Y%m%d"}
_DAYS = "mon|tue|wed|thu|fri|sat|sun"
_LONG_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_LONG_MONTHS = "january|february|march|april|june|july|august|september|october|november|december"
# Rewritten one after the other: a shape becomes a format, with {1} and {2} where day and month
# could be either.
_RULES = [
    (rf"(?i)\b(?:{_LONG_DAYS})\b", "%A"),
    (rf"(?i)\b(?:{_DAYS})\b", "%a"),
    (rf"(?i)\b(?:{_LONG_MONTHS})\b", "%B"),
    (rf"(?i)\b(?:{_MONTHS})\b", "%b"),
    (r"(?<!9)9{1,2}:99:99([.,])9+", r"%H:%M:%S\1%f"),
    (r"(?<!9)9{1,2}:99:99(?!9)", "%H:%M:%S"),
    (r"(?<!9)9{1,2}:99(?!9)", "%H:%M"),
    (r"(?i)%H(:%M(?::%S(?:[.,]%f)?)?)( ?)[ap]m\b", r"%I\1\2%p"),
    (r"(%[MSfp] ?(?:GMT|UTC)?|9999 )[+-]99(?::?99)?(?!9)", r"\1%z"),
    (r"(%[MSfp] )(?!GMT|UTC)[A-Z]{3,4}\b", r"\1%Z"),
    (r"^9999([/.-])9{1,2}\1(?:9{1,2})(?!9)", r"%Y\1%m\1%d"),
    (r"(?<!9)9{1,2}([/.-])9{1,2}\1(?:9999)(?!9)", r"{1}\1{2}\1%Y"),
    (r"(?<!9)9{1,2}([/.-])9{1,2}\1(?:99)(?!9)", r"{1}\1{2}\1%y"),
    (r"^9{14}$", DIGITS[14]),
    (r"^9{12}$", DIGITS[12]),
    (r"^9{8}([ T_-])9{6}(?!9)", r"%Y%m%d\1%H%M%S"),
    (r"^9{8}([ T_-])9{4}(?!9)", r"%Y%m%d\1%H%M"),
    (r"^9{8}(?!9)", DIGITS[8]),
    (r"^(%Y.%m.%d[ T])99$", r"\1%H"),
    (r"(?<!9)9999(?!9)", "%Y"),
    (r"^([^9]*)9{1,2}(\W+%[bB]\W+)99(?!9)", r"\1%d\g<2>%y"),
    (r"(?<!9)9{1,2}(?!9)", "%d"),
]
# directives of which a time has one of a kind, the clock maybe none
_KINDS = {
    "%d": "day",
    **dict.fromkeys(("%m", "%b", "%B"), "month"),
    **dict.fromkeys(("%Y", "%y"), "year"),
    **dict.fromkeys(("%H", "%I"), "clock"),
}
_LITERALS = re.compile(r"(?: at |T|Z|GMT|UTC|[ /.,:_-])*")


class Shape(NamedTuple):
    """What is known of all texts of one shape; the first and third numbers are bounded, 0 without
    them."""

    rows: int
    first_is_day: int  # rows whose first number is 13 to 31
    second_is_day: int
    first: tuple[int, int]  # least and largest first number
    third: tuple[int, int]
    example: str


class _Order(NamedTuple):
    """The two readings of a date in numbers."""

    directives: tuple[str, str]
    words: str


_DAY_FIRST = _Order(("%d", "%m"), "day/month/year")
_MONTH_FIRST = _Order(("%m", "%d"), "month/day/year")


def add_shapes(parts: list[dict[str, Shape]]) -> dict[str, Shape]:
    """The shapes of all parts of a log together."""
    total: dict[str, Shape] = {}
    for part in parts:
        for shape, new in part.items():
            total[shape] = _add(total[shape], new) if shape in total else new
    return total


def choose_formats(shapes: Mapping[str, Shape], values: int, where: str) -> tuple[str, ...]:
    """Formats of the texts that are no ISO times; empty if they are too few of `values`, or of no
    known form.

    Raises DataError, which names both readings, where day and month cannot be told apart.
    """
    # decided by shapes, of which even a log of millions has a handful
    forms = {shape: form for shape in shapes if (form := form_of(shape))}

    # few such texts among ISO times: those are bad rows, no format
    if not sum(shapes[shape].rows for shape in forms) > (1 - ENOUGH) * values:
        return ()

    # days and months are told apart for each separator by itself: 13.04.2024 and 04/13/2024

    by_separator: dict[str, dict[str, Shape]] = {}
    for shape, form in forms.items():
        if "{1}" in form:
            by_separator.setdefault(form[form.index("{1}") + 3], {})[shape] = shapes[shape]

    orders = {
        separator: _order(separator, group, forms, where)
        for separator, group in by_separator.items()
    }

    return sort_formats(
        _ordered(form, orders[form[form.index("{1}") + 3]]) if "{1}" in form else form
        for form in forms.values()
    )


def sort_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Formats without duplicates in the order to try them: years of two digits first, `%Y` takes
    those too."""

    def order(text: str) -> tuple[bool, str]:
        return "%Y" in text, text

    return tuple(sorted(set(formats), key=order))


def form_of(shape: str) -> str | None:
    """The format of a shape, `{1}` and `{2}` for day and month in the order yet to be told; None
    for no time."""
    form = re.sub(r"\s+", " ", shape)
    for pattern, replacement in _RULES:
        form = re.sub(pattern, replacement, form, count=1)

    # exactly one day, month and year, one clock at most, and nothing but known words between them
    bare = form.replace("{1}", "%d").replace("{2}", "%m")
    directives = re.findall("%.", bare)
    kinds = collections.Counter(_KINDS.get(name, name) for name in directives)
    whole = kinds["day"] == kinds["month"] == kinds["year"] == 1 and kinds["clock"] <= 1
    return form if whole and _LITERALS.fullmatch(re.sub("%.", "", bare)) else None


def check_format(text: str) -> str | None:
    """What is wrong with a format that somebody wrote; None if it can be read by."""
    directives = re.findall("%(.?)", text)
    unknown = [name for name in directives if name not in DIRECTIVES]
    if unknown:
        return (
            f"%{unknown[0]} is not a directive of times; known: "
            f"{', '.join(f'%{d}' for d in sorted(DIRECTIVES))}"
        )

    # a day of the year (%j) stands for month and day
    given = set(directives)
    if not given & {*"yY"} or not ((given & {*"mbB"} and "d" in given) or "j" in given):
        return "year, month and day must be in it, for example %d/%m/%Y %H:%M"
    return None


def has_zone(form: str) -> bool:
    """Whether the times of a format are instants: they name an offset or a zone."""
    return has_offset(form) or bool(re.search(r"(?:GMT|UTC|%[SMHfp] ?Z)", form))


def has_offset(form: str) -> bool:
    """Whether a format reads an offset or a zone's name."""
    return "%z" in form or "%Z" in form


def reads_iso(formats: Sequence[str]) -> bool:
    """Whether ISO times may stand beside times in these formats: none of them has the day before
    the month there."""
    return not any(re.search("%Y.*%d.*%m", form) for form in formats)


def shown(formats: tuple[str, ...], shapes: Mapping[str, Shape]) -> str:
    """`'13/04/2024 08:00' is 2024-04-13 08:00:00` of the most frequent shape that a format can
    read."""
    for shape in sorted(shapes.values(), key=lambda shape: -shape.rows):
        for form in formats:
            try:
                return (
                    f"{shape.example!r} is {datetime.strptime(shape.example, form).isoformat(' ')}"
                )
            except ValueError:
                continue
    return ""


def _order(separator: str, group: dict[str, Shape], forms: Mapping[str, str], where: str) -> _Order:
    # rows that only one reading fits: a number above 12 must be the day
    rows = sum(shape.rows for shape in group.values())
    day_first = sum(shape.first_is_day for shape in group.values())
    month_first = sum(shape.second_is_day for shape in group.values())

    # the most frequent one stands for all in messages
    shape, most = max(group.items(), key=lambda item: (item[1].rows, item[0]))

    either = [_ordered(forms[shape], order) for order in (_DAY_FIRST, _MONTH_FIRST)]
    remedy = f"name the form with --time-format {either[0]!r} or --time-format {either[1]!r}"

    if min(day_first, month_first) > (1 - ENOUGH) * rows:
        raise DataError(
            f"{where} holds both {_DAY_FIRST.words} ({day_first:,} rows) and {_MONTH_FIRST.words} "
            f"({month_first:,} rows); write all times in one form, or {remedy}."
        )

    # with dots the day comes first everywhere
    if not day_first and not month_first and separator != ".":
        raise DataError(
            f"{where}: {most.example!r} fits {_DAY_FIRST.words} and {_MONTH_FIRST.words}, and no "
            f"other row tells which; {remedy}."
        )

    # 24-04-13 may be year-month-day with all years below 32
    year_first = [s for s in group if "%y" in forms[s] and _looks_year_first(group[s])]
    if year_first:
        example, sep = group[year_first[0]].example, separator
        raise DataError(
            f"{where}: {example!r} may begin with the day or with the year; name the form with "
            f"--time-format '%d{sep}%m{sep}%y' or '%y{sep}%m{sep}%d', and the clock after it."
        )

    return _MONTH_FIRST if month_first > day_first else _DAY_FIRST


# days spread over the month, while the years of a log are few
def _looks_year_first(shape: Shape) -> bool:
    """Whether the third number could be the day, and spreads wider than the first."""
    return (
        shape.third[1] <= 31 and shape.third[1] - shape.third[0] > shape.first[1] - shape.first[0]
    )


def _ordered(form: str, order: _Order) -> str:
    return form.replace("{1}", order.directives[0]).replace("{2}", order.directives[1])


def _add(one: Shape, two: Shape) -> Shape:
    return Shape(
        one.rows + two.rows,
        one.first_is_day + two.first_is_day,
        one.second_is_day + two.second_is_day,
        (min(one.first[0], two.first[0]), max(one.first[1], two.first[1])),
        (min(one.third[0], two.third[0]), max(one.third[1], two.third[1])),
        # the least, so that messages do not depend on the order of files
        min(one.example, two.example),
    )
