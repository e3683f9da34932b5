"""Every verb knows every kind of field, or refuses it by name: Online Retail with amounts,
customers' countries, invoices and elapsed time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import behavegpt
from behavegpt.cli import main
from tests.field_logs import AT, COLUMNS, few_users, write_logs

TINY = [
    "model.embedding_size=4",
    "model.num_attention_heads=2",
    "model.max_length=16",
    "train.steps=3",
    "train.batch_events=256",
]
USERS = ["--users", "WORK/users.csv", "--user-features", "country", "--user-numeric", "spend"]
HEADS = "model.next_heads=[gap,event,location"


class Kind(NamedTuple):
    """How a kind of field is prepared and trained."""

    prepare: tuple[str, ...]
    train: tuple[str, ...]

    @property
    def users(self) -> tuple[str, ...]:
        """What names the table of users, where there is one."""
        return ("--users", "WORK/users.csv") if "--users" in self.prepare else ()


KINDS = {
    "plain": Kind((), (f"{HEADS}]",)),
    "numeric": Kind(("--numeric", "quantity"), (f"{HEADS},quantity]",)),
    "features": Kind((*USERS,), (f"{HEADS}]",)),
    "elapsed": Kind((), ("model.gap=true", "model.position_encoding=time", f"{HEADS}]")),
    "baskets": Kind(("--group", "invoice"), ("model.history_head=false",)),
    "all": Kind(
        ("--numeric", "quantity", *USERS),
        ("model.gap=true", "model.position_encoding=time", f"{HEADS},quantity]"),
    ),
    "baskets, all": Kind(
        ("--group", "invoice", "--numeric", "quantity", *USERS),
        ("model.history_head=false", "model.memory=true"),
    ),
}

LABELS = ("WORK/labels.csv", "--at", AT)
QUICK = ("epochs=1", "folds=2", "seeds=1", "top_labels=3", "min_users=20")
# verb -> words; USERS stands for the table of users, where there is one
VERBS = {
    "evaluate": "evaluate MODEL DATA --baselines --out OUT/metrics.json",
    "thresholds": "thresholds MODEL DATA --min-targets 5",
    "when": "when MODEL DATA",
    "predict": "predict MODEL LOG USERS --thresholds --exclude-seen --among bag sign",
    "predict --when": "predict MODEL LOG USERS --when",
    "predict --next": "predict MODEL LOG USERS --next 2",
    "predict --explain": "predict MODEL LOG USERS --explain 2",
    "embed": "embed MODEL LOG USERS --out OUT/vectors.parquet",
    "export": "export MODEL LOG OUT/vectors USERS",
    "generate": "generate MODEL LOG USERS --steps 2 --data DATA",
    "export-model": "export-model MODEL OUT/code --format transformers",
    "probe": f"probe MODEL LOG {' '.join(LABELS)} USERS --seeds 1 --folds 2 --top-labels 3 "
    "--probes linear --min-users 20",
    "finetune": "finetune adapt/cross_domain base=MODEL data.path=DATA out=OUT/fine "
    "train.steps=2 train.batch_events=256",
    "finetune --mode lora": "finetune adapt/cross_domain --mode lora base=MODEL data.path=DATA "
    "out=OUT/lora train.steps=2 train.batch_events=256",
    "finetune --mode label": f"finetune MODEL LOG --mode label --labels {' '.join(LABELS)} USERS "
    f"out=OUT/label {' '.join(QUICK)}",
    "predict a label": "predict OUT/label LOG USERS",
    "vocabulary retire": "vocabulary retire MODEL bag --out OUT/less",
    "vocabulary add": "vocabulary add MODEL unheard --out OUT/more",
    "report": "report RUN",
    "info": "info MODEL",
    "update": "update RUN WORK/new.parquet USERS --steps 1 --states",
    "scale": "scale scaling/small data.path=DATA out=OUT/sweep sizes=[2e3] events=[300] "
    "data.heldout_events=150 batch.events=128 batch.least=128 batch.power=0",
    "universal evaluate": "evaluate universal DATA --out OUT/universal.json",
    "universal predict": "predict universal LOG USERS COLUMNS GROUP",
}
_ALONE = ("when", "predict --when", "predict --next", "predict --explain", "generate", "update")
# (kind, verb) -> what the refusal says; all others work
REFUSED = {("baskets", verb): "basket" for verb in (*_ALONE, "scale", "universal evaluate")}
REFUSED |= {("baskets", "universal predict"): "basket"}
REFUSED |= {("baskets, all", verb): words for (_, verb), words in REFUSED.items()}
REFUSED |= {
    (kind, "universal predict"): "--users is for trained models"
    for kind in ("features", "all", "baskets, all")
}


@pytest.fixture(scope="module")
def work(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("fields"), shared_data)


def words_of(text: str, work: Path, kind: str) -> list[str]:
    """The command line of a verb for a kind."""
    place = work / kind.replace(", ", "_")
    group = ("--group", "invoice") if "--group" in KINDS[kind].prepare else ()
    lists = {"USERS": KINDS[kind].users, "COLUMNS": COLUMNS, "GROUP": group}
    words = [word for part in text.split() for word in lists.get(part, (part,))]
    paths = {"MODEL": place / "run/model", "RUN": place / "run", "DATA": place / "data"}
    paths |= {"LOG": work / "log.parquet", "OUT": place / "out", "WORK": work}
    names = re.compile(rf"\b({'|'.join(paths)})\b")
    return [names.sub(lambda found: str(paths[found[1]]), word) for word in words]


@pytest.fixture(scope="module")
def trained(work: Path) -> Callable[[str], None]:
    """Makes a run of a kind ready, once."""
    ready: set[str] = set()

    def make(kind: str) -> None:
        if kind in ready:
            return
        prepare = " ".join(["prepare LOG COLUMNS", *KINDS[kind].prepare, "--out DATA"])
        train = " ".join(["train small data.path=DATA out=RUN", *TINY, *KINDS[kind].train])
        for text in (prepare, train):
            assert main(words_of(text, work, kind)) == 0, text
        ready.add(kind)

    return make


# command line of the kind baskets -> what is said of it
MISTAKEN = {
    "predict universal DATA": "that `prepare` wrote",
    "evaluate MODEL LOG --out OUT/metrics.json": "log.parquet --out DIR",
    "evaluate MODEL WORK/plain/data": "Prepare the data with --group",
    "embed MODEL LOG --users WORK/users.csv --out OUT/x.parquet": "reads no features of users",
    "predict MODEL WORK/users.csv": "no column 'invoice' (the group)",
    "predict MODEL LOG --among bag --exclude bag": "leave none",
    "predict MODEL LOG --among bag bags": "Did you mean 'bag'",
    "predict MODEL LOG --top-k 0": "top_k",
    "forecast LOG COLUMNS GROUP": "basket",
    f"probe MODEL LOG WORK/labels.csv --at {AT} --label event": "no column 'event'",
    "probe MODEL LOG WORK/labels.csv --at 2015-01-01": "outside the log",
}


def test_mistaken_files_and_options_are_refused(
    work: Path, trained: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    trained("plain")
    trained("baskets")
    for text, told in MISTAKEN.items():
        capsys.readouterr()
        assert main(words_of(text, work, "baskets")) == 2, text
        assert told in capsys.readouterr().err, text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_verb_knows_the_fields_or_refuses_by_name(
    kind: str,
    work: Path,
    trained: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained(kind)
    for verb, text in VERBS.items():
        capsys.readouterr()
        status, refusal = main(words_of(text, work, kind)), REFUSED.get((kind, verb))
        told = capsys.readouterr().err
        assert status == (2 if refusal else 0), f"{verb}: {told[-500:]}"
        assert not refusal or refusal in told, f"{verb}: {told[-500:]}"
        assert "Traceback" not in told

    alone = 422 if "baskets" in kind else 200
    expected = {"predict": 200, "embed": 200, "explain": alone, "users/7/events": alone}
    assert served(work, kind, list(expected)) == expected


def served(work: Path, kind: str, paths: list[str]) -> dict[str, int]:
    """Status of the service's answers about one user."""
    from fastapi.testclient import TestClient

    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings

    model = behavegpt.load(words_of("RUN", work, kind)[0], "cpu")
    if KINDS[kind].users:
        model = model.with_features(work / "users.csv")
    rows = few_users(work).drop(columns="user_id").head(9).astype({"timestamp": str})
    events: Any = json.loads(rows.to_json(orient="records"))
    with TestClient(make_app(model, ServeSettings())) as client:
        bodies = {path: {"users": [{"id": "7", "events": events}]} for path in paths}
        bodies["users/7/events"] = {"events": events}
        return {path: client.post(f"/v1/{path}", json=bodies[path]).status_code for path in paths}
