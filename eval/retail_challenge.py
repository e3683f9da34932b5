"""Do user vectors know what customers of a real shop buy next? Members, ensembles and noise on
Online Retail.

    python eval/retail_challenge.py LOG.parquet OUT [--seeds 3] [--network-seeds 2]
        [--rows ROWS.jsonl] [--width 2048] [--vectors 'ensemble all' handcrafted]

Writes LOG in the challenge's format into OUT/data, builds configs/profiles/retail.yaml with each
model seed into OUT/seed_N, and scores every vector: a network of the organizers' shape, 192 wide
(theirs is 2,048), is trained on the first window of 28 days and scored in the second, for the same
clients (3 epochs of 128 clients, the best one counts, some network seeds). Figures are plain AUROC,
for propensity the mean over labels. Rows are appended as they come; what has a row is not run
again. Prints the table and the gates, and exits with 1 if a hard one is missed.

LOG has user_id, timestamp, event (stock code), behavior (buy or cancel), unit_price and
description, as https://archive.ics.uci.edu/dataset/352 gives them (CC BY 4.0). A purchase becomes
product_buy, a cancellation remove_from_cart; the category is the first three characters of the
stock code, the price bucket one of 20 quantiles of the product's median price, and the name the
words of its description as codes. The last two windows of 28 days are the targets, everything
before them is the input; labels are the 60 categories and 100 products bought most before them.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from behavegpt.challenge.fit import train_and_score
from behavegpt.challenge.network import SEED
from behavegpt.challenge.targets import OPEN_TASKS, load_targets
from behavegpt.challenge.validate import validate
from behavegpt.config import read_settings
from behavegpt.console import say, table
from behavegpt.datasets.challenge_files import open_directory
from behavegpt.grid import Grid, Row, Run, find
from behavegpt.profiles.ensemble import fit_ensemble, write_ensemble
from behavegpt.profiles.pipeline import run
from behavegpt.profiles.probe import noise
from behavegpt.profiles.settings import ProfileSettings
from behavegpt.user_embeddings import UserEmbeddings, pairing

CONFIG = Path(__file__).parent.parent / "configs" / "profiles" / "retail.yaml"
WINDOW = pd.Timedelta(days=28)
CATEGORIES, SKUS, PRICES = 60, 100, 20
WIDTH, NOISE = 192, 32
MASKED = 0.2  # share of clients that each member loses, to compare how absent ones are imputed

# vector -> task (and sum) -> mean AUROC over network seeds
Figures = Mapping[str, Mapping[str, float]]


def convert(log: Path, out: Path) -> dict[str, int]:
    """Write the directory; returns how many clients, and how many of them buy in each window."""
    events = pd.read_parquet(
        log, columns=["user_id", "timestamp", "event", "behavior", "unit_price", "description"]
    )
    events = events.rename(columns={"user_id": "client_id"}).astype(
        {"client_id": "int64", "timestamp": "datetime64[ns]"}
    )

    codes, names = pd.factorize(events["event"], sort=True)
    groups, _ = pd.factorize(names.str[:3], sort=True)
    events["sku"] = codes.astype(np.int64)
    properties = _properties(events, groups)

    # two target windows at the end; everything before them is the input
    end = events["timestamp"].max()
    train, validation = end - 2 * WINDOW, end - WINDOW
    bought = events["behavior"] == "buy"
    history = events["timestamp"] < train

    for folder in ("input", "target"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    properties.to_parquet(out / "product_properties.parquet", index=False)
    kept = ["client_id", "timestamp", "sku"]
    events.loc[history & bought, kept].to_parquet(
        out / "input" / "product_buy.parquet", index=False
    )
    events.loc[history & ~bought, kept].to_parquet(
        out / "input" / "remove_from_cart.parquet", index=False
    )

    # whoever was there before the windows is scored, whether active in them or not
    clients = np.sort(events.loc[history, "client_id"].unique())
    np.save(out / "input" / "relevant_clients.npy", clients)
    np.save(out / "target" / "active_clients.npy", clients)

    windows = {
        "train": (train, validation),
        "validation": (validation, end + pd.Timedelta(seconds=1)),  # the last event included
    }
    facts = {"clients": len(clients)}
    for name, (start, stop) in windows.items():
        inside = bought & (events["timestamp"] >= start) & (events["timestamp"] < stop)
        target = events.loc[inside, kept].merge(properties, on="sku")
        target.to_parquet(out / "target" / f"{name}_target.parquet", index=False)
        facts[f"{name}_buyers"] = len(set(target["client_id"]) & set(clients))

    past = events.loc[history & bought, ["sku"]].merge(properties, on="sku")
    _write_labels(past, out / "target")
    return facts


def _write_labels(past: pd.DataFrame, folder: Path) -> None:
    """The labels of the propensity tasks: those bought most before the windows."""
    for column, top in (("category", CATEGORIES), ("sku", SKUS), ("price", PRICES)):
        # a stable sort of sorted labels: ties in the same order everywhere
        counts = past[column].value_counts().sort_index()
        counts = counts.sort_values(ascending=False, kind="stable").head(top)
        np.save(folder / f"propensity_{column}.npy", counts.index.to_numpy(np.int64))
        np.save(folder / f"popularity_propensity_{column}.npy", counts.to_numpy(np.float64))


def _properties(events: pd.DataFrame, groups: np.ndarray) -> pd.DataFrame:
    """One line for each product: sku, category, price bucket, name codes."""
    products = events.groupby("sku").agg(
        price=("unit_price", "median"), text=("description", "first")
    )
    ranks = products["price"].rank(method="average", pct=True)

    # a name is a list of codes in the challenge; here a word's code is a hash of one byte
    words = products["text"].fillna("").str.upper().str.split()
    lines = []
    for line in words:
        codes = [str(zlib.crc32(word.encode()) % 256) for word in line]
        lines.append(f"[{' '.join(codes)}]")

    return pd.DataFrame(
        {
            "sku": products.index.to_numpy(np.int64),
            "category": groups[products.index].astype(np.int64),
            "price": np.ceil(ranks * PRICES).to_numpy(np.int64) - 1,
            "name": lines,
        },
        index=range(len(products)),
    )


def build(data: Path, out: Path, seed: int) -> dict[str, Path]:
    """Build the profile with a model seed; returns the entry of each vector by name."""
    overrides = [f"data.path={data}", f"out={out}", f"seed={seed}"]
    settings = read_settings(ProfileSettings, CONFIG, overrides)
    facts = run(settings)

    # a member whose library is absent is not built, and ensembles that lack it are not scored
    members, ensembles = facts["members"].items(), facts["ensembles"].items()
    there = [name for name, member in members if member["status"] in ("built", "kept")]
    complete = [name for name, ensemble in ensembles if not ensemble["lacking"]]
    for name in complete:
        findings = validate(out / "ensembles" / name, open_directory(data))
        if findings["problems"]:
            raise SystemExit(f"A4: ensemble {name}: {findings['problems'][0]}")

    entries = {name: out / "alone" / name for name in there}
    entries |= {f"ensemble {name}": out / "ensembles" / name for name in complete}
    pilot = [name for name in settings.ensembles["pilot"].members or () if name in there]
    return entries | _masked(out, settings, pilot)


def _masked(out: Path, settings: ProfileSettings, members: Sequence[str]) -> dict[str, Path]:
    """Ensembles of members that have each lost a fifth of the clients, by way of imputation."""
    order = UserEmbeddings.load(out / "ensembles" / "all").client_ids
    rng = np.random.default_rng(settings.seed)
    left = {}
    for name in members:
        vectors = UserEmbeddings.load(out / "members" / name)
        kept = rng.random(len(vectors.vectors)) >= MASKED
        left[name] = UserEmbeddings(vectors.client_ids[kept], np.asarray(vectors.vectors)[kept])

    folders = {}
    steps = {name: (settings.members[name].post, vectors) for name, vectors in left.items()}
    for impute in ("mean", "zero"):
        fitted = fit_ensemble(steps, impute)
        folders[f"masked, {impute}"] = out / f"masked_{impute}"
        write_ensemble(fitted, left, order, out / f"masked_{impute}")
    return folders


def score(
    data: Path, entry: Path | None, network_seed: int, seed: int, width: int
) -> dict[str, float]:
    """AUROC of each task in its best epoch, and their sum; `entry` None: noise."""
    directory = open_directory(data)
    if entry is None:
        clients = directory.relevant_clients
        vectors = noise(len(clients), NOISE, seed)
    else:
        loaded = UserEmbeddings.load(entry)
        clients, vectors = loaded.client_ids, np.asarray(loaded.vectors)

    scores = {}
    for task in OPEN_TASKS:
        targets = load_targets(directory, clients, task)
        epochs = train_and_score(vectors, targets, network_seed, width=width)
        scores[task.removeprefix("propensity_")] = max(epoch["auroc"] for epoch in epochs)
    return scores | {"sum": sum(scores.values())}


def score_missing(
    data: Path,
    entries: Mapping[str, Path | None],
    seed: int,
    network_seeds: Sequence[int],
    rows: Path,
    width: int = WIDTH,
) -> list[Row]:
    """The rows of a model seed, one for each vector and network seed; those that lack are computed
    and appended."""
    grid, runs = Grid(rows), []
    for name, entry in entries.items():
        made = None if entry is None else UserEmbeddings.load(entry)
        # by the vectors themselves: members that are built again are scored again
        who = "noise" if made is None else pairing(made.client_ids, made.vectors)
        columns = NOISE if made is None else made.vectors.shape[1]
        for network_seed in network_seeds:
            key = {"vector": name, "seed": seed, "network_seed": network_seed}
            key |= {"vectors": who, "width": width}
            runs.append(Run(key, partial(rows_of, key, data, entry, columns)))

    grid.run(runs)
    known = grid.rows()
    return [row for run in runs if (row := find(known, run.key)) is not None]


def rows_of(key: Row, data: Path, entry: Path | None, columns: int) -> Iterator[Row]:
    """The one row of a vector and a network seed."""
    figures = score(data, entry, key["network_seed"], key["seed"], key["width"])
    yield key | {"columns": columns} | {task: round(value, 5) for task, value in figures.items()}


class Gate(NamedTuple):
    """A difference of vectors' figures and what it must reach."""

    what: str
    value: Callable[[Figures], float]
    least: float
    hard: bool = False


