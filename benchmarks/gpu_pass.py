"""Everything that needs a GPU to be believed, in one pass of at most nine minutes: `make gpu-pass`.

    python benchmarks/gpu_pass.py                                # all parts, in order of worth
    python benchmarks/gpu_pass.py --parts attention training     # some of them
    python benchmarks/gpu_pass.py --small --device cpu           # each line once, at tiny sizes:
                                                                 # what CI runs

Each part writes its rows to benchmarks/results/gpu_pass.jsonl as it ends, so that a cut-off loses
the part it was in; a part that fails leaves a row with its error. No part is begun when `--seconds`
are over.

attention    each back end against the formula in float64, forward and gradients; packed histories
             against each alone
training     50 steps in bf16, by each back end and compiled, against fp32
runs         train.py, a run stopped half-way and resumed, and as one rank of FSDP2: the weights of
             the plain run
throughput   the paper's size (12 x 1024, cap 90): back ends, plain and compiled; padded; GPT-2;
             parts of a step
head         50,000 classes: chunked loss against whole logits, seconds and memory
windows      caps 256, 1,024 and 4,096
evaluator    the organizers' network, 1 M clients a task: seconds of a step, of the validation, of
             six tasks
export       vectors of users of 30 events on average: seconds for a million
generation   futures of 50 events of users with full windows: events a second
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))
import gpu

from behavegpt.batch import IGNORED
from behavegpt.model.attention import attend, plan_attention
from behavegpt.model.head import Predicted, PredictionHead
from behavegpt.model.head_loss import head_loss
from behavegpt.model.precision import autocast
from behavegpt.training.journal import read_journal

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gpu_pass.jsonl"

Row = dict[str, Any]


class Pass(NamedTuple):
    """What every part is given."""

    device: torch.device
    small: bool
    args: argparse.Namespace  # of benchmarks/gpu.py

    def bench(
        self, size: str, cap: int = gpu.CAP, *, compiled: bool = False, **changes: Any
    ) -> gpu.Bench:
        """A size's data, models and timing."""
        args = argparse.Namespace(**{**vars(self.args), "compile": compiled, **changes})
        return gpu.Bench(gpu.SIZES["tiny" if self.small else size], self.device, args, cap)

    def backends(self) -> list[str]:
        return gpu.backends(self.device, "bf16" if self.device.type == "cuda" else "fp32")


def attention(run: Pass) -> Iterator[Row]:
    """Largest differences to float64, beside those of the formula itself in the same precision."""
    rows, heads, length, width = (2, 2, 64, 16) if run.small else (16, 16, 256, 64)
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(rows, length, generator=generator) < 1 / 20
    document = ends.cumsum(1).to(run.device)
    kind = torch.bfloat16 if run.device.type == "cuda" else torch.float32
    shape = (rows, heads, length, width)
    drawn = torch.stack([torch.randn(shape, generator=generator) for _ in range(4)])
    q, k, v, out_gradient = drawn.to(run.device, kind)

    def results(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.detach().to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = attend(inputs[0], inputs[1], inputs[2], plan_attention(document, backend))
        out.backward(out_gradient.to(dtype))
        return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]

    right = results("eager", torch.float64)
    for backend in ["eager", *run.backends()]:
        outputs = results(backend, kind)
        apart = [float((a.double() - b).abs().max()) for a, b in zip(outputs, right, strict=True)]
        yield {
            "backend": backend,
            "dtype": str(kind),
            **dict(zip(("out", "dq", "dk", "dv"), apart, strict=True)),
        }

    yield from _packed_against_alone(run)


def _packed_against_alone(run: Pass) -> Iterator[Row]:
    """Logits of a packed batch against those of each history in a row of its own, by back end."""
    bench = run.bench("3M")
    packed = next(iter(bench.batches.micro_batches(0))).to(run.device)
    padded = next(iter(gpu.PaddedBatches(bench.batches).micro_batches(0))).to(run.device)
    order = [torch.argsort(batch.row[batch.target != IGNORED]) for batch in (packed, padded)]

    for precision in ["fp32", *(["bf16"] if run.device.type == "cuda" else [])]:
        for backend in run.backends() if precision == "bf16" else ["sdpa"]:
            model = bench.model().eval()
            logits = []
            for batch, which, rows in zip((packed, padded), (backend, "sdpa"), order, strict=True):
                model.set_attn_implementation(which)
                with torch.no_grad(), autocast(run.device, precision):
                    wanted = batch.target != IGNORED
                    layout = {
                        "document": batch.document,
                        "position": batch.position,
                        "select": wanted,
                    }
                    logits.append(model(**batch.inputs, **layout).logits.float()[rows])

            apart = float((logits[0] - logits[1]).abs().max())
            yield {
                "packed - alone": apart,
                "largest logit": float(logits[0].abs().max()),
                "precision": precision,
            } | {"backend": backend}


