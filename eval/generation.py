"""Long-term generation (paper, section 4.4 and Table 4): the next 50 events of users, beside
trivial generators.

    python eval/generation.py DIR --out rows.jsonl --runs RUNS [--seeds 0 1 2] [--users 1000]
    python eval/generation.py DIR --out rows.jsonl --runs RUNS --speed  # cached or whole windows
    python eval/generation.py DIR --out rows.jsonl --generators seqgan diffuseq upc_sdg  # minutes
    python eval/generation.py DIR --out rows.jsonl --table              # Markdown from the rows
    python eval/generation.py DIR --out rows.jsonl --plot figure.png

A user's history is every event before the test split; the real future is the first `--steps` events
(50) of the test split with a known behavior. Users have that many and at least `--history` events
before; which ones is fixed by seed 0 for all rows. A seed trains a model (RUNS/seed_N, unless it is
there) and draws from it. Finished rows are skipped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from behavegpt.baselines import generators
from behavegpt.baselines.approximate.diffuseq import DiffuSeqSettings, diffuseq
from behavegpt.baselines.approximate.seqgan import SeqGANSettings, seqgan
from behavegpt.baselines.approximate.upc_sdg import UPCSettings, upc_sdg
from behavegpt.baselines.history_density import history_density
from behavegpt.config import read_settings
from behavegpt.data.loader import columns_of
from behavegpt.data.memory_columns import Columns, memory_columns, store_columns
from behavegpt.data.store import TEST, TRAIN, EventStore, open_store
from behavegpt.data.times import DAY, zone
from behavegpt.data.tokenizer import EncodedHistories
from behavegpt.data.vocabulary import FIRST
from behavegpt.generation.constraints import count_links, learn_links
from behavegpt.generation.result import Generated
from behavegpt.generation.rollout import roll_out
from behavegpt.generation.settings import GenerationSettings
from behavegpt.grid import Grid, Row, Run, append_row, made_once, mean_and_deviation, read_rows
from behavegpt.horizon.learn import expected_of, learn, moments_at
from behavegpt.metrics import generation as metrics
from behavegpt.metrics import horizon
from behavegpt.metrics.generation import Sequences
from behavegpt.metrics.horizon import Timeline
from behavegpt.plots_generation import BEHAVIORS, futures
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load

MODEL = "behavegpt"
REAL, HALVES = "real", "real, half against half"
# of forecasts alone: they draw no sequences
DENSITY, FORECAST = "history density", "forecast"
LIKELY = 0.5  # probability within a day of an event that counts as said
# trained on the spot, on as many events: name -> generator and its settings
LEARNED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "seqgan": (seqgan, SeqGANSettings),
    "seqgan rounds=0": (seqgan, partial(SeqGANSettings, rounds=0)),  # its first step alone
    "diffuseq": (diffuseq, DiffuSeqSettings),
    "upc_sdg": (upc_sdg, UPCSettings),
}
WINDOWS = (4, 8)  # behaviors of a window looked for in the training data
SPEED_USERS = 256
RANKED = 10  # behaviors of a drawn event that T-mAP ranks by their probability
FIGURES = (
    *(
        f"{field}_{measure}"
        for field in ("behavior", "hour", "gap")
        for measure in ("ks", "wd", "jsd")
    ),
    *("otd", "t_map", "t_map_w"),
    *("user_jsd", "bleu", "distinct2", "transition_tv", "memorized4", "memorized8", "consistent"),
)


class Task(NamedTuple):
    """Users with their past and their real future."""

    histories: EncodedHistories
    real: Sequences
    timeline: Timeline  # what `real` holds, and when


class Drawn(NamedTuple):
    """A generator's futures of S users, T events each."""

    columns: dict[str, np.ndarray]  # (S, T), with `behavior` and `time`
    gap: np.ndarray  # (S, T) seconds
    noted: dict[str, Any]  # of a row
    top: np.ndarray | None = None  # (S, T, n) the most probable behaviors, classes
    probability: np.ndarray | None = None  # (S, T, n)


