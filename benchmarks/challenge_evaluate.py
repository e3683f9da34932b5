"""The challenge evaluator against plain PyTorch doing the same: CPU seconds, peak memory, bytes
written, equal scores.

    python benchmarks/challenge_evaluate.py SPLIT ENTRY --work ../bench [--clients 1000] [--tasks
    churn]

SPLIT is a data directory after `behavegpt challenge split`; of ENTRY the first clients are taken.
The organizers' own program is not part of this project: `plain` stands in for it, the
straightforward way that its description gives, in torch alone (a target computed for each row when
it is loaded, AdamW in its default form, torchmetrics fed batches of 128, a checkpoint after each
epoch) and without what Lightning and Neptune add. Each run is a fresh process, imports included, on
one thread; programs take turns and the best run counts. `gemm` measures the processor's rate of
matrix products, whose time alone is the floor. Needs the extra `test`. The table goes to
benchmarks/results/challenge_evaluate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import measured, with_bytecode

if TYPE_CHECKING:  # the parent process stays small: a child's peak memory starts from its parent's
    import numpy as np
    import torch

RESULT = Path(__file__).parent / "results" / "challenge_evaluate.json"
PROGRAMS = ("behavegpt", "plain")
TASKS = ("churn", "propensity_category", "propensity_sku")


def run_behavegpt(args: argparse.Namespace) -> dict[str, list[float]]:
    """Our evaluator, with everything it does beside (checks, checksums, floors)."""
    from behavegpt.challenge.evaluate import evaluate

    result = evaluate(args.entry, args.data, args.out, tasks=args.tasks, name="result", subset=True)
    scores = {}
    for task, measures in result["tasks"].items():
        scores[task] = [epoch["score"] for epoch in measures["epochs"][0]]
    return scores


def run_plain(args: argparse.Namespace) -> dict[str, list[float]]:
    """The stand-in for the organizers' program."""
    import numpy as np

    ids = np.load(args.entry / "client_ids.npy")
    vectors = np.load(args.entry / "embeddings.npy").astype(np.float32)

    scores = {}
    for task in args.tasks:
        kept = np.ones(len(ids), bool)
        if task == "churn":  # asked of the active clients alone
            kept = np.isin(ids, np.load(args.data / "target" / "active_clients.npy"))
        scores[task] = _plain_task(args, task, ids[kept], vectors[kept])

    return scores


def _plain_task(
    args: argparse.Namespace, task: str, ids: np.ndarray, vectors: np.ndarray
) -> list[float]:
    import numpy as np
    import torch
    from torch.nn import functional as F

    labels = popularity = None
    if task.startswith("propensity"):
        labels = np.load(args.data / "target" / f"{task}.npy")
        popularity = np.load(args.data / "target" / f"popularity_{task}.npy")

    torch.manual_seed(1278)  # the organizers' seed, so that epochs compare
    model = _plain_network(vectors.shape[1], 1 if labels is None else len(labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train = _rows(args.data, "train", task, ids, vectors, labels)
    valid = _rows(args.data, "validation", task, ids, vectors, labels)

    scores = []
    for _ in range(3):
        for x, y in torch.utils.data.DataLoader(train, batch_size=128):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(x), y).backward()
            optimizer.step()

        scores.append(_plain_validation(model, valid, popularity))
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
            args.out / f"{task}.ckpt",
        )

    return scores


def _rows(
    data: Path,
    window: str,
    task: str,
    ids: np.ndarray,
    vectors: np.ndarray,
    labels: np.ndarray | None,
) -> Any:
    """A map-style data set that filters the window's table for each row it is asked for."""
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(data / "target" / f"{window}_target.parquet")
    column = task.rpartition("_")[2]

    class Rows:
        def __len__(self) -> int:
            return len(ids)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            bought = table.loc[table["client_id"] == ids[index]]
            if labels is None:
                return vectors[index], np.array([len(bought) == 0], np.float32)
            return vectors[index], np.isin(labels, bought[column].unique()).astype(np.float32)

    return Rows()


def _plain_network(dimensions: int, outputs: int) -> torch.nn.Module:
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, norm: nn.Module, layers: nn.Module) -> None:
            super().__init__()
            self.norm, self.layers = norm, layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layers(self.norm(x))

    first, norms = nn.Linear(dimensions, 2048), [nn.LayerNorm(2048) for _ in range(3)]
    blocks = [
        nn.Sequential(nn.Linear(2048, 4096), nn.GELU(), nn.Linear(4096, 2048)) for _ in range(3)
    ]
    residual = [Residual(*pair) for pair in zip(norms, blocks, strict=True)]

    return nn.Sequential(
        first, nn.LayerNorm(2048), *residual, nn.LayerNorm(2048), nn.Linear(2048, outputs)
    )


