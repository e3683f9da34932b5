"""Behavior that must not move unnoticed; `make golden` rewrites the files beside this one on
purpose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cases import CASES, Workplace, result

FOLDER = Path(__file__).parent
RELATIVE = 1e-5  # other processors and BLAS libraries sum in another order
ABSOLUTE = {"vectors": 1e-4, "profile": 1e-3}  # standardized vectors, float16 ones; else 1e-6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("case", CASES)
def test_nothing_has_moved(case: str, place: Workplace) -> None:
    expected = json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8"))
    moved = list(differences(result(case, place), expected, ABSOLUTE.get(case, 1e-6)))
    assert not moved, (
        f"{len(moved)} values moved: {'; '.join(moved[:5])}. If that is meant: make golden"
    )


def differences(found: Any, expected: Any, absolute: float, where: str = "") -> Iterator[str]:
    """Where two trees differ: numbers with a fraction beyond the tolerance, all else at all."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        for name in expected:
            yield from differences(found[name], expected[name], absolute, f"{where}/{name}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, absolute, f"{where}/{index}")
    elif isinstance(expected, float) and isinstance(found, (float, int)):
        if not math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=absolute):
            yield f"{where} {expected} -> {found}"
    elif found != expected:
        yield f"{where} {expected!r} -> {found!r}"


@pytest.mark.parametrize(
    "found,expected,moved",
    [
        ({"a": [1, 2.0]}, {"a": [1, 2.000001]}, []),
        ({"a": [1, 2.0]}, {"a": [1, 2.1]}, ["/a/1 2.1 -> 2.0"]),
        ({"a": 1}, {"a": 2}, ["/a 2 -> 1"]),
        ({"a": "x"}, {"b": "x"}, [" {'b': 'x'} -> {'a': 'x'}"]),
        ([1, 2], [1], [" [1] -> [1, 2]"]),
        ([float("nan")], [1.0], ["/0 1.0 -> nan"]),
    ],
)
def test_what_counts_as_a_difference(found: Any, expected: Any, moved: list[str]) -> None:
    assert list(differences(found, expected, 1e-6)) == moved
