"""The models that come with the package, known by name: what they are, and where they lie.

A folder of the same name in the current folder is meant first, so that nobody's own model is
hidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent
CARD = "README.md"
UNIVERSAL = "universal"  # the name that stands for the shipped weights


class Shipped(NamedTuple):
    """One model."""

    folder: Path
    about: str

    @property
    def card(self) -> Path:
        """Data, license, figures and limits."""
        return self.folder / CARD

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())


# name -> what `behavegpt models` says of it
SHIPPED = {
    UNIVERSAL: Shipped(
        PACKAGE / "universal" / "weights",
        "predicts on any log without training: which count of a history to believe when",
    ),
    "demo": Shipped(
        PACKAGE / "demo" / "model",
        "next of 44 product families of a British gift shop; trained by `behavegpt demo`",
    ),
}


def shipped_folder(name: str | Path) -> Path | None:
    """The folder of the trained model that ships under a name; None for other names, and where
    there is such a path.

    The universal model has weights of its own kind: `loading.load` opens it.
    """
    return SHIPPED["demo"].folder if str(name) == "demo" and not Path(name).exists() else None


def is_universal(name: str | Path) -> bool:
    """Whether a model's name means the shipped weights: `universal`, or a folder of others of the
    kind."""
    path = Path(name)
    # a folder of the user's called `universal` comes before the shipped weights
    return (str(name) == UNIVERSAL and not path.is_dir()) or (path / "universal.json").is_file()
