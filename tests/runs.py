"""Real training runs in processes of their own that tests may kill or spoil: a run costs tenths of
a second.

`python -m tests.runs` imports everything once, trains once to warm up, and then forks a child (or
one for each rank) for every order it reads: one JSON line in, one out.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from behavegpt.data.store import EventStore

ROOT = Path(__file__).resolve().parents[1]
CRASHED = 86  # exit status of a run that stopped itself at an I/O operation
PATIENCE = 120.0  # seconds after which a run is hung


@dataclass(frozen=True)
class Result:
    """How a run ended: exit statuses by rank (negative: a signal), seconds, and what the ranks
    printed."""

    statuses: list[int]
    seconds: float
    output: str

    @property
    def status(self) -> int:
        """The status of all ranks; the first that is not 0 if they differ."""
        return next((status for status in self.statuses if status), 0)


class Runs:
    """The test's end of the server."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.runs"]
        self.server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(
        self, settings: dict[str, Any], *, resume: bool = False, world: int = 1, **order: Any
    ) -> Result:
        """Train from settings, on `world` ranks, and wait for the end. What an order may ask for:

        kill_after=SECONDS: kill -9; `crash_at=N`: stop dead at the N-th I/O operation inside the
        run folder; trace=FILE: a line for each such operation; snapshots=FOLDER: under its number,
        what a crash there would leave; signal=[NUMBER, LINES, RANK]: when the journal has so many
        lines; poison=[WHAT, STEP, RANK]: make the loss, the gradient or a hidden state NaN;
        file_limit=BYTES: as a full disk; record=FOLDER: for each rank the rows of each step, and
        weights and gradients of the first one; environment={NAME: VALUE}: what a launcher would
        set.
        """
        assert self.server.stdin is not None and self.server.stdout is not None
        order |= {"settings": settings, "resume": resume, "world": world}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, "the server of runs has died"
        return Result(**json.loads(answer))

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(PATIENCE)


@cache
def shared_runs() -> Runs:
    """One server for all tests: its start takes ten seconds."""
    runs = Runs()
    atexit.register(runs.close)
    return runs


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: what `kill -9` leaves does not depend on the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def save_store(store: EventStore, path: Path) -> Path:
    """Write a store made in memory as a prepared folder."""
    for name in ("columns", "vocabulary"):
        (path / name).mkdir(parents=True)
    for name, column in {**store.columns, "offsets": store.offsets}.items():
        np.save(path / "columns" / f"{name}.npy", column)
    for name, vocabulary in store.vocabulary.items():
        vocabulary.save(path / "vocabulary" / f"{name}.parquet")
    pq.write_table(
        pa.table({"user": [f"u{i:05d}" for i in range(store.manifest.users)]}),
        path / "users.parquet",
    )
    manifest = store.manifest.model_dump(mode="json")
    manifest["columns"]["offsets"] = "int64"
    (path / "dataset.json").write_text(json.dumps(manifest))
    return path


def tiny_settings(data: Path, out: Path, **train: Any) -> dict[str, Any]:
    """A run of a fraction of a second with all that has state: dropout, accumulation, schedule,
    DRO, validation."""
    shape = {
        "embedding_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_length": 16,
        "dropout": 0.2,
    }
    steps = {"steps": 12, "batch_events": 256, "micro_batches": 2, "lr": 1e-2, "log_every": 1}
    every = {"valid_every": 4, "checkpoint_every": 3, "keep": 1}
    return {
        "out": str(out),
        "data": {"path": str(data)},
        "model": shape,
        "loss": {"name": "dro", "start": 0.4},
        "train": steps | every | train,
    }


# ---- the server


def serve() -> None:
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.tensor  # seconds each, once for all runs

    from behavegpt.pretrain import PretrainSettings, pretrain
    from tests.helpers import random_store

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = save_store(random_store(users=8), Path(folder) / "data")
        # without memory: its batches are made ahead by a thread, which no fork would have
        pretrain(
            PretrainSettings.model_validate(tiny_settings(data, Path(folder) / "run", steps=1))
        )
    gc.collect()
    gc.freeze()  # so that a child's collections do not copy all our memory
    for line in sys.stdin:
        print(json.dumps(vars(obey(json.loads(line)))), flush=True)
    os._exit(0)  # DuckDB would complain of what was frozen


