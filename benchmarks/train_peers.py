"""The workload of train.py, and the trainers it meets that need an environment of their own (see
`PEERS`).

Each runs in a process of its own, which imports this file and train.py but no behavegpt, and trains
through the library's public entry; it answers each line it is sent with the CPU seconds of one more
pass over its histories and the events it learned in it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EVENTS, LOCATIONS, MEAN, SIGMA, SHORTEST = 2000, 100, 30, 1.0, 2
WIDTH, LAYERS, HEADS, FIELDS = 128, 2, 4, 4
INSTALL = "python3.11 -m venv {0} && {0}/bin/pip install 'torch==2.13.0' {1}"


def workload(users: int, cap: int, seed: int = 0) -> list[np.ndarray]:
    """Histories (n,) of events 0 .. EVENTS-1, int64; SHORTEST <= n <= cap."""
    rng = np.random.default_rng(seed)
    lengths = np.rint(rng.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, users)).clip(SHORTEST, cap)
    return [rng.integers(0, EVENTS, int(length)) for length in lengths]


def to_learn(histories: list[np.ndarray]) -> int:
    """Next events in the histories: all but the first of each."""
    return sum(map(len, histories)) - len(histories)


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds (user + system) of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def answers() -> Callable[[dict[str, float]], None]:
    """The child's side of `Child.turn`: what libraries print goes to standard error from now on."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda figures: print(json.dumps(figures), file=channel)


def lightning_in_turns(events: int) -> Any:
    """A Lightning trainer without extras; each epoch waits for its turn."""
    import logging

    from pytorch_lightning import Callback, Trainer

    answer = answers()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    began = 0.0

    class Turns(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            nonlocal began
            if not sys.stdin.readline():
                sys.exit()
            began = time.process_time()

        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            answer({"cpu_s": time.process_time() - began, "events": events})

    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return Trainer(
        accelerator="cpu", max_epochs=-1, gradient_clip_val=1.0, callbacks=[Turns()], **quiet
    )


def be_rectools(histories: list[np.ndarray], cap: int, users_per_step: int) -> None:
    """RecTools' SASRec: softmax loss, padded to the cap; an MLP of 1x the width."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    log = pd.DataFrame({Columns.Item: np.concatenate(histories), Columns.Weight: 1.0})
    log[Columns.User] = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    log[Columns.Datetime] = pd.to_datetime(np.arange(len(log)), unit="s")
    SASRecModel(
        n_factors=WIDTH,
        n_blocks=LAYERS,
        n_heads=HEADS,
        dropout_rate=0.0,
        session_max_len=cap - 1,  # inputs; the last event of a history is only a target
        loss="softmax",
        batch_size=users_per_step,
        get_trainer_func=lambda: lightning_in_turns(to_learn(histories)),
    ).fit(Dataset.construct(log))


def be_ptls(histories: list[np.ndarray], cap: int, users_per_step: int) -> None:
    """ptls' GPT on torch's transformer: reads and predicts all four fields, padded to the longest
    of the batch."""
    import torch
    from ptls.frames import PtlsDataModule
    from ptls.frames.gpt import GptDataset, GptPretrainModule
    from ptls.nn import TrxEncoder
    from ptls.nn.seq_encoder import TransformerEncoder

    sizes = {"event": EVENTS, "location": LOCATIONS, "weekday": 7, "slot": 48}
    rng = np.random.default_rng(1)
    users = []
    for history in histories:
        fields = {name: rng.integers(0, size, len(history)) for name, size in sizes.items()}
        fields["event"] = history
        # 0 is padding
        users.append({name: torch.from_numpy(ids + 1) for name, ids in fields.items()})

    shape = {"n_heads": HEADS, "n_layers": LAYERS, "dim_hidden": 4 * WIDTH}
    torch.manual_seed(0)
    module = GptPretrainModule(
        TrxEncoder(
            embeddings={
                name: {"in": size + 1, "out": WIDTH // FIELDS} for name, size in sizes.items()
            }
        ),
        TransformerEncoder(WIDTH, **shape, dropout=0.0, use_after_mask=True),
        head_hidden_size=WIDTH,  # as ours; its own choice is 64
        total_steps=1_000_000,
        seed_seq_len=0,  # a loss from the second event on
        max_lr=1e-3,
    )

    for part in module.head.modules():
        if isinstance(part, torch.nn.Dropout):  # no setting reaches the one of the heads
            part.p = 0.0

    data = PtlsDataModule(
        GptDataset(users, min_len=cap, max_len=cap), train_batch_size=users_per_step
    )
    lightning_in_turns(to_learn(histories)).fit(module, data)


def be_recbole(histories: list[np.ndarray], cap: int, users_per_step: int) -> None:
    """RecBole's SASRec: each next event is a row of its own, padded to the cap; `users_per_step`
    such rows a step."""
    import pandas as pd
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer

    answer = answers()
    sys.argv = sys.argv[:1]  # Config reads it too
    log = pd.DataFrame(
        {"user_id:token": np.repeat(np.arange(len(histories)), [len(h) for h in histories])}
    )
    log["item_id:token"], log["timestamp:float"] = np.concatenate(histories), np.arange(len(log))
    settings: dict[str, Any] = {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"RS": [1, 0, 0]},
            "group_by": "user",
            "order": "TO",
            "mode": {"valid": "full", "test": "full"},
        },
        "use_gpu": False,
        "epochs": 1,
        "train_batch_size": users_per_step,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "clip_grad_norm": {"max_norm": 1.0},
        "MAX_ITEM_LIST_LENGTH": cap - 1,
        "hidden_size": WIDTH,
        "inner_size": 4 * WIDTH,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dropout_prob": 0.0,
        "attn_dropout_prob": 0.0,
    }

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where RecBole puts its logs
        Path("workload").mkdir()
        log.to_csv("workload/workload.inter", sep="\t", index=False)
        config = Config(model=SASRec, dataset="workload", config_dict=settings)
        rows, _, _ = data_preparation(config, create_dataset(config))
        trainer = Trainer(config, SASRec(config, rows.dataset))

        while sys.stdin.readline():
            seconds = cpu_of(lambda: trainer.fit(rows, verbose=False, saved=False))
            answer({"cpu_s": seconds, "events": len(rows.dataset)})


class Peer(NamedTuple):
    """A trainer to compare with; the environment of PEERS' key in the folder of `--peers`."""

    label: str
    # histories, cap, histories a step; until standard input ends
    train: Callable[[list[np.ndarray], int, int], None]
    packages: str  # to install beside torch
    distribution: str  # the one whose version is noted
    goal: float  # ours / it, at least
    share: float = 1.0  # of the histories: the slow one sees fewer


PEERS = {
    "rectools": Peer("RecTools SASRec", be_rectools, "'rectools[torch]==0.19.*'", "rectools", 3.5),
    "ptls": Peer("ptls GPT", be_ptls, "'pytorch-lifestream==0.7.*'", "pytorch_lifestream", 5.5),
    "recbole": Peer(
        "RecBole SASRec",
        be_recbole,
        "recbole==1.2.1 'numpy==1.26.*' pandas==2.1.4",
        "recbole",
        180.0,
        share=1 / 4,
    ),
}
