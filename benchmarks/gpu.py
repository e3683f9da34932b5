"""Training throughput of one device: events/s, model FLOP utilization, memory, and where a step's
time goes.

    python benchmarks/gpu.py            # the paper's size and a ladder, on a GPU if there is one
    python benchmarks/gpu.py --sizes paper --compile --events-per-step 65536
    python benchmarks/gpu.py --sizes tiny --events-per-step 1024 --seconds 0.2 --matmul 256
                                        # what the test runs

Every row trains on the same log-normal histories (mean 30, sigma 1 before the cap of 90, 2000
events), at the precision that `train.precision=auto` takes, with clipping and AdamW:

- ours, packed: `Trainer.step`, each attention back end that works here
- ours, padded: the same model and step, each history alone in a row of the cap's length
- GPT-2: transformers' GPT2LMHeadModel of the same depth and width, sdpa and flash where installed,
  one id field, padded to the longest of the batch, histories in random order

MFU is useful FLOP/s over this device's own matmul rate (N x N x N, measured in the same run), not
over a data sheet. Useful: 6 for each weight of a matrix product and event, and 12 x layers x width
x (events looked at) for attention; padding counts for nothing. Seconds are the clock's, on a CPU
the processor's. Parts are timed alone, on the batch of a step, so they need not add up to it.
Rows go to benchmarks/results/gpu.json with the device's name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from behavegpt.batch import IGNORED, PADDING, PackedBatch
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import TrainingBatches, row_length_for
from behavegpt.losses import LossSettings, build_loss
from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
from behavegpt.model.attention import attend, plan_attention
from behavegpt.model.head import Predicted
from behavegpt.model.head_loss import head_loss
from behavegpt.model.precision import autocast, choose_precision
from behavegpt.training.run import RunFolder
from behavegpt.training.settings import TrainSettings
from behavegpt.training.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "gpu.json"
CAP, FIELDS = 90, 4
# references/performance.md, for the paper's size on an H200
GOALS = {"mfu": 0.62, "ours / GPT-2": 5.0}


class Size(NamedTuple):
    """Shape of a model."""

    layers: int
    width: int
    heads: int


SIZES = {
    "tiny": Size(1, 32, 2),
    "0.4M": Size(2, 128, 4),
    "3M": Size(4, 256, 8),
    "25M": Size(8, 512, 8),
    "paper": Size(12, 1024, 16),
}


def _train_benchmark() -> Any:
    """benchmarks/train.py, whose workload this is."""
    spec = importlib.util.spec_from_file_location(
        "train_benchmark", Path(__file__).with_name("train.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # where it finds train_peers, also when this file is a test's module
    sys.path.append(str(Path(__file__).parent))
    spec.loader.exec_module(module)

    return module


class Bench:
    """A size on a device: the data, the models, and the timing."""

    def __init__(
        self, size: Size, device: torch.device, args: argparse.Namespace, cap: int = CAP
    ) -> None:
        self.size, self.device, self.args, self.cap = size, device, args, cap
        self.precision = choose_precision("auto", device)
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        train = _train_benchmark()
        self.histories = (
            train.workload(args.users, cap)
            if cap == CAP
            else long_histories(args.users, cap, train.EVENTS)
        )
        self.store = train.store_of(self.histories)
        self.classes: int = train.EVENTS
        self.batches = TrainingBatches(
            self.store,
            max_length=cap,
            rows_per_step=max(1, args.events_per_step // row_length_for(cap)),
            seed=0,
            fields=BatchFields(self.store.schema.input_fields),
        )

    def model(self) -> BehaveGPTForBehaviorPrediction:
        """A fresh model on the device."""
        torch.manual_seed(0)
        config = BehaveGPTConfig(
            field_sizes=self.store.field_sizes(),
            num_behaviors=self.classes,
            behavior_is_event=True,
            embedding_size=self.size.width // FIELDS,
            num_hidden_layers=self.size.layers,
            num_attention_heads=self.size.heads,
            max_length=self.cap,
            dropout=0.0,
        )

        model = BehaveGPTForBehaviorPrediction(config).train()
        torch.nn.Module.to(model, self.device)
        return model

    def trainer(self, backend: str, batches: Any) -> Trainer:
        """What a run makes."""
        torch.manual_seed(0)
        settings = TrainSettings(steps=1_000_000, log_every=1_000_000, compile=self.args.compile)
        loss = build_loss(LossSettings(start=0.0), torch.tensor(self.store.behaviors.counts))
        run = RunFolder(Accelerator(cpu=self.device.type == "cpu"))
        return Trainer(
            self.model(), loss, self.store, settings, run, attention=backend, batches=batches
        )

    def seconds(self, call: Callable[[], object], least: int = 3) -> float:
        """Seconds of a call: the best of those that fit in the time, after a warm-up."""
        call()
        self._wait()

        taken: list[float] = []
        while len(taken) < least or sum(taken) < self.args.seconds:
            began = self.clock()
            call()
            self._wait()
            taken.append(self.clock() - began)

        return min(taken)

    def rate(self, step: Callable[[int], float]) -> dict[str, float]:
        """Events/s and memory of steps, which tell how many events they learned."""
        numbers = iter(range(1_000_000))
        step(next(numbers))
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

        events, began = 0.0, self.clock()
        while self.clock() - began < self.args.seconds or not events:
            events += step(next(numbers))
            self._wait()

        rate = events / (self.clock() - began)
        return {"events_per_s": round(rate, 1), "memory_mib": round(self._memory(), 1)}

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        # of the whole process, so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def long_histories(users: int, cap: int, events: int, seed: int = 0) -> list[np.ndarray]:
    """Log-normal histories whose mean before the cap is a third of it, as the cap of 90 has with
    its mean of 30."""
    rng = np.random.default_rng(seed)
    lengths = np.rint(rng.lognormal(np.log(cap / 3) - 0.5, 1.0, users)).clip(2, cap)
    return [rng.integers(0, events, int(length)) for length in lengths]


class PaddedBatches:
    """The histories of a `TrainingBatches`, each alone in a row of the cap's length."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.store, self._packed, self._cap = batches.store, batches, batches.max_length
        self.steps_per_epoch = batches.steps_per_epoch

    def micro_batches(self, step: int, *args: Any, **options: Any) -> Iterator[PackedBatch]:
        """The same events as the packed step, one history a row."""
        for batch in self._packed.micro_batches(step):
            # each history's place in the padded rows
            begins = (batch.position == 0) & (batch.document != PADDING)
            row = torch.cumsum(begins.flatten(), 0) - 1
            real = (batch.document != PADDING).flatten()
            place = (row * self._cap + batch.position.flatten())[real]
            rows = int(begins.sum())

            def spread(
                values: torch.Tensor, fill: int, place: Any = place, real: Any = real, n: int = rows
            ) -> Any:
                flat = torch.full((n * self._cap,), fill)
                flat[place] = values.flatten()[real]
                return flat.view(n, self._cap)

            document = spread(torch.zeros_like(batch.document), PADDING)
            inputs = {name: spread(ids, 0) for name, ids in batch.inputs.items()}
            target, position = spread(batch.target, IGNORED), spread(batch.position, 0)
            yield PackedBatch(inputs, document, position, target, spread(batch.row, -1), {})


