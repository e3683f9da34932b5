"""Evaluate a model folder beside the count baselines, on the same rows, into result files.

OUT (metrics.json), and beside it the files of evaluation_files.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from behavegpt.baselines import basket_counts, counts
from behavegpt.config import check_settings
from behavegpt.console import progress, say
from behavegpt.data.given import check_schema, describe
from behavegpt.data.loader import ALL, Share
from behavegpt.data.pack import count_unseen, target_rows
from behavegpt.data.reencode import fit_store
from behavegpt.data.store import SPLITS, EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.decision import log_frequency, shift_of
from behavegpt.errors import DataError
from behavegpt.evaluation_baskets import add_basket_figures
from behavegpt.evaluation_examples import collect_examples
from behavegpt.evaluation_files import write_details
from behavegpt.evaluation_groups import group_figures
from behavegpt.evaluation_summary import summary
from behavegpt.io import write_json
from behavegpt.metrics.bootstrap import TargetRanks, user_intervals
from behavegpt.metrics.calibration import Calibration
from behavegpt.metrics.prediction import PredictionMetrics
from behavegpt.options import DecisionOptions
from behavegpt.predictor import Predictor
from behavegpt.training.evaluate import ScoredBatch, evaluate, sum_over_ranks

BASKETS = "what is in the next basket from past baskets alone; its own time and place are hidden"


def compare(
    predictor: Predictor,
    store: EventStore,
    out: Path,
    *,
    split: str = "test",
    baselines: bool = True,
    share: Share = ALL,
    **decision: Any,
) -> dict[str, Any]:
    """Evaluate on a split and write the result files (rank 0); returns what metrics.json holds.

    `decision`: DecisionOptions, prior_correction or thresholds; the baselines have neither. Raises
    CheckpointError when the model does not know the data's labels, DataError when the split is
    empty, ConfigError for thresholds that the model does not have.
    """
    # mistakes before the work; TAU times the training frequencies, thresholds, or nothing
    rule = check_settings(DecisionOptions, decision, "evaluate")
    log_prior = log_frequency(predictor.tokenizer.behaviors.counts)
    shift = shift_of(rule, log_prior, predictor.thresholds)
    check_schema(predictor.given, store.schema)

    # the model's ids, whatever vocabulary the folder was prepared with
    store = fit_store(store, predictor.tokenizer)
    refuse_no_targets(store, split)
    ours = _score(predictor, store, split, shift, share)

    # counting is fast, and the same on every rank: rank 0 does it alone
    scored, ranks = {"behavegpt": ours.metrics}, {"behavegpt": ours.ranks}
    if baselines and share.rank == 0:
        for name, counted, counted_ranks in score_baselines(store, split, predictor.given):
            scored[name], ranks[name] = counted, counted_ranks

    result = summary(scored, store, split, _protocol(predictor, store, split, rule))
    result["models"]["behavegpt"]["cross_entropy"] = ours.cross_entropy
    result["calibration"] = ours.calibration.compute()

    # on several ranks all hold the result; one writes it
    if share.rank == 0:
        add_basket_figures(result, store, ranks)
        result["uncertainty"] = uncertainty(store, ranks, "behavegpt")
        result["groups"] = group_figures(store, ranks)
        for text in result["remarks"]:
            say(f"note: {text}")
        # by the model's own ranks: examples are those that it got right or wrong
        shown = collect_examples(predictor, store, ranks["behavegpt"], shift)
        write_json(out, result)
        write_details(out.parent, store, scored, shown)
    return result


class _Scored(NamedTuple):
    """What a pass over a split's targets gives."""

    metrics: PredictionMetrics
    cross_entropy: float  # mean, in nats
    calibration: Calibration
    ranks: TargetRanks


def _score(
    predictor: Predictor, store: EventStore, split: str, shift: torch.Tensor, share: Share
) -> _Scored:
    """Score the model's logits less `shift` (K,)."""
    rows = target_rows(store, SPLITS[split])
    calibration, ranks = Calibration(), TargetRanks(rows)
    with progress("evaluate behavegpt", len(rows)) as show:
        advance = _cumulative(show)

        def take_up(part: ScoredBatch) -> None:
            # of each batch while its logits are there: all of them together would not fit
            calibration.update(part.logits, part.target)
            ranks.update(part.logits, part.target, part.row)
            advance(len(part.target))

        metrics, cross_entropy = evaluate(
            predictor.model, store, SPLITS[split], shift=shift, share=share, on_batch=take_up
        )

    # `evaluate` adds up what it made itself; these saw this rank's batches alone
    if share.world > 1:
        sums = (calibration.sums, ranks.sums)
        calibration.sums, ranks.sums = sum_over_ranks(sums, predictor.model.device)
    return _Scored(metrics, cross_entropy, calibration, ranks)


