"""Commit histories as an event log, on repositories that git itself made."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import yaml

from behavegpt.cli import main
from behavegpt.data.schema import read_schema
from behavegpt.datasets import git as git_module
from behavegpt.datasets import git_log
from behavegpt.datasets.git import convert_git
from behavegpt.errors import DataError
from tests.conftest import ROOT
from tests.datasets.repositories import Commit, git, repository

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

SALT = "any secret"
COLUMNS = [
    "user_id",
    "timestamp",
    "utc_offset",
    "repository",
    "area",
    "activity",
    "file_type",
    "files",
    "order",
]


def log_of(folder: Path, *commits: Commit, salt: str | None = SALT) -> pd.DataFrame:
    """The log of one repository with these commits, in the order in which they were made."""
    source = repository(folder / "proj", commits)
    convert_git([source], folder / "log.parquet", salt)
    return pd.read_parquet(folder / "log.parquet").sort_values(
        ["user_id", "order"], ignore_index=True
    )


def test_columns(tmp_path: Path) -> None:
    frame = log_of(
        tmp_path,
        Commit("Fixes the parser\n\nlong text", ("src/core/a.c", "src/core/b.c", "docs/a.md")),
        Commit("whatever", ("README",), "1700000000 +0100"),
        Commit("feat(api): call", ("lib/x.tar.gz",), "1600000000 -0730"),
    )
    assert list(frame.columns) == COLUMNS
    assert frame.drop(columns="user_id").astype({"timestamp": str}).to_numpy().tolist() == [
        ["2020-09-13 04:56:40", "-07:30", "proj", "proj:lib/", "add", "gz", 1, 0],
        ["2023-11-14 23:13:20", "+01:00", "proj", "proj:src/core", "fix", "c", 3, 1],
        ["2023-11-14 23:13:20", "+01:00", "proj", "proj:./", "other", "none", 1, 2],
    ]
    schema = read_schema(tmp_path / "log.schema.yaml")
    assert (schema.event, schema.location, schema.order, schema.extra) == (
        "activity",
        "area",
        "order",
        ("file_type",),
    )


def test_schema_is_that_of_git_activity(tmp_path: Path, shared_data) -> None:  # type: ignore[no-untyped-def]
    log_of(tmp_path, Commit())
    ours, theirs = (
        {row[0]: row[1] for row in duckdb.sql(f"describe from '{path}'").fetchall()}
        for path in (tmp_path / "log.parquet", shared_data("git_activity.parquet"))
    )
    assert list(ours) == list(theirs)
    # a hash needs 64 bits, a running number does not
    assert ours | {"user_id": "INTEGER"} == theirs


ACTIVITIES = {
    "fix": ("Fix it", "fixes #3", "fixup! x", "FIXED: a leak", "bugfix", "Fix(core)!: it",
            "netty: fixing it", "[FOO-1] Fix it"),
    "add": ("feat: x", "feat(parser)!: x", "Adding x", "added x", "HHH-1 Add x", ":tada: add x",
            "package/foo: add x", "(tag) [x] add"),
    "clean": ("clean-up", "Cleanup of x", "#12 cleaned"),
    "update": ("Update x", "x86: mm: Updated it", "  updates", "Update-only"),
    "avoid": ("don't crash", "do-nt: avoid it"),
    "document": ("docs: fix typo", "Doc of x", "Document it", "DOC: add x"),
    "chore": ("chore(deps): bump x", "MAINT: drop x"),
    "merge": ("Merge pull request #1",),
    "optimize": ("perf(x): fix it", "Optimise x"),
    "revert": ('Revert "Add x"', "reverts x"),
    "other": ("", "Zebra", "été", "修复", "1.2.3", "::", "((", "[", "]", "the fix"),
}  # fmt: skip


def test_activities(tmp_path: Path) -> None:
    cases = [
        (subject, activity) for activity, subjects in ACTIVITIES.items() for subject in subjects
    ]
    frame = log_of(tmp_path, *(Commit(subject) for subject, _ in cases))
    assert list(zip([subject for subject, _ in cases], frame["activity"], strict=True)) == cases


def test_words_are_told_once_and_lead_to_activities() -> None:
    table = yaml.safe_load(
        Path(git_module.__file__).with_name("git_words.yaml").read_text(encoding="utf-8")
    )
    activities = table["activities"]
    words = [word for activity, more in activities.items() for word in [activity, *more.split()]]
    assert len(words) == len(set(words)) and all(
        word.isascii() and word.isalpha() for word in words
    )
    assert set(table["prefixes"].values()) <= set(activities) and "other" not in activities


AUTHORS = {
    ("dependabot[bot]", "49699333+dependabot[bot]@users.noreply.github.com"): True,
    ("Ann", "my-bot@example.org"): True,
    ("Release Bot", "ann@example.org"): True,
    ("rustbot", "x@example.org"): True,
    ("Travis CI", "x@example.org"): True,
    ("Renovate", "x@example.org"): True,
    ("GitHub Actions", "x@example.org"): True,
    ("jenkins", "x@example.org"): True,
    ("Ann Talbot", "talbot@example.org"): False,
    ("Travis Lee", "travis@example.org"): False,
    ("Kim Jenkins", "jenkins@example.org"): False,
    ("Robert Abbott", "x@bot.example.org"): False,
    ("Lucille", "lucille@ci.example.org"): False,
}


def test_bots(tmp_path: Path) -> None:
    commits = [
        Commit(str(i), name=name, mail=mail, paths=(f"d{i}/x",))
        for i, (name, mail) in enumerate(AUTHORS)
    ]
    frame = log_of(tmp_path, *commits)
    kept = [f"proj:d{i}/" in set(frame["area"]) for i in range(len(AUTHORS))]
    assert dict(zip(AUTHORS, kept, strict=True)) == {
        author: not bot for author, bot in AUTHORS.items()
    }
    assert f"| bot | {sum(AUTHORS.values())} | " in (tmp_path / "log.card.md").read_text()


DATES = {  # as git keeps them -> local time and offset, None: dropped
    "1700000000 +0545": ("2023-11-15 03:58:20", "+05:45"),
    "1700000000 -0330": ("2023-11-14 18:43:20", "-03:30"),
    "1700000000 +1400": ("2023-11-15 12:13:20", "+14:00"),
    "1700000000 +51800": ("2023-11-14 22:13:20", "+00:00"),
    "1700000000 +9900": ("2023-11-14 22:13:20", "+00:00"),
    "1700000000 -0007": ("2023-11-14 22:13:20", "+00:00"),
    "90000 +0000": ("1970-01-02 01:00:00", "+00:00"),
    "0 +0000": None,
    "4102444800 +0200": None,
    "99999999999999999999 +0000": None,
    "-100 +0000": None,
    "yesterday": None,
    "": None,
}


def test_dates(tmp_path: Path) -> None:
    """Dates that fast-import refuses are written as commit objects, as broken tools once did."""
    source = repository(tmp_path / "proj", [Commit(paths=("d/x",))])
    inner = git(source, "rev-parse", "HEAD:d").decode().strip()
    for number, date in enumerate(DATES):
        folders = "".join(f"040000 tree {inner}\td{i}\n" for i in range(number + 1))
        tree = (
            git(source, "mktree", stdin=f"{folders}040000 tree {inner}\td\n".encode())
            .decode()
            .strip()
        )
        parent = git(source, "rev-parse", "HEAD").decode().strip()
        text = (
            f"tree {tree}\nparent {parent}\nauthor A <a@b> {date}\ncommitter C <c@d> 1700000000 "
            "+0000\n\nAdd\n"
        )
        commit = git(
            source,
            "hash-object",
            "-t",
            "commit",
            "-w",
            "--stdin",
            "--literally",
            stdin=text.encode(),
        )
        git(source, "update-ref", "HEAD", commit.decode().strip())
    convert_git([source], tmp_path / "log.parquet")
    frame = pd.read_parquet(tmp_path / "log.parquet").astype({"timestamp": str})
    told = dict(
        zip(frame["area"], zip(frame["timestamp"], frame["utc_offset"], strict=True), strict=True)
    )
    seen = {date: told.get(f"proj:d{i}/") for i, date in enumerate(DATES)}
    assert seen == DATES
    assert "| no valid time | " in (tmp_path / "log.card.md").read_text()


PATHS: list[tuple[tuple[str | bytes, ...], str, str, int]] = [
    (("a.py",), "./", "py", 1),
    (("src/a.PY",), "src/", "py", 1),
    (("src/x/y/z/a.tar.gz",), "src/x", "gz", 1),
    ((".gitignore",), "./", "none", 1),
    (("Makefile", "a/.b.yml"), "./", "none", 2),
    (("a/1.py", "b/2.rs", "b/3.rs"), "b/", "rs", 3),
    (("a/1.py", "b/2.rs"), "a/", "py", 2),
    (("application.properties",), "./", "properti", 1),
    (('"odd\\nname\\t\\"q\\".py"',), "./", "py", 1),
    (('"\\nfirst/x.c"',), "\nfirst/", "c", 1),
    ((b'"caf\\351/\\377.c"',), "caf\ufffd/", "c", 1),
    (("é/ü.ß",), "é/", "ß", 1),
    ((" space /a b.c",), " space /", "c", 1),
    (("a./b.",), "a./", "none", 1),
]


def test_paths(tmp_path: Path) -> None:
    frame = log_of(tmp_path, *(Commit(str(i), paths) for i, (paths, *_) in enumerate(PATHS)))
    seen = frame[["area", "file_type", "files"]].to_numpy().tolist()
    assert seen == [[f"proj:{area}", suffix, files] for _, area, suffix, files in PATHS]


def test_odd_commits_do_not_break_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No files, no subject, no mail, huge or undecodable subjects, many files; also in blocks cut
    anywhere."""
    commits = [
        Commit("Add nothing", ()),
        Commit(""),
        Commit(b"\xff\xfe fix \x01\x07"),
        Commit("Fix " + "é" * 200_000),
        Commit("/slash/", ("x/y.py",)),
        Commit("many", tuple(f"m/{i}.c" for i in range(3000))),
        Commit("Add", name="Anonymous", mail=""),
        Commit("Add", name="", mail=""),
    ]
    frame = log_of(tmp_path, *commits)
    assert len(frame) == 6 and frame["files"].max() == 3000 and frame["user_id"].nunique() == 2
    card = (tmp_path / "log.card.md").read_text()
    assert "| no files | 1 | 1 |" in card and "| no author | 1 | 1 |" in card
    whole = (tmp_path / "log.parquet").read_bytes()
    monkeypatch.setattr(git_log, "BLOCK", 50)
    convert_git([tmp_path / "proj"], tmp_path / "log.parquet", SALT)
    assert (tmp_path / "log.parquet").read_bytes() == whole


