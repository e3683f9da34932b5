"""Intervals that cover what was planted, doubts where there is reason to doubt, and the plan that
follows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from behavegpt.cli import main
from behavegpt.errors import ConfigError, DataError
from behavegpt.scaling import plan
from behavegpt.scaling.fit import Bootstrap, Fit, fit_rows, read_fit, write_fit
from behavegpt.scaling.plots import draw_sweep
from tests.scaling.planted import EVENTS, SIZES, TRUTH, planted_rows

RATIO = float(np.divide(*TRUTH.optimum(6 * SIZES[-1] * EVENTS[-1])[::-1]))
PLANTED = {
    "alpha": 0.51,
    "beta": 0.23,
    "L_0": 1.8,
    "C_N": 110.0,
    "C_D": 8.3,
    "ratio": RATIO,
    "share": 0.23 / 0.74,
}


def coverage(draws: int, noise: float, outliers: int = 0) -> dict[str, float]:
    """Share of planted draws whose 95 % interval holds the truth."""
    held = dict.fromkeys([*PLANTED, "loss"], 0)
    for seed in range(draws):
        fit = fit_rows(planted_rows(seed, noise, outliers=outliers), how=Bootstrap(draws=200))
        for name, truth in PLANTED.items():
            one = getattr(fit, name)
            assert one.low <= one.value <= one.high
            held[name] += one.low <= truth <= one.high
        planned = plan.plan_compute(fit, 1e13)
        truth = float(TRUTH.loss(planned["params"]["value"], planned["events"]["value"]))
        held["loss"] += planned["loss"]["low"] <= truth <= planned["loss"]["high"]
    return {name: count / draws for name, count in held.items()}


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fit_rows(planted_rows(0))


def test_planted_exponents_are_recovered_within_their_intervals():
    held = coverage(10, 0.005)
    assert min(held.values()) >= 0.8, held


@pytest.mark.slow
@pytest.mark.parametrize("noise,outliers", [(0.003, 0), (0.01, 0), (0.005, 2)])
def test_intervals_cover_as_often_as_they_say(noise, outliers):
    held = coverage(100, noise, outliers)
    print(f"\ncoverage of 95 % intervals, noise {noise:.1%}, {outliers} outliers: {held}")
    assert min(held.values()) >= 0.88, held
    # not by being endless
    assert float(np.mean([held[n] for n in ("alpha", "beta", "L_0")])) <= 0.995, held


def test_intervals_shrink_with_the_noise():
    few = Bootstrap(draws=100)
    widths = [fit_rows(planted_rows(0, noise), how=few).alpha for noise in (0.001, 0.01)]
    assert widths[1].high - widths[1].low > 4 * (widths[0].high - widths[0].low)


def test_good_rows_raise_no_doubt(fit):
    assert fit.warnings == []
    assert fit.error < 0.01
    assert fit.range["params"] == pytest.approx((1e4, 1e6))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"sizes": SIZES[:2]}, "only 2 different sizes"),
        ({"events": EVENTS[:2]}, "only 2 different data sizes"),
        ({"noise": 0.1}, "is not identified"),
        ({"law": TRUTH._replace(C_N=np.array(1e-6))}, "hardly depends on N"),
        ({"law": TRUTH._replace(C_D=np.array(1e-6))}, "hardly depends on D"),
        ({"sizes": np.geomspace(1e4, 2e4, 6), "noise": 0.02}, "alpha is not identified"),
        ({"noise": 0.05}, "is known to a factor of"),
    ],
)
def test_what_rows_cannot_tell_is_said(changes, message):
    found = fit_rows(planted_rows(3, **changes), how=Bootstrap(draws=100)).warnings
    assert any(message in text for text in found), found


WIDE, LONG = np.geomspace(1e4, 1e6, 12), np.geomspace(1e4, 2e6, 12)


def rows_at(sizes: np.ndarray, events: np.ndarray, noise: float = 0.005) -> list[dict[str, float]]:
    """One run for each pair (not each combination) of sizes and events, of the planted law."""
    loss = TRUTH.loss(sizes, events) * np.exp(np.random.default_rng(1).normal(0, noise, len(sizes)))
    return [
        {"params": n, "events": d, "loss": y}
        for n, d, y in zip(sizes, events, loss.tolist(), strict=True)
    ]


NEVER = {"alpha", "C_N", "beta", "C_D", "ratio", "share"}
# rows -> what is said, figures that are left open
DEGENERATE = {
    "one size": (
        planted_rows(0, sizes=SIZES[:1], events=LONG),
        "only 1 different size:",
        {"alpha", "C_N", "L_0"},
    ),
    "one data size": (
        planted_rows(0, sizes=WIDE, events=EVENTS[:1]),
        "only 1 different data size:",
        {"beta", "L_0"},
    ),
    "one run over and over": (
        rows_at(np.full(8, 1e5), np.full(8, 1e5)),
        "only 1 different size:",
        NEVER | {"L_0"},
    ),
    "two sizes, no noise": (
        planted_rows(0, 0, sizes=SIZES[:2]),
        "only 2 different sizes",
        {"alpha", "L_0"},
    ),
    "two data sizes": (
        planted_rows(0, events=EVENTS[:2]),
        "only 2 different data sizes",
        {"beta", "L_0"},
    ),
    "20 events a parameter": (rows_at(WIDE, 20 * WIDE), "N and D grow together", NEVER),
    "the same, no noise": (rows_at(WIDE, 20 * WIDE, 0), "N and D grow together", NEVER),
    "about 20 events": (
        rows_at(WIDE, WIDE * np.linspace(19, 21, 12)),
        "N and D grow together",
        NEVER,
    ),
    "data as a power of size": (rows_at(WIDE, WIDE**1.4), "N and D grow together", NEVER),
    "such that the terms are one": (
        rows_at(WIDE, WIDE ** (0.51 / 0.23), 0),
        "N and D grow together",
        NEVER,
    ),
    "no effect of N": (
        planted_rows(0, law=TRUTH._replace(C_N=np.array(1e-6))),
        "hardly depends on N",
        {"alpha"},
    ),
    "no effect at all": (
        [{**row, "loss": 2.0} for row in planted_rows(0)],
        "hardly depends on D",
        NEVER,
    ),
    "no effect but noise": (
        [{**r, "loss": 2 + 0.01 * (i % 3)} for i, r in enumerate(planted_rows(0))],
        "hardly",
        NEVER,
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_nothing_is_planned_on_what_the_rows_leave_open(case, tmp_path):
    rows, message, names = DEGENERATE[case]
    fit = fit_rows(rows, how=Bootstrap(draws=50))
    assert any(message in text for text in fit.warnings), fit.warnings
    left_open = {name for figures in fit.unidentified.values() for name in figures}
    assert names <= left_open
    for name, truth in PLANTED.items():
        one = getattr(fit, name)
        assert one.low <= one.value <= one.high and np.isfinite([one.low, one.high]).all(), name
        assert name not in names or one.low <= truth <= one.high or "effect" in case, (name, one)
    write_fit(fit, tmp_path / "fit.json")
    again = read_fit(tmp_path / "fit.json")
    for budget in (lambda: plan.plan_compute(again, 1e18), lambda: plan.plan_events(again, 1e9)):
        with pytest.raises(DataError, match=r"nothing can be planned.*" + message.split(" ")[0]):
            budget()


@pytest.mark.parametrize(
    "case", ["one size", "one run over and over", "the same, no noise", "no effect at all"]
)
def test_degenerate_rows_are_drawn(case, tmp_path, recwarn):
    rows = DEGENERATE[case][0]
    assert len(draw_sweep(rows, fit_rows(rows, how=Bootstrap(draws=20)), tmp_path)) == 4
    assert not [str(warning.message) for warning in recwarn.list]


@pytest.mark.parametrize(
    "rows",
    [
        rows_at(WIDE, 1e11 / WIDE),
        rows_at(np.repeat(WIDE, 3), np.repeat(WIDE, 3) * np.tile([5, 20, 80], 12)),
    ],
    ids=["one budget", "5, 20 and 80 events a parameter"],
)
def test_other_designs_than_a_grid_are_no_reason_for_doubt(rows):
    found = fit_rows(rows, how=Bootstrap(draws=200))
    assert not found.unidentified
    for name in ("alpha", "beta", "L_0"):
        one = getattr(found, name)
        assert one.low <= PLANTED[name] <= one.high, (name, one)


@pytest.mark.parametrize("rows", [12, 30])
def test_intervals_are_expanded_percentiles(rows):
    """With few rows more than a normal quantile's worth of draws is kept (docs/scaling.md)."""
    sizes, events = (SIZES[::2], EVENTS[:4]) if rows == 12 else (SIZES, EVENTS)
    found = fit_rows(planted_rows(0, sizes=sizes, events=events))
    assert found.edge == pytest.approx(norm.cdf(student.ppf(0.025, rows - 5)))
    assert found.edge < 0.025
    for name in ("alpha", "beta", "L_0"):
        drawn = getattr(found.laws, name)
        one = getattr(found, name)
        assert (one.low, one.high) == pytest.approx(
            tuple(np.quantile(drawn, [found.edge, 1 - found.edge])), rel=1e-6
        )


