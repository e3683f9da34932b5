"""Runs the notebooks of notebooks/ and keeps what they print and draw: make notebooks

    python tools/notebooks.py [NAME ...] [--check]

Each runs in an empty folder of its own, with a cache of its own, so that it depends on nothing that
an earlier run left. `--check` writes nothing: an error in a cell is the only failure.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
PROGRESS = re.compile(r" {6}[a-z]\w+ .*\d+/[\d,]+")  # a line of `console.progress`
FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CELL_SECONDS = 1200
# commands print as into a file, wide enough for their tables
QUIET = {"HF_HUB_OFFLINE": "1", "COLUMNS": "130", "PYTHONWARNINGS": "ignore"}


def run(
    path: Path, changes: Mapping[str, str] | None = None, commands: Path | None = None
) -> tuple[nbformat.NotebookNode, float]:
    """The notebook with its outputs, and its CPU seconds. Raises CellExecutionError.

    `changes` (text of the code -> other text) make it smaller for tests; `commands` is a folder
    whose programs come first.
    """
    notebook = changed(nbformat.read(path, as_version=4), changes or {})
    with tempfile.TemporaryDirectory() as folder:
        binaries = Path(sys.executable).parent
        # `!behavegpt` is the command of this environment and this checkout
        added = {
            "PATH": os.pathsep.join(
                [*([str(commands)] if commands else []), str(binaries), os.environ["PATH"]]
            ),
            "PYTHONPATH": str(FOLDER.parent),
            "BEHAVEGPT_CACHE": str(Path(folder, "cache")),
        }
        began = cpu_seconds()
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=CELL_SECONDS, resources=resources)
        client.execute(env=os.environ | QUIET | added)
        return tidy(notebook, folder), cpu_seconds() - began


def changed(notebook: nbformat.NotebookNode, changes: Mapping[str, str]) -> nbformat.NotebookNode:
    """The notebook with other text in its code. Raises ValueError for text that is not there."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in changes.items():
        if not any(old in cell.source for cell in cells):
            raise ValueError(f"no cell contains {old!r}")
        for cell in cells:
            cell.source = cell.source.replace(old, new)
    return notebook


def cpu_seconds() -> float:
    """Of the processes that were waited for, such as kernels and what they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tidy(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run (times of cells, progress, the temporary
    folder), and without the colors of a terminal."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)
        kept: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            joined = kept and output.output_type == "stream" == kept[-1].output_type
            if joined and output.name == kept[-1].name:
                kept[-1].text += output.text
            elif not PROGRESS.match(output.get("data", {}).get("text/plain", "")):
                kept.append(output)
        for output in kept:
            texts = output if output.output_type == "stream" else output.get("data", {})
            for kind, text in texts.items():
                if isinstance(text, str):
                    texts[kind] = ANSI.sub("", text).replace(f"{folder}/", "")
            if output.output_type == "stream":
                lines = output.text.splitlines(keepends=True)
                output.text = "".join(line for line in lines if not PROGRESS.match(line))
        cell.outputs = kept
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> int:
    """Run the notebooks that were asked for, one after the other."""
    parser = argparse.ArgumentParser(description="run the notebooks and keep their outputs")
    parser.add_argument("names", nargs="*", help="without .ipynb; all by default")
    parser.add_argument("--check", action="store_true", help="run, but write nothing")
    arguments = parser.parse_args()
    for path in sorted(FOLDER.glob("*.ipynb")):
        if arguments.names and path.stem not in arguments.names:
            continue
        notebook, seconds = run(path)
        if not arguments.check:
            nbformat.write(notebook, path)
        print(f"{path.stem}: {seconds:.0f} CPU s, {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