NOT_SINGLE = ("ensemble", "noise", "masked")
BEYOND = ("future", "contrastive", "behavegpt")  # members that the pilot's eight have not


def _gain(ensemble: str, without: Sequence[str] = ()) -> Callable[[Figures], float]:
    """What an ensemble has over the best of its own members."""

    def value(figures: Figures) -> float:
        members = [
            scores["sum"]
            for name, scores in figures.items()
            if not name.startswith(NOT_SINGLE) and name not in without
        ]
        return figures[ensemble]["sum"] - max(members)

    return value


def _weakest(figures: Figures) -> float:
    """What the weakest learned member has over noise."""
    learned = [
        scores["sum"]
        for name, scores in figures.items()
        if not name.startswith((*NOT_SINGLE, "handcrafted"))
    ]
    return min(learned) - figures["noise"]["sum"]


def _difference(first: str, second: str, task: str = "sum") -> Callable[[Figures], float]:
    """What the first vector has over the second in a task."""
    return lambda figures: figures[first][task] - figures[second][task]


GATES = {
    "B1": Gate("ensemble - best of its members", _gain("ensemble pilot", BEYOND), 0.015),
    "B1+": Gate("ensemble of all - best of its members", _gain("ensemble all"), 0.015),
    "B2": Gate("week_all - all", _difference("week_all", "all"), 0.02),
    "B2 churn": Gate("the same, churn", _difference("week_all", "all", "churn"), 0),
    "B2 category": Gate("the same, category", _difference("week_all", "all", "category"), 0),
    "B2 sku": Gate("the same, SKU", _difference("week_all", "all", "sku"), 0),
    "B3": Gate("normalized - raw ensemble", _difference("ensemble pilot", "ensemble raw"), 0.02),
    "B3 scored": Gate(
        "standard scores, then unit length - raw",
        _difference("ensemble pilot_scored", "ensemble raw"),
        0.02,
    ),
    "B4 all": Gate("GRU-AE all - iALS SKU", _difference("all", "ials_skus"), 0.03),
    "B4 next": Gate("next product - iALS SKU", _difference("next_product", "ials_skus"), 0.03),
    "B5": Gate("weakest learned member - noise", _weakest, 0.25, hard=True),
    "B6": Gate(
        "week_all in the ensemble, SKU",
        _difference("ensemble pilot", "ensemble without_week_all", "sku"),
        0.005,
    ),
    "B7 ninth": Gate(
        "BehaveGPT as ninth member", _difference("ensemble with_behavegpt", "ensemble pilot"), -0.01
    ),
    "B7 alone": Gate("BehaveGPT - next SKU", _difference("behavegpt", "next_sku"), 0),
    "B8": Gate(
        "mean - zero imputation, a fifth masked", _difference("masked, mean", "masked, zero"), 0
    ),
    # 2.254: the ensemble of the pilot, see docs/profiles.md
    "pilot": Gate(
        "ensemble of all - 2.254", lambda scores: scores["ensemble all"]["sum"] - 2.254, 0
    ),
    "pilot scored": Gate(
        "the same, all_scored", lambda scores: scores["ensemble all_scored"]["sum"] - 2.254, 0
    ),
}


