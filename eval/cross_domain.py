"""Which parts of a pretrained model help in another domain, and with how many users? (paper: 4.5,
Fig. 5 and 6b)

    python eval/cross_domain.py configs/adapt/eval_cross_domain.yaml --logs DIR --work DIR
        --out rows.jsonl
    python eval/cross_domain.py configs/adapt/eval_cross_domain.yaml --out rows.jsonl --table
        [--plot figure.png]

One JSON row for each source, pretraining loss, share of users, mode and seed: test events of all
users of the target, trained and selected on the training and validation events of the share.
Finished rows are skipped. `--only 0.1:jakarta` runs a part of the grid; `--tune` scores the
validation events of all users instead, for options and learning rates.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from behavegpt.config import PathText, Settings, read_settings
from behavegpt.data.reencode import fit_store, reencode
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import SPLITS, TEST, EventStore, open_store
from behavegpt.evaluate_universal import evaluate_universal
from behavegpt.evaluation import score_baselines
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.grid import Grid, Row, Run, digest, grouped, made_once, mean_and_deviation, read_rows
from behavegpt.ingest.prepare import prepare
from behavegpt.io import workspace
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.trained_folder import load
from behavegpt.training.evaluate import evaluate
from behavegpt.universal.model import load_universal

FIGURES = ("rec_w", "rec_m", "prec_m", "ndcg@3", "hr@3", "head", "mid", "tail")
KEY = ("source", "loss", "share", "mode", "seed")
GROUP = ("share", "source", "loss", "mode")  # rows that differ in the seed alone
FROM_NOTHING = "scratch"  # needs no source
UNIVERSAL = "universal"  # the shipped kind of model, which counts the share and is not trained


class Log(Settings):
    """A city's log, or another domain's."""

    file: str
    tz: str
    schema_: dict[str, str] = Field({}, alias="schema")  # where it differs from the protocol's
    same_labels: bool = True  # whether its labels mean what the target's mean


class Budget(Settings):
    """Of one fine-tuning, the same for every mode."""

    steps: int
    batch_events: int
    seeds: tuple[int, ...]  # of the choice of users, the fresh weights and the order of training


class Pretraining(Settings):
    """Of the bases."""

    config: str
    steps: int
    losses: tuple[Literal["dro", "cross_entropy"], ...]
    model: dict[str, Any] = {}  # over the config's
    init: Literal["random", "universal"] | None = None  # instead of the config's


class Protocol(Settings):
    """What eval/cross_domain.py runs."""

    schema_: dict[str, str] = Field(alias="schema")
    min_events: int
    min_count: int = 1
    target: Log
    sources: dict[str, Log]
    pretrain: Pretraining
    fractions: dict[float, Budget]
    modes: dict[str, dict[str, Any]]  # name -> mode, loss, lr and options of the fine-tuning
    modes_of_other_losses: tuple[str, ...]  # with the bases of all but the first pretraining loss
    loss: dict[str, Any]  # of the fine-tuning
    train: dict[str, Any]
    counted: tuple[str, ...] = ("most_frequent", "markov", "user_markov", "user_most_frequent")
    universal: PathText | None = None  # weights that were not trained on the target: a folder

    @property
    def untrained(self) -> tuple[str, ...]:
        """What needs no pretraining and no fine-tuning."""
        return (*self.counted, UNIVERSAL) if self.universal else self.counted


def prepared(protocol: Protocol, log: Log, logs: Path, work: Path) -> EventStore:
    """A log's prepared folder, made once."""
    folder = work / "data" / Path(log.file).stem
    schema = EventSchema.model_validate(protocol.schema_ | log.schema_ | {"tz": log.tz})

    def make() -> None:
        least, rarest = protocol.min_events, protocol.min_count
        prepare([logs / log.file], folder, schema, min_events=least, min_count=rarest)

    made_once(folder, make)
    return open_store(folder)


def base(protocol: Protocol, source: str, loss: str, logs: Path, work: Path) -> Path:
    """A pretrained model, made once and shared by all rows."""
    run = work / "base" / f"{source}-{loss}"

    def make() -> None:
        store = prepared(protocol, protocol.sources[source], logs, work)
        shutil.rmtree(run, ignore_errors=True)  # what a killed run left

        steps = [f"train.steps={protocol.pretrain.steps}", f"loss.name={loss}"]
        shape = [f"model.{name}={value}" for name, value in protocol.pretrain.model.items()]
        overrides = [f"data.path={store.path}", f"out={run}", *steps, *shape]
        if protocol.pretrain.init:
            overrides.append(f"init={protocol.pretrain.init}")
        pretrain(read_settings(PretrainSettings, protocol.pretrain.config, overrides))

    return made_once(run, make, "model")


