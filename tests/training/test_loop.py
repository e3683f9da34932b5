"""When the loop validates, which model it holds for the best, when it stops; and what it tells the
loss."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from behavegpt.batch import PackedBatch
from behavegpt.data.pack import count_unseen
from behavegpt.data.store import TEST, VALID, open_store
from behavegpt.errors import ConfigError
from behavegpt.losses import Loss
from behavegpt.losses.dro import DROLoss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction, BehaviorOutput
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.training.evaluate import evaluate
from behavegpt.training.journal import read_journal
from behavegpt.training.model_folder import open_model
from behavegpt.training.progress import selection_value
from behavegpt.training.record import tell_unseen
from behavegpt.training.run import RunFolder
from behavegpt.training.settings import DataSettings, RunSettings, TrainSettings
from behavegpt.training.trainer import Trainer
from tests.helpers import random_store
from tests.runs import save_store, tiny_settings


class Scripted(Trainer):
    """A loop whose steps do nothing and whose validations give a list of figures."""

    def __init__(self, figures: list[float], start: float, folder: Path, **settings: Any) -> None:
        store = random_store(users=4)
        fields = {"field_sizes": store.field_sizes(), "num_behaviors": store.behaviors.classes}
        model = BehaveGPTForBehaviorPrediction(
            BehaveGPTConfig(
                **fields, embedding_size=2, num_hidden_layers=1, num_attention_heads=1, max_length=8
            )
        )
        train = TrainSettings(steps=max(1, len(figures)), valid_every=1, select="rec_w", **settings)
        run = RunFolder(
            Accelerator(cpu=True), RunSettings(out=str(folder), data=DataSettings(path="nowhere"))
        )
        super().__init__(model, Loss(torch.ones(store.behaviors.classes), start), store, train, run)
        self.figures = iter(figures)
        self.checkpointed: list[int] = []

    def validate(self) -> dict[str, float]:
        return {"rec_w": next(self.figures)}

    def step(self, step: int) -> dict[str, float]:
        return {"events": 1.0, "cross_entropy": 0.0}

    def save(self) -> None:
        self.checkpointed.append(self.progress.step)


FALLING = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
# figures, start of the loss, patience -> best step, last step
STOPS = {
    "the first is the best": (FALLING, 0.0, None, 1, 10),
    "as good is not better": ([0.5, 0.5, 0.6, 0.6], 0.0, None, 3, 4),
    "patience 1": (FALLING, 0.0, 1, 1, 2),
    "patience 3": (FALLING, 0.0, 3, 1, 4),
    "patience begins anew": ([0.5, 0.4, 0.6, 0.5, 0.4, 0.9], 0.0, 2, 3, 5),
    "not before the loss is itself": (FALLING, 0.5, None, 6, 10),
    "nor at that very step": ([*FALLING[:4], 0.99, *FALLING[5:]], 0.5, None, 6, 10),
    "nor is patience lost before": (FALLING, 0.5, 2, 6, 8),
}


@pytest.mark.parametrize("case", STOPS)
def test_the_best_step_and_the_early_stop(case: str, tmp_path: Path) -> None:
    figures, start, patience, best, last = STOPS[case]
    trainer = Scripted(figures, start, tmp_path, patience=patience, checkpoint_every=100)
    trainer.fit()
    progress = trainer.progress
    assert (progress.best_step, progress.step) == (best, last)
    assert progress.best_value == figures[best - 1]
    assert bool(progress.stopped) == (last < len(figures))
    assert {best, last} <= set(trainer.checkpointed), "what is the result must be in a checkpoint"


def test_checkpoints_and_validations_are_as_often_as_asked(tmp_path: Path) -> None:
    trainer = Scripted([0.1] * 10, 0.0, tmp_path, checkpoint_every=3, log_every=4)
    trainer.fit()
    assert trainer.checkpointed == [1, 3, 6, 9, 10]
    records = read_journal(tmp_path / "log.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == [4, 8, 10]
    assert [r["step"] for r in records if r["kind"] == "valid"] == list(range(1, 11))


@pytest.mark.parametrize(
    "select,value", [("rec_mean", 0.4), ("rec_m", 0.6), ("ndcg@3", 0.7), ("cross_entropy", -1.5)]
)
def test_checkpoints_are_compared_by(select: str, value: float) -> None:
    figures = {"rec_w": 0.2, "rec_m": 0.6, "ndcg@3": 0.7, "cross_entropy": 1.5}
    assert selection_value(figures, select) == pytest.approx(value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of 12 steps, and what the loss was told of its progress."""
    folder = tmp_path_factory.mktemp("loop")
    save_store(random_store(users=30), folder / "data")
    told: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        true = DROLoss.set_progress
        patch.setattr(
            DROLoss, "set_progress", lambda self, share: (told.append(share), true(self, share))[1]
        )
        settings = tiny_settings(folder / "data", folder / "run", select="last", valid_every=6)
        pretrain(PretrainSettings.model_validate(settings))
    return folder, told


