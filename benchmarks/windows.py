"""Training throughput and memory by the length of the window, on a prepared log with long
histories.

    python benchmarks/windows.py data/git                              # 256 to 8,192 events
    python benchmarks/windows.py data/git --windows 90 256 --steps 8

BehaveGPT through its Trainer (width 128, 2 blocks, 4 heads, no dropout, no memory, fp32, one
thread), 8,192 positions a step at every window. Each window runs with attention over histories (the
CPU's own choice beyond 128) and, as its peer, over whole rows with a mask (`sdpa`); each in a fresh
process, in turns, and the best turn counts. Peak memory is that of the process. Rows go to
benchmarks/results/windows.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from measuring import measured

RESULT = Path(__file__).parent / "results" / "windows.json"
POSITIONS = 8192  # of a step
KINDS = ("by_history", "sdpa")
SHAPE = {"embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.0}


def child(data: Path, window: int, kind: str, steps: int, out: Path) -> None:
    """Train for some steps; the events learned in a CPU second go to `out`."""
    import time

    import torch
    from accelerate import Accelerator

    from behavegpt.batch import IGNORED
    from behavegpt.data.store import open_store
    from behavegpt.losses import build_loss
    from behavegpt.pretrain import PretrainSettings, build_model
    from behavegpt.training.run import RunFolder
    from behavegpt.training.trainer import Trainer

    torch.set_num_threads(1)
    settings = PretrainSettings(
        out="unused",  # a run without a folder writes nothing
        data={"path": str(data)},
        model=SHAPE | {"max_length": window},
        loss={"start": 0.0},
        train={"steps": 1_000_000, "precision": "fp32", "batch_events": POSITIONS},
    )
    store = open_store(data)
    torch.manual_seed(0)
    model = build_model(settings, store).train()
    loss = build_loss(settings.loss, torch.tensor(store.behaviors.counts))
    run = RunFolder(Accelerator(cpu=True))
    trainer = Trainer(model, loss, store, settings.train, run, attention=kind)

    trainer.step(0)  # memory is allocated, kernels are chosen
    began = time.process_time()
    for step in range(1, steps + 1):
        trainer.step(step)
    seconds = time.process_time() - began

    events = sum(
        int((batch.target != IGNORED).sum())
        for step in range(1, steps + 1)
        for batch in trainer.batches.micro_batches(step)
    )
    out.write_text(json.dumps({"events": events, "cpu_s": seconds}), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        window, kind, out = arguments.child
        child(arguments.data, int(window), kind, arguments.steps, Path(out))
        return

    rows = [row for _ in range(arguments.repeats) for row in one_turn(arguments)]
    best: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        key = row["window"], row["attention"]
        if key not in best or row["events_per_cpu_s"] > best[key]["events_per_cpu_s"]:
            best[key] = row

    first = best[arguments.windows[0], KINDS[0]]["events_per_cpu_s"]
    for row in best.values():
        row["of_the_first"] = round(row["events_per_cpu_s"] / first, 3)
        row["to_sdpa"] = round(
            row["events_per_cpu_s"] / best[row["window"], "sdpa"]["events_per_cpu_s"], 2
        )

    result = {
        "data": arguments.data.name,
        "positions_a_step": POSITIONS,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "rows": list(best.values()),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def one_turn(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each window with each attention, in a process of its own."""
    out = RESULT.with_suffix(".child")
    rows = []
    for window in arguments.windows:
        for kind in KINDS:
            command = [sys.executable, __file__, str(arguments.data), "--steps"]
            command += [str(arguments.steps), "--child", str(window), kind, str(out)]
            cost = measured(command, environment=os.environ | {"OMP_NUM_THREADS": "1"})
            found = json.loads(out.read_text(encoding="utf-8"))
            out.unlink()
            row = {
                "window": window,
                "attention": kind,
                "events_per_cpu_s": round(found["events"] / found["cpu_s"]),
                "peak_mib": round(cost["peak_mib"]),
            }
            print(row, flush=True)
            rows.append(row)

    return rows


if __name__ == "__main__":
    main()
