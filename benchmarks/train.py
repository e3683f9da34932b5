"""Training throughput against GPT-2 of transformers and the trainers of train_peers.py, in events
per CPU second.

    python benchmarks/train.py                    # caps 90 and 256, best of 3
    python benchmarks/train.py --peers ../peers   # with RecTools, ptls and RecBole, from their
                                                  # environments (while they are absent, how to
                                                  # make them is printed)

Workload: log-normal history lengths (mean 30 and sigma 1 before the cap), 2000 events; hidden width
128, 2 layers, 4 heads, no dropout, one thread, fp32, 256 histories a step. Every trainer learns the
same next events, the first event of a history being none, so events per CPU second compare; each
step is forward, backward, clipping and AdamW (the peers: their own Adam). BehaveGPT reads four
fields and has an MLP as head, ptls reads and predicts all four, the others read and predict the
event alone; RecBole, the slow one, learns a quarter of the histories. Trainers, each a process of
its own, take turns, a pass over the workload each, and the best pass counts: quote the ratios, with
the histories a step, on which they depend: large padded batches cost the peers much system time
(README.md). The head is measured apart, with 50,000 classes.

Needs Linux (peak memory). The table goes to benchmarks/results/train.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from train_peers import (
    EVENTS,
    FIELDS,
    HEADS,
    INSTALL,
    LAYERS,
    LOCATIONS,
    PEERS,
    WIDTH,
    Peer,
    answers,
    cpu_of,
    to_learn,
    workload,
)

if TYPE_CHECKING:  # the peers' environments, where this file runs too, have no behavegpt
    from behavegpt.data.loader import TrainingBatches
    from behavegpt.data.store import EventStore
    from behavegpt.training.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "train.json"
HEAD_WIDTH, HEAD_CLASSES, HEAD_EVENTS = 256, 50_000, 2048
OURS, LOOP, GPT2, GPT2_CAP = "BehaveGPT", "BehaveGPT, Trainer", "GPT-2", "GPT-2, padded to cap"
OWN = (OURS, LOOP, GPT2, GPT2_CAP)
GOALS = {(90, GPT2): 5.0, (256, GPT2): 8.0}  # ours / it, at least
GOALS |= {(cap, peer.label): peer.goal for cap in (90, 256) for peer in PEERS.values()}
LOOP_GOAL, LOADER_GOAL, HEAD_TIME_GOAL, HEAD_MEMORY_GOAL = 0.95, 0.01, 0.8, 0.1

Pass = Callable[[], float]  # once over the workload: CPU seconds


def store_of(histories: list[np.ndarray]) -> EventStore:
    """The histories as a prepared folder in memory, with locations and times made up; all of it
    training data."""
    import pyarrow as pa

    from behavegpt.data.schema import EventSchema
    from behavegpt.data.store import EventStore, Manifest
    from behavegpt.data.vocabulary import FIRST, Vocabulary

    rng = np.random.default_rng(1)
    ids = {"event": np.concatenate(histories)}
    ids["location"] = rng.integers(0, LOCATIONS, len(ids["event"]))
    times = [np.sort(rng.integers(0, 60 * 86400, len(history))) for history in histories]
    time = np.concatenate(times).astype(np.uint32)
    columns: dict[str, np.ndarray] = {
        name: (values + FIRST).astype(np.uint16) for name, values in ids.items()
    }
    columns |= {
        "weekday": (time // 86400 % 7).astype(np.uint8),
        "slot": (time % 86400 // 1800).astype(np.uint8),
    }
    columns |= {"time": time, "split": np.zeros(len(time), np.uint8)}
    vocabulary = {}
    for name, size in {"event": EVENTS, "location": LOCATIONS}.items():
        labels = pa.array([str(i) for i in range(size)])
        vocabulary[name] = Vocabulary(labels, np.bincount(ids[name], minlength=size))

    manifest = Manifest(
        format=1,
        event_schema=EventSchema(user="user", time="time", event="event", location="location"),
        events=len(time),
        users=len(histories),
        time_origin=0,
        split={"rule": "none", "events": [len(time), 0, 0]},
        columns={name: str(column.dtype) for name, column in columns.items()},
        vocabulary={name: v.hash for name, v in vocabulary.items()},
        rejected={},
        content_hash="workload",
    )

    offsets = np.cumsum([0, *map(len, histories)])
    return EventStore(Path("memory"), manifest, vocabulary, columns, offsets)


def our_batches(histories: list[np.ndarray], cap: int, users_per_step: int) -> TrainingBatches:
    """As many equal steps as the others need, so that a step holds the same number of events."""
    from behavegpt.data.collate import BatchFields
    from behavegpt.data.loader import TrainingBatches

    store = store_of(histories)
    fields = BatchFields(store.schema.input_fields)
    rows = TrainingBatches(
        store, max_length=cap, rows_per_step=1, seed=0, fields=fields
    ).steps_per_epoch
    steps = -(-len(histories) // users_per_step)

    return TrainingBatches(
        store, max_length=cap, rows_per_step=-(-rows // steps), seed=0, fields=fields
    )


def our_trainer(batches: TrainingBatches, cap: int) -> Trainer:
    """What `behavegpt pretrain` makes, with the paper's head and the DRO loss in force from the
    start."""
    from accelerate import Accelerator

    from behavegpt.losses import LossSettings, build_loss
    from behavegpt.model import BehaveGPTConfig, BehaveGPTForBehaviorPrediction
    from behavegpt.training.run import RunFolder
    from behavegpt.training.settings import TrainSettings
    from behavegpt.training.trainer import Trainer

    config = BehaveGPTConfig(
        field_sizes=batches.store.field_sizes(),
        num_behaviors=EVENTS,
        behavior_is_event=True,
        embedding_size=WIDTH // FIELDS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_length=cap,
        dropout=0.0,
    )

    torch.manual_seed(0)
    model = BehaveGPTForBehaviorPrediction(config).train()
    loss = build_loss(LossSettings(start=0.0), torch.tensor(batches.store.behaviors.counts))
    settings = TrainSettings(steps=1_000_000, precision="fp32")
    run = RunFolder(Accelerator(cpu=True))

    return Trainer(model, loss, batches.store, settings, run, batches=batches)


def bare_step(trainer: Trainer, step: int) -> None:
    """The loop's arithmetic in plain torch: batch, forward, backward, clipping, AdamW, the loss's
    state."""
    from behavegpt.batch import IGNORED

    for batch in trainer.batches.micro_batches(step):
        weight = trainer.loss.weight(batch.target[batch.target != IGNORED]).sum()
        output = trainer.model(
            **batch.inputs,
            document=batch.document,
            position=batch.position,
            labels=batch.target,
            criterion=trainer.loss,
        )

        (output.loss / weight).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.settings.clip)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.loss.update(output.class_loss, output.class_count)


def epochs(batches: TrainingBatches, take: Callable[[int], object]) -> Pass:
    """A pass that calls `take` with the steps of the next epoch, so that its packing counts too."""
    done = iter(range(1_000_000))

    def run() -> float:
        first = next(done) * batches.steps_per_epoch
        return cpu_of(
            lambda: [take(step) for step in range(first, first + batches.steps_per_epoch)]
        )

    return run


def gpt2(histories: list[np.ndarray], cap: int, users_per_step: int, to_cap: bool) -> Pass:
    """transformers' GPT-2 on batches padded, on the right, to the longest history or to the cap."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape: dict[str, Any] = {
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": cap,
    }

    plain: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | {
        "use_cache": False
    }
    config = GPT2Config(vocab_size=EVENTS, bos_token_id=None, eos_token_id=None, **shape, **plain)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    rng = np.random.default_rng(0)

    def step(chosen: list[np.ndarray]) -> None:
        lengths = np.array([len(history) for history in chosen])
        real = np.arange(cap if to_cap else lengths.max()) < lengths[:, None]
        ids, labels = np.zeros(real.shape, np.int64), np.full(real.shape, -100)
        ids[real] = labels[real] = np.concatenate(chosen)
        batch = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
        model(**{name: torch.from_numpy(array) for name, array in batch.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def work() -> None:
        order = rng.permutation(len(histories))
        for at in range(0, len(order), users_per_step):
            step([histories[i] for i in order[at : at + users_per_step]])

    return lambda: cpu_of(work)


class Child:
    """This file in a process of its own, `--child NAME`: one JSON line for each line it is sent."""

    def __init__(self, python: Path, name: str, args: argparse.Namespace, cap: int = 0) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        options = {
            "child": name,
            "caps": cap,
            "users": args.users,
            "users-per-step": args.users_per_step,
        }

        arguments = [f"--{key}={value}" for key, value in options.items()]
        self.command = [str(python), __file__, *arguments]
        self.process = subprocess.Popen(
            self.command,
            env=environment,
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def turn(self) -> dict[str, float]:
        """What the child measured in its turn; ends the program when the child has died."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.command)}: exit code {self.process.wait()}")
        figures: dict[str, float] = json.loads(line)
        return figures

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def be_head(chunked: bool) -> None:
    """The prediction layer with many classes: loss and gradients of HEAD_EVENTS events, and how
    memory grew."""
    import resource

    import psutil

    from behavegpt.losses import LossSettings, build_loss
    from behavegpt.model.config import BehaveGPTConfig
    from behavegpt.model.head import Predicted, PredictionHead
    from behavegpt.model.head_loss import head_loss

    answer = answers()
    torch.manual_seed(0)
    head = PredictionHead(
        BehaveGPTConfig(embedding_size=HEAD_WIDTH // FIELDS, num_behaviors=HEAD_CLASSES)
    )
    counts = torch.randint(1, 1000, (HEAD_CLASSES,))
    loss = build_loss(LossSettings(start=0.0), counts)
    hidden = torch.randn(HEAD_EVENTS, HEAD_WIDTH, requires_grad=True)
    target = torch.randint(HEAD_CLASSES, (HEAD_EVENTS,))

    def ours(rows: int) -> torch.Tensor:
        return head_loss(head, Predicted(hidden[:rows]), target[:rows], loss, HEAD_CLASSES).total

    def full(rows: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            head(hidden[:rows]), target[:rows], reduction="sum"
        )

    def work(rows: int) -> None:
        head.zero_grad(set_to_none=True)
        hidden.grad = None
        (ours if chunked else full)(rows).backward()

    work(8)
    head.zero_grad(set_to_none=True)

    while sys.stdin.readline():
        before = psutil.Process().memory_info().rss
        seconds = cpu_of(lambda: work(HEAD_EVENTS))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20
        answer({"cpu_s": seconds, "grown_mib": grown})


def be_trainer(name: str, args: argparse.Namespace) -> None:
    """A trainer of this environment, alone in its process as a user would run it."""
    answer = answers()
    cap = args.caps[0]
    histories = workload(args.users, cap)

    if name in (OURS, LOOP):
        batches = our_batches(histories, cap, args.users_per_step)
        trainer = our_trainer(batches, cap)
        run = epochs(batches, partial(bare_step, trainer) if name == OURS else trainer.step)
    else:
        run = gpt2(histories, cap, args.users_per_step, to_cap=name == GPT2_CAP)

    while sys.stdin.readline():
        answer({"cpu_s": run(), "events": to_learn(histories)})


def be_peer(peer: Peer, args: argparse.Namespace) -> None:
    """Train as the peer does, on its share of the histories."""
    cap = args.caps[0]
    peer.train(
        workload(args.users, cap)[: round(args.users * peer.share)], cap, args.users_per_step
    )


CHILDREN: dict[str, Callable[[argparse.Namespace], None]] = {
    "chunked": lambda args: be_head(chunked=True),
    "full": lambda args: be_head(chunked=False),
    **{name: partial(be_trainer, name) for name in OWN},
    **{name: partial(be_peer, peer) for name, peer in PEERS.items()},
}


def pass_of(child: Child, events: int) -> Pass:
    """A pass of the child, its seconds scaled to all the events where it learned a share."""

    def run() -> float:
        turn = child.turn()
        return turn["cpu_s"] * events / turn["events"]

    return run


def python_of(peers: Path, name: str) -> Path:
    """Interpreter of a peer's environment."""
    return peers / name / "bin" / "python"


def found(peers: Path) -> list[str]:
    """Peers that have an environment."""
    return [name for name in PEERS if python_of(peers, name).exists()]


def best_of(passes: dict[str, Pass], repeats: int) -> dict[str, float]:
    """Fewest CPU seconds of each, in turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats + 1):
        for name, run in passes.items():
            seconds[name].append(run())
            print(
                f"  {name}: {seconds[name][-1]:.2f} s" + (" (warm-up)" if not repeat else ""),
                flush=True,
            )

    return {name: min(values[1:]) for name, values in seconds.items()}


def measure_cap(args: argparse.Namespace, cap: int) -> dict[str, Any]:
    """All trainers at one cap: CPU seconds of a pass, events per CPU second, and ours / it."""
    histories = workload(args.users, cap)
    events = to_learn(histories)
    batches = our_batches(histories, cap, args.users_per_step)
    children = {name: Child(Path(sys.executable), name, args, cap) for name in OWN}
    peers = {name: python_of(args.peers, name) for name in found(args.peers)}
    children |= {
        PEERS[name].label: Child(python, name, args, cap) for name, python in peers.items()
    }
    print(
        f"cap {cap}: {len(histories)} histories, {events} events to learn, "
        f"{batches.steps_per_epoch} steps a pass"
    )
    seconds = best_of(
        {name: pass_of(child, events) for name, child in children.items()}, args.repeats
    )
    for child in children.values():
        child.close()

    loading = epochs(batches, lambda step: list(batches.micro_batches(step)))
    share = min(loading() for _ in range(args.repeats + 1)) / seconds[OURS]
    rows = {
        name: {
            "cpu_s": s,
            "events_per_cpu_s": events / s,
            "ours_is": s / seconds[OURS],
            "goal": GOALS.get((cap, name)),
        }
        for name, s in seconds.items()
    }

    loop = {"loop_to_bare": seconds[OURS] / seconds[LOOP], "loader_share": share}
    return {
        "cap": cap,
        "events": events,
        "longest": max(map(len, histories)),
        **loop,
        "trainers": rows,
    }


def measure_head(args: argparse.Namespace) -> dict[str, float]:
    """Chunked loss against full logits: CPU seconds, growth of memory, and the ratios."""
    children = {name: Child(Path(sys.executable), name, args) for name in ("chunked", "full")}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    for _ in range(args.repeats):
        for name, child in children.items():
            turns[name].append(child.turn())

    for child in children.values():
        child.close()

    figures: dict[str, float] = {}
    for name, taken in turns.items():
        figures[f"{name}_cpu_s"] = min(turn["cpu_s"] for turn in taken)
        figures[f"{name}_grown_mib"] = taken[0]["grown_mib"]  # later ones find it allocated

    figures["time_ratio"] = figures["chunked_cpu_s"] / figures["full_cpu_s"]
    figures["memory_ratio"] = figures["chunked_grown_mib"] / figures["full_grown_mib"]

    return figures


def judged(value: float, goal: float | None, most: bool = False) -> str:
    """A figure beside its goal; `most`: the goal is an upper bound."""
    if goal is None:
        return f"{value:8.3f}"
    reached = value <= goal if most else value >= goal
    verdict = "reached" if reached else "BELOW THE GOAL"
    return f"{value:8.3f}   goal {'<=' if most else '>='} {goal:g}: {verdict}"


def lines(measured: dict[str, Any]) -> Iterator[str]:
    """The table for people."""
    for part in measured["caps"]:
        yield f"\ncap {part['cap']:<4}                events / CPU s   ours / it"
        for name, row in part["trainers"].items():
            verdict = judged(row["ours_is"], row["goal"])
            yield f"  {name:22} {row['events_per_cpu_s']:12.0f}   {verdict}"
        loader = judged(part["loader_share"], LOADER_GOAL, most=True)
        yield f"  {'loop / bare torch':22} {'':12}   {judged(part['loop_to_bare'], LOOP_GOAL)}"
        yield f"  {'loader / step':22} {'':12}   {loader}"

    head = measured["head"]
    yield f"\nhead, {HEAD_CLASSES} classes: chunked / full"
    for figure, goal in (("time", HEAD_TIME_GOAL), ("memory", HEAD_MEMORY_GOAL)):
        yield f"  {figure:22} {'':12}   {judged(head[f'{figure}_ratio'], goal, most=True)}"


def device_and_versions(peers: Path) -> dict[str, Any]:
    """What the figures were measured on and with."""
    packages = ("behavegpt", "torch", "transformers", "accelerate", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}

    for name, peer in PEERS.items():
        for info in peers.glob(f"{name}/lib/python*/site-packages/{peer.distribution}-*.dist-info"):
            versions[name] = info.name.removesuffix(".dist-info").removeprefix(
                f"{peer.distribution}-"
            )

    device = {
        "cpu": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    return {"device": device, "versions": versions}


def main() -> None:
    """Measure, or be a child that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=256, help="histories of the workload")
    parser.add_argument("--users-per-step", type=int, default=256)
    parser.add_argument(
        "--caps", type=int, nargs="+", default=[90, 256], help="longest history, in events"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peers", type=Path, default=Path("../peers"), help="folder of the peers' environments"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)

    if args.child:  # a process of its own, so that no trainer finds memory that another one left
        CHILDREN[args.child](args)
        return

    for name in (name for name in PEERS if name not in found(args.peers)):
        print(
            f"{PEERS[name].label} skipped: "
            f"{INSTALL.format(args.peers / name, PEERS[name].packages)}"
        )

    facts = {"users": args.users, "users_per_step": args.users_per_step, "repeats": args.repeats}
    measured = {"head": measure_head(args), "caps": [measure_cap(args, cap) for cap in args.caps]}
    print("\n".join(lines(measured)))
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(
        json.dumps({**device_and_versions(args.peers), **facts, **measured}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
