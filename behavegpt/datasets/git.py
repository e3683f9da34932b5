"""An event log from the commit histories of local clones: who changed what, where and when, without
names.

One event per commit. The author is a salted hash of the mail, so that the log can be shared without
addresses; times are the author's wall clock. `git_words.yaml` says what becomes of subjects and who
is a bot.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import duckdb
import pyarrow as pa
import yaml

from behavegpt.config import dump_settings
from behavegpt.console import say
from behavegpt.data.database import connect, literal
from behavegpt.data.schema import EventSchema
from behavegpt.datasets.clock import add_clock
from behavegpt.datasets.git_card import write_card
from behavegpt.datasets.git_log import Repository, open_repository, read_commits
from behavegpt.errors import DataError
from behavegpt.io import workspace
from behavegpt.paths import local_path

SCHEMA = EventSchema(
    user="user_id",
    time="timestamp",
    event="activity",
    location="area",
    extra=("file_type",),
    order="order",
)
DAY = 86_400  # seconds; a commit before the second day of 1970 or after tomorrow has no valid time
MAX_SUBJECT = 200  # characters that are looked at for the activity
# of a 16-bit column
MAX_FILES = 65_535
# mails are few and known: with a short salt all of them can be tried
MIN_SALT = 8  # characters

# Before the first word: tags in brackets, components with a colon, issue keys and numbers,
# punctuation.
# `[core] fix` and `core: fix` are both a fix
SKIPPED = r"^(?:\s+|\[[^\]]*\]|\([^)]*\)|[^\s:]+:\s+|[a-z][a-z0-9_]*-\d+\S*|#?\d+\S*|[^a-z\s]+)+"
TYPE = r"^\s*([a-z0-9]+)(?:\([^()]*\))?!?:(?:\s|$)"  # of a conventional commit
WORD = r"[a-z]+(?:-[a-z]+)*"
SUFFIX = r"[^.]\.([^.\s]+)$"  # of a file's name; `.gitignore` has none

# two folders: deeper paths would make nearly each commit a place of its own
PER_FILE = f"""
select commit, position, case len(parts) when 1 then './' when 2 then parts[1] || '/'
  else parts[1] || '/' || parts[2] end as place,
  coalesce(nullif(left(lower(regexp_extract(parts[-1], {literal(SUFFIX)}, 1)), 8), ''), 'none')
    as suffix
from (select commit, position, string_split(path, '/') as parts from files)
"""


def _most(column: str) -> str:
    """SQL of each commit's most frequent `column`, the first of equally frequent ones."""
    return (
        f"(select commit, arg_max({column}, many * 4294967296 - first) as {column} from (select "
        f"commit, {column}, count(*) as many, min(position) as first from per_file group by "
        f"commit, {column}) group by commit)"
    )


# One block of commits to rows of the table `commits`.

READ = f"""
insert into commits
with per_file as materialized ({PER_FILE}),
sizes as (select commit, count(*) as files from per_file group by commit),
texts as (
  select commit, hash, trim(lower(mail)) as mail, trim(lower(name)) as name,
    try_cast(split_part(date, ' ', 1) as bigint) as epoch, split_part(date, ' ', 2) as zone,
    lower(left(subject, {MAX_SUBJECT})) as subject
  from headers),
parsed as (
  select *, regexp_extract(subject, {literal(TYPE)}, 1) as type,
    regexp_extract(regexp_replace(subject, {literal(SKIPPED)}, ''), {literal(WORD)}) as word,
    case when regexp_full_match(zone, '[+-]\\d\\d\\d\\d')
      then (zone[2:3]::int * 60 + zone[4:5]::int) * (case zone[1] when '-' then -1 else 1 end)
    end as minutes
  from texts)
select $number, $repository, parsed.commit, hash, coalesce(nullif(mail, ''), name) as author,
  regexp_matches(name, $bot_names) or regexp_matches(split_part(mail, '@', 1), $bots) as bot,
  case when epoch between {DAY} and $latest then epoch end as epoch,
  case when minutes between -720 and 840 and minutes % 15 = 0 then minutes else 0 end as minutes,
  place, suffix, coalesce(files, 0),
  coalesce(types.activity, joined.activity, single.activity, 'other')
from parsed
left join sizes using (commit)
left join {_most("place")} using (commit)
left join {_most("suffix")} using (commit)
left join types on types.word = type
left join words as joined on joined.word = replace(parsed.word, '-', '')
left join words as single on single.word = split_part(parsed.word, '-', 1)
"""

# the author in clear: bots and the card need it; only LOG, which hashes it, is written out
TABLE = """
create table commits (number int, repository varchar, commit bigint, hash varchar, author varchar,
  bot boolean, epoch bigint, minutes int, place varchar, suffix varchar, files bigint,
  activity varchar)
"""

# What is left out and why; the first reason that holds counts.
# one reason a commit, so that the card's numbers add up
DROP = """
create table judged as select *, case
  when row_number() over (partition by hash order by number) > 1 then 'in an earlier repository too'
  when bot then 'bot'
  when author = '' then 'no author'
  when epoch is null then 'no valid time'
  when files = 0 then 'no files' end as dropped
from commits
"""