def make_task(store: EventStore, users: int, steps: int, least: int) -> Task:
    """At most `users` users with `steps` known behaviors in the test split and `least` events
    before it."""
    columns = columns_of(store)
    split, behavior = np.asarray(columns["split"]), np.asarray(columns["behavior"])

    # the known behaviors of the test split: low[u] : low[u + 1] are user u's
    future = np.flatnonzero((split == TEST) & (behavior >= FIRST))
    owner = np.searchsorted(store.offsets, future, side="right") - 1
    low = np.searchsorted(owner, np.arange(store.manifest.users + 1))

    # running counts, so that a user's events before the test split are a difference
    past = np.concatenate([[0], np.cumsum(split != TEST)])
    known = np.concatenate([[0], np.cumsum((split != TEST) & (behavior >= FIRST))])
    begin, end = store.offsets[:-1], store.offsets[1:]
    length = past[end] - past[begin]

    # enough future, enough past, and something known in it; the same users for all rows
    fits = np.flatnonzero((np.diff(low) >= steps) & (length >= least) & (known[end] > known[begin]))
    chosen = np.sort(np.random.default_rng(0).permutation(fits)[:users])

    index = np.concatenate([np.arange(begin[u], begin[u] + length[u]) for u in chosen])
    fields = {
        name: np.asarray(column)[index].astype(np.int64)
        for name, column in columns.items()
        if name != "split"
    }
    fields["time"] += store.manifest.time_origin
    offsets = np.concatenate([[0], np.cumsum(length[chosen])])
    histories = EncodedHistories(store.users().take(chosen), offsets, fields, {}, {})

    rows = future[low[chosen][:, None] + np.arange(steps)]  # (S, T)
    time_of = np.asarray(columns["time"])
    when = time_of[rows].astype(np.int64) + store.manifest.time_origin
    # a gap is to the event before, also where that one's behavior is unknown
    before = time_of[np.maximum(rows - 1, 0)].astype(np.int64) + store.manifest.time_origin
    ids = behavior[rows].astype(np.int64)
    real = sequences(store, ids, when, when - before)
    return Task(histories, real, timeline(histories, ids - FIRST, when))


def timeline(
    histories: EncodedHistories,
    behavior: np.ndarray,
    when: np.ndarray,
    probability: np.ndarray | None = None,
) -> Timeline:
    """Classes (S, T, n) or (S, T), and epoch seconds (S, T), as days since the histories' ends;
    without probabilities every event is certain."""
    last = histories.columns["time"][histories.offsets[1:] - 1]
    days = (when - last[:, None]) / DAY  # (S, T)
    shape = behavior.shape
    if len(shape) == 3:
        days = np.broadcast_to(days[:, :, None], shape)
    user = np.broadcast_to(np.arange(len(when)).reshape(-1, *[1] * (len(shape) - 1)), shape)
    score = np.ones(shape) if probability is None else probability.astype(float)
    return Timeline(user.ravel(), behavior.ravel(), days.ravel(), score.ravel())


def sequences(
    store: EventStore, behavior: np.ndarray, when: np.ndarray, gap: np.ndarray
) -> Sequences:
    """Behavior ids, epoch seconds and gaps, each (S, T), as sequences."""
    hour = zone(store.schema.tz).wall(when.ravel()) % DAY / 3600  # on the wall clock
    offsets = np.arange(len(behavior) + 1) * behavior.shape[1]
    return Sequences(offsets, behavior.ravel() - FIRST, hour, gap.ravel())


def training_sequences(store: EventStore) -> Sequences:
    """Known behaviors of the training split."""
    behavior = np.asarray(store.column("behavior")).astype(np.int64)
    rows = np.flatnonzero((np.asarray(store.columns["split"]) == TRAIN) & (behavior >= FIRST))
    owner = np.searchsorted(store.offsets, rows, side="right") - 1
    offsets = np.searchsorted(owner, np.arange(store.manifest.users + 1))
    nothing = np.zeros(len(rows))  # hours and gaps are not compared
    return Sequences(offsets, behavior[rows] - FIRST, nothing, nothing)


def model_of(store: EventStore, arguments: argparse.Namespace, seed: int) -> Predictor:
    """The seed's model, trained now if it is not there, with the links of the training data."""
    # one model for each seed, shared by all options and by --speed
    run = arguments.runs / f"seed_{seed}"
    known = [f"data.path={arguments.data}", f"out={run}", f"train.seed={seed}"]
    settings = read_settings(PretrainSettings, arguments.config, [*known, *arguments.train])
    predictor = load(made_once(run, lambda: pretrain(settings, resume=True), "model"))
    return Predictor(predictor.model, predictor.tokenizer, learn_links(predictor.model, store))


