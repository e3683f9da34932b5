"""Text of others (labels, column and file names) in Markdown that we write: shown as it is, never
interpreted."""

from __future__ import annotations

import re

# `\:` and `\.` keep GitHub and the Hub from making links of bare addresses
_ESCAPED = re.compile(r"[\\`*|\[\]~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def plain(value: object) -> str:
    """One line that stands as it is in a paragraph or a table's cell: no link, HTML, emphasis or
    further cell.

    >>> plain("a|b [x](javascript:alert) <b>")
    'a\\\\|b \\\\[x\\\\](javascript:alert) &lt;b>'
    """
    # entities first: what is escaped below must not be escaped again
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _ESCAPED.sub(lambda found: "\\" + found[0], text)


def code(value: object) -> str:
    """One line as a code span, outside of tables; backticks become apostrophes.

    >>> code("user_id")
    '`user_id`'
    """
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text or ' '}`"