NAN, INF = "nan", "inf"
BAD_NUMBERS = [
    *(("fit", ["--delta", value]) for value in (NAN, INF, "0", "-1")),
    *(("fit", ["--draws", value]) for value in ("0", "-5")),
    *(("fit", ["--confidence", value]) for value in (NAN, "0", "1", "2", "-1")),
    *(("fit", ["--min-events", value]) for value in (NAN, INF, "-1")),
    *(("fit", ["--floor", value]) for value in (NAN, INF, "0", "-1")),
    *(
        ("plan", [name, value])
        for name in ("--compute", "--events", "--hours")
        for value in (NAN, "1e400", "0", "-1")
    ),
    *(("plan", ["--hours", "1", "--tflops", value]) for value in (NAN, "0", "-1")),
    *(
        ("plan", ["--hours", "1", "--tflops", "1", "--utilization", value])
        for value in (NAN, "0", "2")
    ),
]


@pytest.mark.parametrize("verb,options", BAD_NUMBERS, ids=str)
def test_numbers_without_sense_are_refused(verb, options, fit, tmp_path, capsys):
    write_fit(fit, tmp_path / "fit.json")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in planted_rows(0)))
    source = ["rows.jsonl", "--out", str(tmp_path / "new.json")] if verb == "fit" else ["fit.json"]
    assert main(["scale", verb, str(tmp_path / source[0]), *source[1:], *options]) == 2
    told = capsys.readouterr().err
    name = options[-2].removeprefix("--").replace("-", "_")
    assert f"options: {name} = " in told and told.count("\n") == 1
    assert not (tmp_path / "new.json").exists()


