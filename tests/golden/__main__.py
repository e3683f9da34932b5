"""Rewrite the golden files, on purpose: python -m tests.golden [CASE ...]; the commit says why they
moved."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CASES, Workplace, result

FOLDER = Path(__file__).parent
# of plain values, which `indent` would give a line each
LIST = re.compile(r"\[\s+([^][{}]*?)\s+\]")


def on_one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r",\s+", ", ", match[1]) + "]"


def rewrite(cases: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        for case in cases:
            text = json.dumps(result(case, place), indent=1, sort_keys=True)
            (FOLDER / f"{case}.json").write_text(
                LIST.sub(on_one_line, text) + "\n", encoding="utf-8"
            )
            print(f"wrote {case}.json", file=sys.stderr)


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(CASES)
    if unknown:
        sys.exit(f"no golden case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    rewrite(sys.argv[1:] or list(CASES))
