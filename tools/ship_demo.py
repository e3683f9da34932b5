"""Makes the model that ships as `demo`: python tools/ship_demo.py [RUN]

Runs `behavegpt demo` (its own recipe and seed; minutes on two cores), or takes the run folder of
one, and writes the model with its card to behavegpt/demo/model/.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from behavegpt.checksums import seal
from behavegpt.demo.run import run_demo
from behavegpt.shipped import CARD, SHIPPED

LIMIT = 5_000_000  # bytes that a model may add to the wheel
FRONT = "---\nlicense: cc-by-4.0\ndatasets: [online-retail]\n"
LICENSE = """## Source and license

Trained on purchases at a British online gift shop, 1 December 2010 to 9 December 2011: Daqing
Chen, *Online Retail*, UCI Machine Learning Repository, 2015, DOI 10.24432/C5BW33, [CC BY
4.0](https://creativecommons.org/licenses/by/4.0/). What was changed, and how products became
families: `behavegpt/demo/README.md`. The folder holds counts of products, families and countries
from that log and weights tuned to it, and so stays under CC BY 4.0; it holds no customer.
Columns: customer, time, product, country, family.

Made by `python tools/ship_demo.py`. After `import behavegpt`: `behavegpt.load("demo")`.

"""


def main() -> int:
    """Write the folder; returns the exit code."""
    if len(sys.argv) > 1:
        return ship(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder, "demo"))
        return ship(Path(folder, "demo"))


def ship(run: Path) -> int:
    """Copy the model of a demo's run, and complete its card."""
    target = SHIPPED["demo"].folder
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run / "model", target, ignore=shutil.ignore_patterns(".*"))
    card = (target / CARD).read_text(encoding="utf-8")
    front, _, rest = card.partition("# license: choose one")
    body = rest.partition("\n")[2].replace('load("path/to/this/folder")', 'load("demo")')
    body = body.replace('"path/to/this/folder"', "FOLDER").replace(
        "# registers the model classes",
        "# registers the model classes; `behavegpt models` names FOLDER",
    )
    body = re.sub(r"behavegpt demo --out \S+?`", "behavegpt demo`", body)
    body = body.replace("\n## Training\n", f"\n{LICENSE}## Training\n", 1)
    for path in target.iterdir():
        path.chmod(0o644)
    (target / CARD).write_text(FRONT + front.removeprefix("---\n") + body, encoding="utf-8")
    seal(target)
    size = SHIPPED["demo"].size
    print(f"{target}: {size / 1e6:.2f} MB")
    return int(size > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
