"""One step after another: seeds, gradients, what is noted, and what is left after a stop."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from behavegpt.batch import PackedBatch
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import TrainingBatches
from behavegpt.data.store import open_store
from behavegpt.errors import BehaveGPTError
from behavegpt.training import trainer as trainer_module
from behavegpt.training.journal import read_journal
from behavegpt.training.progress import Progress
from behavegpt.training.settings import TrainSettings
from behavegpt.training.step import _mix
from behavegpt.training.trainer import Trainer
from tests.helpers import random_store
from tests.runs import save_store
from tests.training.test_loop import FALLING, Counted, Scripted

TARGET = torch.tensor([[0, 1, 1, -100], [1, -100, -100, -100]])


def counting(folder: Path, micro: int = 1, **settings: Any) -> Trainer:
    """A trainer of `Counted`, whose steps move both parameters by 0.1 at most."""
    trainer = Scripted([], 0.0, folder)
    model = Counted()
    trainer.model, trainer.steps = model, 4
    trainer.settings = TrainSettings(
        **{"micro_batches": micro, "schedule": "constant", "warmup": 0, "lr": 0.1, "clip": 100.0}
        | settings
    )
    trainer.optimizer = torch.optim.SGD([{"params": [*model.parameters()], "scale": 1.0}])  # type: ignore[assignment]
    parts = [TARGET] if micro == 1 else TARGET.split(1)
    batches = [PackedBatch({}, part, part, part, part, {}) for part in parts]
    trainer.batches = SimpleNamespace(  # type: ignore[assignment]
        micro_batches=lambda *asked: batches,
        rows=lambda step: (None, torch.tensor([4, 5, -1]).numpy()),
        steps_per_epoch=2,
        store=SimpleNamespace(behaviors=SimpleNamespace(counts=[1, 1])),
    )
    trainer.loss.class_weight = torch.ones(2)
    return trainer


def values(trainer: Trainer) -> list[float]:
    return [parameter.item() for parameter in trainer.model.parameters()]


# ---- one step


def test_a_step_begins_without_the_gradient_of_the_last(tmp_path: Path) -> None:
    trainer = counting(tmp_path)
    for step in range(3):
        record = Trainer.step(trainer, step)
        assert record["lr"] == 0.1 and record["grad_norm"] == pytest.approx(2**0.5)
    assert values(trainer) == pytest.approx([2 - 0.3, 3 - 0.3])


def test_the_gradient_is_cut_to_the_largest_norm(tmp_path: Path) -> None:
    trainer = counting(tmp_path, clip=0.5)
    assert Trainer.step(trainer, 0)["grad_norm"] == pytest.approx(2**0.5)
    cut = 0.1 * 0.5 / 2**0.5
    assert values(trainer) == pytest.approx([2 - cut, 3 - cut], rel=1e-5)


def test_the_rate_is_that_of_the_step(tmp_path: Path) -> None:
    trainer = counting(tmp_path, schedule="linear", warmup=0.5, lr=0.2, lr_floor=0.5)
    rates = [Trainer.step(trainer, step)["lr"] for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.2, 0.15])
    assert values(trainer) == pytest.approx([2 - 0.65, 3 - 0.65])


def test_chance_depends_on_seed_step_part_and_rank_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    trainer = counting(tmp_path, micro=2, seed=5)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    Trainer.step(trainer, 3)
    assert seeds == [_mix(5, 3, 0, 0), _mix(5, 3, 1, 0)]
    mixed = {_mix(*parts) for parts in itertools.product(range(3), repeat=4)}
    assert len(mixed) == 81 and all(0 <= seed < 2**63 for seed in mixed)
    assert max(mixed) > 2**61


@pytest.mark.parametrize("spoiled", ["main", "side"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_changes_no_weight(
    spoiled: str, value: float, tmp_path: Path
) -> None:
    trainer = counting(tmp_path)
    getattr(trainer.model, spoiled).data.fill_(value)
    before = values(trainer)
    with pytest.raises(BehaveGPTError, match=r"step 4: the loss is .* rows 4-5 of epoch 1"):
        Trainer.step(trainer, 3)
    assert str(values(trainer)) == str(before)


def test_a_gradient_that_is_no_number_changes_no_weight(tmp_path: Path) -> None:
    trainer = counting(tmp_path)
    trainer.model.main.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(BehaveGPTError, match="the gradient's norm nan"):
        Trainer.step(trainer, 0)
    assert values(trainer) == [2, 3]


def test_a_step_without_targets_is_no_division_by_zero(tmp_path: Path) -> None:
    trainer = counting(tmp_path)
    empty = torch.full_like(TARGET, -100)
    batch = PackedBatch({}, empty, empty, empty, empty, {})
    trainer.batches.micro_batches = lambda *asked: [batch]  # type: ignore[method-assign,assignment]
    record = Trainer.step(trainer, 0)
    assert (record["loss"], record["cross_entropy"], record["events"]) == (0, 0, 0)


def test_second_heads_get_their_targets_and_others_none(tmp_path: Path) -> None:
    trainer, told = counting(tmp_path), []
    true = trainer.model.forward
    trainer.model.forward = lambda **given: told.append(given["next_fields"]) or true(**given)  # type: ignore[method-assign,func-returns-value]
    [batch] = trainer.batches.micro_batches(0)
    for fields in ({}, {"gap": TARGET}):
        parts = [batch._replace(next_fields=fields)]
        trainer.batches.micro_batches = lambda *asked, parts=parts: parts  # type: ignore[method-assign,misc]
        Trainer.step(trainer, 0)
    assert told[0] is None and told[1]["gap"] is TARGET


def test_two_ranks_of_the_same_rows_step_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP averages gradients over the ranks; here both have the same."""
    trainer, seeds = counting(tmp_path, micro=2), []
    asked: list[tuple[int, ...]] = []
    true = trainer.batches.micro_batches
    trainer.batches.micro_batches = lambda *of: asked.append(of) or true(*of)  # type: ignore[method-assign,func-returns-value]
    alone = trainer.accelerator
    trainer.accelerator = SimpleNamespace(  # type: ignore[assignment]
        process_index=1,
        num_processes=2,
        device=alone.device,
        clip_grad_norm_=alone.clip_grad_norm_,
        no_sync=alone.no_sync,
    )
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    record = Trainer.step(trainer, 0)
    assert (record["loss"], record["events"]) == (pytest.approx(5), 8)
    assert record["cross_entropy"] == 2 and record["grad_norm"] == pytest.approx(2**0.5)
    assert values(trainer) == pytest.approx([1.9, 2.9])
    assert seeds == [_mix(0, 0, 0, 1), _mix(0, 0, 1, 1)] and asked == [(0, 2, 1, 2)]
    assert trainer._stop_asked([signal.SIGTERM]) and not trainer._stop_asked([])


