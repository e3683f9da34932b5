"""Mutation testing by a random sample: change one operator, constant or condition of a module and
run its tests.

    PYTHONPATH=. python tools/mutate.py --sample 150 --out mutants.jsonl
        [--only losses training/run.py] [--minutes 30] [--again earlier.jsonl]

Libraries, package and tests are imported once, and each mutant is tried in a forked child, see
trials.py. A mutant is killed when a test fails, an import breaks, or the CPU limit ends it. Tests
that start processes of their own cannot see a mutant, so the score is a lower bound.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from types import FunctionType

import pytest
from mutants import ROOT, Mutant, mutants, sources, unchanged
from trials import OPTIONS, known_functions, try_out

# tests that ask DuckDB are no good here: a forked child lacks its threads;
# what is changed, below behavegpt/ -> the tests that should notice, below tests/, those that are
# likely to and quick first; of two parts that hold a module the narrower one counts
TESTS: dict[str, tuple[str, ...]] = {
    "adapt/mode_table.py": ("adapt/test_transfer.py",),
    "adapt/transfer.py": ("adapt/test_transfer.py", "adapt/test_finetune.py"),
    "baselines/counts.py": ("baselines/test_counts.py",),
    "challenge/scores.py": ("challenge/test_scores.py", "challenge/test_evaluate.py"),
    "data/ties.py": ("data/test_ties.py",),
    "data/times.py": ("data/test_times.py", "data/test_time_formats.py"),
    "explain.py": ("test_explain.py",),
    "filters.py": ("test_filters.py", "test_retire.py"),
    "generation": ("generation", "test_eval_generation.py"),
    "ingest/split.py": ("ingest/test_split.py",),
    "profiles/ensemble.py": ("profiles/test_ensemble.py",),
    "profiles/transforms.py": ("profiles/test_ensemble.py",),
    "ragged.py": ("data/test_pack.py", "data/test_memory.py"),
    "scaling": ("scaling",),
    "timing": ("test_when.py",),
    "data/loader.py": ("data/test_pack.py", "training/test_evaluate.py"),
    "data/pack.py": ("data/test_pack.py", "training/test_evaluate.py"),
    "data/collate.py": ("data/test_pack.py", "training/test_evaluate.py"),
    "decision.py": ("test_decision.py", "test_prior_correction.py"),
    "losses": ("losses", "baselines/test_losses.py"),
    "metrics/generation.py": ("metrics/test_generation.py",),
    "metrics/prediction.py": ("metrics/test_prediction.py",),
    "model": ("model/test_formulas.py", "model/test_model.py", "model", "test_ecosystem.py"),
    "model/attention.py": ("model/test_attention.py", "model/test_model.py"),
    "model/cache.py": ("model/test_cache.py",),
    "model/generation.py": ("model/test_cache.py", "test_ecosystem.py"),
    "model/head.py": ("model/test_formulas.py", "model"),
    "model/head_loss.py": ("model/test_formulas.py", "model"),
    "model/history.py": ("model/test_model.py", "model/test_cache.py", "model/test_formulas.py"),
    "model/mixer.py": ("model/test_formulas.py", "model/test_memory.py"),
    "metrics": ("metrics",),
    "predictions.py": ("test_predictor.py", "test_prior_correction.py"),
    "predictor.py": (
        "test_predictor.py",
        "test_prior_correction.py",
        "test_decision.py",
        "test_explain.py",
        "test_user_states.py",
        "test_ecosystem.py",
    ),
    "trained_model.py": ("test_predictor.py", "test_user_states.py"),
    "training/checkpoint.py": ("training/test_checkpoint.py", "training/test_steps.py"),
    "training/evaluate.py": ("training/test_evaluate.py", "test_prior_correction.py"),
    "training/journal.py": ("training/test_journal.py", "training/test_steps.py"),
    "training/optimizer.py": ("training/test_optimizer.py",),
    "training/progress.py": ("training/test_loop.py", "training/test_steps.py"),
    "training/record.py": ("training/test_run.py", "training/test_loop.py"),
    "training/run.py": ("training/test_run.py", "training/test_steps.py"),
    "training/setup.py": ("training/test_setup.py", "training/test_run.py"),
    "training/trainer.py": ("training/test_steps.py", "training/test_loop.py"),
}
CPU_SECONDS = 60  # at least; three times what the tests take without a change


def same_as(earlier: Path, every: list[Mutant]) -> list[Mutant]:
    """The mutants of an earlier file that survived, wherever they stand now; all that look
    alike."""
    rows = [json.loads(line) for line in earlier.read_text(encoding="utf-8").splitlines()]
    wanted = {(row["path"], row["before"], row["after"]) for row in rows if not row["killed"]}
    return [mutant for mutant in every if (mutant.path, mutant.before, mutant.after) in wanted]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=150, help="of all mutants, each alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=TESTS, default=list(TESTS))
    parser.add_argument("--again", type=Path, help="the survivors of this file instead of a sample")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after so long, with what was tried by then"
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="seconds of CPU for each; without, three times what the tests take, which are then "
        "seen to pass without a change",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSONL: a line for each mutant that was tried"
    )
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants to try, in random order."""
    every = [mutant for part in arguments.only for mutant in mutants(part, TESTS)]
    print(f"{len(every):,} mutants", flush=True)
    if arguments.again:
        return same_as(arguments.again, every)
    return random.Random(arguments.seed).sample(every, min(arguments.sample, len(every)))


