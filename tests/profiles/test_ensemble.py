"""Steps and ensemble against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from behavegpt.errors import ConfigError, DataError
from behavegpt.profiles import transforms as room
from behavegpt.profiles.ensemble import (
    EnsembleSettings,
    fit_ensemble,
    write_ensemble,
)
from behavegpt.profiles.fitted import load_fitted, save_fitted
from behavegpt.profiles.members import Pca, Quantile, Step
from behavegpt.profiles.probe import auroc, noise, probe
from behavegpt.profiles.transforms import fit_steps, transformed
from behavegpt.user_embeddings import UserEmbeddings


def vectors(rows: int = 300, width: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))
    return (mixed + 3).astype(np.float32)


def after(steps: tuple[Step, ...], matrix: np.ndarray) -> np.ndarray:
    return np.concatenate(list(transformed(steps, fit_steps(steps, matrix), matrix)))


@pytest.fixture(params=[room.BLOCK, 7])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at a time must not matter."""
    monkeypatch.setattr(room, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_pca_is_that_of_sklearn() -> None:
    from sklearn.decomposition import PCA

    matrix = vectors()
    ours, theirs = (
        after((Pca(pca=5),), matrix),
        PCA(5, svd_solver="full").fit_transform(matrix.astype(np.float64)),
    )
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-8)
    assert np.array_equal(np.sign(ours[0] * theirs[0]) * np.sign(ours * theirs), np.ones_like(ours))
    assert after((Pca(pca=50),), matrix).shape == (300, 8)


@pytest.mark.usefixtures("block")
def test_whitening_is_that_of_sklearn() -> None:
    from sklearn.decomposition import PCA

    matrix = vectors()
    ours = after((Pca(pca=5, whiten=True),), matrix)
    theirs = PCA(5, svd_solver="full", whiten=True).fit_transform(matrix.astype(np.float64))
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-8)

    # a column that says what another says has no variance of its own: it is left out, not blown up
    twice = np.column_stack([matrix, matrix[:, 0]])
    assert np.allclose(after((Pca(pca=9, whiten=True),), twice)[:, 8], 0)


@pytest.mark.usefixtures("block")
def test_centered_columns_keep_their_scale() -> None:
    matrix = vectors()
    assert np.allclose(after(("center",), matrix), matrix - matrix.mean(axis=0), atol=1e-5)


@pytest.mark.usefixtures("block")
def test_standard_scores_are_those_of_sklearn() -> None:
    from sklearn.preprocessing import StandardScaler

    # a constant column becomes 0
    given = np.column_stack([vectors() * 7 + 3, np.full(len(vectors()), 0.1)])
    assert np.allclose(
        after(("zscore",), given),
        StandardScaler().fit_transform(given.astype(np.float64)),
        atol=1e-6,
    )


def test_quantiles_are_those_of_sklearn() -> None:
    from sklearn.preprocessing import QuantileTransformer

    counts = np.random.default_rng(0).poisson(0.7, (4000, 3)) * np.array([1, 0, 1]) + np.array(
        [0, 2, 0.5]
    )  # one constant
    new = np.array([[-5.0, 2, 99], [1, 3, 1.5]])
    step = (Quantile(quantile="uniform"),)
    states = fit_steps(step, counts)
    theirs = QuantileTransformer(n_quantiles=room.QUANTILES, subsample=10**9).fit(counts)
    for matrix in (counts, new):
        ours = np.concatenate(list(transformed(step, states, matrix)))
        assert np.allclose(ours, theirs.transform(matrix), atol=1e-9)


@pytest.mark.usefixtures("block")
def test_unit_length_after_pca_and_no_division_by_zero() -> None:
    both = after((Pca(pca=4), "l2"), vectors())
    assert np.allclose(np.linalg.norm(both, axis=1), 1)
    assert np.allclose(after(("l2",), np.zeros((3, 2), np.float32)), 0)


def entries() -> tuple[dict[str, tuple[tuple[Step, ...], UserEmbeddings]], np.ndarray]:
    """Two members that share half of their clients; client 70 has none."""
    first = UserEmbeddings(np.arange(0, 40), vectors(40, 5))
    second = UserEmbeddings(np.arange(59, 19, -1), vectors(40, 6, seed=1))
    return {"first": (("l2",), first), "second": ((Pca(pca=3), "l2"), second)}, np.r_[70, 59:-1:-1]


@pytest.mark.parametrize("impute", ["mean", "zero"])
def test_outer_join_and_imputation(tmp_path: Path, impute: str) -> None:
    members, order = entries()
    fitted = fit_ensemble(members, impute)
    facts = write_ensemble(fitted, {name: of for name, (_, of) in members.items()}, order, tmp_path)
    entry = UserEmbeddings.load(tmp_path)
    assert np.array_equal(entry.client_ids, order)
    assert (entry.vectors.dtype, entry.vectors.shape) == (np.float16, (61, 8))
    assert facts["members"]["first"] == {"columns": [0, 5], "imputed_clients": 21}
    unit = members["first"][1].vectors / np.linalg.norm(
        members["first"][1].vectors, axis=1, keepdims=True
    )
    for client in range(60):
        mine = entry.vectors[order == client][0].astype(np.float32)
        wanted = unit[client] if client < 40 else unit.mean(axis=0) * (impute == "mean")
        assert np.allclose(mine[:5], wanted, atol=1e-3)
        assert (abs(np.linalg.norm(mine[5:]) - 1) < 1e-2) == (client >= 20)
    assert entry.missing is not None
    assert order[entry.missing].tolist() == [70]


