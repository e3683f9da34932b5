"""Every verb knows every kind of field, or refuses it by name: Online Retail with amounts,
customers' countries, invoices and elapsed time; and odd input of each kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from behavegpt.cli import main
from behavegpt.demo.make_online_retail import events, families, purchases

COLUMNS = [
    "--user",
    "user_id",
    "--time",
    "timestamp",
    "--event",
    "event",
    "--location",
    "location",
    "--behavior",
    "family",
    "--tz",
    "Europe/London",
]
TINY = [
    "model.embedding_size=4",
    "model.num_attention_heads=2",
    "model.max_length=16",
    "train.steps=3",
    "train.batch_events=256",
]
USERS = ["--users", "WORK/users.csv", "--user-features", "country", "--user-numeric", "spend"]
HEADS = "model.next_heads=[gap,event,location"
AT = "2011-10-10"


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
    "scale": "scale scaling/small data.path=DATA out=OUT/sweep",
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
# the sweep wants a longer log than this one
REFUSED |= {(kind, "scale"): "prepare a longer log" for kind in KINDS if "baskets" not in kind}


@pytest.fixture(scope="module")
def work(shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the log until November, what came after, users and labels."""
    folder = tmp_path_factory.mktemp("fields")
    source = pq.read_table(shared_data("online_retail.parquet"))
    source = source.filter(pc.equal(pc.bit_wise_and(source["user_id"], 31), 0))
    pq.write_table(source, folder / "source.parquet")
    lines = purchases(folder / "source.parquet")
    log = events(lines, families(lines)).drop_columns(["line"]).to_pandas()
    log["invoice"] = lines["invoice"].to_numpy()
    log["quantity"] = source["quantity"].to_numpy()[lines["row"].to_numpy()]
    log[log["timestamp"] < "2011-11-15"].to_parquet(folder / "log.parquet", index=False)
    log[log["timestamp"] >= "2011-11-15"].to_parquet(folder / "new.parquet", index=False)

    users = log.groupby("user_id").agg(country=("location", "first"), spend=("quantity", "sum"))
    users.iloc[3:].reset_index().to_csv(folder / "users.csv", index=False)
    past = log[log["timestamp"] < AT].groupby("user_id").size()
    labels = pd.DataFrame({"user_id": past.index, "busy": past.to_numpy() > past.median()})
    labels.to_csv(folder / "labels.csv", index=False)
    return folder


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


def frame(work: Path) -> pd.DataFrame:
    log = pd.read_parquet(work / "log.parquet")
    return log[log["user_id"].isin(log["user_id"].unique()[:12])].reset_index(drop=True)


def users(work: Path) -> pd.DataFrame:
    return pd.read_csv(work / "users.csv")


class Odd(NamedTuple):
    """A log or a table of users that is changed, how it is prepared, and what is said of it."""

    log: Callable[[pd.DataFrame], pd.DataFrame] | None
    table: Callable[[pd.DataFrame], pd.DataFrame] | None
    words: tuple[str, ...]
    status: int
    told: str
    csv: bool = False