def _plain_validation(model: torch.nn.Module, rows: Any, popularity: np.ndarray | None) -> float:
    import numpy as np
    import torch
    from torchmetrics import AUROC

    metric: Any = None
    entropy = weighted = 0.0
    for x, y in torch.utils.data.DataLoader(rows, batch_size=128):
        with torch.no_grad():
            logits = model(x)

        outputs = logits.shape[1]
        metric = metric or (
            AUROC("binary") if outputs == 1 else AUROC("multilabel", num_labels=outputs)
        )
        metric.update(logits.squeeze(1), y.long().squeeze(1))

        if popularity is not None:
            p = logits.sigmoid()
            shares = p / p.sum(dim=1, keepdim=True)
            entropy -= float((shares * torch.log2(shares + 1e-9)).sum()) / np.log2(outputs)
            strongest, which = torch.topk(p, min(10, outputs))
            normalized = torch.tensor(popularity / np.sort(popularity)[-10:].sum())
            weighted += float((strongest * normalized[which]).sum())

    area = float(metric.compute())
    if popularity is None:
        return area

    return 0.8 * area + 0.1 * entropy / len(rows) + 0.1 * (1 - weighted / len(rows)) ** 100


def run_gemm(args: argparse.Namespace) -> dict[str, list[float]]:
    """Floating point operations per CPU second of the best of twenty products of 2048 x 2048
    matrices, one thread."""
    import torch

    a = torch.randn(2048, 2048)

    seconds = []
    for _ in range(20):
        began = time.process_time()
        a @ a
        seconds.append(time.process_time() - began)

    return {"flops_per_s": [2 * 2048**3 / min(seconds)]}


def make_entry(args: argparse.Namespace) -> dict[str, list[float]]:
    """The first clients of the entry; returns what the products of all tasks cost, in
    operations."""
    import numpy as np

    from behavegpt.challenge.network import flops
    from behavegpt.challenge.targets import load_targets
    from behavegpt.datasets.challenge_files import open_directory
    from behavegpt.user_embeddings import UserEmbeddings

    whole = UserEmbeddings.load(args.entry)
    ids, vectors = whole.client_ids[: args.clients], np.asarray(whole.vectors[: args.clients])
    UserEmbeddings(ids, vectors).save(args.out)

    total = 0
    for task in args.tasks:
        targets = load_targets(open_directory(args.data), ids, task)
        rows = int(targets.rows.sum())
        total += 3 * flops(vectors.shape[1], targets.train.shape[1], rows, rows)

    return {"flops": [float(total)], "clients": [float(len(ids))]}


CHILDREN = {"behavegpt": run_behavegpt, "plain": run_plain, "gemm": run_gemm, "entry": make_entry}


def child(
    program: str, args: argparse.Namespace, entry: Path, out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a program in a fresh process on one thread; what it answers, and its CPU seconds, wall,
    peak and bytes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [sys.executable, __file__, str(args.data), str(entry), "--out", str(out)]
    command += ["--program", program, "--clients", str(args.clients), "--tasks", *args.tasks]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    figures = measured(command, environment=with_bytecode(environment))

    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return json.loads((out / "answer.json").read_text()), figures | {"left_mib": written / 2**20}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All programs in turn; the best of the repeats."""
    entry = args.work / "entry"
    operations, _ = child("entry", args, args.entry, entry)

    best: dict[str, dict[str, float]] = {}
    answers, rate = {}, 0.0
    for repeat in range(args.repeats):
        rate = max(rate, child("gemm", args, entry, args.work / "gemm")[0]["flops_per_s"][0])
        for program in args.programs:
            answers[program], figures = child(program, args, entry, args.work / program)
            low = best.setdefault(program, figures)
            best[program] = {key: min(low[key], figures[key]) for key in figures}
            shown = "  ".join(f"{key} {value:.1f}" for key, value in figures.items())
            print(f"{program:10} run {repeat}: {shown}", flush=True)

    floor = operations["flops"][0] / rate
    first, last = answers[args.programs[0]], answers[args.programs[-1]]
    apart = [
        abs(a - b) for task in args.tasks for a, b in zip(first[task], last[task], strict=True)
    ]

    about = {"clients": int(operations["clients"][0]), "tasks": args.tasks, "repeats": args.repeats}
    return about | {
        "programs": best,
        "scores": answers,
        "largest_difference_of_an_epoch": max(apart),
        "gflops_per_s": rate / 1e9,
        "gemm_floor_s": floor,
        "share_of_floor": floor / best["behavegpt"]["cpu_s"],
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
    }


def main() -> None:
    """Measure, or be the child that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="SPLIT")
    parser.add_argument("entry", type=Path, metavar="ENTRY")
    parser.add_argument("--work", type=Path, default=Path("bench"))
    parser.add_argument(
        "--clients", type=int, default=1000, help="the first of the entry (default 1000)"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--program", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        answer = CHILDREN[args.program](args)
        (args.out / "answer.json").write_text(json.dumps(answer))
        return

    measurement = measure(args)
    ours = measurement["programs"]["behavegpt"]

    for program, figures in measurement["programs"].items():
        ratios = {key: ours[key] / figures[key] for key in ("cpu_s", "peak_mib")}
        print(
            f"ours / {program}: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items())
        )

    print(
        f"products alone: {measurement['gemm_floor_s']:.1f} s at "
        f"{measurement['gflops_per_s']:.0f} GFLOP/s: {measurement['share_of_floor']:.0%} of our "
        "CPU time; largest difference of an epoch's score "
        f"{measurement['largest_difference_of_an_epoch']:.1e}"
    )
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(measurement, indent=2) + "\n")


if __name__ == "__main__":
    main()