def draw(
    name: str, store: EventStore, task: Task, arguments: argparse.Namespace, seed: int
) -> Drawn:
    """A generator's futures of the task's users."""
    if name != MODEL:
        return draw_baseline(name, store, task, arguments, seed)

    predictor = model_of(store, arguments, seed)
    began = time.perf_counter()
    options = [f"steps={arguments.steps}", f"seed={seed}", f"probabilities={RANKED}"]
    options += arguments.options
    drawn = futures_of(predictor, task.histories, options)
    noted = {
        "policies": drawn.policies,
        "events_per_second": round(len(drawn) / (time.perf_counter() - began)),
    }

    shape = (len(task.real), arguments.steps)
    columns = {name: values.reshape(shape) for name, values in drawn.columns.items()}
    top, probability = (part.reshape(*shape, -1) for part in (drawn.top, drawn.probability))
    return Drawn(columns, columns["gap"], noted, top, probability)


def draw_baseline(
    name: str, store: EventStore, task: Task, arguments: argparse.Namespace, seed: int
) -> Drawn:
    """As `draw`, by a generator that is no BehaveGPT."""
    steps, columns_given, offsets = arguments.steps, task.histories.columns, task.histories.offsets
    histories = generators.Histories(columns_given, offsets, store.schema)
    noted: dict[str, Any] = {}
    if name in LEARNED:
        generator, settings = LEARNED[name]
        began, rng = time.process_time(), np.random.default_rng(seed)
        chosen = settings(events=arguments.budget)
        columns, gap = generator(generators.known(histories), store, steps, rng, chosen)
        noted = {
            "settings": asdict(chosen),
            "cpu_seconds": round(time.process_time() - began, 1),
        }
    else:
        columns, gap = generators.generate(name, histories, store, steps, seed)

    last = columns_given["time"][offsets[1:] - 1]
    return Drawn({**columns, "time": last[:, None] + np.cumsum(gap, axis=1)}, gap, noted)


def futures_of(predictor: Predictor, histories: EncodedHistories, options: list[str]) -> Generated:
    """What a model draws for the histories, with options of GenerationSettings."""
    settings = read_settings(GenerationSettings, None, options)
    return roll_out(predictor.model, predictor.tokenizer, histories, settings, predictor.links)


def score(store: EventStore, task: Task, found: Drawn) -> dict[str, Any]:
    """Metrics and histograms of futures."""
    columns, classes = found.columns, store.behaviors.classes
    drawn = sequences(store, columns["behavior"], columns["time"], found.gap)
    figures: dict[str, Any] = metrics.compare(task.real, drawn, classes)

    certain = timeline(task.histories, columns["behavior"] - FIRST, columns["time"])
    figures["otd"] = horizon.otd(task.timeline, certain, len(task.real))
    forecast = certain
    if found.top is not None:
        forecast = timeline(task.histories, found.top, columns["time"], found.probability)
    figures |= horizon.t_map(task.timeline, forecast, classes)

    # copies are judged beside the real futures, which also repeat what training shows
    training = training_sequences(store)
    for n in WINDOWS:
        figures[f"memorized{n}"] = metrics.memorized(drawn, training, n)
        figures[f"memorized{n}_real"] = metrics.memorized(task.real, training, n)
    figures["consistent"] = consistent(store, columns)
    return figures | histograms(store, drawn)


def consistent(store: EventStore, columns: dict[str, np.ndarray]) -> float:
    """Share of events whose behavior, event and place go together somewhere in training."""
    fits = np.ones(columns["behavior"].size, bool)
    for (given, drawn), link in count_links(store).items():
        ids, others = columns[given].ravel(), columns[drawn].ravel()
        size = int(max(others.max(), link.ids.max())) + 1
        # a number for each pair that training saw
        owner = np.repeat(np.arange(len(link.pointer) - 1), np.diff(link.pointer))
        known = owner * size + link.ids
        fits &= np.isin(ids * size + others, known)
    return float(fits.mean())