def amounts(values: Callable[[pd.DataFrame], object]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda log: log.assign(quantity=values(log))


def invoices(values: Callable[[pd.DataFrame], object]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda log: log.assign(invoice=values(log))


def late(log: pd.DataFrame) -> np.ndarray:
    return log["timestamp"].rank(pct=True).to_numpy() > 0.9


NUMERIC, GROUP, TABLE = ("--numeric", "quantity"), ("--group", "invoice"), ("--users", "TABLE")
ODD = {
    "text among numbers": Odd(
        amounts(lambda log: np.where(log.index % 3, log["quantity"].astype(str), "n/a")),
        *(None, NUMERIC, 0, "are no numbers, such as 'n/a'", True),
    ),
    "text alone": Odd(amounts(lambda log: "few"), None, NUMERIC, 2, "holds no number", True),
    "decimal commas": Odd(amounts(lambda log: "1,5"), None, NUMERIC, 2, "decimal point", True),
    "no number at all": Odd(amounts(lambda log: np.nan), None, NUMERIC, 0, "no value at all"),
    "infinite": Odd(
        amounts(lambda log: np.where(log.index % 3, log["quantity"], np.inf)),
        *(None, NUMERIC, 0, "such as 'inf': they count as missing"),
    ),
    "infinite alone": Odd(amounts(lambda log: np.inf), None, NUMERIC, 2, "holds no number"),
    "larger than a float's integers": Odd(
        amounts(lambda log: log["quantity"] * 1e17), None, NUMERIC, 0, "events of 12 users"
    ),
    "single precision": Odd(
        amounts(lambda log: (log["quantity"] * 1e8).astype("float32")),
        *(None, NUMERIC, 0, "events of 12 users"),
    ),
    "numbers in test alone": Odd(
        amounts(lambda log: np.where(late(log), log["quantity"], np.nan)),
        *(None, NUMERIC, 2, "only after the training split"),
    ),
    "truth values": Odd(
        amounts(lambda log: log["quantity"] > 2), None, NUMERIC, 2, "holds no number"
    ),
    "lists": Odd(amounts(lambda log: [[1]] * len(log)), None, NUMERIC, 2, "not a label"),
    "a numeric column that is none": Odd(
        *(None, None, ("--numeric", "quantiy"), 2, "--extra or --numeric COLUMN")
    ),
    "a numeric column that is the event": Odd(
        None, None, ("--numeric", "event"), 2, "reserved name"
    ),
    "a user twice": Odd(None, lambda t: pd.concat([t, t[:2]]), TABLE, 2, "2 rows for user"),
    "users as text": Odd(
        None, lambda t: t.assign(user_id="0" + t["user_id"].astype(str)), TABLE, 2, "in the log: '1"
    ),
    "users as floats": Odd(
        None, lambda t: t.assign(user_id=t["user_id"].astype(float)), TABLE, 0, "of 12 users are"
    ),
    "nobody of the log": Odd(
        None, lambda t: t.assign(user_id=t["user_id"] + 10**6), TABLE, 2, "write the users alike"
    ),
    "no rows of users": Odd(None, lambda t: t[:0], TABLE, 2, "In the table: none"),
    "nothing but users": Odd(None, lambda t: t[["user_id"]], TABLE, 2, "no column besides"),
    "a feature named as a field": Odd(
        None, lambda t: t.assign(slot=1), TABLE, 2, "'slot' has a reserved name"
    ),
    "a feature named as a column": Odd(
        None, lambda t: t.assign(timestamp="2011"), TABLE, 2, "also a column of the log"
    ),
    "features without a table": Odd(
        None, None, ("--user-features", "country"), 2, "pass it with --users TABLE"
    ),
    "an empty feature": Odd(
        None, lambda t: t.assign(country=None), TABLE, 0, "'country' has no value"
    ),
    "infinite ages": Odd(
        None, lambda t: t.assign(spend=np.inf), (*TABLE, "--user-numeric", "spend"), 2, "no number"
    ),
    "a prepared folder of users": Odd(None, None, ("--users", "DATA"), 2, "that `prepare` wrote"),
    "half the invoices": Odd(
        invoices(lambda log: np.where(log.index % 2, log["invoice"], np.nan)),
        *(None, GROUP, 0, "rows have no 'invoice'"),
    ),
    "no invoices": Odd(invoices(lambda log: None), None, GROUP, 0, "rows have no 'invoice'"),
    "one invoice": Odd(invoices(lambda log: 7), None, GROUP, 0, "no next one to predict"),
    "an invoice for each line": Odd(
        invoices(lambda log: np.arange(len(log))), None, GROUP, 0, "without --group"
    ),
    "the user as group": Odd(None, None, ("--group", "user_id"), 2, "is the user or the event"),
    "an order inside": Odd(None, None, (*GROUP, "--order", "quantity"), 2, "leave one of them out"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_columns_are_refused_or_told(
    case: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd, log = ODD[case], frame(work)
    log = log if odd.log is None else odd.log(log)
    file = tmp_path / ("log.csv" if odd.csv else "log.parquet")
    log.to_csv(file, index=False) if odd.csv else log.to_parquet(file, index=False)
    if odd.table is not None:
        odd.table(users(work)).to_csv(tmp_path / "users.csv", index=False)
    if "DATA" in odd.words:
        assert main(["prepare", str(file), *COLUMNS, "--out", str(tmp_path / "data")]) == 0

    paths = {"TABLE": tmp_path / "users.csv", "DATA": tmp_path / "data"}
    words = [str(paths.get(word, word)) for word in odd.words]
    capsys.readouterr()
    status = main(["prepare", str(file), *COLUMNS, *words, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert status == odd.status, told
    assert odd.told in told
    assert (tmp_path / "out").exists() == (status == 0)