def obey(order: dict[str, Any]) -> Result:
    out = Path(order["settings"]["out"])
    began = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = [out.with_name(f"{out.name}.output-{rank}") for rank in range(order["world"])]
    children = []
    for rank, path in enumerate(printed):
        path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            work(order, rank, port, path)
        children.append(child)
    if "kill_after" in order:
        time.sleep(order["kill_after"])
        os.kill(children[0], signal.SIGKILL)
    if "signal" in order:
        number, lines, rank = order["signal"]
        while lines_of(out / "log.jsonl") < lines and time.monotonic() - began < PATIENCE:
            time.sleep(0.001)
        os.kill(children[rank], number)
    statuses = wait(children, began + PATIENCE)
    output = "".join(path.read_text(errors="replace") for path in printed if path.exists())
    return Result(statuses, time.monotonic() - began, output)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait(children: list[int], deadline: float) -> list[int]:
    """Exit statuses; a rank that outlives a dead one, or the deadline, is killed as torchrun
    would."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        for child in set(children) - set(statuses):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + (20 if statuses[child] else PATIENCE))
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)
    return [statuses[child] for child in children]


# ---- the child


def work(order: dict[str, Any], rank: int, port: int, printed: Path) -> None:
    """Train, and leave without the interpreter's clean-up."""
    status = 1
    try:
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        faulthandler.dump_traceback_later(PATIENCE - 10)  # where it hangs
        status = train(order, rank, port)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def train(order: dict[str, Any], rank: int, port: int) -> int:
    from accelerate.state import AcceleratorState

    from behavegpt.errors import BehaveGPTError
    from behavegpt.pretrain import PretrainSettings, pretrain

    AcceleratorState._reset_state(reset_partial_state=True)
    if order["world"] > 1:  # what torchrun sets
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": order["world"],
            "LOCAL_WORLD_SIZE": order["world"],
        }
        os.environ |= {k: str(v) for k, v in names.items()} | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    os.environ |= order.get("environment", {})
    settings = PretrainSettings.model_validate(order["settings"])
    if "file_limit" in order:
        resource.setrlimit(
            resource.RLIMIT_FSIZE,
            (order["file_limit"], resource.getrlimit(resource.RLIMIT_FSIZE)[1]),
        )
    if "poison" in order:
        poison(rank, *order["poison"])
    if "record" in order:
        record(Path(order["record"]), rank)
    if "crash_at" in order or "trace" in order:
        watch_io(settings.out, order.get("crash_at"), order.get("trace"), order.get("snapshots"))
    try:
        pretrain(settings, resume=order["resume"])
    except BehaveGPTError as error:
        print(error, file=sys.stderr)
        return 2
    except SystemExit as left:
        return int(left.code or 0)
    return 0


# rmtree's own steps follow it
READS = {"os.listdir", "os.scandir", "fcntl.flock", "shutil.rmtree", "os.fsync"}
CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
}