def limits(parts: set[str], known: dict[str, list[FunctionType]]) -> dict[str, int]:
    """Seconds of CPU for the tests of each part, which must pass without a change."""
    seconds = {}
    for part in sorted(parts):
        trial = try_out(unchanged(part, TESTS), TESTS[part], 10 * CPU_SECONDS, known)
        if trial.killed:
            sys.exit(f"{part}: its tests fail without any change ({trial.end} {trial.test})")
        print(f"{part}: {trial.seconds} s without a change", flush=True)
        seconds[part] = max(CPU_SECONDS, round(3 * trial.seconds))

    return seconds


def import_all(parts: set[str]) -> dict[str, list[FunctionType]]:
    """Import the package and the tests of some parts; returns the package's functions by file."""
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    importlib.import_module("torch").set_num_threads(1)
    tests = sorted({str(ROOT / "tests" / name) for part in parts for name in TESTS[part]})
    if pytest.main(["--collect-only", "-qq", "--no-summary", *OPTIONS, *tests]):
        sys.exit("the tests cannot be collected")

    for part in parts:
        for path in sources(part, TESTS):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))

    gc.collect()
    known = known_functions()
    gc.freeze()  # so that a child's collections do not copy all our memory

    return known


def main() -> int:
    arguments = parse_arguments()
    began = time.monotonic()
    chosen = choose(arguments)
    parts = {mutant.part for mutant in chosen}
    known = import_all(parts)
    limit = dict.fromkeys(parts, arguments.limit) if arguments.limit else limits(parts, known)
    killed: Counter[str] = Counter()
    tried: Counter[str] = Counter()

    with open(arguments.out, "w", encoding="utf-8") as out:
        for mutant in chosen:
            if time.monotonic() - began > 60 * arguments.minutes:
                break

            trial = try_out(mutant, TESTS[mutant.part], limit[mutant.part], known)
            tried[mutant.path] += 1
            killed[mutant.path] += trial.killed
            row = {name: getattr(mutant, name) for name in ("path", "line", "before", "after")}
            out.write(json.dumps(row | {"killed": trial.killed} | vars(trial)) + "\n")
            out.flush()

            if not trial.killed:
                place = f"{mutant.path}:{mutant.line}"
                print(f"survived {place}: {mutant.before}  ->  {mutant.after}", flush=True)

    for path in sorted(tried):
        print(f"{path}: {killed[path]} of {tried[path]} killed")

    print(f"all: {sum(killed.values())} of {sum(tried.values())} killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
