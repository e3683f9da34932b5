"""The notebooks run, and what is kept of them is small and without errors."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.forked_command import install

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# what makes them small: fewer users, fewer steps, the same cells
SMALLER = {
    "challenge_entry": {
        "sample(400,": "sample(150,",
        "for entry in simple with_vectors": "for entry in with_vectors",
        "--tasks churn propensity_category": "--tasks churn",
    },
    "own_log": {
        "customers, products = 400": "customers, products = 60",
        "len(orders), 20,": "len(orders), 5,",
        "train.steps=100 train.valid_every=25": "train.steps=4 train.valid_every=4",
    },
    "quickstart": {
        "[:800]": "[:120]",
        '"steps": 100, "valid_every": 50': '"steps": 4, "valid_every": 4',
        '"support"] >= 50': '"support"] >= 5',
    },
    "scaling_law": {
        "--events 150000 --users 3000": "--events 15000 --users 300",
        "events=[5e3,1.5e4,5e4]": "events=[1e3,2e3,4e3]",
        "--count without_embeddings": "--count without_embeddings --draws 20",
    },
    "vectors_churn": {
        "counts >= 10": "counts >= 200",
        "StratifiedKFold(10,": "StratifiedKFold(3,",
        "PCA(16,": "PCA(4,",
    },
    "what_if": {
        "np.ones(len(HOURS)), 250)": "np.ones(len(HOURS)), 20)",
        '"steps": 500': '"steps": 4',
        '"valid_every": 250': '"valid_every": 4',
    },
}
MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 6 and set(SMALLER) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_kept_outputs_are_there_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert outputs and all(output.output_type != "error" for output in outputs)
    assert path.stat().st_size < MOST_BYTES
    text = path.read_text(encoding="utf-8")
    assert "/tmp/" not in text and str(ROOT) not in text and "Warning" not in text
    assert "\\u001b[" not in text  # colors of a terminal


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere_and_code_is_code(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", cell.source):
                assert "://" in target or (path.parent / target).exists(), target
        elif not cell.source.startswith("%%"):
            ast.parse(cell.source)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for PATH whose `behavegpt` starts without seconds of imports."""
    folder = tmp_path_factory.mktemp("commands")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked_command", str(folder / "socket")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    install(folder, folder / "socket")
    yield folder
    server.kill()
    server.wait()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tool: ModuleType, commands: Path) -> None:
    """On less data, with fewer steps; an error in a cell raises."""
    notebook, _ = tool.run(path, SMALLER[path.stem], commands)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    kept = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", ())]
    assert {kind for o in outputs for kind in o.get("data", {})} == {
        kind for o in kept for kind in o.get("data", {})
    }