def watch_io(out: str, crash_at: int | None, trace: str | None, snapshots: str | None) -> None:
    """Count the I/O operations inside the run folder; stop dead just before the `crash_at`-th.

    Python's audit events, fsync, and safetensors' own writes (which no hook sees): before each, and
    half done. The trace has a line for each: `reads` or `changes`, the operation, the path.
    `snapshots` get a copy of the run folder for each: buffers that are not written yet are lost to
    it as to a crash.
    """
    import safetensors.torch
    import transformers.modeling_utils

    import behavegpt.training.storage

    count, copying = 0, False
    lines = open(trace, "w", encoding="utf-8") if trace else None  # noqa: SIM115 - for the life of the process

    def tick(
        changes: bool, event: str, what: object, tear: Callable[[str], None] = lambda folder: None
    ) -> None:
        nonlocal count, copying
        count += 1
        if lines:
            lines.write(f"{'changes' if changes else 'reads'} {event} {what}\n")
            lines.flush()
        if snapshots and os.path.isdir(out):
            copying = True
            shutil.copytree(out, f"{snapshots}/{count}")
            tear(f"{snapshots}/{count}")
            copying = False
        if count == crash_at:
            tear(out)
            os._exit(CRASHED)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if copying:
            return
        if event == "open" and inside(args[0], out):
            flags = args[2] if isinstance(args[2], int) else 0
            tick(bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)), event, args[0])
        elif event in READS | CHANGES and inside(args[0], out):
            tick(event in CHANGES, event, args[0])

    fsync, save_file = os.fsync, safetensors.torch.save_file

    def counted_fsync(fd: Any) -> None:
        tick(False, "os.fsync", fd)
        fsync(fd)

    def counted_save(tensors: Any, path: Any, *args: Any, **options: Any) -> None:
        tick(True, "save_file", path)
        save_file(tensors, path, *args, **options)
        size = os.stat(path).st_size
        tick(
            True,
            "save_file torn",
            path,
            lambda top: os.truncate(Path(top, os.path.relpath(path, out)), size // 2),
        )

    os.fsync = counted_fsync
    for module in (behavegpt.training.storage, transformers.modeling_utils):
        for name in ("save_file", "safe_save_file"):
            if hasattr(module, name):
                setattr(module, name, counted_save)
    sys.addaudithook(hook)


def inside(path: Any, out: str) -> bool:
    """Whether it is in the run folder; what goes by a descriptor, or relative to one, is counted
    too."""
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return (
        not isinstance(path, (str, os.PathLike))
        or out in os.fspath(path)
        or not os.path.isabs(path)
    )


def poison(own_rank: int, what: str, at: int, rank: int) -> None:
    """At a step (from 0) and rank, make the loss, the gradient or a hidden state NaN; report on the
    weights after."""
    import torch

    from behavegpt.training.trainer import Trainer

    whole_step = Trainer.step

    def spoiled(self: Trainer, step: int) -> dict[str, float]:
        if step != at:
            return whole_step(self, step)
        before = [p.detach().clone() for p in self.model.parameters()]
        nan = float("nan")
        if own_rank == rank:
            if what == "loss":
                self.model.register_forward_hook(
                    lambda m, i, output: setattr(output, "loss", output.loss * nan)
                )
            if what == "hidden":
                norm = next(m for m in self.model.modules() if isinstance(m, torch.nn.LayerNorm))
                norm.register_forward_hook(lambda m, i, output: output * nan)
            if what == "gradient":
                next(self.model.parameters()).register_hook(
                    lambda gradient: gradient * float("inf")
                )
        try:
            return whole_step(self, step)
        finally:
            same = all(
                torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True)
            )
            print(
                "the weights are the same" if same else "THE WEIGHTS HAVE CHANGED", file=sys.stderr
            )

    Trainer.step = spoiled  # type: ignore[method-assign]


def record(folder: Path, rank: int) -> None:
    """Keep what a rank trained on (ids of the target events by step) and the gradients of its first
    step."""
    from safetensors.torch import save_file
    from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

    from behavegpt.data.loader import TrainingBatches
    from behavegpt.training.sharding import whole
    from behavegpt.training.trainer import Trainer

    micro_batches, whole_step = TrainingBatches.micro_batches, Trainer.step
    folder.mkdir(exist_ok=True)

    def recorded(self: TrainingBatches, step: int, *args: Any, **options: Any) -> Iterator[Any]:
        for batch in micro_batches(self, step, *args, **options):
            rows = batch.row[batch.row >= 0].tolist()
            with open(folder / f"rows-{rank}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "rows": rows}) + "\n")
            yield batch

    def with_gradients(self: Trainer, step: int) -> dict[str, float]:
        bare = self.accelerator.unwrap_model(self.model)

        def keep(optimizer: Optimizer, args: Any, options: Any) -> None:
            handle.remove()
            named = dict(bare.named_parameters())
            save_file(
                {n: whole(p.detach()) for n, p in named.items()},
                folder / f"weights-{rank}.safetensors",
            )
            save_file(
                {n: whole(p.grad) for n, p in named.items()},
                folder / f"gradients-{rank}.safetensors",
            )

        handle = register_optimizer_step_pre_hook(keep)
        Trainer.step = whole_step  # type: ignore[method-assign]
        return whole_step(self, step)

    TrainingBatches.micro_batches = recorded  # type: ignore[method-assign]
    Trainer.step = with_gradients  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
