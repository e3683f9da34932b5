"""A sweep from one command: done runs are skipped, failed ones are no numbers, a killed one goes
on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import GPT2Model

from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.data.pack import target_rows
from behavegpt.data.store import TEST, open_store
from behavegpt.errors import BehaveGPTError, ConfigError, DataError
from behavegpt.grid import read_rows
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.scaling import estimate, sweep
from behavegpt.scaling.ladder import Task
from behavegpt.scaling.settings import SweepSettings, list_jobs, run_settings
from behavegpt.training.evaluate import score
from tests.adapt.test_language import small_gpt2
from tests.conftest import ROOT
from tests.helpers import random_store
from tests.runs import save_store
from tests.scaling.planted import planted_rows

CONFIGS = sorted((ROOT / "configs" / "scaling").glob("*.yaml"))
SMALL = [
    "sizes=[{embedding_size: 2, num_hidden_layers: 1, num_attention_heads: 2}, {embedding_size: "
    "8}]",
    "model={max_length: 32, dropout: 0.0, num_hidden_layers: 1, num_attention_heads: 2}",
    "events=[300, 900]",
    "data.heldout_events=150",
    "batch={events: 128, least: 128, power: 0}",
    "train={checkpoint_every: 1}",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_store(
        random_store(seed=5, users=240, longest=40, behaviors=6),
        tmp_path_factory.mktemp("d") / "data",
    )


def small(data: Path, out: Path, *overrides: str) -> SweepSettings:
    return read_settings(
        SweepSettings, None, [*SMALL, f"data.path={data}", f"out={out}", *overrides]
    )


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory) -> Path:
    """A finished sweep, with the weights kept."""
    out = tmp_path_factory.mktemp("swept")
    sweep.sweep(small(data, out, "keep_models=true"))
    return out


def test_each_run_leaves_one_row_with_its_figures(swept, data):
    rows = read_rows(swept / "rows.jsonl")
    assert len(rows) == 4 and {row["status"] for row in rows} == {"done"}
    assert len({row["params"] for row in rows}) == 2
    for row in rows:
        assert row["params"] == row["params_without_embeddings"] + row["parameters"]["embeddings"]
        assert row["events"] >= 300 and 0 < row["loss"] < 10 and row["choice_loss"] is None
        facts = json.loads((swept / "runs" / row["run"] / "run.json").read_text())
        assert (facts["parameters"], facts["steps"]) == (row["params"], row["steps"])
        assert not (swept / "runs" / row["run"] / "ckpt").exists()


def test_the_loss_is_that_of_the_kept_weights_on_the_same_held_out_targets(swept):
    heldout = open_store(swept / "data" / "heldout")
    for row in read_rows(swept / "rows.jsonl")[:2]:
        model = BehaveGPTForBehaviorPrediction.from_pretrained(
            swept / "runs" / row["run"] / "model"
        )
        parts = list(score(model, heldout, TEST))
        right = torch.cat(
            [p.logits.log_softmax(-1).gather(1, p.target[:, None])[:, 0] for p in parts]
        )
        assert len(right) == len(target_rows(heldout, TEST))
        assert row["loss"] == pytest.approx(-float(right.mean()), rel=1e-5)


def test_done_runs_are_skipped_and_the_grid_may_grow(swept, data, monkeypatch):
    before = (swept / "rows.jsonl").read_text()
    seen = []
    trained = sweep.pretrain
    monkeypatch.setattr(
        sweep, "pretrain", lambda settings, **k: seen.append(settings) or trained(settings, **k)
    )
    sweep.sweep(small(data, swept, "keep_models=true"))
    assert (swept / "rows.jsonl").read_text() == before and not seen
    sweep.sweep(small(data, swept, "events=[300, 500]"))
    assert len(seen) == 2 and len(read_rows(swept / "rows.jsonl")) == 6


def test_other_settings_in_a_used_folder_are_refused(swept, data):
    with pytest.raises(ConfigError, match=r"other settings of loss .*choose another"):
        sweep.sweep(small(data, swept, "loss.name=dro"))


def test_a_failed_run_is_recorded_as_failed_and_the_sweep_goes_on(data, tmp_path, monkeypatch):
    trained = sweep.pretrain

    def sometimes(settings, **options):
        if settings.model["embedding_size"] == 8:
            raise BehaveGPTError("step 3: the loss is nan")
        return trained(settings, **options)

    monkeypatch.setattr(sweep, "pretrain", sometimes)
    settings = small(data, tmp_path, "events=[300]")
    rows = sweep.sweep(settings)
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(rows) == 2 and len(failed) == 1
    assert all(
        "loss is nan" in row["reason"] and "loss" not in row and "events" not in row
        for row in failed
    )
    monkeypatch.setattr(sweep, "pretrain", trained)
    assert [row["status"] for row in sweep.sweep(settings)].count("done") == 1  # not by itself
    again = sweep.sweep(settings, retry_failed=True)
    assert [row["status"] for row in again].count("done") == 2


def test_models_with_memory_are_swept_too(data, tmp_path):
    """The mixer is counted, no blocks are a size as well, and the rows are losses like others."""
    sizes = "sizes=[{embedding_size: 2, num_hidden_layers: 0}, {embedding_size: 2}]"
    override = ["model.memory=true", "events=[300]", "name=with memory", sizes]
    rows = sweep.sweep(small(data, tmp_path, *override))

    assert [row["status"] for row in rows] == ["done", "done"]
    assert [row["shape"][-1] for row in rows] == ["0", "1"]
    assert all(row["loss"] > 0 and row["name"] == "with memory" for row in rows)

    without = small(data, tmp_path, "events=[300]", sizes)
    task = Task.of(open_store(data))
    plain = [job.rung.params for job in list_jobs(without, task)]
    assert all(row["params"] > params for row, params in zip(rows, plain, strict=True))


def test_blocks_of_a_language_model_are_a_start_for_the_sizes_of_its_shape(data, tmp_path):
    small_gpt2(tmp_path / "gpt2", n_layer=1, n_head=2)
    overrides = [
        "events=[300]",
        f"language_model={tmp_path / 'gpt2'}",
        "name=GPT-2 start",
        "lr.values=[1e-12]",
    ]
    sweep.sweep(small(data, tmp_path / "out", "keep_models=true", *overrides))
    narrow, wide = sorted(read_rows(tmp_path / "out" / "rows.jsonl"), key=lambda row: row["width"])
    assert narrow["status"] == "failed" and "GPT-2" in narrow["reason"]  # 8 wide
    assert wide["status"] == "done" and wide["name"] == "GPT-2 start"
    kept = BehaveGPTForBehaviorPrediction.from_pretrained(
        tmp_path / "out" / "runs" / wide["run"] / "model"
    )
    gpt2 = GPT2Model.from_pretrained(tmp_path / "gpt2")
    torch.testing.assert_close(kept.model.blocks[0].mlp_in.weight, gpt2.h[0].mlp.c_fc.weight.T)


def test_a_run_that_another_process_holds_is_left_to_it(data, tmp_path):
    from filelock import FileLock

    settings = small(data, tmp_path, "events=[300]")
    held = list_jobs(settings, Task.of(open_store(data)))[0]
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / held.name):
        assert [row["run"] for row in sweep.sweep(settings)] != [held.name]
    assert len(read_rows(tmp_path / "rows.jsonl")) == 1


def test_workers_begin_with_shares_that_together_are_all_runs(data, tmp_path, monkeypatch):
    began: list[str] = []
    monkeypatch.setattr(
        sweep, "_row", lambda settings, job, *rest: began.append(job.name) or {"status": "done"}
    )
    settings = small(data, tmp_path / "a", "events=[300, 400, 500]")
    sweep.sweep(settings, (1, 2))
    jobs = [job.name for job in list_jobs(settings, Task.of(open_store(data)))]
    # the other's runs at the end, since nobody works on them
    assert began == [*jobs[1::2], *jobs[0::2]]


def test_more_events_than_there_are_is_refused_before_anything_runs(data, tmp_path):
    with pytest.raises(DataError, match="training targets"):
        sweep.sweep(small(data, tmp_path, "events=[300, 100000]"))
    assert not (tmp_path / "rows.jsonl").exists()


def test_rates_and_batches_follow_their_rules(data):
    overrides = [
        "sizes=[{embedding_size: 8, num_attention_heads: 2}]",
        "events=[1e4, 1e6]",
        "lr.values=[1e-2]",
    ]
    rules = [
        "batch={events: 512, at: 1e4, power: 0.5, least: 64, most: 4096}",
        "lr.width=64",
        "lr.power=1",
    ]
    settings = small(data, Path("x"), *overrides, *rules)
    jobs = list_jobs(settings, Task.of(open_store(data)))
    chosen = [run_settings(settings, job, "d", "o").train for job in jobs]
    assert [train.batch_events for train in chosen] == [512, 4096]  # 5,120, held down
    assert [train.lr for train in chosen] == [0.02, 0.02]  # width 4 x 8
    assert {(train.epochs, train.steps, train.select) for train in chosen} == {(1, None, "last")}


@pytest.mark.parametrize(
    "override,message",
    [
        ("train={lr: 1}", "'lr' is set by the sweep"),
        ("events_per_parameter=[1]", "either events or events_per_parameter"),
        ("model={layers: 2}", "unknown"),
        ("data.split=train", "data.split"),
    ],
)
def test_a_mistake_in_the_settings_is_named(data, tmp_path, override, message):
    with pytest.raises((ConfigError, BehaveGPTError, ValueError), match=message):
        sweep.sweep(small(data, tmp_path, override))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_sweep_loads_and_says_how_to_run_it(path):
    settings = read_settings(SweepSettings, path, ["out=x"])
    assert "Run: behavegpt scale" in path.read_text()
    task = settings.task or Task(
        fields={"location": 2000, "weekday": 7, "slot": 48, "event": 116}, behaviors=39
    )
    assert len(list_jobs(settings, task)) >= 18


def test_the_dry_run_of_the_papers_grid():
    settings = read_settings(SweepSettings, ROOT / "configs" / "scaling" / "paper.yaml")
    *sizes, total = estimate.estimate(settings, estimate.Device(989, 0.4))
    assert [round(row["without_embeddings"] / 1e6, 1) for row in sizes] == [0.4, 2.8, 23.9]
    # 1+2+4+6+8+10
    assert [row["events"] for row in sizes] == [31 * row["without_embeddings"] for row in sizes]
    by_hand = sum(6 * 31 * row["without_embeddings"] ** 2 for row in sizes)  # 6 N D
    assert by_hand < total["flops"] < 1.05 * by_hand  # and attention
    assert total["device_hours"] == pytest.approx(total["flops"] / (989e12 * 0.4 * 3600))
    assert total["hours"] is None  # nothing measured without data


def test_a_dry_run_with_data_measures_this_machine_and_writes_nothing(data, tmp_path):
    *sizes, total = estimate.estimate(small(data, tmp_path / "out"))
    assert all(row["measured"] and row["events_per_second"] > 100 for row in sizes)
    assert total["hours"] == pytest.approx(sum(row["hours"] for row in sizes))
    assert not (tmp_path / "out").exists()


def test_the_command_line_from_sweep_to_plan(swept, data, tmp_path, capsys):
    # the sweep that was begun in Python: of three data sizes one is left to train
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    begun = {row["run"] for row in read_rows(out / "rows.jsonl")}
    overrides = [f"data.path={data}", f"out={out}", *SMALL]
    (tmp_path / "c.yaml").write_text("events: [300, 600, 900]\nsizes: [1000]\n")
    config = str(tmp_path / "c.yaml")
    assert main(["scale", config, *overrides, "--dry-run", "--tflops", "989", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["runs"] == 4
    assert main(["scale", config, *overrides, "events=[300, 600, 900]", "--worker", "0/1"]) == 0
    assert "rows.jsonl" in capsys.readouterr().err
    trained = {row["run"] for row in read_rows(out / "rows.jsonl")} - begun
    assert len(trained) == 2 and all("_e600_" in name for name in trained)
    fit = str(tmp_path / "fit.json")
    assert (
        main(
            [
                "scale",
                "fit",
                str(out / "rows.jsonl"),
                "--out",
                fit,
                "--draws",
                "50",
                "--no-plots",
            ]
        )
        == 0
    )
    assert "only 2 different sizes" in capsys.readouterr().err
    assert main(["scale", "fit", str(out / "rows.jsonl"), "--out", fit, "--name", "Nobody"]) == 2
    assert main(["scale", "plan", "--compute", "1e9", fit]) == 2
    assert "nothing can be planned" in capsys.readouterr().err
    rows = [
        {**row, "flops": 6 * row["params"] * row["events"], "seconds": 9} for row in planted_rows(0)
    ]
    (tmp_path / "planted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        main(
            [
                "scale",
                "fit",
                str(tmp_path / "planted.jsonl"),
                "--out",
                fit,
                "--draws",
                "50",
                "--no-plots",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["scale", "plan", "--compute", "1e9", fit, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flops"] == pytest.approx(1e9)
    assert main(["scale", "plan", "--events", "1e4", fit]) == 0
    assert main(["scale", "plan", "--hours", "1", fit]) == 0
    tree = json.loads(Path(fit).read_text())
    assert tree["flops_per_second"] > 1e6
    Path(fit).write_text(json.dumps(tree | {"flops_per_second": None}))
    assert main(["scale", "plan", "--hours", "1", fit]) == 2
    assert "--tflops" in capsys.readouterr().err
    for wrong in (["--worker", "2/2"], ["--worker", "first"]):
        with pytest.raises(SystemExit):
            main(["scale", config, *overrides, *wrong])


@pytest.mark.slow
def test_after_kill_9_the_sweep_goes_on_and_ends_with_the_same_losses(data, tmp_path):
    overrides = [f"data.path={data}", *SMALL, "events=[600, 1800]"]
    (tmp_path / "c.yaml").write_text("events: [300]\nsizes: [1000]\n")
    command = [sys.executable, "-m", "behavegpt.cli", "scale", str(tmp_path / "c.yaml"), *overrides]
    options = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True}
    subprocess.run([*command, f"out={tmp_path / 'whole'}"], check=True, **options)
    killed = tmp_path / "killed"
    with subprocess.Popen(
        [*command, f"out={killed}"], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while not any(killed.glob("runs/*e1800*/ckpt/step_*")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = len(read_rows(killed / "rows.jsonl"))
    assert 0 < done < 4
    said = subprocess.run([*command, f"out={killed}"], check=True, **options).stderr.decode()
    assert "resumed from step" in said
    figures = [
        {row["run"]: row["loss"] for row in read_rows(tmp_path / n / "rows.jsonl")}
        for n in ("whole", "killed")
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 4
