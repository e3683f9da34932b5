"""The wheel is whole: built from the source archive, it works far from the checkout with nothing
but what it declares.

`fresh` is an environment of its own that sees the base dependencies of the package, and no other
library.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

pytest.importorskip("setuptools", minversion="77")
KEPT_OUT = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv", "__pycache__", "*.egg-info", "runs", "data", "build", "dist"
)
SHIPPED = (
    "configs/small.yaml",
    "configs/adapt/new_behavior.yaml",
    "templates/report.html.j2",
    "py.typed",
)
SHIPPED += (
    "universal/weights/universal.safetensors",
    "universal/weights/README.md",
    "demo/model/config.json",
    "demo/model/memory.safetensors",
    "demo/model/README.md",
    "demo/online_retail.parquet",
    "datasets/git_words.yaml",
)
ARCHIVED = (
    "configs/small.yaml",
    "tests/conftest.py",
    "docs/paper.md",
    "notebooks/quickstart.ipynb",
    "constraints/cpu.txt",
    "bootstrap.sh",
    "train.py",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp("archive")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=_generated)
    _build("sdist", folder / "checkout", folder)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as tar:
        tar.extractall(folder, filter="data")
    return next(
        path for path in folder.iterdir() if path.is_dir() and path.name.startswith("behavegpt-")
    )


@pytest.fixture(scope="module")
def wheel(archive: Path) -> Path:
    """The wheel that is built from the archive."""
    _build("wheel", archive, archive.parent)
    return next(archive.parent.glob("*.whl"))


def _generated(folder: str, names: list[str]) -> set[str]:
    """What a checkout holds beside its files; folders called `data` are kept below the top."""
    top = Path(folder) == ROOT
    return KEPT_OUT(folder, names) - (set() if top else {"data", "build"})


def _build(kind: str, source: Path, out: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def fresh(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python ARGUMENTS` of the fresh environment in an empty folder."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=False)
    packages = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as files:
        files.extractall(packages)
    for name in _closure(
        importlib.metadata.PathDistribution(next(packages.glob("behavegpt-*.dist-info")))
    ):
        _link(importlib.metadata.distribution(name), packages)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "BEHAVEGPT_CACHE": str(folder / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "env" / "bin" / "python"), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    return run


def _closure(package: importlib.metadata.Distribution) -> set[str]:
    """The packages that an installation of `package` without extras would bring."""
    wanted, pending = set(), [(line, "") for line in package.requires or ()]
    seen: set[tuple[str, str]] = set()
    while pending:
        line, extra = pending.pop()
        requirement = Requirement(line)
        if (requirement.marker and not requirement.marker.evaluate({"extra": extra})) or (
            line,
            extra,
        ) in seen:
            continue
        seen.add((line, extra))
        try:
            needed = importlib.metadata.distribution(requirement.name).requires or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted.add(canonicalize_name(requirement.name))
        pending += [(other, found) for other in needed for found in ("", *requirement.extras)]
    return wanted


def _link(package: importlib.metadata.Distribution, folder: Path) -> None:
    """Make an installed package visible in `folder`."""
    for top in {
        file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")
    }:
        place = folder / top
        if not place.exists():
            place.symlink_to(Path(str(package.locate_file(top))).resolve())


# asks a service of the fresh environment, and stops it
SERVED = """
import json, signal, subprocess, sys, urllib.request
command = [sys.executable, "-m", "behavegpt", "serve", "run/model", "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
    url = next(line for line in service.stderr if "is serving" in line).split()[0]
    page = urllib.request.urlopen(f"{url}/").read().decode()
    columns = json.load(urllib.request.urlopen(f"{url}/v1/model"))["columns"]
    event = {"timestamp": "2011-11-01 10:00", "event": "22423", "family": "bag", "line": 1}
    body = {"users": [{"id": "7", "events": [event | {"location": "France"}]}], "top_k": 2}
    request = urllib.request.Request(f"{url}/v1/predict", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    answer = json.load(urllib.request.urlopen(request))
    service.send_signal(signal.SIGTERM)
assert "<html" in page and columns, columns
print(len(answer["users"][0]["behaviors"]), service.returncode)
"""


def test_the_archives_are_complete(archive: Path, wheel: Path) -> None:
    names = {name.removeprefix("behavegpt/") for name in zipfile.ZipFile(wheel).namelist()}
    assert set(SHIPPED) <= names
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs <= names
    assert not [name for name in ARCHIVED if not (archive / name).is_file()]
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


@pytest.mark.slow
def test_the_wheel_works_far_from_the_checkout(
    fresh: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """demo, train from a shipped configuration, predict, report, the universal model, serve."""
    where = fresh("-c", "import behavegpt; print(behavegpt.__file__)").stdout
    assert str(ROOT) not in where
    log = (
        "from behavegpt.demo import online_retail as f; import shutil; shutil.copy(f(), "
        "'log.parquet')"
    )
    fresh("-c", log)
    # the model that ships, before there is a folder of its name
    assert set(json.loads(fresh("-m", "behavegpt", "models", "--json").stdout)) == {
        "universal",
        "demo",
    }
    fresh("-m", "behavegpt", "predict", "demo", "log.parquet", "--out", "shipped.csv")
    fresh("-m", "behavegpt", "demo", "--out", "demo", "--steps", "2")
    fresh("-m", "behavegpt", "train", "tiny", "data.path=demo/data", "out=run", "train.steps=2")
    fresh("-m", "behavegpt", "predict", "run/model", "log.parquet", "--out", "out.csv")
    fresh("-m", "behavegpt", "report", "run")
    told = fresh("-m", "behavegpt", "predict", "universal", "log.parquet", "--json").stdout
    assert json.loads(told)[0]["rank"] == 1
    fresh(
        "-c",
        "import behavegpt.serving.app, behavegpt.adapt.peft, behavegpt.scaling.search, "
        "scipy.stats, peft, uvicorn",
    )
    assert fresh("-c", SERVED).stdout.split()[0] == "2"
    folder = Path(fresh("-c", "import os; print(os.getcwd())").stdout.strip())
    assert (folder / "run" / "report.html").is_file() and (
        folder / "demo" / "report.html"
    ).is_file()
    with (folder / "out.csv").open() as file:
        assert next(csv.reader(file)) == ["user", "rank", "behavior", "probability"]


@pytest.mark.slow
def test_an_extra_is_named_by_its_libraries(
    fresh: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    told = fresh(
        "-c", "from behavegpt.errors import *; print(MissingExtraError('implicit', 'profiles'))"
    ).stdout
    assert told.strip() == "implicit is not installed; run: pip install 'implicit>=0.7.3'"