def share_of_users(store: EventStore, share: float, seed: int) -> EventStore:
    """The store with the training and validation events of some users alone; test events of all."""
    users = np.random.default_rng([seed, 7]).permutation(store.manifest.users)
    chosen = np.zeros(store.manifest.users, bool)
    chosen[users[: max(1, round(share * len(users)))]] = True

    # -1 comes before training in time, as its events do: each user's splits stay in one piece
    split = np.asarray(store.columns["split"]).astype(np.int8)
    split[~np.repeat(chosen, np.diff(store.offsets)) & (split < TEST)] = -1
    events = [int((split == number).sum()) for number in SPLITS.values()]

    manifest = store.manifest.model_copy(
        update={
            "split": store.manifest.split | {"events": events},
            # other data: a checkpoint of another share must not be continued
            "content_hash": f"{store.manifest.content_hash}-{share}-{seed}",
        }
    )
    part = replace(store, manifest=manifest, columns=store.columns | {"split": split})
    return reencode(part, store.vocabulary)


def settings_of(
    protocol: Protocol, row: dict[str, Any], model: Path, data: Path, out: Path
) -> FinetuneSettings:
    """The fine-tuning of a row."""
    budget = protocol.fractions[row["share"]]
    mode = {"mode": row["mode"], "adapt": {}, "loss": protocol.loss} | protocol.modes[row["mode"]]
    if row["source"] != "-":
        mode["adapt"] = {"same_labels": protocol.sources[row["source"]].same_labels} | mode["adapt"]

    train = protocol.train | {
        "steps": budget.steps,
        "batch_events": budget.batch_events,
        "seed": row["seed"],
    }
    # a rate of the row's own (--tune), else the mode's, else the protocol's
    rate = row.get("lr", mode.pop("lr", None))
    if rate:
        train["lr"] = rate

    return FinetuneSettings.model_validate(
        {"base": str(model), "data": {"path": str(data)}, "out": str(out), "train": train, **mode}
    )


def run_row(protocol: Protocol, row: Row, logs: Path, work: Path, split: int) -> Row:
    """Fine-tune, evaluate, and return the row's figures."""
    with workspace(work / f"run-{digest(row)}") as folder:
        return figures_of(protocol, row, logs, work, split, folder / "run")