def report(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Print mean and deviation over model seeds of each vector, and the gates; False if a hard one
    is missed."""
    frame = pd.DataFrame(rows)
    tasks = ["churn", "category", "sku", "sum"]

    # the network's seeds are averaged first: its noise is not the models'
    by_seed = frame.groupby(["vector", "seed"])[[*tasks, "columns"]].mean()
    figures = by_seed.groupby("vector").mean().sort_values("sum", ascending=False)
    spread = by_seed["sum"].groupby("vector").std()
    network = frame.groupby(["vector", "seed"])["sum"].std().groupby("vector").mean()
    lines = []
    for name, means in figures.iterrows():
        cells = [f"{means[task]:.4f}" for task in tasks]
        noises = [f"{spread[name]:.4f}", f"{network[name]:.4f}"]
        lines.append([name, f"{means['columns']:.0f}", *cells, *noises])
    table(("vectors", "columns", *tasks, "sd", "network sd"), lines, file=sys.stdout)

    # a gate is a difference within a seed, so that what all vectors share cancels
    seeds = [group.droplevel("seed").to_dict("index") for _, group in by_seed.groupby("seed")]
    ok, verdicts = True, []
    for name, gate in GATES.items():
        try:
            values = [gate.value(scores) for scores in seeds]
        except KeyError:  # a member is absent
            verdicts.append([name, gate.what, "", "", f"{gate.least:+.3f}", "not measured"])
            continue

        mean = float(np.mean(values))
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        passed = mean >= gate.least
        ok &= passed or not gate.hard
        numbers = [f"{mean:+.4f}", f"{deviation:.4f}", f"{gate.least:+.3f}"]
        verdicts.append([name, gate.what, *numbers, "yes" if passed else "NO"])

    table(("gate", "what", "mean", "sd", "at least", "reached"), verdicts, file=sys.stdout)
    return ok


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, build, score what has no row yet, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="model seeds 0, 1, ... (default 3)")
    parser.add_argument(
        "--network-seeds", type=int, default=2, help="of the scoring network (default 2)"
    )
    parser.add_argument("--width", type=int, default=WIDTH, help=f"of its network ({WIDTH})")
    parser.add_argument("--vectors", nargs="+", help="which are scored; default: all")
    parser.add_argument("--rows", type=Path, help="default: OUT/rows.jsonl")
    parser.add_argument("--convert", action="store_true", help="only write OUT/data")
    arguments = parser.parse_args(argv)

    data = arguments.out / "data"
    if not (data / "target" / "popularity_propensity_price.npy").exists():
        say(str(convert(arguments.log, data)))
    if arguments.convert:
        return 0

    rows, file = [], arguments.rows or arguments.out / "rows.jsonl"
    network_seeds = (SEED, *range(1, arguments.network_seeds))  # the organizers' first
    for seed in range(arguments.seeds):
        vectors = build(data, arguments.out / f"seed_{seed}", seed)
        entries: dict[str, Path | None] = {"noise": None, **vectors}
        if arguments.vectors:
            entries = {name: entries[name] for name in arguments.vectors}
        rows += score_missing(data, entries, seed, network_seeds, file, arguments.width)
        say(f"model seed {seed}: {len(entries)} vectors")
    return 0 if report(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