def test_a_thread_makes_the_batches_of_the_next_step_for_a_gpu(tmp_path: Path) -> None:
    trainer, asked = counting(tmp_path, micro=2), []

    def make(step: int, *of: int) -> list[Any]:
        asked.append((step, *of, threading.current_thread() is threading.main_thread()))
        return [step]

    trainer.batches.micro_batches = make  # type: ignore[method-assign,assignment]
    trainer.accelerator = SimpleNamespace(  # type: ignore[assignment]
        device=torch.device("cuda"), process_index=1, num_processes=3
    )
    made = [trainer._micro_batches(step) for step in (0, 1, 2, 7)]
    trainer._maker.shutdown()
    assert made == [[0], [1], [2], [7]]
    assert sorted(asked) == [(step, 2, 1, 3, step in (0, 7)) for step in (0, 1, 2, 3, 7, 8)]


# ---- the loop


def test_a_model_that_was_opened_for_use_is_trained_with_dropout(tmp_path: Path) -> None:
    class Watched(Scripted):
        def step(self, step: int) -> dict[str, float]:
            modes.append(self.model.training)
            return super().step(step)

    modes: list[bool] = []
    trainer = Watched([0.5] * 2, 0.0, tmp_path)
    trainer.bare.eval()
    trainer.fit()
    assert modes == [True, True]


def test_figures_go_to_the_tracker_under_their_kind(tmp_path: Path) -> None:
    trainer = Scripted([0.5, 0.25], 0.0, tmp_path, log_every=1)
    told: list[tuple[dict[str, float], int]] = []
    trainer.accelerator.log = lambda figures, step: told.append((figures, step))  # type: ignore[method-assign]
    trainer.fit()
    names = [(sorted(figures), step) for figures, step in told]
    train, valid = ["train/cross_entropy", "train/events_per_second"], ["valid/rec_w"]
    assert names == [(train, 1), (valid, 1), (train, 2), (valid, 2)]
    assert told[1][0]["valid/rec_w"] == 0.5


