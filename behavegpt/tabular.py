"""Results as tables of any library, and how they look at the end of a notebook's cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

SHOWN_ROWS, SHOWN_VALUES = 10, 4  # of a table in a notebook, and of a list in a cell


class Tabular:
    """A result with rows and columns: `to_table` defines them, and every table library can have
    them.

    >>> class Ages(Tabular):
    ...     def to_table(self) -> pa.Table:
    ...         return pa.table({"user": ["ada", "bob"], "age": [36, 41]})
    >>> Ages().to_pandas()["age"].mean()
    np.float64(38.5)
    >>> Ages()
    Ages(2 rows: user, age)
    """

    def to_table(self) -> pa.Table:
        """The rows as an Arrow table."""
        raise NotImplementedError

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table; another name of `to_table`."""
        return self.to_table()

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame. Needs pandas."""
        return self.to_table().to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """The rows as a polars DataFrame. Needs polars (`pip install polars`)."""
        import polars

        frame = polars.from_arrow(self.to_table())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def __repr__(self) -> str:
        table = self.to_table()
        return f"{type(self).__name__}({table.num_rows:,} rows: {', '.join(table.column_names)})"

    def _repr_html_(self) -> str:
        # a notebook shows a glimpse; escaped by html_table, as labels are other people's text
        table = self.to_table()
        rows = table.slice(0, SHOWN_ROWS).to_pylist()
        more = f", the first {SHOWN_ROWS}" if table.num_rows > SHOWN_ROWS else ""
        caption = f"{type(self).__name__}: {table.num_rows:,} rows{more}"
        return html_table(table.column_names, [list(row.values()) for row in rows], caption)


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """An HTML table; every text is escaped, numbers are rounded to four digits.

    >>> table = html_table(["n"], [["<b>"]], "one")
    >>> table.removeprefix("<table><caption>one</caption><thead><tr><th>n</th></tr></thead>")
    '<tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    title = f"<caption>{html.escape(caption)}</caption>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)

    body = ""
    for row in rows:  # few: a notebook shows a glimpse
        cells = "".join(f"<td>{_cell(value)}</td>" for value in row)
        body += f"<tr>{cells}</tr>"
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_facts(title: str, facts: dict[str, object]) -> str:
    """An HTML table of names and values."""
    return html_table(["", ""], [[name, value] for name, value in facts.items()], title)


def _cell(value: object) -> str:
    """A value as escaped text; numbers short, of a list the first values."""
    if isinstance(value, list):
        text = ", ".join(map(_cell, value[:SHOWN_VALUES]))
        return f"[{text}, … {len(value)} values]" if len(value) > SHOWN_VALUES else f"[{text}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return ""
    # no bool, which is an int too
    return html.escape(f"{value:,}" if type(value) is int else str(value))