def backends(device: torch.device, precision: str) -> list[str]:
    """The attention back ends that train here."""
    if device.type != "cuda" or precision != "bf16":
        return ["sdpa"]
    names = ["sdpa", "flex_attention", "varlen"]
    return [*names, "flash_attention_2"] if importlib.util.find_spec("flash_attn") else names


def event_flops(model: BehaveGPTForBehaviorPrediction, context: float) -> float:
    """FLOP of learning one event that looks at `context` events on average."""
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    config = model.config
    return 6 * matrices + 12 * config.num_hidden_layers * config.hidden_size * context


def ceilings(bench: Bench) -> dict[str, float]:
    """This device's matmul TFLOP/s at the training precision, and GB/s of a copy (read +
    written)."""
    n = bench.args.matmul
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    a = torch.randn(n, n, device=bench.device, dtype=dtype)
    b = torch.randn(n, n, device=bench.device, dtype=dtype)
    out = torch.empty_like(a)
    matmul = 2 * n**3 / bench.seconds(lambda: torch.mm(a, b, out=out)) / 1e12
    source = torch.empty(max(n * n, 1 << 22), device=bench.device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / bench.seconds(lambda: target.copy_(source)) / 1e9

    return {"matmul_tflops": round(matmul, 4), "copy_gb_per_s": round(copy, 2)}


def gpt2_step(bench: Bench, attention: str) -> Callable[[int], float]:
    """A training step of transformers' GPT-2 of the same depth and width, padded to the longest of
    the batch."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape: dict[str, Any] = {
        "n_embd": bench.size.width,
        "n_layer": bench.size.layers,
        "n_head": bench.size.heads,
    }
    plain: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | {
        "use_cache": False
    }
    config = GPT2Config(
        vocab_size=bench.classes,
        n_positions=bench.cap,
        bos_token_id=None,
        eos_token_id=None,
        **shape,
        **plain,
    )

    config._attn_implementation = attention
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(config).train().to(bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    rng = np.random.default_rng(0)
    users = max(1, int(bench.args.events_per_step / np.mean([len(h) for h in bench.histories])))

    def step(_: int) -> float:
        chosen = [bench.histories[i] for i in rng.integers(0, len(bench.histories), users)]
        lengths = np.array([len(history) for history in chosen])
        real = np.arange(lengths.max()) < lengths[:, None]
        ids, labels = np.zeros(real.shape, np.int64), np.full(real.shape, -100)
        ids[real] = labels[real] = np.concatenate(chosen)
        tensors = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
        batch = {name: torch.from_numpy(array).to(bench.device) for name, array in tensors.items()}
        with autocast(bench.device, bench.precision):
            loss = model(**batch).loss

        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        return float((lengths - 1).sum())

    return step


def parts(bench: Bench, backend: str) -> dict[str, float]:
    """Milliseconds of the parts of a packed step, each timed alone, forward and backward."""
    trainer = bench.trainer(backend, bench.batches)
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    # alone, on the batch of a step: the parts share nothing and need not add up to it
    assembly = bench.seconds(lambda: list(bench.batches.micro_batches(0)))
    batch = next(iter(bench.batches.micro_batches(0))).to(bench.device)
    wanted = batch.target != IGNORED
    shape = (*batch.document.shape, model.config.hidden_size)
    states = torch.randn(shape, device=bench.device, requires_grad=True)
    columns = {
        name: batch.inputs["input_ids" if name == "event" else f"{name}_ids"]
        for name in model.config.field_order
    }
    kind = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    by_head = (shape[0], bench.size.heads, shape[1], shape[2] // bench.size.heads)  # (B, H, R, D)
    query = torch.randn(by_head, device=bench.device, dtype=kind, requires_grad=True)

    def timed(forward: Callable[[], torch.Tensor]) -> float:
        def call() -> None:
            with autocast(bench.device, bench.precision):
                total = forward()
            total.backward()

        return bench.seconds(call)

    def body() -> torch.Tensor:
        output = model.model(**batch.inputs, document=batch.document, position=batch.position)
        return output.last_hidden_state.float().mean()

    def head() -> torch.Tensor:
        picked, target = states[wanted], batch.target[wanted]
        return head_loss(model.head, Predicted(picked), target, trainer.loss, bench.classes).total

    def attention() -> torch.Tensor:
        return attend(query, query, query, plan_attention(batch.document, backend)).float().mean()

    seconds = {
        "batch assembly": assembly,
        "embedding": timed(lambda: model.model.embedding(columns, batch.position).mean()),
        "embedding and blocks": timed(body),
        "of that, attention": bench.size.layers * timed(attention),
        "head and loss": timed(head),
    }

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()

    seconds["clipping and AdamW"] = bench.seconds(update)
    seconds["whole step"] = bench.seconds(lambda: trainer.step(0))
    return {name: round(1000 * value, 3) for name, value in seconds.items()}


def measure(name: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of a size."""
    bench = Bench(SIZES[name], device, args)
    figures: dict[str, Any] = {
        "size": name,
        "shape": SIZES[name]._asdict(),
        "precision": bench.precision,
    }
    figures |= ceilings(bench)
    model = bench.model()
    lengths = np.array([len(history) for history in bench.histories])
    context = float((lengths * (lengths - 1) / 2).sum() / (lengths - 1).sum())
    flops = event_flops(model, context)
    figures |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflop_per_event": round(flops / 1e9, 6),
    }
    del model

    rows: dict[str, Any] = {}
    for backend in backends(device, bench.precision):
        trainer = bench.trainer(backend, bench.batches)
        rows[f"ours, packed, {backend}"] = bench.rate(
            lambda step, t=trainer: t.step(step)["events"]
        )  # type: ignore[misc]
        del trainer

    trainer = bench.trainer("sdpa", PaddedBatches(bench.batches))
    rows["ours, padded, sdpa"] = bench.rate(lambda step: trainer.step(step)["events"])

    flash = ["flash_attention_2"] if importlib.util.find_spec("flash_attn") else []
    for attention in ["sdpa", *flash]:
        rows[f"GPT-2, {attention}"] = bench.rate(gpt2_step(bench, attention))

    for which, row in rows.items():
        if which.startswith("ours"):  # the FLOP are those of our model
            row["mfu"] = round(row["events_per_s"] * flops / (figures["matmul_tflops"] * 1e12), 4)

    ours = [row["events_per_s"] for which, row in rows.items() if which.startswith("ours, packed")]
    best = list(rows)[int(np.argmax(ours))]
    peers = [row["events_per_s"] for which, row in rows.items() if which.startswith("GPT-2")]
    figures |= {"rows": rows, "ours / GPT-2": round(max(ours) / max(peers), 3)}
    figures["ours / padded"] = round(max(ours) / rows["ours, padded, sdpa"]["events_per_s"], 3)
    figures["parts_ms"] = parts(bench, best.rsplit(", ", 1)[1])

    return figures


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.4M", "3M", "25M", "paper"])
    parser.add_argument("--events-per-step", type=int, default=65_536)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    parser.add_argument("--matmul", type=int, default=8192, help="N of the matmul ceiling")
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )

    rows = []
    for size in args.sizes:
        figures = {
            "device": name,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "goals": GOALS,
        }

        figures |= {"events_per_step": args.events_per_step, "compiled": args.compile} | measure(
            size, device, args
        )
        print(json.dumps(figures, indent=2), flush=True)
        rows.append(figures)

    args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