def test_events_per_second_are_those_since_the_last_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves by a quarter of a second each time it is read, and steps of 1 event."""
    trainer = Scripted([0.5] * 6, 0.0, tmp_path, log_every=2)
    trainer.settings = trainer.settings.model_copy(update={"valid_every": 4})
    ticks = itertools.count(1)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 4)
    monkeypatch.setattr(trainer_module, "time", clock)
    trainer.fit()
    records = [r for r in read_journal(tmp_path / "log.jsonl") if r["kind"] == "train"]
    assert [r["events_per_second"] for r in records] == [8, 8, 8]
    assert trainer.checkpointed == [4, 6], "where it was validated"


def test_validations_and_checkpoints_are_ten_unless_asked_otherwise(tmp_path: Path) -> None:
    for steps, validated in ((25, range(2, 25, 2)), (7, range(1, 7))):
        folder = tmp_path / str(steps)
        folder.mkdir()
        trainer = Scripted([0.5] * steps, 0.0, folder)
        trainer.settings = trainer.settings.model_copy(update={"valid_every": None})
        trainer.fit()
        records = read_journal(folder / "log.jsonl")
        valid = [r["step"] for r in records if r["kind"] == "valid"]
        assert valid == [*validated, steps] and trainer.checkpointed == valid


@pytest.mark.parametrize(
    "figures,start,best,saved",
    [
        ([0.9, 0.5, 0.6], 0.0, 0, [0, 2]),  # the model as it was is the best one
        ([0.4, 0.5, 0.3], 0.0, 1, [0, 1, 2]),
        ([0.4, 0.9, 0.6], 0.5, 2, [0, 2]),  # what comes before the loss is itself may not
    ],
)
def test_the_model_as_it_was_may_be_the_best(
    figures: list[float], start: float, best: int, saved: list[int], tmp_path: Path
) -> None:
    trainer = Scripted(figures, start, tmp_path, checkpoint_every=100)
    trainer.steps = 2
    trainer.fit(judge_start=True)
    assert (trainer.progress.best_step, trainer.checkpointed) == (best, saved)
    assert trainer.run.record["best_step"] == best
    again = Scripted(FALLING, 0.0, tmp_path)
    again.judge_start, again.progress = True, Progress(step=1, best_step=1, best_value=0.5)
    again.steps = 2
    again._loop(lambda *told: None)
    assert again.checkpointed == [2], "a run that goes on judged it already"


def test_without_a_validation_the_last_weights_are_the_result(tmp_path: Path) -> None:
    trainer = Scripted([0.5] * 3, 0.0, tmp_path, patience=1)
    trainer.validate = dict  # type: ignore[method-assign]
    trainer.fit()
    assert trainer.progress.best_step is None and trainer.run.record["best_step"] == 3
    assert trainer.run.record["stopped"] is None


def test_an_early_stop_is_told(tmp_path: Path) -> None:
    trainer = Scripted(FALLING, 0.0, tmp_path, patience=2)
    trainer.fit()
    assert trainer.run.record["best_step"] == 1
    assert trainer.run.record["stopped"] == "no better rec_w in 2 validations"


@pytest.mark.parametrize(
    "sent,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_a_signal_ends_the_run_after_its_step_with_all_saved(
    sent: signal.Signals, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Signalled(Scripted):
        def step(self, step: int) -> dict[str, float]:
            if step == 2:
                os.kill(os.getpid(), sent)
            return super().step(step)

    trainer = Signalled([0.5] * 6, 0.0, tmp_path, checkpoint_every=100)
    before = signal.getsignal(sent)
    with pytest.raises(SystemExit) as left:
        trainer.fit()
    assert left.value.code == code and trainer.checkpointed == [1, 3]
    assert trainer.progress.step == 3 and trainer.progress.stopped is None
    assert "stopped by a signal at step 3; a checkpoint was saved" in capsys.readouterr().err
    assert signal.getsignal(sent) is before


# ---- whole trainers


def whole(folder: Path, **settings: Any) -> Trainer:
    """A trainer with nothing replaced but its validation's figures."""
    trainer = Scripted([0.5], 0.0, folder)
    store = random_store(users=8)
    made = Trainer(trainer.bare, trainer.loss, store, TrainSettings(**settings), trainer.run)
    fields = BatchFields(made.bare.config.columns)
    made.batches = TrainingBatches(store, max_length=8, rows_per_step=1, seed=0, fields=fields)
    return made