def test_numbers_without_sense_are_refused_in_python_too(fit):
    for how in (Bootstrap(draws=0), Bootstrap(confidence=float("nan"))):
        with pytest.raises(ConfigError, match="scaling law: "):
            fit_rows(planted_rows(0), how=how)
    for number in (float("nan"), 0, -1, float("inf")):
        with pytest.raises(ConfigError, match="plan: "):
            plan.plan_compute(fit, number)
        with pytest.raises(ConfigError, match="plan: "):
            plan.plan_events(fit, number)


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match=r"5 finished runs.*at least 6"):
        fit_rows(planted_rows(0)[:5])


def test_operations_are_taken_from_the_rows():
    rows = [{**row, "flops": 3 * row["params"] * row["events"]} for row in planted_rows(0)]
    half = fit_rows(rows, how=Bootstrap(draws=10))
    assert half.flops_per_param == pytest.approx(3)
    assert half.range["flops"][1] == pytest.approx(3 * 1e6 * 2e6)


def test_a_fit_is_read_back_as_written(fit, tmp_path):
    write_fit(fit, tmp_path / "fit.json")
    assert read_fit(tmp_path / "fit.json") == fit
    tree = json.loads((tmp_path / "fit.json").read_text())
    for name in ("alpha", "beta", "L_0", "ratio"):
        assert set(tree[name]) == {"value", "low", "high"}
    (tmp_path / "fit.json").write_text('{"alpha": 1}')
    with pytest.raises(DataError, match="not a fit"):
        read_fit(tmp_path / "fit.json")


def test_a_plan_for_compute_is_the_optimum_of_the_fit(fit):
    found = plan.plan_compute(fit, 1e12)
    sizes = np.geomspace(1e3, 1e7, 100_001)
    losses = fit.law.loss(sizes, 1e12 / 6 / sizes)
    assert found["params"]["value"] == pytest.approx(sizes[losses.argmin()], rel=1e-3)
    assert found["loss"]["value"] == pytest.approx(losses.min())
    assert found["loss"]["value"] == pytest.approx(TRUTH.loss(*TRUTH.optimum(1e12)), rel=0.005)
    assert found["loss"]["low"] < found["loss"]["value"] < found["loss"]["high"]
    assert found["warnings"] == []


def test_plans_for_events_and_hours_agree_with_the_one_for_compute(fit):
    compute = plan.plan_compute(fit, 3e12)
    assert json.dumps(plan.plan_hours(fit, 2.0, 3e12 / 7200)) == json.dumps(compute)
    events = plan.plan_events(fit, compute["events"]["value"])
    for name in ("params", "loss", "ratio"):
        assert events[name]["value"] == pytest.approx(compute[name]["value"])
    assert events["flops"] == pytest.approx(3e12)


def test_a_plan_beyond_the_rows_says_so(fit):
    found = plan.plan_compute(fit, 1e18)["warnings"]
    assert any("params" in text and "outside" in text for text in found)
    assert any("a guess" in text for text in found)


def test_figures_are_drawn_also_for_several_models(fit, tmp_path):
    other = [{**row, "name": "other", "loss": row["loss"] * 1.05} for row in planted_rows(0)]
    figures = draw_sweep([*planted_rows(0), *other], fit, tmp_path, floor=1.8)
    names = ["loss_by_events.png", "loss_by_params.png", "frontier.png", "residuals.png"]
    assert [path.name for path in figures] == names
    assert all(
        path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 20_000 for path in figures
    )
