"""What the commands print: stages, tables and progress; plain lines when the output is not a
terminal."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Update = Callable[[int, str], None]  # finished units, a note such as the current loss

PROSE = 40  # cells: what is longer in a table is a sentence
GAP = 2  # cells beside a column
WIDEST = 240  # cells of a table in a file or a pipe
LINE_EVERY = 10.0  # seconds between plain progress lines


def console() -> Console:
    """Standard error, so that standard output holds results alone."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())


def say(text: str) -> None:
    """One line for people."""
    console().print(escape(text))


def stage(number: int, of: int, name: str, text: str = "") -> None:
    """A numbered stage of a longer command."""
    console().print(f"[bold]\\[{number}/{of}] {escape(name):<12}[/bold] {escape(text)}")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    file: TextIO | None = None,
) -> None:
    """A table on `file` (default: standard error); every column but the first, and those of
    sentences, to the right. On a narrow terminal sentences are folded, so that names stay whole."""
    file = file or sys.stderr
    # of each column
    # in cells of a terminal, of which a Chinese character takes two
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    out = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )

    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        is_prose = width > PROSE
        left = index == 0 or is_prose
        out.add_column(column, justify="left" if left else "right", no_wrap=not is_prose)
    for row in rows:
        out.add_row(*(escape(cell) for cell in row))

    target = Console(file=file, highlight=False)
    # wide lines in a file or a pipe: nothing folds them there, and cells must stay whole
    if not file.isatty():
        target.width = max(target.width, min(sum(widths) + GAP * len(widths), WIDEST))
    target.print(out)


@contextmanager
def progress(label: str, total: int) -> Iterator[Update]:
    """A bar on a terminal and in a notebook, otherwise a plain line every ten seconds; yields
    update(done, note)."""
    # a bar redraws its line, which a log file would keep each time
    if not sys.stderr.isatty() and not _draws_widgets():
        yield _plain(label, total)
        return

    columns = (
        TextColumn("      {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )

    # transient: the finished bar goes, the result stays
    with Progress(
        *columns, TextColumn("{task.fields[note]}"), console=console(), transient=True
    ) as bar:
        task = bar.add_task(label, total=total, note="")

        def update(done: int, note: str) -> None:
            bar.update(task, completed=done, note=note)

        yield update


def _draws_widgets() -> bool:
    """Whether this is a notebook with ipywidgets, which rich draws its bars with."""
    return console().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def _plain(label: str, total: int) -> Update:
    """Plain lines, at most one in LINE_EVERY seconds: for logs."""
    # no line before the first ten seconds: short work needs none
    last = time.monotonic()

    def update(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            say(f"      {label} {done:,}/{total:,} {note}")

    return update
