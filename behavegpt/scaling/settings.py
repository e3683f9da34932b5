"""What a sweep is: its settings, the runs they ask for, and each run as a pretraining of its
own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from behavegpt.config import PathText, Settings
from behavegpt.errors import ConfigError
from behavegpt.losses import LossSettings
from behavegpt.pretrain import PretrainSettings
from behavegpt.scaling.ladder import Rung, Task, make_rung

# of TrainSettings, what makes the runs of a sweep comparable: it follows from the size and the data

SET_HERE = ("steps", "epochs", "batch_events", "lr", "seed", "select", "patience", "valid_every")
# may change in a used folder
GROWS = ("out", "sizes", "events", "events_per_parameter", "seeds", "keep_models")


class SweepData(Settings):
    """The log, and what of it the runs are scored on."""

    path: PathText | None = Field(
        None, description="folder written by `behavegpt prepare`; a dry run may do without"
    )
    split: Literal["valid", "test"] = Field("test", description="split whose loss is fitted")
    # the error of a mean of 20,000 losses is about a hundredth of a nat
    heldout_events: int = Field(
        20_000, ge=1, description="targets of the split that every run is scored on, at least"
    )
    seed: int = Field(
        0, ge=0, description="order of the users: who is held out, who is in the smaller subsets"
    )


class RateRule(Settings):
    """Learning rate of a model: value * (width / its width) ** power."""

    values: list[float] = Field(
        [4e-3], min_length=1, description="at `width`; each is run, validation chooses"
    )
    width: int = Field(64, ge=1, description="width that the values are for")
    # wider layers take smaller steps: one rate for all would favor the width it was chosen for
    power: float = Field(
        1.0, description="1: as mu-parametrization scales hidden layers; 0: the same for all"
    )


class BatchRule(Settings):
    """Events of a step: events * (D / at) ** power, within bounds.

    The step that data can make use of grows with the data and hardly with the model (Zhang et al.
    2024, "How does critical batch size scale in pre-training?").
    """

    events: int = Field(512, ge=1, description="at `at` training events")
    at: float = Field(1e5, gt=0, description="training events that `events` is for")
    power: float = Field(0.5, ge=0, le=1, description="0: the same for all")
    least: int = Field(256, ge=64, description="fewest events of a step")
    most: int = Field(65536, ge=64, description="most events of a step")


class SweepSettings(Settings):
    """A sweep."""

    out: PathText = Field(description="folder of the sweep")
    name: str = Field("BehaveGPT", description="what the plots call these runs")
    data: SweepData = Field(default_factory=SweepData)
    task: Task | None = Field(None, description="sizes of vocabularies, for a dry run without data")
    sizes: list[float | dict[str, int]] = Field(
        min_length=1, description="parameters wanted, or shapes"
    )
    # Kaplan et al. (2020) leave the embeddings out; here they may be most of the parameters
    count: Literal["total", "without_embeddings"] = Field(
        "total", description="what N counts in the settings"
    )
    events: list[float] | None = Field(None, description="training events, the same for every size")
    events_per_parameter: list[float] | None = Field(
        None, description="training events as multiples of N"
    )
    seeds: list[int] = Field([0], min_length=1)
    lr: RateRule = Field(default_factory=RateRule)
    batch: BatchRule = Field(default_factory=BatchRule)
    model: dict[str, Any] = Field(
        default_factory=dict, description="BehaveGPTConfig: what all sizes share"
    )
    language_model: PathText | None = Field(
        None, description="GPT-2 folder that every run starts from; sizes of its shape"
    )
    loss: LossSettings = Field(
        default_factory=lambda: LossSettings(name="cross_entropy"),
        description="the training loss; what is fitted is always the cross-entropy",
    )
    train: dict[str, Any] = Field(
        default_factory=dict, description="TrainSettings that the sweep does not set"
    )
    # hundreds of runs: weights take more disk than anybody looks at
    keep_models: bool = Field(False, description="keep the trained weights")

    @field_validator("train")
    @classmethod
    def _left_to_the_sweep(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in SET_HERE:
                raise ValueError(
                    f"{name!r} is set by the sweep (lr, batch, events, seeds); remove it"
                )
        return value

    @model_validator(mode="after")
    def _one_kind_of_events(self) -> SweepSettings:
        if (self.events is None) == (self.events_per_parameter is None):
            raise ValueError("give either events or events_per_parameter")
        return self


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    rung: Rung
    events: float  # wanted; the subset has a few more, to end with a whole user
    seed: int
    lr: float

    @property
    def name(self) -> str:
        return f"{self.rung.name}_e{self.events:.0f}_lr{self.lr:.1e}_s{self.seed}"

    @property
    def flops(self) -> float:
        return self.rung.flops_per_event * self.events


def list_jobs(settings: SweepSettings, task: Task) -> list[Job]:
    """All runs, the cheapest first, so that mistakes show soon. ConfigError when two sizes come to
    one shape."""
    rungs = [make_rung(size, settings.count, task, settings.model) for size in settings.sizes]
    # two sizes may round to one shape, and would be one run under two names
    models = [rung.model for rung in rungs]
    twice = {rung.name for rung in rungs if models.count(rung.model) > 1}
    if twice:
        raise ConfigError(
            f"sizes: {', '.join(sorted(twice))} comes out twice for this data; ask for fewer sizes."
        )

    jobs = []
    for rung in rungs:
        # of the counted parameters: the ratio that the paper speaks of
        multiples = settings.events_per_parameter or []
        events = settings.events or [k * rung.parameters[settings.count] for k in multiples]
        scale = (settings.lr.width / rung.width) ** settings.lr.power
        # rounded, so that the rate in a run's name is the rate
        rates = [float(f"{value * scale:.3g}") for value in settings.lr.values]
        jobs += [Job(rung, d, seed, lr) for d in events for seed in settings.seeds for lr in rates]

    return sorted(jobs, key=lambda job: (job.flops, job.seed, job.lr))


def run_settings(settings: SweepSettings, job: Job, data: str, out: str) -> PretrainSettings:
    """The run as a pretraining of its own: one pass, the last weights."""
    # the critical batch grows with the data, see BatchRule
    rule = settings.batch
    batch = int(min(rule.most, max(rule.least, rule.events * (job.events / rule.at) ** rule.power)))
    train = {
        **settings.train,
        # eq. 5 counts events that are seen once
        "epochs": 1,
        "batch_events": batch,
        "lr": job.lr,
        "seed": job.seed,
        # the best of several checkpoints would flatter long runs
        "select": "last",
    }

    tree = {
        "out": out,
        "data": {"path": data},
        "model": job.rung.model,
        "loss": settings.loss,
        "train": train,
    }
    return PretrainSettings.model_validate({**tree, "language_model": settings.language_model})