def test_the_loss_knows_how_much_of_the_training_is_done(run: tuple[Path, list[float]]) -> None:
    assert run[1] == [step / 12 for step in range(12)]


def test_a_run_says_how_many_targets_it_leaves_out(
    run: tuple[Path, list[float]], capsys: Any
) -> None:
    folder, _ = run
    store = open_store(folder / "data")
    targets = json.loads((folder / "run" / "run.json").read_text())["targets"]
    events = np.bincount(np.asarray(store.columns["split"]), minlength=3)
    first = np.bincount(np.asarray(store.columns["split"])[store.offsets[:-1]], minlength=3)
    assert [sum(part.values()) for part in targets.values()] == (events - first).tolist()
    assert targets["valid"]["unseen"] == count_unseen(store, VALID) > 0
    tell_unseen(targets["valid"])
    assert (
        f"{targets['valid']['unseen']} of {sum(targets['valid'].values())} targets"
        in capsys.readouterr().err
    )


def test_less_than_one_step_of_an_epoch_is_one_step(
    run: tuple[Path, list[float]], tmp_path: Path
) -> None:
    settings = tiny_settings(run[0] / "data", tmp_path / "run", steps=None, epochs=1e-6)
    pretrain(PretrainSettings.model_validate(settings))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 1


def test_validation_is_on_the_validation_split(run: tuple[Path, list[float]]) -> None:
    folder, _ = run
    store, (model, _) = open_store(folder / "data"), open_model(folder / "run" / "model")
    [last] = [
        r
        for r in read_journal(folder / "run" / "log.jsonl")
        if r["kind"] == "valid" and r["step"] == 12
    ]
    entropy = {split: evaluate(model, store, split)[1] for split in (VALID, TEST)}
    assert last["cross_entropy"] == pytest.approx(entropy[VALID], rel=1e-5)
    assert abs(entropy[VALID] - entropy[TEST]) > 1e-3, (
        "the splits must differ for this test to tell"
    )


class Counted(torch.nn.Module):
    """Its loss is `main` per unit of weight and `side` per target."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = (torch.nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))

    def forward(self, labels: torch.Tensor, criterion: Loss, **_: Any) -> BehaviorOutput:
        target = labels[labels >= 0]
        count = torch.bincount(target, minlength=2).float()
        mass = criterion.weight(target).sum()
        return BehaviorOutput(
            loss=self.main * mass,
            side_loss=self.side * len(target),
            class_loss=2 * count,
            class_count=count,
        )


@pytest.mark.parametrize("micro", [1, 2])
def test_a_step_divides_by_the_weights_and_second_heads_by_the_targets(
    micro: int, tmp_path: Path
) -> None:
    target = torch.tensor([[0, 1, 1, -100], [1, -100, -100, -100]])
    batches = [
        PackedBatch({}, part, part, part, part, {})
        for part in ([target] if micro == 1 else target.split(1))
    ]
    model = Counted()
    trainer = Scripted([], 0.0, tmp_path)
    trainer.model, trainer.steps = model, 4
    trainer.settings = TrainSettings(
        micro_batches=micro, schedule="constant", warmup=0, lr=0.1, clip=100.0
    )
    trainer.loss.class_weight = torch.tensor([0.25, 5.0])
    trainer.optimizer = torch.optim.SGD([{"params": [*model.parameters()], "scale": 1.0}])  # type: ignore[assignment]
    store = SimpleNamespace(behaviors=SimpleNamespace(counts=[1, 1]))
    trainer.batches = SimpleNamespace(micro_batches=lambda *a: batches, store=store)  # type: ignore[assignment]
    learned: list[list[float]] = []
    trainer.loss.update = lambda *sums: learned.extend(part.tolist() for part in sums)  # type: ignore[method-assign]
    record = Trainer.step(trainer, 0)
    assert learned == [[2.0, 6.0], [1.0, 3.0]] and (record["cross_entropy"], record["events"]) == (
        2.0,
        4.0,
    )
    assert record["loss"] == pytest.approx(5.0)
    assert record["grad_norm"] == pytest.approx(2**0.5)
    assert [p.item() for p in model.parameters()] == pytest.approx([1.9, 2.9])


@pytest.mark.parametrize(
    "shape,message",
    [
        ({"num_hidden_layers": 0}, "a model of 0 blocks has no transformer blocks"),
        (
            {
                "architecture": "gru",
                "embedding_size": 4,
                "num_attention_heads": 2,
                "max_length": 16,
            },
            "a gru has no transformer blocks",
        ),
    ],
)
def test_nothing_to_recompute_is_refused(
    shape: dict[str, Any], message: str, run: tuple[Path, list[float]], tmp_path: Path
) -> None:
    settings = tiny_settings(run[0] / "data", tmp_path / "run", activation_checkpointing=True)
    settings["model"] = shape if "architecture" in shape else settings["model"] | shape
    with pytest.raises(ConfigError, match=message):
        pretrain(PretrainSettings.model_validate(settings))
    assert not (tmp_path / "run" / "run.json").exists()
