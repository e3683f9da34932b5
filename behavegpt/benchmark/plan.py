"""Which runs a benchmark asks for next, from the rows there are: points to compare, then seeds of the chosen one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from behavegpt.baselines import counts
from behavegpt.benchmark.settings import BenchmarkSettings, Point, Run, digest
from behavegpt.data.store import EventStore

Row = dict[str, Any]
TUNE, FINAL = "tune", "final"  # kinds of rows: validation figures alone, or test figures too


@dataclass(frozen=True)
class Plan:
    """The runs of one log, as far as the rows tell."""

    settings: BenchmarkSettings
    data: str
    store: EventStore
    rows: dict[tuple[str, str], Row]  # by key and kind

    @property
    def protocol_hash(self) -> str:
        """What must be equal for two rows to stand in one table: data and split, budget, tuning."""
        settings = self.settings
        budget = {**settings.train, **settings.data[self.data].train}
        return digest([self.store.manifest.content_hash, budget, settings.tuning.model_dump(mode="json")])

    @property
    def counts_hash(self) -> str:
        """The same for the count baselines, which have no budget."""
        return digest([self.store.manifest.content_hash, "counts", list(counts.NAMES)])

    def key(self, run: Run) -> str:
        return run.key(self.settings, self.store.manifest.content_hash)

    def row(self, run: Run, kind: str) -> Row | None:
        return self.rows.get((self.key(run), kind))

    def tuning(self, model: str) -> list[Run] | None:
        """A model's runs over the grid; none where there is one point only, None while its base is not trained."""
        points = self.settings.points()
        found = [self._run(model, self.settings.tuning.seed, point) for point in points]
        if any(run is None for run in found):
            return None
        return [run for run in found if run is not None] if len(points) > 1 else []

    def chosen(self, model: str) -> Point | None:
        """The point with the best validation figure, once all were tried; None before, or if none could be trained."""
        tuning = self.tuning(model)
        if not tuning:
            return self.settings.points()[0] if tuning is not None else None
        done = [(self.row(run, TUNE), run.point) for run in tuning]
        if any(row is None for row, _ in done):
            return None
        select = self.settings.tuning.select
        usable = [(row["valid"][select], point) for row, point in done if row and row["status"] == "done"]
        return max(usable, key=lambda pair: pair[0])[1] if usable else None

    def finals(self, model: str) -> list[Run]:
        """A model's runs of the chosen point, of the seeds that can start or are done."""
        point = self.chosen(model)
        if point is None:
            return []
        found = (self._run(model, seed, point) for seed in self.settings.seeds)
        return [run for run in found if run is not None]

    def open(self) -> Iterator[tuple[Run, str]]:
        """The runs without a row that can start now."""
        for model in self.settings.models:
            for run in self.tuning(model) or []:
                if self.row(run, TUNE) is None:
                    yield run, TUNE
            for run in self.finals(model):
                if self.row(run, FINAL) is None:
                    yield run, FINAL

    def known_rows(self) -> list[Row]:
        """The rows of these settings: those of the count baselines, and of each model's runs."""
        names = counts.NAMES if self.settings.counts else ()
        found = [self.rows.get((f"{self.counts_hash}-{name}", FINAL)) for name in names]
        for model in self.settings.models:
            found += [self.row(run, TUNE) for run in self.tuning(model) or []]
            found += [self.row(run, FINAL) for run in self.finals(model)]
        return [row for row in found if row is not None]

    def base_of(self, model: str, seed: int) -> Run | None:
        """The run that a model's run of this seed starts from: its base's of the same seed, or of the first one."""
        base = self.settings.models[model].base
        best = self.chosen(base) if base is not None else None
        if base is None or best is None:
            return None
        seeds = self.settings.seeds
        return Run(self.data, base, seed if seed in seeds else seeds[0], best)

    def _run(self, model: str, seed: int, point: Point) -> Run | None:
        """The run, on its base where it has one; None while the base's final run is not done."""
        if self.settings.models[model].base is None:
            return Run(self.data, model, seed, point)
        base = self.base_of(model, seed)
        row = self.row(base, FINAL) if base else None
        return Run(self.data, model, seed, point, row["key"]) if row and row["status"] == "done" else None
