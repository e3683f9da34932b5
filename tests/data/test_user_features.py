"""Features of users: a table beside the log, from preparation to prediction, export and
fine-tuning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import behavegpt
from behavegpt.cli import main
from behavegpt.data.bins import Bins
from behavegpt.data.collate import BatchFields
from behavegpt.data.loader import TrainingBatches
from behavegpt.data.schema import EventSchema
from behavegpt.data.store import TRAIN, EventStore, open_store
from behavegpt.data.tokenizer import EventTokenizer
from behavegpt.data.vocabulary import UNKNOWN
from behavegpt.embeddings.export import export
from behavegpt.errors import BehaveGPTError, CheckpointError, ConfigError, DataError
from behavegpt.export_model import export_model
from behavegpt.extend import add_behaviors
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.graph_inputs import GraphInputs
from behavegpt.ingest.prepare import prepare, preview
from behavegpt.ingest.user_table import read_user_table
from behavegpt.pretrain import PretrainSettings, build_model, pretrain
from behavegpt.training.model_folder import open_model
from tests.runs import tiny_settings

SCHEMA = EventSchema(
    user="user", time="time", event="event", user_features=("segment",), user_numeric=("age",)
)
USERS = 40
KNOWN = 36  # the last users have no row


def log_of(rows: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Users of segment `even` do the even events; only the table tells which segment one is of."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, USERS, rows)
    return pd.DataFrame(
        {
            "user": user,
            "time": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows), "h"),
            "event": [f"e{number}" for number in 2 * rng.integers(0, 4, rows) + user % 2],
        }
    )


def users_of() -> pd.DataFrame:
    """One segment and one age are missing; ages are not those of anybody else."""
    users = np.arange(KNOWN)
    table = pd.DataFrame(
        {"user": users, "segment": np.where(users % 2, "odd", "even"), "age": 20.0 + users}
    )
    table.loc[5, "segment"], table.loc[7, "age"] = None, None
    return table


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    folder = tmp_path_factory.mktemp("features")
    log_of().to_parquet(folder / "log.parquet")
    return prepare([folder / "log.parquet"], folder / "data", SCHEMA, users=users_of())


@pytest.fixture(scope="module")
def run(store: EventStore) -> Path:
    out = store.path.parent / "run"
    settings = tiny_settings(store.path, out, steps=8)
    settings["model"] |= {"next_heads": ["gap"]}
    pretrain(PretrainSettings.model_validate(settings))
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> behavegpt.Predictor:
    return behavegpt.load(run / "model", "cpu").with_features(users_of())


def labels_at_events(store: EventStore, field: str) -> list[str | None]:
    """The label of a feature at each event."""
    values = [None, None, *store.vocabulary[field].values.to_pylist()]
    return [values[number] for number in np.asarray(store.columns[field])]


def test_a_feature_stands_at_each_event_of_its_user(store: EventStore) -> None:
    users = np.repeat(store.users().to_pylist(), np.diff(store.offsets)).astype(int)
    segment = [None if u >= KNOWN or u == 5 else ("even", "odd")[u % 2] for u in users]
    assert labels_at_events(store, "segment") == segment

    ages = store.vocabulary["age"]
    assert isinstance(ages, Bins)
    known = np.where((users < KNOWN) & (users != 7), 20.0 + users, np.nan)
    assert np.array_equal(ages.encode(known), np.asarray(store.columns["age"]))
    train = np.asarray(store.columns["split"]) == TRAIN
    counts = np.bincount(np.asarray(store.columns["age"])[train], minlength=len(ages))
    assert ages.counts.tolist() == counts[2:].tolist()  # events, as of every field


def test_csv_parquet_json_and_frames_give_the_same_folder(
    tmp_path: Path, store: EventStore
) -> None:
    log_of().to_csv(tmp_path / "log.csv", index=False)
    users = users_of()
    users.to_csv(tmp_path / "users.csv", index=False)
    users.to_json(tmp_path / "users.jsonl", orient="records", lines=True)
    users.sample(frac=1, random_state=1).to_parquet(tmp_path / "users.parquet")
    for name in ("users.csv", "users.jsonl", "users.parquet"):
        out = tmp_path / name.replace(".", "_")
        other = prepare([tmp_path / "log.csv"], out, SCHEMA, users=tmp_path / name)
        assert other.manifest.content_hash == store.manifest.content_hash, name


def test_all_columns_are_features_where_none_are_named(tmp_path: Path) -> None:
    log_of().to_parquet(tmp_path / "log.parquet")
    plain = SCHEMA.model_copy(update={"user_features": (), "user_numeric": ()})
    seen = preview([tmp_path / "log.parquet"], plain, users=users_of())
    assert seen.schema.user_features == ("segment", "age") and seen.labels["segment"] == 2
    assert any("features of 36 of 40 users are known" in remark for remark in seen.remarks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t[:1]]), r"2 rows for user '0' \(column 'user'\)"),
        (lambda t: t.drop(columns="segment"), r"no column 'segment' \(a feature of the users\)"),
        (lambda t: t.rename(columns={"user": "usr"}), r"no column 'user' \(the user\)"),
        (lambda t: t.assign(age="young"), r"'age' \(numeric\) holds no number.*--user-features"),
        (lambda t: None, r"lists user features .*--users TABLE"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(
    tmp_path: Path, change: Callable[[pd.DataFrame], Any], message: str
) -> None:
    log_of().to_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message):
        prepare([tmp_path / "log.parquet"], tmp_path / "data", SCHEMA, users=change(users_of()))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_features": ("slot",)}, "reserved name"),
        ({"user_features": ("a",), "extra": ("a",)}, "listed twice"),
        ({"user_features": ("a",), "user_numeric": ("a",)}, "listed twice"),
        ({"user_numeric": ("uid",)}, "also a column of the log"),
    ],
)
def test_columns_that_cannot_be_features_are_refused(
    columns: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EventSchema(user="uid", time="ts", event="app", **columns)


def test_folders_without_features_are_described_as_before() -> None:
    written = EventSchema(user="u", time="t", event="e").model_dump(mode="json")
    assert not {"user_features", "user_numeric"} & written.keys()


def test_before_training_the_model_is_the_one_without_features(store: EventStore) -> None:
    """Features are added to the events: width and all other weights stay, and they begin at 0."""
    models = []
    for reads in (False, True):
        settings = tiny_settings(store.path, store.path.parent / "none")
        settings["model"] |= {"user_features": reads}
        models.append(build_model(PretrainSettings.model_validate(settings), store).eval())
    plain, model = models
    assert plain.config.user_features is None and plain.config.hidden_size == 12
    assert model.config.user_features == {"age": 18, "segment": 4}
    left = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(".user.tables." in name for name in left.missing_keys)

    logits = []
    for each in models:
        fields = BatchFields(each.config.columns)
        batches = TrainingBatches(store, max_length=16, rows_per_step=4, seed=0, fields=fields)
        batch = next(iter(batches.micro_batches(0)))
        logits.append(each(**batch.arguments).logits)
    assert torch.equal(*logits)


def test_who_somebody_is_counts_from_the_first_event_on(model: behavegpt.Predictor) -> None:
    """The same single event of users who differ in the table alone; unknown users and values are
    legal."""
    event = {"time": ["2024-03-01"] * 4, "event": ["e0"] * 4}
    asked = {"user": ["0", "1", "5", "stranger"], **event}
    found = model.predict(asked, 8)
    assert len({tuple(row) for row in found.probabilities.round(6).tolist()}) == 4
    assert found.unknown["segment"] == 2 and found.unknown["age"] == 1

    with pytest.warns(UserWarning, match="reads segment, age of each user"):
        unknown = plain_of(model).predict(asked, 8)
    assert np.array_equal(unknown.probabilities[3], found.probabilities[3])
    assert np.ptp(unknown.probabilities, axis=0).max() == 0


def test_missing_numbers_have_a_range_of_their_own_and_new_labels_are_unknown(
    model: behavegpt.Predictor,
) -> None:
    table = pd.DataFrame(
        {"user": ["a", "b", "c"], "segment": ["odd", "new", ""], "age": ["1e9", "n/a", None]}
    )
    given = {"user": ["a", "b", "c"], "time": ["2024-03-01"] * 3, "event": ["e0"] * 3}
    found = model.with_features(table).encode(given)
    ages, segments = (model.tokenizer.vocabulary[name] for name in ("age", "segment"))
    assert found.columns["age"].tolist() == [len(ages) - 1, UNKNOWN, UNKNOWN]
    assert found.columns["segment"].tolist() == [*segments.encode(["odd"]), UNKNOWN, UNKNOWN]


def test_the_same_user_has_the_same_answer_alone_packed_and_cached(
    model: behavegpt.Predictor,
) -> None:
    log = log_of(240, seed=3)
    together = model.predict(log, 8)
    place = {user: i for i, user in enumerate(together.users.to_pylist())}
    for user in ("0", "5", "38"):
        alone = model.predict(log[log["user"] == int(user)], 8)
        row = together.probabilities[place[user]]
        assert np.allclose(alone.probabilities[0], row, atol=1e-6)

    drawn = [model.generate(log, steps=14, seed=1, cache=cache) for cache in (True, False)]
    assert drawn[0].to_table().equals(drawn[1].to_table())
    assert "segment" not in drawn[0].to_table().column_names  # it stands in the table of users
    # what is drawn goes on from the same features, also where windows restart
    known = model.encode(log)
    for user, ids in zip(drawn[0].columns["user"], drawn[0].columns["segment"], strict=True):
        assert ids == known.columns["segment"][known.offsets[user]]


def test_states_embeddings_and_explanations_know_the_features(model: behavegpt.Predictor) -> None:
    log = log_of(400, seed=3)
    one = log[log["user"] == 1]
    state = model.state("1", one)
    assert np.allclose(model.predict(state, 8).probabilities, model.predict(one, 8).probabilities)
    other = model.with_features(users_of().assign(segment="even"))
    assert not np.allclose(other.embed(one).vectors, model.embed(one).vectors)
    assert (
        model.explain(one, 4).to_table()["behavior"][0].as_py()
        == model.predict(one, 1).labels[0, 0]
    )


def test_vectors_of_raw_logs_and_of_the_prepared_folder_are_the_same(
    model: behavegpt.Predictor, store: EventStore, run: Path, tmp_path: Path
) -> None:
    trained = open_model(run / "model")
    with_table = trained._replace(tokenizer=model.tokenizer)
    made = {}
    for name, source, which in (
        ("folder", [store.path], trained),
        ("raw", [store.path.parent / "log.parquet"], with_table),
        ("none", [store.path.parent / "log.parquet"], trained),
    ):
        export(which, source, tmp_path / name)
        made[name] = np.load(tmp_path / name / "embeddings.npy")
    assert np.array_equal(made["folder"], made["raw"])
    assert not np.allclose(made["raw"], made["none"])


def test_an_exported_graph_gives_the_predictors_vectors(
    model: behavegpt.Predictor, run: Path, tmp_path: Path
) -> None:
    log = log_of(300, seed=3)
    export_model(behavegpt.load(run / "model", "cpu"), tmp_path / "portable", "torch")
    inputs = GraphInputs(tmp_path / "portable")
    graph = torch.export.load(tmp_path / "portable" / "model.pt2").module()
    _, feed = inputs.of(log, users_of())
    assert {"segment_ids", "age_ids"} < feed.keys()
    vectors = graph(*(torch.from_numpy(feed[name]) for name in feed))[1]
    assert np.allclose(vectors.detach(), model.embed(log).vectors, atol=1e-5)


def test_data_without_the_features_are_refused(run: Path, store: EventStore) -> None:
    plain = SCHEMA.model_copy(update={"user_features": (), "user_numeric": ()})
    bare = prepare([store.path.parent / "log.parquet"], store.path.parent / "bare", plain)
    trained = open_model(run / "model")
    with pytest.raises(CheckpointError, match=r"features: .*segment.* in the model"):
        export(trained, [bare.path], store.path.parent / "refused")
    tokenizer = EventTokenizer.from_store(bare, 16)
    with pytest.raises(ConfigError, match="the model reads no features of users"):
        tokenizer.with_features(users_of())


MODES = ["full", "new_behavior", "cross_domain", "head_only", "lora"]


@pytest.mark.parametrize("mode", MODES)
def test_features_are_fine_tuned_with_the_fields(
    mode: str, run: Path, store: EventStore, tmp_path: Path
) -> None:
    """A third segment gets a row of its own; a feature that the base never read begins at 0."""
    if mode == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    log = log_of(seed=1)
    if mode == "new_behavior":
        log.loc[::7, "event"] = "e9"
    log.to_parquet(tmp_path / "log.parquet")
    schema = SCHEMA.model_copy(update={"user_features": ("segment", "city")})
    users = users_of().assign(city="Leeds")
    users.loc[::3, "segment"] = "third"
    data = prepare([tmp_path / "log.parquet"], tmp_path / "data", schema, users=users).path

    settings = tiny_settings(data, tmp_path / "run", steps=4)
    settings |= {"mode": mode, "base": str(run / "model")}
    del settings["model"]
    finetune(FinetuneSettings.model_validate(settings))
    tuned = behavegpt.load(tmp_path / "run" / "model", "cpu").with_features(users)
    assert tuned.model.config.user_features == {
        name: len(tuned.tokenizer.vocabulary[name]) for name in ("age", "city", "segment")
    }
    segments = tuned.tokenizer.vocabulary["segment"].values.to_pylist()
    assert set(segments) == {"even", "odd", "third"}
    if mode == "new_behavior":  # whose vocabulary grows
        assert segments == [*store.vocabulary["segment"].values.to_pylist(), "third"]
    assert tuned.predict(log, 1).unknown["city"] > 0  # of the users without a row
    tables = tuned.model.model.embedding.user.tables
    assert tables["city"].weight[2:].abs().sum() > 0


def test_a_base_without_features_reads_those_of_new_data(store: EventStore, tmp_path: Path) -> None:
    settings = tiny_settings(store.path, tmp_path / "base", steps=4)
    settings["model"] |= {"user_features": False}
    pretrain(PretrainSettings.model_validate(settings))
    del settings["model"]
    base = tmp_path / "base" / "model"
    settings |= {"mode": "full", "base": str(base), "out": str(tmp_path / "tuned")}
    finetune(FinetuneSettings.model_validate(settings))
    assert open_model(base).model.config.user_features is None
    # without training on other data it goes on without them
    add_behaviors(base, ["e77"], tmp_path / "more")
    more = open_model(tmp_path / "more").model.config
    assert more.num_behaviors == 9 and more.user_features is None
    tuned = open_model(tmp_path / "tuned" / "model").model
    assert set(tuned.config.user_features) == {"age", "segment"}


def test_updates_know_earlier_users_and_take_a_table(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    later = log_of(300, seed=5)
    later["time"] += pd.Timedelta("100d")
    later.loc[later["user"] == 3, "user"] = 99  # who is new
    table = pd.DataFrame({"user": [5, 99], "segment": ["third", "odd"], "age": [90.0, None]})
    behavegpt.update(tmp_path / "run", later, users=table, steps=2, margin=1.0)

    after = open_store(tmp_path / "run" / "updates" / "0001" / "data")
    users = after.users().to_pylist()
    ends = {user: after.offsets[place + 1] - 1 for place, user in enumerate(users)}
    segments = labels_at_events(after, "segment")
    assert [segments[ends[user]] for user in ("0", "1", "5", "99")] == [
        "even", "odd", "third", "odd",
    ]  # fmt: skip
    assert segments[after.offsets[users.index("5")]] is None  # as it was known then
    model = behavegpt.load(tmp_path / "run" / "model", "cpu")
    assert model.tokenizer.vocabulary["segment"].values.to_pylist()[-1] == "third"


def test_baselines_read_features_too(store: EventStore, tmp_path: Path) -> None:
    settings = tiny_settings(store.path, tmp_path / "run", steps=4)
    shape = {"embedding_size": 4, "num_attention_heads": 2, "max_length": 16}
    settings["model"] = {"architecture": "sasrec", **shape}
    pretrain(PretrainSettings.model_validate(settings))
    model = behavegpt.load(tmp_path / "run" / "model", "cpu")
    one = log_of(200, seed=3)
    known = model.with_features(users_of()).predict(one, 8).probabilities
    assert not np.allclose(known, model.predict(one, 8).probabilities)


def test_commands_take_the_table_beside_the_logs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_of(200, seed=3).to_csv(tmp_path / "log.csv", index=False)
    users_of().to_csv(tmp_path / "users.csv", index=False)
    model, log, users = str(run / "model"), str(tmp_path / "log.csv"), str(tmp_path / "users.csv")
    for command in (
        ["predict", model, log, "--json"],
        ["embed", model, log, "--out", str(tmp_path / "vectors.parquet")],
        ["generate", model, log, "--steps", "2", "--json"],
    ):
        assert main([*command, "--users", users]) == 0
        with pytest.warns(UserWarning, match="without a table of users"):
            assert main(command) == 0
    capsys.readouterr()
    assert main(["predict", "universal", log, "--users", users]) != 0
    assert "--users is for trained models" in capsys.readouterr().err
    assert main(["prepare", log, "--dry-run", "--user-features", "segment", "--json"]) != 0
    assert "--users TABLE" in capsys.readouterr().err


def test_requests_tell_the_features_of_their_users(model: behavegpt.Predictor) -> None:
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    from behavegpt.serving.answers import answer_all
    from behavegpt.serving.requests import PredictRequest

    def ask(predictor: behavegpt.Predictor, *features: dict[str, Any] | None) -> list[Any]:
        events = [{"time": "2024-03-01 08:00", "event": "e0"}]
        users = [{"id": str(i), "events": events} for i in range(len(features))]
        for user, told in zip(users, features, strict=True):
            user |= {} if told is None else {"features": told}
        answer = answer_all(predictor, [PredictRequest(users=users, top_k=8)])[0]
        if isinstance(answer, BehaveGPTError):
            raise answer
        return [user["behaviors"] for user in answer["users"]]

    row = {"segment": "even", "age": 20}  # of user 0 in the table
    plain = plain_of(model)
    told, unknown, absent = ask(plain, row, {}, None)
    assert unknown == absent != told
    from_table, over_table, of_user_2 = ask(model, None, {"segment": "odd"}, None)
    assert from_table == told and over_table not in (from_table, of_user_2)
    with pytest.raises(DataError, match=r"features: the model reads no 'segmnt'.*segment"):
        ask(model, {"segmnt": "even"})


def test_fit_takes_the_table(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train": {"steps": 2}, "evaluate": False, "out": tmp_path / "run"}
    fitted = behavegpt.fit(
        log_of(300), users=users_of(), user_features=["segment"], config="tiny", **options
    )
    assert fitted.tokenizer.users is not None
    assert set(fitted.model.config.user_features) == {"segment"}
    assert fitted.predict(log_of(50), 1).unknown["segment"] > 0


def test_countries_of_customers_are_a_feature(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Online Retail: the country stands at each purchase, and is one of the customer."""
    log = pq.read_table(shared_data("online_retail.parquet")).slice(0, 30_000)
    first = log.to_pandas().groupby("user_id")["location"].first().rename("country").reset_index()
    pq.write_table(log.drop_columns(["location"]), tmp_path / "log.parquet")
    first.to_csv(tmp_path / "users.csv", index=False)
    columns = "--user user_id --time timestamp --event event --behavior behavior"
    arguments = [str(tmp_path / "log.parquet"), "--out", str(tmp_path / "data"), *columns.split()]
    assert main(["prepare", *arguments, "--users", str(tmp_path / "users.csv")]) == 0
    store = open_store(tmp_path / "data")
    users = pa.array(first["user_id"].astype(str))
    table = read_user_table(tmp_path / "users.csv", store.schema)
    assert table.of(users)["country"].to_pylist() == first["country"].tolist()
    assert set(store.vocabulary["country"].values.to_pylist()) <= set(first["country"])
    assert len(store.vocabulary["country"].values) > 10


def plain_of(model: behavegpt.Predictor) -> behavegpt.Predictor:
    """The predictor that knows nobody."""
    return model._with(tokenizer=model.tokenizer._with(users=None))