def uncertainty(store: EventStore, ranks: dict[str, TargetRanks], ours: str) -> dict[str, Any]:
    """95 % intervals of all models' main figures, the users drawn again, and of the differences
    between ours and the others; see metrics/bootstrap.py."""
    rows = ranks[ours].rows
    return user_intervals(
        {name: of_model.ranks for name, of_model in ranks.items()},
        store.column("behavior")[rows].astype(np.int64) - FIRST,
        np.searchsorted(store.offsets, rows, side="right") - 1,
        ours,
    )


def refuse_no_targets(store: EventStore, split: str) -> None:
    """Raise DataError where a split has no event to predict, and say why."""
    if len(target_rows(store, SPLITS[split])):
        return

    unseen = count_unseen(store, SPLITS[split])
    why = f": the behaviors of its {unseen:,} targets do not occur in training" if unseen else ""
    raise DataError(
        f"{store.path}: the {split} split contains no event to predict{why}; prepare it with "
        "another --split."
    )


def score_baselines(
    store: EventStore, split: str, given: tuple[str, ...] = ()
) -> Iterator[tuple[str, PredictionMetrics, TargetRanks]]:
    """Metrics of each count baseline on the same rows, and the ranks of the truth; they see the
    user's whole past, and of the target what is `given`."""
    rows = target_rows(store, SPLITS[split])
    behavior = store.column("behavior")
    for name, scored in _counted(store, given, rows):
        metrics, ranks = PredictionMetrics(store.behaviors.classes), TargetRanks(rows)
        with progress(f"evaluate {name}", len(rows)) as show:
            step = _cumulative(show)
            for part, scores in scored:
                # counts take vocabulary ids, metrics classes: without padding and unknown
                target = torch.from_numpy(behavior[part].astype(np.int64) - FIRST)
                metrics.update(torch.from_numpy(scores), target)
                ranks.update(torch.from_numpy(scores), target, part)
                step(len(part))

        yield name, metrics, ranks


def _counted(
    store: EventStore, given: tuple[str, ...], rows: np.ndarray
) -> Iterator[tuple[str, Iterator[tuple[np.ndarray, np.ndarray]]]]:
    """Each count baseline with its scores of the rows, in parts."""
    if store.baskets is not None:
        counted = basket_counts.fit(store)
        for name in basket_counts.NAMES:
            yield name, basket_counts.scores(counted, name, store, rows)
        return
    for name, model in counts.tune(counts.fit(store, given), store).items():
        yield name, counts.scores(model, store, rows)


def _protocol(
    predictor: Predictor, store: EventStore, split: str, rule: DecisionOptions
) -> dict[str, Any]:
    """How the figures were made, for whoever compares them with others."""
    config = predictor.model.config
    thresholds = predictor.thresholds if rule.thresholds else None
    return {
        "task": BASKETS if store.baskets else describe(predictor.given),
        "given": " and ".join(predictor.given) or "nothing",
        "split": split,
        "split_rule": store.manifest.split["rule"],
        "boundaries": store.manifest.split.get("boundaries"),
        "rows": (
            (
                "each known behavior of a basket of the split, once, after "
                if store.baskets
                else "every event of the split with a known behavior and "
            )
            + f"at least one earlier {'basket' if store.baskets else 'event'} of its user"
        ),
        "with_unseen": (
            "the same and the targets whose behavior training never saw, as misses of one more "
            "class"
        ),
        "context": f"model: {_context(predictor)}; baselines: the whole past",
        **({"unit": "basket"} if store.baskets else {}),
        "max_length": config.max_length,
        "classes": store.behaviors.classes,
        # figures under different rules must not be compared unseen
        "prior_correction": rule.prior_correction,
        "thresholds": None if thresholds is None else thresholds.facts,
        "content_hash": store.manifest.content_hash,
    }


def _context(predictor: Predictor) -> str:
    """What a model reads of a user, in words."""
    config = predictor.model.config
    unit = "basket" if config.baskets else "event"
    # windows overlap by half, so a target sees at least half a window of its user
    window = f"the last {config.max_length // 2} to {config.max_length} {unit}s"
    if not config.memory:
        return window
    return (
        f"counts of the whole past, and {window}"
        if config.num_hidden_layers
        else f"counts of the whole past, and the last {unit}"
    )


def _cumulative(show: Callable[[int, str], None]) -> Callable[[int], None]:
    """A callback of counts for one that wants the sum so far."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        show(done, "")

    return step