def test_authors_are_hashed_and_the_mailmap_is_respected(tmp_path: Path) -> None:
    mailmap = b"Ann <ann@example.org> <old@example.org>\n"
    commits = [
        Commit(),
        Commit(mail="old@example.org"),
        Commit(mail="ANN@example.org"),
        Commit(mail="bo@example.org"),
    ]
    source = repository(tmp_path / "proj", commits)
    (source / ".mailmap").write_bytes(mailmap)

    def users(salt: str | None) -> list[int]:
        convert_git([source], tmp_path / "log.parquet", salt)
        return sorted(set(pd.read_parquet(tmp_path / "log.parquet")["user_id"]))

    assert len(users("secret a")) == 2 and users("secret a") == users("secret a") != users(
        "secret b"
    )
    assert users(None) != users(None)
    for path in tmp_path.glob("log.*"):
        text = path.read_bytes().lower()
        assert b"example.org" not in text and b"ann" not in text.replace(b"cannot", b""), path


def test_several_repositories(tmp_path: Path) -> None:
    """Names told apart, commits that two clones share once, users over all of them, any kind of
    repository."""
    one = repository(
        tmp_path / "a" / "core",
        [Commit("Add a", ("x/1",)), Commit("Fix b", ("x/2",), mail="bo@x.y")],
    )
    two = repository(tmp_path / "b" / "core", [Commit("Add c", ("x/3",), "1700000100 +0000")])
    git(tmp_path, "clone", "-q", "--bare", str(one), "fork.git")
    git(one, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    convert_git(
        [one, two / ".git", tmp_path / "fork.git", tmp_path / "tree"],
        tmp_path / "log.parquet",
        SALT,
    )
    frame = pd.read_parquet(tmp_path / "log.parquet").sort_values("timestamp")
    assert (
        sorted(frame["repository"]) == ["a/core", "a/core", "b/core"]
        and frame["user_id"].nunique() == 2
    )
    card = (tmp_path / "log.card.md").read_text()
    assert "| in an earlier repository too | 4 | 2 |" in card
    assert (
        "| a/core | 2 | 2 | 2 | 2023-11-14 | 2023-11-14 |" in card
        and "| fork | 2 | 0 | 0 | - | - |" in card
    )


def test_settings_of_the_users_git_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository(tmp_path / "proj", [Commit("Add", ("é/1.py", "x/b.py"))])
    convert_git([source], tmp_path / "log.parquet", SALT)
    plain = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "config").write_text(
        "[log]\n showSignature = true\n showRoot = false\n date = iso\n mailmap = false\n follow "
        "= true\n"
        "[color]\n ui = always\n[diff]\n relative = true\n renames = copies\n orderFile = "
        "/dev/null\n"
        "[format]\n pretty = fuller\n[i18n]\n logOutputEncoding = latin1\n[core]\n quotePath = "
        "true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    convert_git([source], tmp_path / "log.parquet", SALT)
    assert (tmp_path / "log.parquet").read_bytes() == plain


def test_a_shallow_clone_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = repository(tmp_path / "proj", [Commit(), Commit()])
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{source}", "cut")
    convert_git([tmp_path / "cut"], tmp_path / "log.parquet")
    assert "shallow clone" in " ".join(capsys.readouterr().err.split())
    assert "| cut (shallow) | 1 |" in (tmp_path / "log.card.md").read_text()


MISTAKES = {
    "missing": "no such folder",
    "plain": "not a git repository",
    "empty": "no commits yet",
    "proj/src": r"a folder inside the repository .*proj; give that folder",
    "proj proj": "given 2 times",
    "bots": r"no commit is left for the log \(bot: 1\)",
    "damaged": r"git log failed \(.*\); try `git fsck`",
    "u/a/x u2/a/x": "2 of the repositories are called a/x; rename",
}


@pytest.mark.parametrize("sources", list(MISTAKES))
def test_mistakes(sources: str, tmp_path: Path) -> None:
    for name in ("proj", "damaged", "u/a/x", "u2/a/x"):
        repository(tmp_path / name, [Commit(str(i)) for i in range(3)])
    repository(tmp_path / "bots", [Commit(name="x[bot]")])
    for name in ("plain", "proj/src"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    _remove_object(
        tmp_path / "damaged", git(tmp_path / "damaged", "rev-parse", "HEAD~1").decode().strip()
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=MISTAKES[sources]):
        convert_git([tmp_path / name for name in sources.split()], tmp_path / "log.parquet")
    assert sorted(tmp_path.rglob("*")) == before


def _remove_object(folder: Path, name: str) -> None:
    """Unpack a repository's objects and delete one of them."""
    for pack in (folder / ".git" / "objects" / "pack").glob("*.pack"):
        content = pack.read_bytes()
        pack.unlink()
        pack.with_suffix(".idx").unlink()
        git(folder, "unpack-objects", "-q", stdin=content)
    (folder / ".git" / "objects" / name[:2] / name[2:]).unlink()


def test_mistakes_outside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = repository(tmp_path / "proj", [Commit()])
    with pytest.raises(DataError, match=r"a folder; give the name of the parquet file"):
        convert_git([source], tmp_path)
    with pytest.raises(DataError, match="the salt has 0 characters and can be guessed"):
        convert_git([source], tmp_path / "log.parquet", "")
    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        with pytest.raises(
            DataError, match=r"dubious ownership .*; run git config --global --add safe.directory /"
        ):
            convert_git([source], tmp_path / "log.parquet")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="git was not found on the PATH; install git"):
        convert_git([source], tmp_path / "log.parquet")


def test_from_clone_to_prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """convert, then a dry run that guesses the columns, then prepare with the schema beside the
    log."""
    commits = [
        Commit(("Add", "Fix", "Remove")[i % 3], date=f"{1_600_000_000 + i * 9000} +0100")
        for i in range(60)
    ]
    source, log = repository(tmp_path / "proj", commits), tmp_path / "out" / "log.parquet"
    assert main(["convert", "git", str(source), "--out", str(log), "--salt", SALT]) == 0
    assert main(["prepare", str(log), "--dry-run", "--json"]) == 0
    schema = yaml.safe_load(capsys.readouterr().out)["schema"]
    assert {role: schema[role] for role in ("user", "time", "event", "location")} == {
        "user": "user_id",
        "time": "timestamp",
        "event": "activity",
        "location": "area",
    }
    beside = str(log.with_suffix(".schema.yaml"))
    assert main(["prepare", str(log), "--schema", beside, "--out", str(tmp_path / "data")]) == 0
    assert "60 events of 1 users" in capsys.readouterr().err
    assert main(["convert", "git", str(source), "--out", str(log), "--clock", "7"]) == 0
    assert set(pd.read_parquet(log)["activity"]) == {"add", "fix", "remove", "tick"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["taobao", "x", "--salt", "s"], "--salt is for git and web_log"),
     (["taobao", "x", "y"], "one download, not 2"),
     (["gitt", "x"], "Did you mean 'git'?"),
     (["git", "x", "--clock", "0"], "--clock 0.0: must be a number of days above 0"),
     (["taobao", "x", "--clock", "nan"], "--clock nan: must be a number of days above 0")],
)  # fmt: skip
def test_options_of_other_logs(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *arguments, "--out", str(tmp_path / "log.parquet")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_own_history(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not run from a clone")
    convert_git([ROOT], tmp_path / "log.parquet")
    frame = pd.read_parquet(tmp_path / "log.parquet")
    assert (
        len(frame)
        and frame["area"].str.startswith(f"{ROOT.name}:").all()
        and frame.notna().all(axis=None)
    )


@pytest.mark.slow
def test_a_hundred_thousand_commits_in_seconds(tmp_path: Path) -> None:
    """CPU time, git's included, so that a busy machine does not matter."""
    commits = (
        Commit(
            "Fix it",
            (f"d{i % 7}/e{i % 11}/f{i % 13}.py", f"d{i % 5}/g.c"),
            f"{1_300_000_000 + i * 999} +0100",
            mail=f"u{i % 997}@example.org",
        )
        for i in range(100_000)
    )
    source = repository(tmp_path / "proj", commits)
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    convert_git([source], tmp_path / "log.parquet")
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(
        b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime
        for a, b in zip(before, after, strict=True)
    )
    assert len(pd.read_parquet(tmp_path / "log.parquet")) == 100_000 and spent < 20, spent
