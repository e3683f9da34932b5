"""The report in a browser: its script runs under its own policy, sorts and finds; nothing sticks
out of the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from behavegpt.report import write_report
from tests.test_plots import HOSTILE, fake_run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
# runs after the page's own script, and writes what it found into the page
PROBE = """
const found = {errors: [], width: document.documentElement.scrollWidth, window: window.innerWidth};
window.addEventListener("error", (event) => found.errors.push(event.message));
const rows = () => Array.from(document.querySelectorAll("#behaviors tbody tr"));
const shown = () => rows().filter((row) => !row.hidden);
const names = () =>
  shown().map((row) => (row.querySelector("summary") || row.cells[0]).textContent);
const numbers = (column) => rows().map((row) => Number(row.cells[column].dataset.number));
const heads = Array.from(document.querySelectorAll("#behaviors thead th"));
found.first = shown().length;
heads[2].querySelector("button").click();
found.recall = numbers(2);
found.order = heads.map((head) => head.getAttribute("aria-sort"));
heads[2].querySelector("button").click();
found.reversed = numbers(2);
document.getElementById("all").click();
found.all = shown().length;
const find = document.getElementById("find");
find.value = "CAFÉ & BAR NO. 7";
find.dispatchEvent(new Event("input"));
found.names = names();
find.value = "<script>";
find.dispatchEvent(new Event("input"));
found.hostile = names();
found.count = document.getElementById("count").textContent;
const result = document.createElement("pre");
result.id = "found";
result.textContent = JSON.stringify(found);
document.body.append(result);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(fake_run(tmp_path_factory.mktemp("runs") / "shop"))


def dom(page: Path, width: int = 1200) -> str:
    """The page as the browser sees it once its scripts have run."""
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command = [BROWSER, *flags, f"--user-data-dir={page.parent / 'browser'}", "--dump-dom"]
    ended = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return ended.stdout


def probed(page: Path, width: int) -> dict[str, Any]:
    """What the probe found on a copy of the page, whose policy would not let it run."""
    html = page.read_text(encoding="utf-8")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    copy = page.with_name("probed.html")
    copy.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    found: dict[str, Any] = json.loads(
        unescape(dom(copy, width).split('<pre id="found">')[1].split("</pre>")[0])
    )
    return found


def test_the_script_runs_under_the_policy_of_the_page(page: Path) -> None:
    html = dom(page)
    assert '<div class="tools">' in html, "shown by the script alone"
    assert len(re.findall(r"<tr[^>]* hidden", html)) == 15, "25 of 40 rows are shown at first"


@pytest.mark.parametrize("width", [1200, 500])
def test_the_table_is_sorted_and_searched_and_nothing_sticks_out(page: Path, width: int) -> None:
    found = probed(page, width)
    frame = pd.read_csv(page.parent / "eval" / "per_behavior.csv")
    recall = frame[(frame["model"] == "behavegpt") & (frame["support"] > 0)]["recall"]
    assert found["errors"] == [] and found["width"] <= found["window"]
    assert found["first"] == 25 and found["all"] == len(recall)
    assert found["recall"] == pytest.approx(sorted(recall, reverse=True))
    assert found["reversed"] == pytest.approx(sorted(recall))
    assert found["order"] == [None, None, "descending", None, None, None]
    assert found["names"] == ["Café & Bar no. 7"]
    assert found["hostile"] == [HOSTILE] and found["count"] == f"1 of {len(recall)} shown"
