"""Features -> how well labels are predicted, over folds by user; scikit-learn's models and metrics.

Shapes: N users, F features, K classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from behavegpt.probing.settings import Kind, Task

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("ROC-AUC", "PR-AUC", "accuracy"),
    "regression": ("R2", "MAE"),
}
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the logistic regression's C
PENALTIES = tuple(10.0**i for i in range(-1, 6))  # of ridge
BANDS = 10  # of regressed values, which are spread evenly over the folds
CONFIDENCE = 0.95


class Fold(NamedTuple):
    """One part of the users is predicted, the others are learned from."""

    train: np.ndarray  # indices into (N,)
    test: np.ndarray
    seed: int


class Interval(NamedTuple):
    """A mean over folds with its 95 % interval."""

    mean: float
    low: float
    high: float


def make_folds(target: np.ndarray, task: Task, folds: int, seeds: int) -> list[Fold]:
    """`folds` parts of the users, `seeds` times; each part has its share of each class, of values
    of each band."""
    from sklearn.model_selection import StratifiedKFold

    strata = target
    if task == "regression":
        # bands by rank hold equally many users, whatever the values
        rank = np.argsort(np.argsort(target, kind="stable"), kind="stable")
        strata = rank * BANDS // len(target)

    parts = []
    for seed in range(seeds):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        parts += [Fold(train, test, seed) for train, test in splitter.split(strata, strata)]
    return parts


def score_folds(
    features: np.ndarray, target: np.ndarray, task: Task, kind: Kind, folds: list[Fold]
) -> dict[str, np.ndarray]:
    """METRICS of a task -> (folds,) float64; features (N, F), target (N,)."""
    rows = [_score(features, target, task, kind, fold) for fold in folds]
    return {name: np.array([row[name] for row in rows]) for name in METRICS[task]}


def interval(values: np.ndarray, folds: int) -> Interval:
    """Mean and 95 % interval of figures, or of paired differences, (n,) over repeated `folds`-fold
    cross-validation.

    Nadeau and Bengio's corrected t: folds share training users, so n figures are fewer independent
    ones: the variance of the mean is s^2 (1 / n + test / train), not s^2 / n.
    """
    from scipy.stats import t

    mean, count = float(values.mean()), len(values)
    variance = values.var(ddof=1) * (1 / count + 1 / (folds - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def _score(
    features: np.ndarray, target: np.ndarray, task: Task, kind: Kind, fold: Fold
) -> dict[str, float]:
    """Figures of one fold."""
    # anew for each fold: nothing of the others is known to it
    model = _model(task, kind, fold.seed)
    model.fit(features[fold.train], target[fold.train])
    held, truth = features[fold.test], target[fold.test]
    return figures(
        truth, model.predict(held) if task == "regression" else model.predict_proba(held)
    )


def figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """METRICS of classes (n,) and probabilities (n, K), or of numbers (n,) and (n,)."""
    made = _regression_figures if predicted.ndim == 1 else _class_figures
    return made(truth, predicted)


def _model(task: Task, kind: Kind, seed: int) -> Any:
    """The probe: strengths of the linear ones are chosen within the training users."""
    from sklearn import ensemble, linear_model
    from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "boosting":
        made = {
            "classification": ensemble.HistGradientBoostingClassifier,
            "regression": ensemble.HistGradientBoostingRegressor,
        }[task]
        # shallow and slow: a few thousand users, hundreds of features
        return made(
            learning_rate=0.05, max_iter=100, max_leaf_nodes=8, l2_regularization=1.0,
            early_stopping=False, random_state=seed,
        )  # fmt: skip

    if task == "regression":
        # scaled within the pipeline, so by the training users alone
        return make_pipeline(StandardScaler(), linear_model.RidgeCV(PENALTIES))
    regression = make_pipeline(StandardScaler(), linear_model.LogisticRegression(max_iter=1000))
    quarter = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed)
    grid = {"logisticregression__C": STRENGTHS}
    return GridSearchCV(regression, grid, scoring="neg_log_loss", cv=quarter)


def _class_figures(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Of classes (n,) and probabilities (n, K): areas are macro averages, one class against the
    rest; of two classes those of the second."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    # of a yes or no the second class: what is asked about
    shown = [1] if probability.shape[1] == 2 else range(probability.shape[1])
    pairs = [(truth == k, probability[:, k]) for k in shown]
    return {
        "ROC-AUC": float(np.mean([roc_auc_score(*pair) for pair in pairs])),
        "PR-AUC": float(np.mean([average_precision_score(*pair) for pair in pairs])),
        "accuracy": float((probability.argmax(1) == truth).mean()),
    }


def _regression_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Of values (n,)."""
    from sklearn.metrics import mean_absolute_error, r2_score

    return {
        "R2": float(r2_score(truth, predicted)),
        "MAE": float(mean_absolute_error(truth, predicted)),
    }
