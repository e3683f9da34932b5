"""Settings of a run: data, loss and training loop; pretraining and fine-tuning add their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from behavegpt.config import PathText, Settings
from behavegpt.losses import LossSettings

# what `model` in a configuration may set, and what a checkpoint must share with the run that goes
# on from it
SHAPE = (
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "head_size",
    "max_length",
    "position_encoding",
    "gap",
    "dropout",
    "initializer_range",
    "history_head",
    "memory",
    "given",
    "tied_head",
    "next_heads",
)


class TrainSettings(Settings):
    """Settings of the training loop."""

    # either steps or epochs: a number of steps is for comparing, passes are for a log of unknown
    # size
    steps: int | None = Field(
        None, ge=1, le=10**9, description="optimizer steps; null: `epochs` over the data"
    )
    epochs: float = Field(
        3.0, gt=0, le=1e6, description="passes over the training targets, when steps is null"
    )
    # in positions and not in rows, so that a longer window does not make a larger step
    batch_events: int | None = Field(
        None,
        ge=64,
        le=2**31,
        description=(
            "training positions per step over all ranks; null: a 32nd of the events, 1,024 to 8,192"
        ),
    )
    micro_batches: int = Field(
        1, ge=1, le=2**16, description="gradient accumulation: parts of a step, to save memory"
    )
    # ten times that of the paper: these models are a hundred times smaller
    lr: float = Field(
        1e-3, gt=0, description="peak learning rate of AdamW (the paper: 1e-4 at 150 M parameters)"
    )
    mixer_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the memory's mixer; null: as `lr`"
    )
    # of Vaswani et al. 2017, for transformers
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's moving averages")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of matrices; 0 is Adam")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="learning rate schedule after warm-up"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps used for warm-up")
    lr_floor: float = Field(
        0.1, ge=0, le=1, description="final learning rate as a share of the peak"
    )
    clip: float = Field(1.0, gt=0, description="gradient clipping: maximum norm")
    seed: int = Field(0, ge=0, description="seed for initialization, data order and dropout")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 if the device supports it"
    )
    compile: bool | None = Field(
        None, description="torch.compile the transformer blocks; null: only on a GPU"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations to save memory"
    )
    deterministic: bool = Field(
        False, description="use only deterministic kernels; CPU runs always do"
    )
    log_every: int = Field(10, ge=1, description="steps between records in log.jsonl")
    valid_every: int | None = Field(
        None, ge=1, description="steps between validations; null: ten per run"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; null: at every validation"
    )
    # two: where the newest is found damaged, a resume goes on from the one before
    keep: int = Field(
        2, ge=1, description="number of latest checkpoints to keep, in addition to the best one"
    )
    # the mean of both recalls: weighted recall alone would choose a model that forgets rare
    # behaviors
    select: Literal["rec_mean", "rec_w", "rec_m", "ndcg@3", "cross_entropy", "last"] = Field(
        "rec_mean",
        description=(
            "validation metric that selects the best checkpoint; rec_mean = (rec_w + rec_m) / 2"
        ),
    )
    patience: int | None = Field(
        None, ge=1, description="early stopping: validations without improvement"
    )
    wandb: str | None = Field(None, description="Weights & Biases project; null: only log.jsonl")


class DecisionSettings(Settings):
    """Thresholds on the classes, learned on the validation split and saved with the model."""

    thresholds: bool = Field(
        False,
        description="learn thresholds at the end of training, for predict(..., thresholds=True)",
    )
    objective: Literal["rec_m", "f1_m"] = Field(
        "rec_m", description="what the thresholds maximize: macro recall, or macro F1"
    )
    keep: float = Field(0.99, ge=0, le=1, description="share of the weighted recall to preserve")
    # of fewer targets a threshold would learn their chance
    min_targets: int = Field(
        20,
        ge=1,
        description="classes with fewer validation targets share one threshold",
    )


class DataSettings(Settings):
    """Which prepared folder to train on."""

    path: PathText = Field(description="folder written by `behavegpt prepare`")


class RunSettings(Settings):
    """What every run has."""

    out: PathText = Field(description="run folder; created if absent")
    data: DataSettings
    attention: str = Field("auto", description="auto, or a backend of model/attention.py")
    loss: LossSettings = Field(default_factory=LossSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    decision: DecisionSettings = Field(default_factory=DecisionSettings)