@pytest.mark.parametrize("epochs,share", [(2.0, 2.0), (0.5, 0.5), (1e-6, 0.0)])
def test_epochs_are_passes_over_the_rows(epochs: float, share: float, tmp_path: Path) -> None:
    trainer = whole(tmp_path, epochs=epochs, batch_events=64)
    batches = trainer.batches
    made = Trainer(
        trainer.bare, trainer.loss, trainer.store, trainer.settings, trainer.run, batches=batches
    )
    assert batches.steps_per_epoch > 1 and made.batches is batches
    assert made.steps == max(1, round(share * batches.steps_per_epoch))


def test_the_best_model_is_that_of_the_best_step(tmp_path: Path) -> None:
    trainer = whole(tmp_path, steps=4)
    weight = next(trainer.bare.parameters())
    for step in (1, 2):
        weight.data.fill_(step)
        trainer.progress = Progress(step=step)
        trainer.save()
    weight.data.fill_(3)
    for progress, expected in (
        (Progress(step=3), 3),
        (Progress(step=3, best_step=3), 3),
        (Progress(step=3, best_step=1), 1),
    ):
        weight.data.fill_(3)
        trainer.progress = progress
        assert (next(trainer.best_model().parameters()) == expected).all()


def test_checkpoints_keep_the_latest_and_the_best_and_are_gone_on_from(tmp_path: Path) -> None:
    trainer = whole(tmp_path, steps=9, keep=1)
    trainer.fingerprint = {"seed": 0}
    for step in range(1, 6):
        Trainer.step(trainer, step - 1)
        trainer.progress = Progress(step=step, best_step=2, best_value=0.5, worse=step - 2)
        trainer.run.journal.append({"step": step})
        trainer.save()
    assert sorted(p.name for p in trainer.run.checkpoints.glob("step_*")) == [
        "step_00000002",
        "step_00000005",
    ]
    after = {name: tensor.clone() for name, tensor in trainer.bare.state_dict().items()}
    trainer.run.resume = True
    checkpoint = trainer.run.latest({"seed": 0})
    again = whole(tmp_path, steps=9, keep=1)
    again.run.journal.append({"step": 6})
    (trainer.run.checkpoints / "step_00000003").mkdir()  # a crash came before it was deleted
    again._begin(checkpoint)
    assert len(list(trainer.run.checkpoints.glob("step_*"))) == 2
    assert again.loss.progress == trainer.loss.progress == 4 / 9
    assert again.progress == Progress(step=5, best_step=2, best_value=0.5, worse=3)
    assert all(torch.equal(t, after[name]) for name, t in again.bare.state_dict().items())
    moments = [trainer.optimizer.state[p]["exp_avg"] for p in trainer.bare.parameters()]
    for parameter, moment in zip(again.bare.parameters(), moments, strict=True):
        assert torch.equal(again.optimizer.state[parameter]["exp_avg"], moment)
    assert [r["step"] for r in read_journal(again.run.journal.path)] == [1, 2, 3, 4, 5]
    again._begin(None)
    assert not read_journal(again.run.journal.path), "what no checkpoint knows is made anew"


@pytest.mark.parametrize("stopped,after", [("signal", None), ("no better", "no better")])
def test_only_an_early_stop_is_one_for_ever(
    stopped: str, after: str | None, tmp_path: Path
) -> None:
    """Versions before 0.2 noted a signal among what the run has reached."""
    trainer = whole(tmp_path, steps=9)
    trainer.progress = Progress(step=1, stopped=stopped)
    trainer.save()
    trainer.run.resume = True
    again = whole(tmp_path, steps=9)
    again._begin(trainer.run.latest({}))
    assert again.progress == Progress(step=1, stopped=after)


def test_the_back_end_is_the_one_asked_for(tmp_path: Path) -> None:
    made = whole(tmp_path, steps=1)
    options = (made.bare, made.loss, made.store, made.settings, made.run)
    assert Trainer(*options).bare.config._attn_implementation == "sdpa"
    assert Trainer(*options, attention="eager").bare.config._attn_implementation == "eager"


def test_a_folder_without_validation_events_has_no_figures(tmp_path: Path) -> None:
    trainer = whole(tmp_path, steps=4, precision="fp32")
    assert set(trainer.validate()) >= {"cross_entropy", "rec_w", "hr@3", "head"}
    data = save_store(random_store(users=8), tmp_path / "data")
    trainer.store = open_store(data)
    trainer.store.columns["split"] = trainer.store.columns["split"] // 2 * 2
    assert trainer.validate() == {}
