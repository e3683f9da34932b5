"""What a member of the ensemble is. A new kind is one module and one line in `settings.KINDS`:

    class MySettings(MemberSettings):   # its YAML block, with everything that shapes the vectors
        kind: Literal["mine"] = "mine"

    def fit(context: Context, settings: MySettings, folder: Path) -> None:
        # learn from context.sequences(...) or context.connect();
        # write all that is fitted into `folder`

    def embed(context: Context, settings: MySettings, folder: Path) -> UserEmbeddings:
        # float32 vectors of those clients of `context` that have data,
        # from what `folder` holds and nothing else

`embed` runs right after `fit` and, later, on another directory with new clients: there is one path
for both, so a new client with the same events gets the same vector. A client without data for this
member is left out, never a zero row: the ensemble imputes. Both must give the same bytes for the
same seed. State is safetensors, .npy or JSON, no pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
from pydantic import Field

from behavegpt import __version__
from behavegpt.config import Settings
from behavegpt.profiles.cache import digest
from behavegpt.profiles.events import EventTables
from behavegpt.profiles.fields import SequenceSettings, Vocabularies, fit_vocabularies
from behavegpt.profiles.sequences import SequenceStore, build_store
from behavegpt.user_embeddings import UserEmbeddings


class Pca(Settings):
    pca: int = Field(gt=0, description="components kept")
    whiten: bool = Field(False, description="each component divided by its standard deviation")


class Quantile(Settings):
    quantile: Literal["uniform"] = Field(
        description="each column is mapped to its quantiles, 0 to 1"
    )


Step = Literal["l2", "zscore", "center"] | Pca | Quantile


class MemberSettings(Settings):
    """What every member's YAML block has."""

    kind: str
    post: tuple[Step, ...] = Field(
        ("l2",),
        description="steps before the ensemble: {pca: N}, zscore, center, l2, {quantile: uniform}",
    )
    seed: int | None = Field(None, description="the profile's seed by default")

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the member's vectors, for its hash; `post` is the ensemble's."""
        return self.model_dump(mode="json", exclude={"post"})


@dataclass(frozen=True)
class Context:
    """What a member may use: events, whose vectors are asked for, a cache folder, seed, device
    (auto: a GPU if there is one), and the moment (epoch seconds) from which `embed` counts ages;
    None: from where the fitted history ends."""

    tables: EventTables
    cache: Path
    seed: int = 0
    device: str = "auto"
    at: int | None = None

    @property
    def clients(self) -> np.ndarray:
        """(U,) int64, ascending: whose vectors are asked for."""
        return self.tables.clients

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """DuckDB with the views `events`, `properties` and `clients`, see EventTables.connect."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with self.tables.connect(self.cache) as con:
            yield con

    def work(self, settings: MemberSettings) -> Path:
        """Where a member keeps the checkpoints of an interrupted run until it is built; the name is
        a hash of data, settings and seed, so no other run resumes from them."""
        # the version too: another version's checkpoints may mean something else
        key = digest(settings.shaping(), self.seed, self.tables.digest, __version__)
        return self.cache / "unfinished" / key[:20]

    def vocabularies(self, settings: SequenceSettings) -> Vocabularies:
        """Vocabularies of the declared fields, fitted on this history; saved with the member."""
        self.cache.mkdir(parents=True, exist_ok=True)
        return fit_vocabularies(self.tables, settings, self.cache)

    def sequences(
        self, settings: SequenceSettings, vocabularies: Vocabularies, asked: bool = False
    ) -> SequenceStore:
        """The sequence store, built once for each (data, settings, vocabularies).

        `asked` leaves out clients whose vectors are not asked for, also where the settings train on
        all: for `embed`.
        """
        chosen = settings.model_copy(update={"clients": "asked"}) if asked else settings
        return build_store(self.tables, chosen, vocabularies, self.cache)


class Kind(NamedTuple):
    settings: type[MemberSettings]
    fit: Callable[[Context, Any, Path], None]
    embed: Callable[[Context, Any, Path], UserEmbeddings]
