"""The pages of docs/howto: their commands and their Python run as they stand, in the order of the
page, over an invented log; what needs a cluster, a GPU or an open port is parsed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from behavegpt.cli import _parse, main
from tests.conftest import ROOT

HOWTO = ROOT / "docs" / "howto"
PAGES = sorted(path.stem for path in HOWTO.glob("*.md"))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAUNCHERS = ("train.py", "finetune.py")  # `behavegpt train` and `finetune`, under accelerate
# a Spark cluster, a bucket, a port, a GPU's self-test and batch
PARSED = ("--engine spark", "s3://", "serve ", "doctor\n", "batch_events=65536")
LONG = ("adapt", "generate")  # several trainings each
# a few steps of few users
SHORT = {
    "train": ["train.steps=2", "train.batch_events=256"],
    "finetune": ["train.steps=2", "train.batch_events=256"],
    "update": ["--steps", "2"],
    "probe": ["--folds", "2", "--seeds", "1", "--probes", "linear"],
}


def blocks(page: str, kind: str | None = None) -> list[tuple[str, str]]:
    """The fenced blocks of a page, as (kind, text)."""
    found = FENCED.findall((HOWTO / f"{page}.md").read_text(encoding="utf-8"))
    return [block for block in found if kind in (None, block[0])]


def commands(page: str, program: str) -> list[str]:
    """The lines of a page that start `program`, with continued lines joined."""
    text = "".join(text for _, text in blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith(f"{program} ")]


def events_of(rng: np.random.Generator, first: str, apps: list[str], each: int) -> pd.DataFrame:
    """`each` events of 60 users in the 60 days from `first` on."""
    users = np.repeat([f"u{user:02}" for user in range(60)], each)
    seconds = rng.integers(0, 60 * 86_400, len(users))
    return pd.DataFrame(
        {
            "user_id": users,
            "timestamp": pd.Timestamp(first) + pd.to_timedelta(seconds, "s"),
            "app": rng.choice(apps, len(users)),
            "place": rng.choice(["home", "street", "office"], len(users)),
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name, and what the page on training makes of them."""
    folder = tmp_path_factory.mktemp("howto")
    rng = np.random.default_rng(3)
    apps = ["news", "maps", "mail", "music", "camera"]

    events_of(rng, "2024-05-01 06:00", [*apps, "wallet"], 20).to_csv(
        folder / "new_logs.csv", index=False
    )
    events_of(rng, "2024-05-01 06:00", apps, 4).to_csv(folder / "tomorrow.csv", index=False)
    names = [f"u{user:02}" for user in range(60)]
    labels = pd.DataFrame({"user_id": names, "churned": [True, False] * 30})
    labels.to_csv(folder / "labels.csv", index=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # the log itself is what the first page writes
        [(_, code)] = blocks("index", "python")
        exec(compile(code, "docs/howto/index.md", "exec"), {})
        for command in commands("train", "behavegpt"):
            run(command)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy for one page."""
    copy = tmp_path / "work"
    shutil.copytree(trained, copy)
    monkeypatch.chdir(copy)
    return copy


def run(line: str) -> None:
    """A command of a page, cut short."""
    words = shlex.split(line)[1:]
    assert main([*words, *SHORT.get(words[0], [])]) == 0, line


def pieces(page: str) -> Iterator[tuple[str, str]]:
    """What is run of a page, in its order: lines of the shell, and blocks of Python."""
    for kind, text in blocks(page):
        if kind == "python":
            yield kind, text
        elif kind == "sh":
            yield from (("sh", line) for line in text.splitlines() if line.startswith("behavegpt "))


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p in LONG else p for p in PAGES if p != "index"],
)
def test_a_page_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for kind, text in pieces(page):
        if kind == "python":
            exec(compile(text, f"docs/howto/{page}.md", "exec"), names)
        elif any(part in f"{text}\n" for part in PARSED):
            _parse(shlex.split(text)[1:])
        elif page == "train":
            continue  # the fixture ran it
        else:
            run(text)
    assert "Traceback" not in capsys.readouterr().err


def test_the_page_on_training_leaves_what_it_says(trained: Path) -> None:
    text = (HOWTO / "train.md").read_text(encoding="utf-8")
    run_folder = trained / "runs" / "mine"
    for name in re.findall(r"`([\w./]+)`", text.partition("## What is in the run folder")[2]):
        if name in ("--resume", "memory"):
            continue
        assert (run_folder / name).exists(), name
        if name == "run.json":
            break
    assert (trained / "predictions.csv").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_launched_commands_parse(page: str) -> None:
    for line in commands(page, "accelerate"):
        words = shlex.split(line)
        place = next(i for i, word in enumerate(words) if word in (*LAUNCHERS, "-m"))
        verb = {"train.py": ["train"], "finetune.py": ["finetune"], "-m": words[place + 2 :]}
        rest = [] if words[place] == "-m" else words[place + 1 :]
        _parse([*verb[words[place]], *rest])
        for option in words[:place]:
            assert not option.endswith(".yaml") or (ROOT / option).is_file(), option


def test_the_requests_are_answered(folder: Path) -> None:
    pytest.importorskip("httpx", reason="httpx is not installed; pip install httpx")
    from fastapi.testclient import TestClient

    import behavegpt
    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings

    client = TestClient(make_app(behavegpt.load("runs/mine/model"), ServeSettings()))
    requests = commands("serve", "curl")
    assert len(requests) == 3
    for line in requests:
        words = shlex.split(line)
        body = json.loads(words[words.index("-d") + 1])
        answer = client.post(words[1].removeprefix("localhost:8000"), json=body)
        assert answer.status_code == 200, (line, answer.text)
    for path in re.findall(r"`GET (/[\w/]+)`", (HOWTO / "serve.md").read_text(encoding="utf-8")):
        assert client.get(path).status_code == 200, path


def test_every_page_is_in_the_index_and_says_how_to_go_on() -> None:
    index = (HOWTO / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == {*PAGES} - {"index"}
    for page in PAGES:
        text = (HOWTO / f"{page}.md").read_text(encoding="utf-8")
        assert page in ("index", "evaluate") or "## Next" in text, page