def training(run: Pass) -> Iterator[Row]:
    """Cross-entropies of 50 steps on histories that can be learned; differences to fp32."""
    steps = 5 if run.small else 50
    right: np.ndarray | None = None
    ways = [("sdpa", "fp32", False)]

    if run.device.type == "cuda":
        ways += [(backend, "bf16", False) for backend in run.backends()]
        ways += [("varlen", "bf16", True)]

    for backend, precision, compiled in ways:
        bench = run.bench("3M", compiled=compiled, events_per_step=8192)
        # each event follows from the last: there is something to learn
        event = bench.store.columns["event"]
        index = np.arange(len(event)) - np.repeat(
            bench.store.offsets[:-1], np.diff(bench.store.offsets)
        )
        event[:] = (
            np.repeat(event[bench.store.offsets[:-1]], np.diff(bench.store.offsets)) - 2 + 7 * index
        ) % 50 + 2
        trainer = bench.trainer(backend, bench.batches)
        trainer.precision = precision
        trainer.settings = trainer.settings.model_copy(
            update={"warmup": 0.0, "schedule": "constant"}
        )
        losses = np.array([trainer.step(step)["cross_entropy"] for step in range(steps)])
        right = losses if right is None else right
        apart = np.abs(losses - right)
        yield {
            "backend": backend,
            "precision": precision,
            "compiled": compiled,
            "first": losses[0],
        } | {
            "last": losses[-1],
            "largest difference": float(apart.max()),
            "mean difference": float(apart.mean()),
        }


def runs(run: Pass) -> Iterator[Row]:
    """The command line: a plain run, one resumed from its half, one rank of FSDP2; largest
    difference of weights."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data, steps = work / "data", 4 if run.small else 40
        users = 50 if run.small else 2000
        log = work / "log.parquet"
        _command(
            "-m", "behavegpt", "synthesize", "--users", users, "--events", 30 * users, "--out", log
        )
        _command("-m", "behavegpt", "prepare", log, "--out", data)
        train = _train_line(data, steps, "tiny" if run.small else "small")
        seconds = _command(*train, f"out={work / 'whole'}")
        # without what its second half wrote: a run that was stopped there
        again = work / "resumed"
        shutil.copytree(work / "whole", again)
        for path in [again / "model", again / "ckpt" / f"step_{steps:08d}"]:
            shutil.rmtree(path)

        yield {"run": "whole", "seconds": seconds}
        others = _other_lines(work, train)
        with ThreadPoolExecutor() as pool:
            if run.device.type != "cuda":
                del others["compiled"], others["fsdp"]
            waiting = {name: pool.submit(_command, *line) for name, line in others.items()}
            for name, future in waiting.items():
                yield {"run": name} | _told(future, work, name)


def _train_line(data: Path, steps: int, size: str) -> list[object]:
    """train.py with checkpoints at its half and its end, all kept; deterministic."""
    line: list[object] = ["train.py", f"configs/{size}.yaml", f"data.path={data}"]
    line += [f"train.steps={steps}", f"train.checkpoint_every={steps // 2}"]
    return [*line, "train.deterministic=true", "train.keep=5", "train.select=last"]


def _other_lines(work: Path, train: list[object]) -> dict[str, list[object]]:
    """The runs that are compared with the plain one in `work`, by name."""
    launch: list[object] = ["-m", "accelerate.commands.launch"]
    launch += ["--config_file", "configs/accelerate/fsdp2.yaml", "--num_processes", "1"]
    evaluate: list[object] = ["-m", "behavegpt", "evaluate", work / "whole" / "model"]
    return {
        "resumed": [*train, f"out={work / 'resumed'}", "--resume"],
        "fsdp": [*launch, *train, f"out={work / 'fsdp'}"],
        "compiled": [*train, f"out={work / 'compiled'}", "train.compile=true"],
        "evaluated": [*evaluate, work / "data", "--out", work / "evaluation.json"],
    }


def _told(future: Future[float], work: Path, name: str) -> Row:
    """Seconds of a run and how its weights differ, or what it ended with."""
    try:
        row = {"seconds": future.result()}
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)[-2000:]}
    return row if name == "evaluated" else row | _weights_apart(work / "whole", work / name)


def _command(*arguments: object) -> float:
    """Seconds of a Python command line. Raises RuntimeError with what it said when it fails."""
    began = time.perf_counter()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    line = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(line)}: exit {done.returncode}\n{done.stdout[-800:]}\n{done.stderr[-1600:]}"
        )

    return time.perf_counter() - began


def _weights_apart(one: Path, other: Path) -> Row:
    first = load_file(one / "model" / "model.safetensors")
    second = load_file(other / "model" / "model.safetensors")
    apart = max(float((first[name].double() - second[name].double()).abs().max()) for name in first)

    return {
        "largest difference of weights": apart,
        "largest difference of losses": float(np.abs(_losses(one) - _losses(other)).max()),
        "equal": all(first[name].equal(second[name]) for name in first),
    }


def _losses(run: Path) -> np.ndarray:
    """Cross-entropies (steps,) of a run's journal."""
    records = read_journal(run / "log.jsonl")
    return np.array([row["cross_entropy"] for row in records if row["kind"] == "train"])


