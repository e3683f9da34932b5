"""The runs of a benchmark as a flat list, as far as the rows there are settle it.

For each log and model: the points of the tuning grid with one seed, then the best point with all
seeds. A model with a base waits for its base's final runs, so that the list grows until every row
is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from behavegpt.baselines import counts
from behavegpt.benchmark.settings import BenchmarkSettings, Point, Run
from behavegpt.data.store import EventStore
from behavegpt.grid import Row, digest

TUNE, FINAL = "tune", "final"  # kinds of rows: validation figures alone, or test figures too
Rows = Mapping[tuple[str, str], Row]  # by key and kind


class Planned(NamedTuple):
    """One run of the list, and its row if there is one."""

    run: Run
    kind: str
    key: str
    row: Row | None

    @property
    def is_done(self) -> bool:
        return self.row is not None and self.row["status"] == "done"


class Plan:
    """The runs of one log."""

    def __init__(
        self, settings: BenchmarkSettings, data: str, store: EventStore, rows: Rows
    ) -> None:
        self.settings, self.data, self.store, self.rows = settings, data, store, rows
        self.runs: dict[str, list[Planned]] = {}  # model -> its runs that can start or are done

        # model -> the chosen one, None: not yet, or none could be trained
        self._points: dict[str, Point | None] = {}
        # a model with a base looks at its base's runs, which must be planned by then
        bases_first = sorted(
            settings.models, key=lambda model: settings.models[model].base is not None
        )

        for model in bases_first:
            tuning = self._tuning(model)
            self._points[model] = self._best(tuning)
            self.runs[model] = [*(tuning or []), *self._finals(model)]

    @property
    def protocol_hash(self) -> str:
        """What must be equal for two rows to stand in one table: data and split, budget, tuning."""
        settings = self.settings
        # paths decide nothing: the same log may lie elsewhere
        budget = {**settings.train, **settings.data[self.data].train}
        return digest(
            [self.store.manifest.content_hash, budget, settings.tuning.model_dump(mode="json")]
        )

    @property
    def givens(self) -> list[tuple[str, ...]]:
        """What models are given of the event that they predict: nothing first, then what others
        are; counts are given the same."""
        # any seed: what is given is the entry's
        runs = (Run(self.data, model, self.settings.seeds[0], {}) for model in self.settings.models)
        return list(dict.fromkeys([(), *(run.given(self.settings) for run in runs)]))

    def counts_hash(self, given: tuple[str, ...] = ()) -> str:
        """The same for the count baselines, which have no budget."""
        parts = [self.store.manifest.content_hash, "counts", list(counts.NAMES)]
        return digest([*parts, list(given)] if given else parts)

    def open(self) -> Iterator[Planned]:
        """The runs without a row that can start now."""
        for model in self.settings.models:
            yield from (planned for planned in self.runs[model] if planned.row is None)

    def known_rows(self) -> list[Row]:
        """The rows of these settings: those of the count baselines, and of each model's runs."""
        names = counts.NAMES if self.settings.counts else ()
        rows = [
            self.rows.get((f"{self.counts_hash(given)}-{name}", FINAL))
            for given in self.givens
            for name in names
        ]
        for model in self.settings.models:
            rows += [planned.row for planned in self.runs[model]]
        return [row for row in rows if row is not None]

    def base_of(self, model: str, seed: int) -> Planned | None:
        """The run that a model's run of this seed starts from: its base's of the same seed, or of
        the first one."""
        base = self.settings.models[model].base
        if base is None or self._points[base] is None:
            return None
        seeds = self.settings.seeds

        # a tuning seed that is no final seed has no base of its own: the first seed's stands in
        wanted = seed if seed in seeds else seeds[0]
        return next(p for p in self.runs[base] if p.kind == FINAL and p.run.seed == wanted)

    def _tuning(self, model: str) -> list[Planned] | None:
        """A model's runs over the grid; none where there is one point only, None while its base is
        not trained."""
        points = self.settings.points()
        planned = [self._planned(model, self.settings.tuning.seed, point, TUNE) for point in points]

        # all or none: the best point of half a grid would be another one later
        ready = [run for run in planned if run is not None]
        if len(ready) < len(planned):
            return None

        # one point needs no tuning: its final runs are its only ones
        return ready if len(points) > 1 else []

    def _best(self, tuning: list[Planned] | None) -> Point | None:
        """The point with the best validation figure, once all were tried; None before, or if none
        could be trained."""
        if not tuning:
            return None if tuning is None else self.settings.points()[0]

        rows = [planned.row for planned in tuning if planned.row is not None]
        if len(rows) < len(tuning):
            return None

        select = self.settings.tuning.select
        # a point whose run failed is out, as if it had the worst figure
        usable = [row for row in rows if row["status"] == "done"]
        return max(usable, key=lambda row: row["valid"][select])["point"] if usable else None

    def _finals(self, model: str) -> list[Planned]:
        """A model's runs of the chosen point, of the seeds that can start or are done."""
        point = self._points[model]
        if point is None:
            return []
        planned = (self._planned(model, seed, point, FINAL) for seed in self.settings.seeds)
        return [run for run in planned if run is not None]

    def _planned(self, model: str, seed: int, point: Point, kind: str) -> Planned | None:
        """The run, on its base where it has one; None while the base's final run is not done."""
        run = Run(self.data, model, seed, point)
        if self.settings.models[model].base is not None:
            base = self.base_of(model, seed)
            if base is None or not base.is_done:
                return None
            run = Run(self.data, model, seed, point, base.key)

        # with the base's key: another base makes another run
        key = run.key(self.settings, self.store.manifest.content_hash)
        return Planned(run, kind, key, self.rows.get((key, kind)))
