"""An open run folder: who works on it, what it is told, what it leaves.

RUN/run.json       command, versions, seeds, data, parameters, result
RUN/config.yaml    the settings, resolved
RUN/log.jsonl      the journal
RUN/ckpt/          checkpoints
RUN/model/         weights, config and tokenizer: `behavegpt.load("RUN/model")`
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from behavegpt.config import dump_settings
from behavegpt.data.store import EventStore
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.errors import CheckpointError
from behavegpt.io import write_json, write_text
from behavegpt.model import BehaveGPTForBehaviorPrediction
from behavegpt.outputs import check_output
from behavegpt.training.checkpoint import Checkpoint, load_latest
from behavegpt.training.journal import Journal, run_lock
from behavegpt.training.model_folder import save_model
from behavegpt.training.record import record_of, refuse_mismatch, tell_changes
from behavegpt.training.settings import RunSettings
from behavegpt.training.setup import leave, make_accelerator

# writes further files of a model folder
Files = Callable[[BehaveGPTForBehaviorPrediction, Path], None]


class RunFolder:
    """A run folder that this process, as one of `accelerator`'s ranks, works on; without `settings`
    nothing is kept."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: RunSettings | None = None,
        name: str = "",
        resume: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.settings = settings
        self.name = name
        self.resume = resume

        # without settings a benchmark or a test trains, and its journal goes nowhere
        self.path = Path(settings.out) if settings else Path(os.devnull)
        self.checkpoints = self.path / "ckpt"
        self.journal = Journal(self.path / "log.jsonl" if settings else self.path)

        self.record: dict[str, Any] = {}  # run.json, once the run has begun

    def latest(self, fingerprint: Mapping[str, Any]) -> Checkpoint | None:
        """The checkpoint to go on from: None without `resume`, or if the run never reached its
        first.

        Raises CheckpointError when it is damaged, or its fingerprint is another one.
        """
        if not self.resume:
            return None

        checkpoint = load_latest(self.checkpoints)
        if checkpoint is not None:
            # data, shape, loss and seed must be those of the checkpoint, or the result would be of
            # neither
            refuse_mismatch(checkpoint.trainer["fingerprint"], fingerprint)
        elif any(self.checkpoints.glob("step_*")):
            raise CheckpointError(
                f"{self.checkpoints}: no valid checkpoint found; move the folder away to "
                "start over."
            )

        return checkpoint

    def begin(self, store: EventStore, facts: Mapping[str, Any], resumed: bool) -> None:
        """Write run.json and config.yaml; `facts`: what run.json tells beside the machine and the
        data."""
        if self.settings is None or not self.accelerator.is_main_process:
            return

        self.record = record_of(self.settings, store, self.accelerator) | dict(facts)
        if resumed:
            tell_changes(self.path, self.record)

        write_json(self.path / "run.json", self.record)
        write_text(self.path / "config.yaml", dump_settings(self.settings))

    def save(
        self,
        model: BehaveGPTForBehaviorPrediction,
        tokenizer: EventTokenizer,
        *beside: Files,
    ) -> None:
        """Write RUN/model in one rename and close run.json; rank 0 does."""
        if not self.accelerator.is_main_process:
            return

        # before run.json is closed: a finished run has a model
        save_model(model, tokenizer, self.path / "model", *beside)

        finished = datetime.datetime.now(datetime.UTC)
        began = datetime.datetime.fromisoformat(self.record["started"])
        self.record["finished"] = finished.isoformat(timespec="seconds")
        # of this sitting: `begin` writes `started` anew when a run goes on
        self.record["seconds"] = round((finished - began).total_seconds(), 1)
        write_json(self.path / "run.json", self.record)


@contextmanager
def open_run(settings: RunSettings, name: str, *, resume: bool = False) -> Iterator[RunFolder]:
    """The folder settings.out, held for this run, and its ranks; torch's seed is set.

    Raises BehaveGPTError on a folder in use, or with checkpoints that `resume` does not take up.
    """
    path, train = Path(settings.out), settings.train
    check_output(path, "into")
    accelerator = make_accelerator(train)

    # a stack: only rank 0 has something to hold
    with ExitStack() as held:
        # one lock for all ranks: rank 0 holds it
        if accelerator.is_main_process:
            path.mkdir(parents=True, exist_ok=True)
            held.enter_context(run_lock(path))

        # under the lock: another process may be about to write its first checkpoint
        if not resume and any((path / "ckpt").glob("step_*")):
            raise CheckpointError(
                f"{path} already contains a run; continue it with --resume, or choose "
                "another out=FOLDER."
            )

        if train.deterministic:
            # cuBLAS needs it to add in a fixed order; it is read when CUDA starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

        # before the model is built, whose weights are drawn from it
        torch.manual_seed(train.seed)
        yield RunFolder(accelerator, settings, name, resume)

        # not in a `finally`: after an error the ranks would wait for one that has gone already
        leave(accelerator)