def throughput(run: Pass) -> Iterator[Row]:
    """Events a second at the paper's size, and what share of the matmul rate that is."""
    bench = run.bench("paper")
    ceilings = gpu.ceilings(bench)
    yield ceilings | {"parameters": sum(p.numel() for p in bench.model().parameters())}
    lengths = np.array([len(history) for history in bench.histories])
    context = float((lengths * (lengths - 1) / 2).sum() / (lengths - 1).sum())
    flops = gpu.event_flops(bench.model(), context)
    compiled = run.bench("paper", compiled=True)
    best: tuple[float, str, gpu.Bench] = (0.0, "", bench)

    for backend in run.backends():
        for chosen in (bench, compiled) if run.device.type == "cuda" else (bench,):
            row = _rate(chosen, backend, flops, ceilings)
            yield row
            if row["events_per_s"] > best[0]:
                best = (row["events_per_s"], backend, chosen)

    # padded, a step takes up to 8 x the room
    few = run.bench("paper", events_per_step=bench.args.events_per_step // 4)
    yield {"trainer": "ours, padded", **_padded_rate(few)}
    gc.collect()  # a trainer and its thread know each other
    peer = few.rate(gpu.gpt2_step(few, "sdpa"))
    yield {
        "trainer": "GPT-2, padded",
        **peer,
        "ours / it": round(best[0] / peer["events_per_s"], 3),
    }
    yield {"parts of": best[1], "compiled": best[2] is compiled, **gpu.parts(best[2], best[1])}


def _padded_rate(bench: gpu.Bench) -> Row:
    trainer = bench.trainer("sdpa", gpu.PaddedBatches(bench.batches))
    return bench.rate(lambda step: trainer.step(step)["events"])


def _rate(bench: gpu.Bench, backend: str, flops: float, ceilings: dict[str, float]) -> Row:
    trainer = bench.trainer(backend, bench.batches)
    began = time.perf_counter()
    for step in range(2):  # compiles
        trainer.step(step)

    warm = time.perf_counter() - began
    rate = bench.rate(lambda step: trainer.step(step + 2)["events"])
    share = rate["events_per_s"] * flops / (ceilings["matmul_tflops"] * 1e12)

    return {
        "trainer": "ours, packed",
        "backend": backend,
        "cap": bench.cap,
        "compiled": bench.args.compile,
    } | {
        **rate,
        "share of matmul": round(share, 4),
        "first two steps, s": round(warm, 2),
    }


def head(run: Pass) -> Iterator[Row]:
    """Loss and gradients of one step's targets: chunked, and with whole logits."""
    from behavegpt.losses import LossSettings, build_loss
    from behavegpt.model import BehaveGPTConfig

    classes, events, width = (200, 256, 32) if run.small else (50_000, 32_768, 1024)
    config = BehaveGPTConfig(
        field_sizes={"event": classes + 2},
        num_behaviors=classes,
        embedding_size=width,
        num_attention_heads=2,
    )

    torch.manual_seed(0)
    layer = PredictionHead(config).to(run.device)
    states = torch.randn(events, width, device=run.device, requires_grad=True)
    target = torch.randint(0, classes, (events,), device=run.device)
    loss = build_loss(LossSettings(start=0.0), torch.ones(classes, dtype=torch.long)).to(run.device)
    precision = "bf16" if run.device.type == "cuda" else "fp32"

    def chunked() -> torch.Tensor:
        return head_loss(layer, Predicted(states), target, loss, classes).total

    def whole() -> torch.Tensor:
        return (loss.per_event(layer(states), target) * loss.weight(target)).sum()

    bench = run.bench("3M", seconds=run.args.seconds if run.small else 1.0)
    found: dict[str, Row] = {}
    gradients = {}
    for name, forward in {"chunked": chunked, "whole": whole}.items():

        def call(forward: Callable[[], torch.Tensor] = forward) -> None:
            for parameter in (states, *layer.parameters()):
                parameter.grad = None
            with autocast(run.device, precision):
                total = forward()
            total.backward()

        call()
        if run.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

        seconds = bench.seconds(call)
        found[name] = {"ms": round(1000 * seconds, 3)}
        if run.device.type == "cuda":
            found[name]["peak_mib"] = round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)

        assert layer.projection.weight.grad is not None
        gradients[name] = layer.projection.weight.grad.clone()

    apart = float((gradients["chunked"] - gradients["whole"]).norm() / gradients["whole"].norm())
    ratios = {
        f"{key} ratio": round(found["chunked"][key] / found["whole"][key], 3)
        for key in found["whole"]
    }
    yield {
        "classes": classes,
        "events": events,
        "width": width,
        **found,
        **ratios,
        "gradient difference": apart,
    }


