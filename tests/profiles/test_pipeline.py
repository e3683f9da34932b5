"""The pipeline: what runs again, what a failure costs, and new clients."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from behavegpt.cli import main
from behavegpt.config import read_settings
from behavegpt.errors import ConfigError, DataError, MissingExtraError
from behavegpt.profiles.behavegpt_member import MODEL_FILES, BehaviorSettings
from behavegpt.profiles.cache import digest
from behavegpt.profiles.events import DataSettings
from behavegpt.profiles.new_clients import embed_new
from behavegpt.profiles.pipeline import run
from behavegpt.profiles.settings import KINDS, ProfileSettings
from behavegpt.profiles.training import _Training
from behavegpt.user_embeddings import UserEmbeddings
from tests.conftest import ROOT
from tests.profiles.makers import later, renamed_clients, without_ties

CONFIGS = sorted((ROOT / "configs" / "profiles").glob("*.yaml"))


def profile(data: Path, out: Path, **changes: Any) -> ProfileSettings:
    members = {
        "stats": {"kind": "handcrafted"},
        "prices": {"kind": "handcrafted", "families": ["prices"], "post": [{"pca": 3}, "l2"]},
        **changes.pop("members", {}),
    }
    tree = {"data": {"path": str(data)}, "out": str(out), "members": members, **changes}
    return ProfileSettings.model_validate(tree)


def status(facts: dict[str, Any]) -> dict[str, str]:
    return {
        name: member["status"] for name, member in (facts["members"] | facts["ensembles"]).items()
    }


def test_only_what_changed_runs_again(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert set(status(run(profile(small, out))).values()) == {"built"}
    vectors = (out / "ensembles" / "all" / "embeddings.npy").read_bytes()
    assert set(status(run(profile(small, out))).values()) == {"kept"}
    # steps after a member do not build it again, the ensemble does
    changed = {"prices": {"kind": "handcrafted", "families": ["prices"], "post": ["l2"]}}
    assert status(run(profile(small, out, members=changed))) == {
        "stats": "kept",
        "prices": "kept",
        "all": "built",
    }
    changed["prices"]["families"] = ["prices", "url"]
    assert status(run(profile(small, out, members=changed))) == {
        "stats": "kept",
        "prices": "built",
        "all": "built",
    }
    other = shutil.copytree(small, tmp_path / "data")
    pd.read_parquet(other / "input" / "page_visit.parquet")[1:].to_parquet(
        other / "input" / "page_visit.parquet"
    )
    assert set(status(run(profile(other, out))).values()) == {"built"}
    assert set(status(run(profile(small, out, seed=1))).values()) == {"built"}
    run(profile(small, out))
    assert (out / "ensembles" / "all" / "embeddings.npy").read_bytes() == vectors


def test_another_version_of_the_package_builds_anew(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(profile(small, tmp_path / "run"))
    assert set(status(run(profile(small, tmp_path / "run"))).values()) == {"kept"}
    monkeypatch.setattr("behavegpt.profiles.building.__version__", "0.1.1")
    assert set(status(run(profile(small, tmp_path / "run"))).values()) == {"built"}


def test_a_checkpoint_counts_by_all_its_files(tmp_path: Path) -> None:
    for name in MODEL_FILES:
        (tmp_path / name).write_text(name)
    settings = BehaviorSettings(checkpoint=str(tmp_path))
    keys = [digest(settings.shaping())]
    for name in MODEL_FILES:
        (tmp_path / name).write_text("other")
        keys.append(digest(settings.shaping()))
    assert len(set(keys)) == 4


def test_a_failing_member_does_not_lose_the_others(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of luck")

    def absent(*_: Any) -> None:
        raise MissingExtraError("implicit", "profiles")

    members = {"visits": {"kind": "ials", "item": "url", "weights": {"page_visit": 1}}}
    for fit, expected in ((broken, "failed"), (absent, "off")):
        monkeypatch.setitem(KINDS, "ials", KINDS["ials"]._replace(fit=fit))
        facts = run(profile(small, tmp_path, members=members))
        assert facts["members"]["visits"]["status"] == expected
        assert facts["ok"] == (expected == "off")
        assert facts["ensembles"]["all"]["lacking"] == ["visits"]
        assert list(facts["ensembles"]["all"]["members"]) == ["stats", "prices"]
    told = capsys.readouterr().err
    assert "RuntimeError: out of luck" in told
    assert "skipping visits: implicit is not installed; run: pip install -e '.[profiles]'" in told


def test_a_stopped_profile_goes_on_within_a_member(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gru = {"kind": "gru_autoencoder", "fields": ["event"], "hidden": 8, "layers": 1}
    members = {"gru": gru | {"training": {"epochs": 3, "batch": 8, "held_out": 0.2}}}
    run(profile(small, tmp_path / "whole", members=members))

    step, steps = _Training.step, []

    def counted(self: _Training, *of: Any) -> None:
        step(self, *of)
        steps.append(self.progress.step)
        if steps == [1, 2, 3, 4]:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Training, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        run(profile(small, tmp_path / "run", members=members))
    again = run(profile(small, tmp_path / "run", members=members))
    assert status(again) == {"stats": "kept", "prices": "kept", "gru": "built", "all": "built"}
    assert steps == list(range(1, 10))  # no step is made twice
    vectors = [tmp_path / name / "members" / "gru" / "embeddings.npy" for name in ("whole", "run")]
    assert vectors[0].read_bytes() == vectors[1].read_bytes()
    assert not any((tmp_path / "run" / "cache" / "unfinished").iterdir())


def test_new_clients_are_embedded_like_fitted_ones(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("implicit", reason="needs the extra `profiles`")
    members = {
        "visits": {"kind": "ials", "item": "url", "weights": {"page_visit": 1}, "factors": 4}
    }
    run(profile(small, tmp_path / "run", members=members))
    fitted = UserEmbeddings.load(tmp_path / "run" / "ensembles" / "all")
    some = np.sort(fitted.client_ids)[::4]
    other = renamed_clients(small, tmp_path / "new", some)
    embed_new(tmp_path / "run", DataSettings(path=str(other)), tmp_path / "entry")
    new = UserEmbeddings.load(tmp_path / "entry")
    assert sorted(new.client_ids - 10**6) == some.tolist()
    by_id = {
        int(client): vector.tobytes()
        for client, vector in zip(fitted.client_ids, fitted.vectors, strict=True)
    }
    for client, vector in zip(new.client_ids - 10**6, new.vectors, strict=True):
        assert vector.tobytes() == by_id[int(client)]
    members["visits"]["factors"] = 5
    run(profile(small, tmp_path / "run", members=members), only=["visits"])
    with pytest.raises(DataError, match="visits was built again after"):
        embed_new(tmp_path / "run", DataSettings(path=str(other)), tmp_path / "entry")


def test_ages_count_back_from_the_end_of_later_events(small: Path, tmp_path: Path) -> None:
    """A month after the fit the same behavior is as old as it was then, not a month in the
    future."""
    tower = {"fields": ["event", "category"], "predict": {"category": 3}, "dimensions": 6}
    tower |= {"cut": {"horizon": 7, "moments": 2, "step": 7}, "training": {"batch": 8, "epochs": 1}}
    tower |= {"shape": {"embedding_size": 4, "layers": 1, "heads": 2, "longest": 16}}
    members = {"tower": {"kind": "future", "post": [], **tower}}
    data = without_ties(small, tmp_path / "data")  # whose order would depend on their time
    run(profile(data, tmp_path / "run", members=members))
    fitted = UserEmbeddings.load(tmp_path / "run" / "ensembles" / "all")

    def embedded(name: str, path: Path, at: str | None = None) -> UserEmbeddings:
        embed_new(tmp_path / "run", DataSettings(path=str(path)), tmp_path / name, at=at)
        return UserEmbeddings.load(tmp_path / name)

    same = embedded("same", data)
    assert np.array_equal(same.vectors, fitted.vectors)
    month = embedded("month", later(data, tmp_path / "later", 31))
    assert np.array_equal(month.client_ids, fitted.client_ids)
    columns = json.loads((tmp_path / "run/ensembles/all/ensemble.json").read_text())["members"]
    stats, ages = (slice(*columns[name]["columns"]) for name in ("stats", "tower"))
    assert np.array_equal(month.vectors[:, stats], fitted.vectors[:, stats])
    # the fit counts a tower's ages from its last event, here from the midnight after it
    two = embedded("two", later(data, tmp_path / "two_months", 62))
    assert np.array_equal(month.vectors[:, ages], two.vectors[:, ages])

    # as of a later day everything is older
    older = embedded("older", data, at="2023-03-01")
    for part in (stats, ages):
        assert not np.array_equal(older.vectors[:, part], fitted.vectors[:, part])


@pytest.mark.parametrize(
    ("at", "message"),
    [("2023-01-20", r"has events up to 2023-02-0\d"), ("soon", "not a day such as 2026-01-31")],
)
def test_a_vector_knows_no_event_after_its_day(
    small: Path, tmp_path: Path, at: str, message: str
) -> None:
    run(profile(small, tmp_path / "run"))
    with pytest.raises(ConfigError, match=message):
        embed_new(tmp_path / "run", DataSettings(path=str(small)), tmp_path / "entry", at=at)
    assert not (tmp_path / "entry" / "embeddings.npy").exists()


def test_vectors_from_elsewhere_are_a_member(small: Path, tmp_path: Path) -> None:
    clients = np.load(small / "input" / "relevant_clients.npy")[:20]
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float16)
    missing = np.arange(20) < 2
    members = {"mine": {"kind": "entry", "path": str(tmp_path / "entry"), "post": []}}
    UserEmbeddings(clients, vectors, missing).save(tmp_path / "entry")
    facts = run(profile(small, tmp_path / "run", members=members))
    start, stop = facts["ensembles"]["all"]["members"]["mine"]["columns"]
    ensemble = UserEmbeddings.load(tmp_path / "run" / "ensembles" / "all")
    for client, vector in list(zip(clients, vectors, strict=True))[2:]:
        assert np.array_equal(
            ensemble.vectors[ensemble.client_ids == client][0, start:stop], vector
        )
    assert facts["members"]["mine"]["clients"] == 18
    assert status(run(profile(small, tmp_path / "run", members=members)))["mine"] == "kept"
    UserEmbeddings(clients, -vectors, missing).save(tmp_path / "entry")
    assert status(run(profile(small, tmp_path / "run", members=members)))["mine"] == "built"
    shutil.rmtree(tmp_path / "entry")
    assert status(run(profile(small, tmp_path / "run", members=members)))["mine"] == "failed"


def test_rows_come_in_one_seeded_order(small: Path, tmp_path: Path) -> None:
    run(profile(small, tmp_path))
    ids = [
        UserEmbeddings.load(tmp_path / name).client_ids for name in ("ensembles/all", "alone/stats")
    ]
    assert np.array_equal(ids[0], ids[1])
    assert not np.array_equal(ids[0], np.sort(ids[0]))
    member = UserEmbeddings.load(tmp_path / "members" / "stats")
    assert np.array_equal(member.client_ids, ids[0][np.isin(ids[0], member.client_ids)])
    entry = UserEmbeddings.load(tmp_path / "alone" / "stats")
    assert entry.missing is not None
    assert entry.missing.sum() == 2


@pytest.mark.parametrize(
    "override,message",
    [
        ("members.stats.kind=magic", "magic"),
        ("members.stats.famlies=[prices]", "famlies"),
        ("members.bad-name={kind: handcrafted}", "becomes a folder"),
        ("ensembles.all.without=[nobody]", "'nobody' is not a member"),
    ],
)
def test_mistakes_are_named(small: Path, tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text("members: {stats: {kind: handcrafted}}\n")
    with pytest.raises(ConfigError, match=message):
        run(
            read_settings(
                ProfileSettings, tmp_path / "c.yaml", [f"data.path={small}", "out=x", override]
            )
        )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    settings = read_settings(ProfileSettings, path, ["data.path=somewhere", "out=runs/x"])
    assert "behavegpt profile" in path.read_text().split("members:")[0]
    for ensemble in settings.ensembles.values():
        assert ensemble.chosen(list(settings.members))


def test_the_command_on_the_generated_challenge(
    mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("implicit", reason="needs the extra `profiles`")
    config = str(ROOT / "configs" / "profiles" / "small.yaml")
    arguments = ["profile", config, f"data.path={mini}", f"out={tmp_path}", "--probe", "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    scores = facts["probe"]
    # what each kind of member is for, on data with planted structure; noise knows nothing
    assert scores["stats"]["churn"] > scores["noise"]["churn"] + 0.2
    assert (
        scores["ials_categories"]["propensity_category"]
        > scores["noise"]["propensity_category"] + 0.15
    )
    assert (
        scores["ensemble all"]["propensity_category"] > scores["ials_visits"]["propensity_category"]
    )
    entry = ["challenge", "validate", str(tmp_path / "ensembles" / "all"), "--data", str(mini)]
    assert main(entry) == 0
    assert main([*arguments[:-2], "--embed", str(mini)]) == 2


@pytest.mark.parametrize("told", ["Query interrupted", "as Arrow data failed: KeyboardInterrupt:"])
def test_a_signal_inside_a_query_stops_all_members(
    told: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB turns the KeyboardInterrupt of a handler into an error of its own; no member may take
    it for its own."""
    from behavegpt.profiles import building

    def interrupted(*_: Any) -> None:
        try:
            raise RuntimeError(told)
        except RuntimeError as error:
            raise DataError(f"cannot be read ({error})") from None

    monkeypatch.setattr(building, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(profile(small, tmp_path / "out"))
