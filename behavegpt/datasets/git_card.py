"""The data card of a log of commits: repositories, users, dates, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from behavegpt.data.database import literal, one_row
from behavegpt.datasets.git_log import Repository
from behavegpt.errors import DataError
from behavegpt.ingest.card import markdown_table

# by whether the salt was given
# whoever shares the log must know what the hash hides, and what not
SALTS = {
    False: "with a random salt that was not kept: the numbers mean nothing outside this log",
    True: (
        "with the salt given: whoever has it can test whether a mail is in the log, so keep it "
        "secret"
    ),
}

# the text of the card in one piece, as it is read
CARD = """# Data card: commits of {number} {repositories}

- {rows:,} commits (events) of {users:,} users, local times from {first} to {last}
- read from HEAD with `git log --no-merges --no-renames --name-only`; names and mails \
go through the mailmap
- `user_id`: the author's mail in lower case (the name where there is none), \
hashed {salt}
- `timestamp`: the author's wall clock; `utc_offset`: that clock's zone (+00:00 \
where git has none that exists)
- `area`: `repository:dir/dir`, where most of the files are; \
`file_type`: the most frequent suffix; `files`: how many
- `activity`: the first word of the subject, folded by the table `git_words.yaml`; \
other words are `other`
- `order`: the user's commits in time, parents before children

Names, mails, subjects, paths below two folders and commit hashes are not in the log. \
It is pseudonymous, not anonymous:
whoever has the repositories can find a commit by its time and area. Treat a log \
of private repositories like them.

## Repositories

{table}

## Left out

{dropped}

Bots are authors whose name or mail matches a rule of `git_words.yaml`. A time is valid \
from 2 January 1970 to the day
after the log was made. Merges are not read at all.
"""


def write_card(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    log: Path,
    repositories: Sequence[Repository],
    *,
    salted: bool,
) -> None:
    """Write the card of `log` as Markdown to `path`, from the table `judged`. Raises DataError for
    an empty log."""
    # without fractions of a second: git has none
    rows, users, first, last = one_row(
        con,
        "select count(*), count(distinct user_id), min(timestamp)::timestamp(0)::varchar, "
        f"max(timestamp)::timestamp(0)::varchar from {literal(log)}",
    )

    reasons = con.execute(
        "select dropped, count(*), count(distinct author) from judged where dropped is not null "
        "group by dropped order by 2 desc, 1"
    ).fetchall()

    # why nothing is left helps more than that nothing is
    if not rows:
        left_out = ", ".join(f"{reason}: {count:,}" for reason, count, _ in reasons)
        raise DataError(
            f"no commit is left for the log ({left_out or 'only merges'}); give repositories "
            "that people committed files to."
        )

    text = CARD.format(
        number=len(repositories),
        repositories="repository" if len(repositories) == 1 else "repositories",
        rows=rows,
        users=users,
        first=first,
        last=last,
        salt=SALTS[salted],
        table=_repositories(con, repositories),
        dropped=markdown_table(
            ("reason", "commits", "authors"),
            [(r, f"{n:,}", f"{a:,}") for r, n, a in reasons] or [("none", "0", "0")],
        ),
    )

    path.write_text(text, encoding="utf-8")


def _repositories(con: duckdb.DuckDBPyConnection, repositories: Sequence[Repository]) -> str:
    # of the dates those of kept commits: a wrong clock is among the others
    counted = con.execute(
        "select number, count(*), count(*) filter (dropped is null), "
        "count(distinct author) filter (dropped is null), "
        "coalesce(min(make_timestamp(epoch * 1000000)) filter (dropped is null)::date::varchar, "
        "'-'), coalesce(max(make_timestamp(epoch * 1000000)) filter (dropped is "
        "null)::date::varchar, '-') from judged group by number order by number"
    ).fetchall()

    rows = []
    for number, read, kept, users, first, last in counted:
        repository = repositories[number]
        name = repository.name + (" (shallow)" if repository.shallow else "")
        rows.append((name, f"{read:,}", f"{kept:,}", f"{users:,}", first, last))

    return markdown_table(
        ("repository", "commits read", "kept", "users", "first", "last (UTC)"), rows
    )
