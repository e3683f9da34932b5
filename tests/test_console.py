"""Tables for people."""

from __future__ import annotations

import io

import pytest

from behavegpt.console import table

BECAUSE = "it followed 'news' 4 of 6 times before; above all for 'news' at 2024-05-03 18:10"
ROWS = [["user-4711", "0.25", BECAUSE], ["user-4712", "0.50", "it was the last one"]]


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("file", "lines"), [(io.StringIO(), 3), (Terminal(), 5)])
def test_names_stay_whole_beside_sentences(
    file: io.StringIO, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "55")
    table(["user", "share", "because"], ROWS, file=file)
    text = file.getvalue()

    assert "user-4711" in text and "user-4712" in text and "…" not in text
    assert len(text.splitlines()) == lines
    if isinstance(file, Terminal):
        assert max(map(len, text.splitlines()[1:])) <= 55
    else:
        assert BECAUSE in text