# 15 hex digits: 60 bits, which fit a signed 64-bit integer
LOG = f"""
select user_id, timestamp, utc_offset, repository, area, activity, file_type, files,
  (row_number() over (partition by user_id order by timestamp, epoch, number, commit desc) - 1)
    ::integer as "order"
from (
  select ('0x' || left(sha256($salt || author), 15))::bigint as user_id,
    make_timestamp((epoch + minutes * 60) * 1000000)::timestamp_ms as timestamp,
    printf('%s%02d:%02d', if(minutes < 0, '-', '+'), abs(minutes) // 60, abs(minutes) % 60)
      as utc_offset,
    repository, repository || ':' || place as area, activity, suffix as file_type,
    least(files, {MAX_FILES})::usmallint as files, epoch, number, commit
  from judged where dropped is null)
order by user_id, "order"
"""


def checked_salt(salt: str | None) -> str:
    """The salt, or a random one for None. Raises DataError for one that can be guessed."""
    if salt is not None and len(salt) < MIN_SALT:
        raise DataError(
            f"the salt has {len(salt)} characters and can be guessed; give at least {MIN_SALT}, "
            "or none."
        )
    return secrets.token_hex(16) if salt is None else salt


def convert_git(
    sources: Sequence[str | Path],
    out: str | Path,
    salt: str | None = None,
    clock: float | None = None,
) -> EventSchema:
    """Write the commits of the clones `sources` as a parquet log to `out`; return its schema.

    NAME.schema.yaml and a data card, NAME.card.md, go beside it. Equal `salt` and mail give the
    same user_id in every log; by default the salt is random and forgotten. `clock`: days between
    the ticks of `clock.py`, none without it. Raises DataError.
    """
    # the salt before anything is read: a bad one must not cost an hour
    out, secret = local_path(out), checked_salt(salt)
    if out.is_dir():
        raise DataError(f"{out}: a folder; give the name of the parquet file to write.")

    repositories = _distinct([open_repository(local_path(source)) for source in sources])
    for repository in repositories:
        if repository.shallow:
            say(
                f"warning: {repository.folder} is a shallow clone: its history was cut off, and "
                "its oldest commits seem to add every file; run git fetch --unshallow there first."
            )

    with workspace(out) as work, connect(work) as con:
        _read(con, repositories)

        # judged before anything is written: the card counts what is left out
        con.execute(DROP)
        part, schema = work / "log.parquet", SCHEMA
        con.execute(
            f"copy ({LOG}) to {literal(part)} (format parquet, compression zstd)",
            {"salt": secret},
        )

        card = work / "card.md"
        write_card(con, card, part, repositories, salted=salt is not None)

        if clock is not None:
            plain, part = part, work / "ticking.parquet"
            schema = add_clock(con, plain, part, schema, clock)

        # all three get their names when all three are complete
        described = work / "schema.yaml"
        described.write_text(dump_settings(schema), encoding="utf-8")
        os.replace(part, out)
        os.replace(described, out.with_suffix(".schema.yaml"))
        os.replace(card, out.with_suffix(".card.md"))
    return schema


def _distinct(repositories: list[Repository]) -> list[Repository]:
    """Each repository once, those of one name told apart by the folder they are in. Raises
    DataError."""
    for folder, times in Counter(repository.folder for repository in repositories).items():
        if times > 1:
            raise DataError(f"{folder}: given {times} times; name every repository once.")

    names = Counter(repository.name for repository in repositories)
    longer = [
        repository._replace(name=f"{repository.folder.parent.name}/{repository.name}")
        if names[repository.name] > 1
        else repository
        for repository in repositories
    ]

    for name, times in Counter(repository.name for repository in longer).items():
        if times > 1:
            raise DataError(
                f"{times} of the repositories are called {name}; rename the folder of one of them."
            )

    return longer


def _read(con: duckdb.DuckDBPyConnection, repositories: list[Repository]) -> None:
    """Fill the table `commits`."""
    words = yaml.safe_load(
        files("behavegpt.datasets").joinpath("git_words.yaml").read_text(encoding="utf-8")
    )
    con.register("types", _word_table(words["prefixes"]))
    activity_of = {
        word: activity
        for activity, more in words["activities"].items()
        for word in [activity, *more.split()]
    }
    con.register("words", _word_table(activity_of))

    bots, names = _any_of(words["bots"]), _any_of(words["bot_names"])
    # names get the rules of mails too: `dependabot[bot]` stands in either
    fixed = {"bots": bots, "bot_names": f"{bots}|{names}", "latest": int(time.time()) + DAY}

    con.execute(TABLE)

    for number, repository in enumerate(repositories):
        count = 0
        # in blocks: the file lists of a large repository would not fit
        for headers, paths in read_commits(repository):
            con.register("headers", headers)
            con.register("files", paths)
            con.execute(READ, {**fixed, "number": number, "repository": repository.name})
            count += len(headers)
        say(f"{repository.name}: {count:,} commits")


def _word_table(activity_of: dict[str, str]) -> pa.Table:
    """word, activity: one row a word."""
    return pa.table({"word": list(activity_of), "activity": list(activity_of.values())})


def _any_of(rules: Sequence[str]) -> str:
    """A regular expression that matches what any of the rules matches."""
    return "|".join(f"(?:{rule})" for rule in rules)