def test_a_member_that_knows_nobody_is_imputed(tmp_path: Path) -> None:
    """New clients, or the clients at an early cut, may all lack what a member reads."""
    members, order = entries()
    fitted = fit_ensemble(members, "mean")
    nobody = UserEmbeddings(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    write_ensemble(fitted, {"first": members["first"][1], "second": nobody}, order, tmp_path)
    written = UserEmbeddings.load(tmp_path).vectors
    assert np.allclose(written[:, 5:], fitted.members["second"].imputed, atol=1e-3)


def test_what_was_fitted_is_saved(tmp_path: Path) -> None:
    members, order = entries()
    fitted = fit_ensemble(members, "mean")
    only = {name: of for name, (_, of) in members.items()}
    write_ensemble(fitted, only, order, tmp_path / "a")
    save_fitted(fitted, tmp_path / "a")
    loaded = load_fitted({name: steps for name, (steps, _) in members.items()}, (), tmp_path / "a")
    some = {
        name: UserEmbeddings(of.client_ids[::3] + 1000, of.vectors[::3])
        for name, of in only.items()
    }
    write_ensemble(loaded, some, order + 1000, tmp_path / "b")
    fitted_ones, new = (UserEmbeddings.load(tmp_path / name).vectors for name in ("a", "b"))
    kept = np.isin(order, only["first"].client_ids[::3]) & np.isin(
        order, only["second"].client_ids[::3]
    )
    assert np.array_equal(fitted_ones[kept], new[kept])
    (tmp_path / "a" / "state.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="build the ensemble again"):
        load_fitted({}, (), tmp_path / "a")


def test_steps_after_the_members_see_all_columns(tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    members, order = entries()
    only = {name: of for name, (_, of) in members.items()}
    written = {}
    for name, steps in {"none": (), "center": ("center",), "pca": (Pca(pca=4),)}.items():
        fitted = fit_ensemble(members, "mean", steps, order)
        facts = write_ensemble(fitted, only, order, tmp_path / name)
        assert facts["dimensions"] == (4 if name == "pca" else 8)
        assert ("columns" in facts["members"]["first"]) == (name != "pca")
        written[name] = np.asarray(UserEmbeddings.load(tmp_path / name).vectors, np.float64)

        # what was saved gives the same entry
        save_fitted(fitted, tmp_path / name)
        posts = {name: steps for name, (steps, _) in members.items()}
        write_ensemble(load_fitted(posts, steps, tmp_path / name), only, order, tmp_path / "again")
        again = UserEmbeddings.load(tmp_path / "again").vectors
        assert np.array_equal(again, written[name])

    assert np.abs(written["none"].mean(axis=0)).max() > 0.1
    assert np.allclose(written["center"], written["none"] - written["none"].mean(0), atol=2e-3)
    # the clients that a member lacks are among the rows: their columns are at its mean
    theirs = np.abs(PCA(4, svd_solver="full").fit_transform(written["none"]))
    assert np.allclose(np.abs(written["pca"]), theirs, atol=5e-3)


def test_too_wide_or_too_large_is_refused(tmp_path: Path) -> None:
    wide = UserEmbeddings(np.arange(3), np.ones((3, 1500), np.float32))
    with pytest.raises(ConfigError, match=r"3000 columns .*at most 2048"):
        fit_ensemble({"a": ((), wide), "b": ((), wide)}, "mean")
    fit_ensemble({"a": ((), wide), "b": ((), wide)}, "mean", (Pca(pca=2),))  # narrow at the end
    large = UserEmbeddings(np.arange(3), np.full((3, 2), 1e5, np.float32))
    with pytest.raises(DataError, match="'a' has values beyond float16"):
        write_ensemble(
            fit_ensemble({"a": ((), large)}, "mean"), {"a": large}, np.arange(3), tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_chosen_members() -> None:
    names = ["a", "b", "c"]
    assert EnsembleSettings(without=("b",)).chosen(names) == ["a", "c"]
    assert EnsembleSettings(members=("c", "a")).chosen(names) == ["c", "a"]
    with pytest.raises(ConfigError, match="'d' is not a member"):
        EnsembleSettings(without=("d",)).chosen(names)
    with pytest.raises(ConfigError, match="no member is left"):
        EnsembleSettings(without=("a", "b", "c")).chosen(names)


def test_the_probe_finds_what_is_there() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4000, 5))
    windows = [
        (hidden @ rng.normal(size=(5, 3)) * 0 + hidden[:, :3] + rng.normal(size=(4000, 3)) > 1)
        for _ in range(2)
    ]
    never = np.zeros((4000, 1))
    train, validation = (np.hstack([window, never]).astype(np.uint8) for window in windows)
    assert probe(hidden, train, validation) > 0.75
    assert abs(probe(noise(4000), train[rng.permutation(4000)], validation) - 0.5) < 0.02
    assert np.isnan(probe(hidden, never, never))


def test_auroc_is_that_of_sklearn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, targets = rng.integers(0, 30, (500, 4)) / 7, rng.random((500, 4)) < 0.1
    assert np.allclose(
        auroc(scores, targets), roc_auc_score(targets, scores, average=None), atol=1e-12
    )