def figures_of(protocol: Protocol, row: Row, logs: Path, work: Path, split: int, out: Path) -> Row:
    """The row's figures by a run in the folder `out`."""
    began = time.perf_counter()
    target = share_of_users(
        prepared(protocol, protocol.target, logs, work), row["share"], row["seed"]
    )
    if row["mode"] in protocol.untrained:
        return untrained_figures(protocol, row["mode"], target, out)

    # from scratch: its shape alone
    source = row["source"] if row["source"] != "-" else next(iter(protocol.sources))
    loss = row["loss"] if row["source"] != "-" else "dro"
    model = base(protocol, source, loss, logs, work)
    run = finetune(settings_of(protocol, row, model, target.path, out), store=target)

    predictor = load(run / "model")
    whole = prepared(protocol, protocol.target, logs, work)  # all users are scored
    store = fit_store(whole, predictor.tokenizer)
    metrics, cross_entropy = evaluate(predictor.model, store, split)
    figures = metrics.compute(store.behaviors.counts)

    record = json.loads((run / "run.json").read_text())
    return {
        **{name: figures[name] for name in FIGURES},
        "cross_entropy": cross_entropy,
        "rows": metrics.rows,
        "train_events": target.manifest.split["events"][0],
        "trained": sum(part["trained"] for part in record["transfer"]),
        "reused": sum(part["reused"] for part in record["transfer"]),
        "best_step": record["best_step"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def untrained_figures(protocol: Protocol, name: str, target: EventStore, out: Path) -> Row:
    """Figures of a count baseline, or of the universal model, whose tables are of the share."""
    if name == UNIVERSAL and protocol.universal:
        model = load_universal(Path(protocol.universal))
        scored = evaluate_universal(model, target, out / "metrics.json", baselines=False)
        figures = scored["models"][UNIVERSAL]
    else:
        metrics = {name: metrics for name, metrics, _ in score_baselines(target, "test")}
        figures = metrics[name].compute(target.behaviors.counts)
    return {figure: figures[figure] for figure in FIGURES}


def grid(protocol: Protocol) -> Iterator[dict[str, Any]]:
    """All rows, those that answer the main question first."""
    first = protocol.pretrain.losses[0]
    for loss in protocol.pretrain.losses:
        for share, budget in protocol.fractions.items():
            for seed in budget.seeds:
                # these need no pretraining; counting draws nothing but the users
                if loss == first:
                    untrained = protocol.untrained if seed == budget.seeds[0] else ()
                    for name in (FROM_NOTHING, *untrained):
                        yield dict(zip(KEY, ("-", "-", share, name, seed), strict=True))

                modes = protocol.modes if loss == first else protocol.modes_of_other_losses
                for source in protocol.sources:
                    for mode in modes:
                        if mode != FROM_NOTHING:
                            yield dict(zip(KEY, (source, loss, share, mode, seed), strict=True))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds as Markdown, with the gain in macro recall over
    scratch."""
    lines = [
        "| users | source | pretrained with | mode | seeds | weighted recall | macro recall | "
        "over scratch | NDCG@3 |"
    ]
    lines.append("|" + "---|" * 9)
    groups = grouped(rows, GROUP, FIGURES)
    best_first = sorted(groups.items(), key=lambda item: (item[0][0], -item[1]["rec_m"].mean()))
    for (share, source, loss, mode), values in best_first:
        scratch = groups.get((share, "-", "-", FROM_NOTHING))
        gain = f"{values['rec_m'].mean() / scratch['rec_m'].mean() - 1:+.0%}" if scratch else "-"
        cells = [mean_and_deviation(values[figure]) for figure in ("rec_w", "rec_m")]
        lines.append(
            f"| {share:.0%} | {source} | {loss} | {mode} | {len(values['rec_m'])} | "
            f"{' | '.join(cells)} | {gain} | {mean_and_deviation(values['ndcg@3'])} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], protocol: Protocol, path: Path) -> None:
    """Macro recall of each mode by share of users, one panel for each source; scratch and counting
    as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups, loss = grouped(rows, GROUP, FIGURES), protocol.pretrain.losses[0]
    shares = sorted({key[0] for key in groups})
    shown = {key[1] for key in groups}
    drawn = [source for source in protocol.sources if source in shown]
    figure, axes = plt.subplots(
        1, len(drawn), figsize=(7 * len(drawn), 5), sharey=True, squeeze=False
    )

    lines = {FROM_NOTHING: "--", protocol.counted[-1]: ":", UNIVERSAL: "-."}  # without a source
    modes = [*dict.fromkeys([*protocol.modes, *lines])]
    city = Path(protocol.target.file).stem.removeprefix("foursquare_")
    for axis, source in zip(axes[0], drawn, strict=True):
        for number, mode in enumerate(modes):
            # what needs no source is the same in all panels
            own = mode in lines
            origin = ("-", "-") if own else (source, loss)
            keys = {share: (share, *origin, mode) for share in shares}
            points = {share: groups[key]["rec_m"] for share, key in keys.items() if key in groups}
            if not points:
                continue

            style: dict[str, Any] = {"color": "black", "linestyle": lines[mode]} if own else {}
            means = [values.mean() for values in points.values()]
            spread = [values.std(ddof=1) if len(values) > 1 else 0 for values in points.values()]
            place = np.array(list(points)) * 1.04 ** (number - len(modes) / 2)  # side by side
            axis.errorbar(place, means, spread, marker="o", capsize=2, label=mode, **style)

        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.set_title(f"{source} to {city}, pretrained with {loss}")
        axis.set_xlabel("share of the target's users trained on")
        axis.grid(alpha=0.3)

    axes[0, 0].set_ylabel("macro recall, test (mean ± standard deviation over seeds)")
    axes[0, -1].legend(fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, or show the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="configs/adapt/eval_cross_domain.yaml")
    parser.add_argument("--logs", type=Path, help="folder of the cities' parquet files")
    parser.add_argument("--work", type=Path, help="folder for prepared data and bases")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of rows")
    parser.add_argument(
        "--only", nargs="*", default=[], help="rows whose key holds all of these, as in 0.1:jakarta"
    )
    parser.add_argument(
        "--tune", type=float, nargs="*", help="score validation events at these learning rates"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the rows")
    parser.add_argument("--plot", type=Path, help="draw macro recall by share of users")
    arguments = parser.parse_args(argv)

    protocol = read_settings(Protocol, arguments.config)

    if arguments.table or arguments.plot:
        rows = read_rows(arguments.out)
        print(table(rows))
        if arguments.plot:
            plot(rows, protocol, arguments.plot)
        return 0

    Grid(arguments.out).run(runs(protocol, arguments))
    return 0


def runs(protocol: Protocol, arguments: argparse.Namespace) -> Iterator[Run]:
    """The rows of the grid that are asked for, at each learning rate with `--tune`."""
    wanted = [set(part.split(":")) for part in arguments.only] or [set()]
    for row in grid(protocol):
        names = {str(row[name]) for name in KEY} | {f"seed{row['seed']}"}
        if any(part <= names for part in wanted):
            for rate in arguments.tune or [None]:
                yield Run(row | {"lr": rate}, partial(rows_of, protocol, row, rate, arguments))


def rows_of(
    protocol: Protocol, row: Row, rate: float | None, arguments: argparse.Namespace
) -> Iterator[Row]:
    """The one row of a run."""
    asked = row if rate is None else row | {"lr": rate}
    split = SPLITS["test" if rate is None else "valid"]
    yield asked | run_row(protocol, asked, arguments.logs, arguments.work, split)
    print(" ".join(str(value) for value in asked.values()), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
