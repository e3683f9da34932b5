"""Baskets from the log to figures, predictions, vectors, labels and the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import behavegpt
from behavegpt.baselines import basket_counts
from behavegpt.cli import main
from behavegpt.data.pack import target_rows
from behavegpt.data.store import EventStore
from behavegpt.data.vocabulary import FIRST
from behavegpt.embeddings.export import ExportSettings, export
from behavegpt.errors import CheckpointError, ConfigError, DataError
from behavegpt.evaluate_universal import evaluate_universal
from behavegpt.evaluation import compare
from behavegpt.evaluation_summary import metrics_table
from behavegpt.export_model import export_model
from behavegpt.finetune import FinetuneSettings, finetune
from behavegpt.ingest.prepare import prepare
from behavegpt.metrics.baskets import basket_figures, ndcg_of_scores
from behavegpt.predictor import Predictor
from behavegpt.pretrain import PretrainSettings, pretrain
from behavegpt.training.model_folder import Trained
from tests.basket_logs import SCHEMA, retail_log
from tests.runs import tiny_settings


@pytest.fixture(scope="module")
def log(shared_data: Callable[[str], Path]) -> pa.Table:
    return retail_log(shared_data, 31)


@pytest.fixture(scope="module")
def store(log: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> EventStore:
    return prepare(log, tmp_path_factory.mktemp("baskets") / "data", SCHEMA)


def settings_of(store: EventStore, out: Path, **model: Any) -> PretrainSettings:
    settings = tiny_settings(store.path, out, steps=6)
    settings["model"] |= model
    return PretrainSettings.model_validate(settings)


@pytest.fixture(scope="module")
def run(store: EventStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    pretrain(settings_of(store, out, memory=True))
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> Predictor:
    return behavegpt.load(run, "cpu")


def test_figures_are_those_of_the_formulas(
    model: Predictor, store: EventStore, tmp_path: Path
) -> None:
    result = compare(model, store, tmp_path / "metrics.json", baselines=False)
    baskets = store.baskets
    assert baskets is not None
    assert result["protocol"]["unit"] == "basket"

    # by `predict`, one user's history before one basket at a time
    rows = target_rows(store, 2)
    asked = np.unique(np.searchsorted(baskets.begin, rows, side="right") - 1)
    figures = result["models"]["behavegpt"]["basket"]
    assert figures["baskets"] == len(asked)
    log, recall, hits = store.as_dataset().to_pandas(), [], []
    for m in asked[:: max(1, len(asked) // 12)]:
        user = np.searchsorted(baskets.offsets, m, side="right") - 1
        part = slice(store.offsets[user], baskets.begin[m])
        columns = {name: np.asarray(column[part]) for name, column in store.columns.items()}
        columns["behavior"] = np.asarray(store.column("behavior")[part])
        columns["time"] = columns["time"].astype(np.int64) + store.manifest.time_origin
        encoded = behavegpt.data.tokenizer.EncodedHistories(
            store.users()[user : user + 1], np.array([0, len(columns["time"])]), columns, {}, {}
        )
        best = model.predict(encoded, 5).answers()[0]
        inside = log.iloc[baskets.begin[m] : baskets.begin[m + 1]]["behavior"]
        members = set(store.behaviors.decode(np.unique(inside[inside >= FIRST])))
        found = members & {answer["behavior"] for answer in best}
        recall.append(len(found) / len(members))
        hits.append(bool(found))
    chosen = np.isin(
        np.searchsorted(baskets.begin, rows, side="right") - 1,
        asked[:: max(1, len(asked) // 12)],
    )
    assert chosen.any()
    ranks = result_ranks(model, store, tmp_path)[chosen]
    basket = (np.searchsorted(baskets.begin, rows, side="right") - 1)[chosen]
    mine = basket_figures(ranks, basket, np.zeros(len(ranks), int), [5])
    assert mine["recall@5"] == pytest.approx(np.mean(recall))
    assert mine["hit@5"] == pytest.approx(np.mean(hits))
    assert "ndcg@10" in metrics_table(result)[0]


def result_ranks(model: Predictor, store: EventStore, folder: Path) -> np.ndarray:
    from behavegpt.metrics.bootstrap import TargetRanks
    from behavegpt.training.evaluate import score

    ranks = TargetRanks(target_rows(store, 2))
    for part in score(model.model, store, 2):
        ranks.update(part.logits, part.target, part.row)
    return ranks.ranks


def test_metrics_of_one_basket() -> None:
    scores = np.array([[0.4, 0.1, 0.3, 0.2]])
    member = np.array([[False, True, True, False]])
    # ranks of classes 1 and 2: 3 and 1
    expected = (1 / np.log2(3)) / (1 + 1 / np.log2(3))
    figures = basket_figures(np.array([3, 1]), np.zeros(2, int), np.array([1, 2]), [2])
    assert figures["ndcg@2"] == pytest.approx(expected)
    assert ndcg_of_scores(scores, member, 2)[0] == pytest.approx(expected)
    assert (figures["recall@2"], figures["hit@2"], figures["macro_recall@2"]) == (0.5, 1, 0.5)


def test_count_baselines_know_the_baskets_before_alone(store: EventStore) -> None:
    baskets, counted = store.baskets, basket_counts.fit(store)
    assert baskets is not None
    rows = target_rows(store, 2)
    basket = np.searchsorted(baskets.begin, rows, side="right") - 1
    behavior = store.column("behavior").astype(int) - FIRST
    for name in ("user_most_frequent", "repeat_last", "markov", "mixture"):
        parts = list(basket_counts.scores(counted, name, store, rows))
        scores = np.concatenate([part for _, part in parts])
        assert np.array_equal(np.concatenate([part for part, _ in parts]), rows)
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-4)
        # one answer for a basket
        same = basket[1:] == basket[:-1]
        assert np.array_equal(scores[1:][same], scores[:-1][same])

    scores = next(basket_counts.scores(counted, "user_most_frequent", store, rows))[1]
    weight = counted.choices["user_most_frequent"].weight
    for place in range(0, len(rows), 41):
        m = basket[place]
        user = np.searchsorted(baskets.offsets, m, side="right") - 1
        number = np.zeros(len(counted.frequency))
        for before in range(baskets.offsets[user], m):
            held = behavior[baskets.begin[before] : baskets.begin[before + 1]]
            number[np.unique(held[held >= 0])] += 1
        expected = (number + weight * counted.frequency) / (number.sum() + weight)
        np.testing.assert_allclose(scores[place], expected, rtol=1e-4)


def test_lines_of_an_invoice_in_any_order_give_the_same_answers(
    model: Predictor, log: pa.Table
) -> None:
    index = np.random.default_rng(1).permutation(len(log))
    first, again = model.predict(log).to_table(), model.predict(log.take(index)).to_table()
    assert first.equals(again)
    assert np.array_equal(model.embed(log).vectors, model.embed(log.take(index)).vectors)


def test_vectors_of_a_folder_are_those_of_the_log(
    model: Predictor, store: EventStore, log: pa.Table, tmp_path: Path
) -> None:
    pool = ("last", "mean", "recent_bag")
    settings = ExportSettings(pool=pool, scale="none", dtype="float32")
    trained = Trained(model.model, model.tokenizer)
    export(trained, [store.path], tmp_path / "out", settings)
    found = behavegpt.UserEmbeddings.load(tmp_path / "out")
    expected = model.embed(log, pool)
    order = np.argsort([int(user) for user in expected.users.to_pylist()])
    np.testing.assert_allclose(found.vectors.astype(np.float32), expected.vectors[order], atol=1e-5)


REFUSED: dict[str, Callable[[Predictor, EventStore, pa.Table, Path], Any]] = {
    "generate": lambda model, store, log, out: model.generate(log, 3),
    "explain": lambda model, store, log, out: model.explain(log),
    "when": lambda model, store, log, out: model.when(log),
    "states": lambda model, store, log, out: model.with_states(log),
    "state": lambda model, store, log, out: model.users,
    "export-model": lambda model, store, log, out: export_model(model, out, "torch"),
    "baselines": lambda model, store, log, out: pretrain(
        settings_of(store, out, architecture="gru")
    ),
    "history head": lambda model, store, log, out: pretrain(
        settings_of(store, out, history_head=True)
    ),
    "universal": lambda model, store, log, out: evaluate_universal(
        behavegpt.load("universal").model, store, out
    ),
    "universal log": lambda model, store, log, out: behavegpt.load("universal").fit_tables(
        log, schema=SCHEMA
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reads_events_one_by_one_says_so(
    case: str, model: Predictor, store: EventStore, log: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="basket"):
        REFUSED[case](model, store, log, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


def test_a_log_without_the_groups_column_is_refused(model: Predictor, log: pa.Table) -> None:
    with pytest.raises(DataError, match="invoice"):
        model.predict(log.drop_columns(["invoice"]))
    renamed = log.rename_columns([*log.column_names[:-1], "receipt"])
    assert (
        model.reading(group="receipt")
        .predict(renamed)
        .to_table()
        .equals(model.predict(log).to_table())
    )


def test_fine_tuning_goes_on_with_baskets_alone(
    run: Path, store: EventStore, log: pa.Table, tmp_path: Path
) -> None:
    base = {
        "base": str(run / "model"),
        "mode": "cross_domain",
        "train": {"steps": 2, "batch_events": 256},
    }
    given = {**base, "data": {"path": str(store.path)}, "out": str(tmp_path / "fine")}
    finetune(FinetuneSettings.model_validate(given))
    assert behavegpt.load(tmp_path / "fine", "cpu").model.config.baskets

    plain = prepare(log, tmp_path / "plain", SCHEMA.model_copy(update={"group": None}))
    wrong = {**base, "data": {"path": str(plain.path)}, "out": str(tmp_path / "wrong")}
    with pytest.raises(ConfigError, match=r"reads baskets.*--group"):
        finetune(FinetuneSettings.model_validate(wrong))
    with pytest.raises(CheckpointError, match="has_baskets"):
        compare(behavegpt.load(run, "cpu"), plain, tmp_path / "metrics.json")


def test_labels_of_users_and_thresholds(
    model: Predictor, store: EventStore, log: pa.Table, tmp_path: Path
) -> None:
    from behavegpt.decision import learn_thresholds
    from behavegpt.labeling.run import finetune_label
    from behavegpt.training.settings import DecisionSettings

    frame = log.to_pandas()
    users = frame[frame["timestamp"] < "2011-10-10"].groupby("user_id").size()
    labels = pd.DataFrame({"user_id": users.index, "busy": users.to_numpy() > users.median()})
    quick = {"epochs": 2, "folds": 2, "top_labels": 5}
    result = finetune_label(model, log, labels, "2011-10-10", tmp_path / "label", **quick)
    assert result.scores.rows

    settings = DecisionSettings(thresholds=True, min_targets=1)
    found = learn_thresholds(model.model, store, settings)
    assert np.isfinite(found.values).all()


def test_the_service_answers_with_baskets(model: Predictor, log: pa.Table) -> None:
    from fastapi.testclient import TestClient

    from behavegpt.serving.app import make_app
    from behavegpt.serving.requests import ServeSettings

    user = log["user_id"][0].as_py()
    frame = log.to_pandas()
    events = frame[frame["user_id"] == user].drop(columns="user_id").astype(str)
    body = {"users": [{"id": str(user), "events": events.to_dict("records")}]}
    with TestClient(make_app(model, ServeSettings())) as client:
        answer = client.post("/v1/predict", json=body)
        assert answer.status_code == 200, answer.text
        expected = model.predict(frame[frame["user_id"] == user]).answers()[0]
        told = answer.json()["users"][0]["behaviors"]
        assert [b["behavior"] for b in told] == [b["behavior"] for b in expected]
        assert client.get("/v1/examples").json()["users"] == []
        for path in ("generate", "explain"):
            refused = client.post(f"/v1/{path}", json=body)
            assert 400 <= refused.status_code < 500
            assert "basket" in refused.text
        state = client.post(f"/v1/users/{user}/events", json={"events": body["users"][0]["events"]})
        assert 400 <= state.status_code < 500
        assert "basket" in state.text


def test_command_line(run: Path, store: EventStore, log: pa.Table, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(log.slice(0, 2000), tmp_path / "log.parquet")
    out = tmp_path / "predictions.parquet"
    assert main(["predict", str(run), str(tmp_path / "log.parquet"), "--out", str(out)]) == 0
    assert pq.read_table(out).num_rows > 0
    assert main(["generate", str(run), str(tmp_path / "log.parquet"), "--out", str(out)]) != 0
    metrics = tmp_path / "metrics.json"
    arguments = ["evaluate", str(run), str(store.path), "--out", str(metrics), "--baselines"]
    assert main(arguments) == 0
    assert "user_recent" in metrics.read_text()


def test_the_report_shows_the_figures_of_baskets(run: Path, store: EventStore) -> None:
    compare(behavegpt.load(run, "cpu"), store, run / "eval" / "metrics.json", baselines=True)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "NDCG@10" in page
    assert "invoice" in page
