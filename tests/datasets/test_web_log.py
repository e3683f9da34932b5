"""Access logs: the documented formats, what is left out, and files that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from behavegpt.cli import main
from behavegpt.data.schema import read_schema
from behavegpt.datasets.web_log import SCHEMA, convert_web_log
from behavegpt.errors import DataError

SALT = "a long secret"
STAMP = "[10/Oct/2000:13:55:36 -0700]"
# as in the documentation of Apache's mod_log_config
COMMON = f'127.0.0.1 - frank {STAMP} "GET /apache_pb.html HTTP/1.0" 200 2326'
COMBINED = f'{COMMON} "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)"'


def converted(folder: Path, *lines: str, salt: str | None = SALT) -> pd.DataFrame:
    (folder / "access.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    convert_web_log([folder / "access.log"], folder / "log.parquet", salt)
    return pd.read_parquet(folder / "log.parquet")


@pytest.mark.parametrize(
    "line",
    [COMMON, COMBINED, f"www.example.com:80 {COMBINED}", COMBINED.replace(" (Win98", r" \"q\" (W")],
    ids=["common", "combined", "vhost", "escaped quotes"],
)
def test_a_request_of_each_format(tmp_path: Path, line: str) -> None:
    row = converted(tmp_path, line).iloc[0]
    assert row["timestamp"] == pd.Timestamp("2000-10-10 13:55:36")  # the server's wall clock
    assert (row["page"], row["method"], row["status"]) == ("/apache_pb.html", "GET", "200")
    assert len(row["user_id"]) == 16 and "frank" not in str(row.to_dict())
    assert read_schema(tmp_path / "log.schema.yaml") == SCHEMA


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (("GET /apache_pb.html", "POST /a/b?q=1#top"), "/a/b"),
        (("GET /apache_pb.html", "GET https://example.com/tea"), "/tea"),
        (("html HTTP/1.0", "gif HTTP/1.0"), None),
        (('" 200', '" 404'), None),
        (("GET /apache_pb.html HTTP/1.0", r"\x16\x03\x01"), None),
        (("Mozilla/4.08", "Googlebot/2.1"), None),
    ],
)
def test_what_is_a_page_and_what_is_left_out(tmp_path, change, kept) -> None:
    frame = converted(tmp_path, COMBINED.replace("frank", "ann"), COMBINED.replace(*change))
    assert frame["page"].tolist() == ["/apache_pb.html", *([kept] if kept else [])]


def test_a_visitor_is_a_login_or_else_an_address_with_a_browser(tmp_path: Path) -> None:
    plain = COMBINED.replace("frank", "-")
    lines = [COMBINED, COMBINED.replace("127.0.0.1", "127.0.0.2"), plain, plain[:-2] + 'X"', plain]
    first = converted(tmp_path, *lines)
    user = first["user_id"].tolist()
    assert user[0] == user[1] and user[2] == user[4] and len(set(user)) == 3
    assert converted(tmp_path, *lines)["user_id"].tolist() == user
    assert not set(converted(tmp_path, *lines, salt=None)["user_id"]) & set(user)


def test_rotated_files_are_one_log_in_time(tmp_path: Path) -> None:
    early = COMBINED.replace("13:55", "03:55").replace("apache_pb", "early")
    (tmp_path / "access.log").write_text(COMBINED + "\n")
    (tmp_path / "access.log.1.gz").write_bytes(gzip.compress(f"{early}\n\n".encode()))
    logs = [str(tmp_path / name) for name in ("access.log", "access.log.1.gz")]
    out = tmp_path / "log.parquet"
    assert main(["convert", "web_log", *logs, "--out", str(out), "--clock", "1"]) == 0
    frame = pd.read_parquet(out)
    assert frame["page"].dropna().tolist()[:2] == ["/early.html", "/apache_pb.html"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["user,time,event", "a,2024-01-01,x"], "line 1: 'user,time,event' is no request"),
        ([COMBINED] * 9 + ["[error] oops"], "1 of 10 lines"),
        ([""], "empty"),
        ([COMBINED.replace(" 200 ", " 500 ")], "no page was served"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, lines: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        converted(tmp_path, *lines)
    assert not (tmp_path / "log.parquet").exists()


def test_a_missing_file_and_a_short_salt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        convert_web_log([tmp_path / "gone"], tmp_path / "log.parquet")
    with pytest.raises(DataError, match="can be guessed"):
        converted(tmp_path, COMMON, salt="x")