def histograms(store: EventStore, drawn: Sequences) -> dict[str, Any]:
    """What the figure shows: shares of the behaviors, of the hours, and of half doublings of the
    gap."""
    share = np.bincount(drawn.behavior, minlength=store.behaviors.classes) / len(drawn.behavior)
    top = {
        store.behaviors.values[k].as_py(): round(float(share[k]), 5)
        for k in range(min(BEHAVIORS, len(share)))
    }

    hours = np.bincount(drawn.hour.astype(np.int64), minlength=metrics.HOURS) / len(drawn.hour)
    bins = np.minimum((2 * metrics.doublings(drawn.gap)).astype(np.int64), metrics.GAP_BINS - 1)
    gaps = np.bincount(bins, minlength=metrics.GAP_BINS) / len(drawn.gap)

    return {
        "behaviors": top,
        "hours": np.round(hours, 5).tolist(),
        "gaps": np.round(gaps, 5).tolist(),
    }


def halves(task: Task, classes: int) -> dict[str, float]:
    """Distances of the real futures of one half of the users from those of the other: what chance
    alone gives."""
    # halves of one size: distances shrink with the number of events
    order = np.random.default_rng(0).permutation(len(task.real))
    real, parts = task.real, []
    for users in np.array_split(order[: len(order) // 2 * 2], 2):
        index = np.concatenate([np.arange(real.offsets[u], real.offsets[u + 1]) for u in users])
        offsets = np.concatenate([[0], np.cumsum(np.diff(real.offsets)[users])])
        parts.append(Sequences(offsets, real.behavior[index], real.hour[index], real.gap[index]))

    # sequence s of the halves are different users: what compares a user's two futures means nothing
    figures = metrics.compare(parts[0], parts[1], classes)
    return {name: value for name, value in figures.items() if name not in ("bleu", "user_jsd")}


def speed(store: EventStore, task: Task, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Events per second with the cache and without, for the same users; the tokens must be the
    same."""
    predictor = model_of(store, arguments, arguments.seeds[0])
    count = min(SPEED_USERS, len(task.real))
    offsets = task.histories.offsets[: count + 1]
    columns = {name: column[: offsets[-1]] for name, column in task.histories.columns.items()}
    some = EncodedHistories(task.histories.users[:count], offsets, columns, {}, {})

    rows, drawn = [], []
    for cache in (True, False):
        began, cpu = time.perf_counter(), time.process_time()
        drawn_now = futures_of(predictor, some, [f"steps={arguments.steps}", f"cache={cache}"])
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        drawn.append(drawn_now.columns)
        rows.append(
            {
                "generator": f"speed, cache={cache}",
                "seconds": round(seconds, 2),
                "cpu_seconds": round(cpu, 2),
                "events_per_cpu_second": round(len(drawn_now) / cpu),
            }
        )

    names = ("behavior", "event", "time")
    same = np.mean([(drawn[0][name] == drawn[1][name]).mean() for name in names])
    known = {
        "data": arguments.data.name,
        "content_hash": store.manifest.content_hash,
        "steps": arguments.steps,
    }
    return [{**known, **row, "users": count, "seed": 0, "same_tokens": float(same)} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds as Markdown."""
    lines = [
        "| generator | seeds | " + " | ".join(FIGURES) + " |",
        "|" + "---|" * (2 + len(FIGURES)),
    ]
    # rows of the real futures and of the speed have no distances
    judged = [row for row in rows if "behavior_ks" in row or "otd" in row]
    for name in dict.fromkeys(row["generator"] for row in judged):
        group = [row for row in rows if row["generator"] == name]
        cells = []
        for figure in FIGURES:
            values = [row.get(figure) for row in group]
            cells.append(mean_and_deviation(values, 3, least=5e-4))
        lines.append(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs(store: EventStore, task: Task, arguments: argparse.Namespace) -> Iterator[Run]:
    """The real futures, then each generator with each seed."""
    known = {"data": arguments.data.name, "content_hash": store.manifest.content_hash}
    known |= {"users": len(task.real), "steps": arguments.steps}
    # first, as every other row is read beside them
    yield Run({"generator": HALVES, "seed": 0}, partial(real_rows, store, task, known))

    yield Run({"generator": DENSITY, "seed": 0}, partial(density_row, store, task, known))

    for seed in arguments.seeds:
        row = {**known, "generator": FORECAST, "seed": seed}
        yield Run({"generator": FORECAST, "seed": seed}, partial(forecast_row, store, task, row))
        for name in arguments.generators:
            # other options of the model are rows of their own
            label = f"{name} {' '.join(arguments.options)}".strip() if name == MODEL else name
            row = {**known, "generator": label, "seed": seed}
            yield Run(
                {"generator": label, "seed": seed},
                partial(rows_of, name, row, store, task, arguments),
            )


def real_rows(store: EventStore, task: Task, known: Row) -> Iterator[Row]:
    """The real futures, and how far chance alone drives two halves of them apart."""
    figures = histograms(store, task.real) | {"distinct2": metrics.distinct(task.real), "seed": 0}
    yield {**known, "generator": REAL, **figures}
    yield {**known, "generator": HALVES, "seed": 0, **halves(task, store.behaviors.classes)}


def density_row(store: EventStore, task: Task, known: Row) -> Iterator[Row]:
    """The forecast by the users' own rates."""
    past = task.histories
    forecast = history_density(past.columns["behavior"] - FIRST, past.columns["time"], past.offsets)
    # what is expected at all stands for what happens
    figures = {"otd": horizon.otd(task.timeline, forecast, len(task.real))}
    figures |= horizon.t_map(task.timeline, forecast, store.behaviors.classes)
    yield {**known, "generator": DENSITY, "seed": 0, **figures}


def forecast_row(store: EventStore, task: Task, row: Row) -> Iterator[Row]:
    """The forecast that is learned from all events before the test split."""
    past = np.asarray(store.columns["split"]) != TEST
    columns = Columns(*(column[past] for column in store_columns(store)))
    offsets = np.append(0, np.cumsum(past))[store.offsets]
    classes = store.behaviors.classes
    days = int(horizon.HORIZON)
    began = time.process_time()
    forecaster = learn(columns, offsets, store.schema, classes, days, seed=row["seed"])

    # asked at each user's last event, as the others are
    histories = task.histories.columns
    histories = histories | {"behavior": histories.get("behavior", histories["event"])}
    asked = memory_columns(histories, store.schema.slot_minutes)
    offsets, users = task.histories.offsets, np.arange(len(task.real))
    now = asked.time[offsets[1:] - 1].astype(np.int64)
    moments = moments_at(asked, offsets, users, now, store.schema)
    expected, chances = expected_of(forecaster, asked, moments, days)

    score = chances.mean(axis=1).astype(float)
    forecast = Timeline(expected.moment, expected.behavior, expected.days, score)
    said = chances[:, -1] >= LIKELY
    certain = Timeline(*(column[said] for column in astuple(forecast)))
    figures = {"otd": horizon.otd(task.timeline, certain, len(task.real))}
    figures |= horizon.t_map(task.timeline, forecast, classes)
    yield {**row, **figures, "cpu_seconds": round(time.process_time() - began, 1)}


def rows_of(
    name: str, row: Row, store: EventStore, task: Task, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The one row of a generator and a seed."""
    found = draw(name, store, task, arguments, row["seed"])
    row = {**row, **score(store, task, found), **found.noted}
    yield row
    print(row["generator"], row["seed"], {f: round(row[f], 4) for f in FIGURES}, file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of rows")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/generation"), help="where the seeds' models are"
    )
    parser.add_argument("--config", default="configs/generation.yaml")
    parser.add_argument("--train", nargs="*", default=[], help="overrides of the training run")
    parser.add_argument(
        "--options", nargs="*", default=[], help="of the model's draws, for example temperature=.9"
    )
    parser.add_argument(
        "--generators", nargs="+", choices=[MODEL, *generators.GENERATORS, *LEARNED]
    )
    parser.add_argument(
        "--budget", type=int, default=524_288, help="training events of the learned baselines"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--history", type=int, default=10, help="events a user must have before the test split"
    )
    parser.add_argument(
        "--speed", action="store_true", help="compare the cache with running the window again"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the rows")
    parser.add_argument("--plot", type=Path, help="draw real and generated futures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, or show what there is."""
    arguments = make_parser().parse_args(argv)
    arguments.generators = arguments.generators or [*generators.GENERATORS, MODEL]
    if arguments.table or arguments.plot:
        rows = read_rows(arguments.out)
        print(table(rows))
        if arguments.plot:
            futures(rows, arguments.plot)
        return 0

    store = open_store(arguments.data)
    task = make_task(store, arguments.users, arguments.steps, arguments.history)
    if not arguments.speed:
        Grid(arguments.out).run(runs(store, task, arguments))
        return 0
    for row in speed(store, task, arguments):
        append_row(arguments.out, row)
        print(row, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