def windows(run: Pass) -> Iterator[Row]:
    """Longer windows at the size of 25 M parameters, with the two fastest back ends."""
    ceilings = gpu.ceilings(run.bench("25M"))
    for cap in (96, 128) if run.small else (256, 1024, 4096):
        users = 20 if run.small else max(300, 2_000_000 // cap)
        bench = run.bench("25M", cap, compiled=run.device.type == "cuda", users=users)
        lengths = np.array([len(history) for history in bench.histories], np.int64)
        flops = gpu.event_flops(
            bench.model(), float((lengths * (lengths - 1) / 2).sum() / (lengths - 1).sum())
        )

        for backend in (
            ["varlen", *(["flex_attention"] if cap == 1024 else [])] if not run.small else ["sdpa"]
        ):
            yield _rate(bench, backend, flops, ceilings)


def evaluator(run: Pass) -> Iterator[Row]:
    """Seconds of a training step and of the validation for propensity of 100 labels; six tasks by
    that measure."""
    from behavegpt.challenge.fit import BATCH, EPOCHS, _Resident, predict
    from behavegpt.challenge.network import UniversalModel
    from behavegpt.challenge.scores import score
    from behavegpt.challenge.step import RecordedStep, training_step
    from behavegpt.challenge.targets import Targets

    clients, width, dimensions = (300, 32, 8) if run.small else (1_000_000, None, 512)
    steps = 2 if run.small else 3000
    rng = np.random.default_rng(0)
    labels = (rng.random((clients, 100), np.float32) < 0.02).astype(np.uint8)
    everyone = np.ones(clients, bool)
    targets = Targets("propensity_sku", labels, labels, np.ones(100), everyone, np.arange(100))
    vectors = rng.standard_normal((clients, dimensions), np.float32).astype(np.float16)
    chosen = _Resident(vectors, targets, run.device)

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        some = slice(number * BATCH % (clients - BATCH), number * BATCH % (clients - BATCH) + BATCH)
        return chosen.vectors(some), chosen.train[some].float()

    for tf32 in (False, True):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        models = [UniversalModel(dimensions, 100, width=width).to(run.device) for _ in range(2)]
        step, plain = training_step(models[0]), training_step(models[1])
        plain = plain.step if isinstance(plain, RecordedStep) else plain
        losses = [
            [float(way(*batch(number))) for number in range(20 if not run.small else 2)]
            for way in (step, plain)
        ]

        seconds = {}
        for name, way, count in (("recorded", step, steps), ("plain", plain, max(2, steps // 10))):
            began = time.perf_counter()
            for number in range(count):
                loss = way(*batch(number))
            float(loss)
            seconds[name] = (time.perf_counter() - began) / count

        began = time.perf_counter()
        score(predict(models[0], chosen), chosen.validation, targets.popularity)
        validation = time.perf_counter() - began
        six = 6 * EPOCHS * (validation + seconds["recorded"] * -(-clients // BATCH))
        yield {
            "clients": clients,
            "tf32": tf32,
            "step_ms": {n: 1000 * s for n, s in seconds.items()},
        } | {
            "validation_s": validation,
            "six tasks, s": six,
            "recorded losses equal plain ones": losses[0] == losses[1],
        }

    torch.set_float32_matmul_precision("highest")


def export(run: Pass) -> Iterator[Row]:
    """`pooling.user_vectors` of the paper's size, as `behavegpt export` calls it for a block of
    users."""
    from behavegpt.embeddings.pooling import user_vectors
    from behavegpt.model.attention import choose_backend

    bench = run.bench("paper", users=64 if run.small else 40_000)
    model = bench.model().eval()
    model.set_attn_implementation(choose_backend(run.device, half=True, window=gpu.CAP))
    begin, end = bench.store.offsets[:-1], bench.store.offsets[1:]
    block = 32 if run.small else 8192
    user_vectors(model, bench.store.columns, begin[:block], end[:block], ("last", "mean"))
    began = time.perf_counter()

    for at in range(0, len(begin), block):
        user_vectors(
            model,
            bench.store.columns,
            begin[at : at + block],
            end[at : at + block],
            ("last", "mean"),
        )

    seconds = time.perf_counter() - began
    yield {"users": len(begin), "events": int(end[-1]), "seconds": seconds} | {
        "seconds for 1 M users": seconds / len(begin) * 1e6,
        "events_per_s": float(end[-1]) / seconds,
    }


def generation(run: Pass) -> Iterator[Row]:
    """Futures of 50 events by the cache, whose windows slide."""
    import pyarrow as pa

    from behavegpt.data.tokenizer import EncodedHistories, EventTokenizer
    from behavegpt.generation.rollout import roll_out
    from behavegpt.generation.settings import GenerationSettings

    bench = run.bench("paper", users=8 if run.small else 2048)
    model = bench.model().eval()
    tokenizer = EventTokenizer(bench.store.schema, bench.store.vocabulary)
    users = pa.array([f"u{i}" for i in range(len(bench.store.offsets) - 1)])
    encoded = EncodedHistories(
        users,
        bench.store.offsets,
        {**bench.store.columns, "behavior": bench.store.columns["event"]},
        {},
        {},
    )

    steps = 3 if run.small else 50
    policy: Any = {"time": "observed", "place": "observed", "steps": steps, "rows": 2048}
    settings = GenerationSettings(**policy)
    began = time.perf_counter()
    roll_out(model, tokenizer, encoded, settings)
    seconds = time.perf_counter() - began
    yield {
        "users": len(users),
        "steps": steps,
        "seconds": seconds,
        "events_per_s": len(users) * steps / seconds,
    }


PARTS: dict[str, Callable[[Pass], Iterator[Row]]] = {
    "attention": attention,
    "training": training,
    "throughput": throughput,
    "runs": runs,
    "head": head,
    "evaluator": evaluator,
    "export": export,
    "generation": generation,
    "windows": windows,
}


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try every line")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=480.0, help="no part is begun after them")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    size = {"users": 200, "events_per_step": 1024, "seconds": 0.05, "matmul": 128}
    if not args.small:
        size = {"users": 20_000, "events_per_step": 65_536, "seconds": 4.0, "matmul": 8192}

    run = Pass(device, args.small, argparse.Namespace(**size, compile=False))
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    began = time.perf_counter()
    rows: list[Row] = []
    args.out.unlink(missing_ok=True)

    def tell(row: Row) -> None:
        rows.append(
            {
                "device": name,
                "torch": torch.__version__,
                "at_s": round(time.perf_counter() - began, 1),
                **row,
            }
        )

        print(json.dumps(rows[-1]), flush=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")

    for part in args.parts:
        if time.perf_counter() - began > args.seconds:
            tell({"part": part, "error": "not begun: the seconds were over"})
            continue

        try:
            for row in PARTS[part](run):
                tell({"part": part, **row})
        except Exception:  # one part's failure must not lose the others
            tell({"part": part, "error": traceback.format_exc()[-3000:]})

        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    return rows


if __name__ == "__main__":
    main()
