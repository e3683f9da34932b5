"""Settings of a benchmark, and the runs they ask for."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from behavegpt.config import PathText, Settings, read_settings
from behavegpt.data.given import in_order
from behavegpt.grid import digest
from behavegpt.pretrain import PretrainSettings

Point = dict[str, Any]  # setting -> value, of the tuning grid


class DataEntry(Settings):
    """One log."""

    path: PathText = Field(description="folder written by `behavegpt prepare`")
    train: dict[str, Any] = Field(
        default_factory=dict, description="TrainSettings of all models on this log: steps"
    )


class ModelEntry(Settings):
    """One model."""

    config: str = Field(description="YAML file of `behavegpt train`")
    set: dict[str, Any] = Field(
        default_factory=dict, description="dotted settings over the file: loss.name: dro"
    )
    base: str | None = Field(
        None, description="another entry whose model of the same seed becomes model.options.base"
    )


class Tuning(Settings):
    """What every model may choose from, on the validation split."""

    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="dotted setting -> values; all combinations"
    )
    select: Literal["rec_w", "rec_m", "ndcg@3"] = Field(
        "ndcg@3", description="validation metric that selects the best point"
    )
    seed: int = Field(0, ge=0, description="seed used to compare the points")


class BenchmarkSettings(Settings):
    """What `behavegpt benchmark` runs."""

    out: PathText = Field(description="folder for rows, runs and tables; created if absent")
    tables: PathText | None = Field(
        None, description="folder of tables, figures and a copy of the rows; null: out"
    )
    data: dict[str, DataEntry] = Field(min_length=1, description="logs by name")
    models: dict[str, ModelEntry] = Field(min_length=1, description="models by name")
    counts: bool = Field(True, description="also evaluate the count baselines")
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    tuning: Tuning = Field(default_factory=Tuning)
    train: dict[str, Any] = Field(
        default_factory=dict, description="TrainSettings of all models: the budget"
    )
    versus: str | None = Field(
        None, description="the model that the others are compared with, user by user"
    )
    draws: int = Field(1000, ge=1, description="bootstrap draws of that comparison")
    keep_models: bool = Field(False, description="keep the trained weights")

    @model_validator(mode="after")
    def _known_names(self) -> BenchmarkSettings:
        for name, entry in self.models.items():
            if entry.base is not None and (entry.base == name or entry.base not in self.models):
                raise ValueError(
                    f"models.{name}.base = {entry.base!r} is not another entry of models"
                )
            # a plan knows two rounds: the bases, then what starts from one
            if entry.base is not None and self.models[entry.base].base is not None:
                raise ValueError(
                    f"models.{name}.base = {entry.base!r} has a base itself; choose one without"
                )

        if self.versus is not None and self.versus not in self.models:
            raise ValueError(f"versus = {self.versus!r} is not an entry of models")
        return self

    def points(self) -> list[Point]:
        """All combinations of the grid; one empty point without a grid."""
        names = list(self.tuning.grid)
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*self.tuning.grid.values())
        ]


@dataclass(frozen=True)
class Run:
    """One training run of a benchmark."""

    data: str
    model: str
    seed: int
    point: Point
    base: str | None = None  # key of the run whose model it starts from

    def settings(self, benchmark: BenchmarkSettings, out: str, base: str = "") -> PretrainSettings:
        """The run as `behavegpt train` would read it: the file, then the entry, the budget, the
        point, the seed."""
        # later entries win: the tuned point is over the budget, and the seed over both
        entry, data = benchmark.models[self.model], benchmark.data[self.data]
        budget = {
            f"train.{name}": value for name, value in {**benchmark.train, **data.train}.items()
        }
        chosen = {
            **entry.set,
            **budget,
            **self.point,
            "train.seed": self.seed,
            "data.path": data.path,
            "out": out,
        }

        if self.base is not None:
            # the weights' place is known only now: it is this benchmark's own folder
            chosen["model.options.base"] = base

        # as a command line would: one reader checks both
        overrides = [f"{name}={json.dumps(value)}" for name, value in chosen.items()]
        return read_settings(PretrainSettings, entry.config, overrides)

    def given(self, benchmark: BenchmarkSettings) -> tuple[str, ...]:
        """What the model is given of the event that it predicts."""
        return in_order(self.settings(benchmark, ".").model.get("given") or ())

    def key(self, benchmark: BenchmarkSettings, content_hash: str) -> str:
        """What decides the run's figures, as a hash: settings, data and base, no paths."""
        # where the run lies and where its data lie decide nothing; what the data hold does
        tree = self.settings(benchmark, ".").model_dump(mode="json")
        tree["out"], tree["data"]["path"] = "", content_hash
        return digest({"settings": tree, "base": self.base})
