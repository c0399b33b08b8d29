"""Fits recover known truth, do not depend on units or order, reach published optima, and say when they cannot be trusted."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.estimate import SIZE
from analysis.fits import laws, newton, objective
from analysis.fits.fit import N_STARTS, FitStatus, fit, fit_batch, objective_of
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_ASPECT, POWER_FLOOR_CROSSED, POWER_FLOOR_DATA, SHAPE, SHAPE_CROSSED, TIMING
from benchmarks.laws import simulate

SHARED = Path(os.environ.get("SCALING_STUDY_SHARED", Path(__file__).parents[2] / "shared")) / "reference"
needs_chinchilla = pytest.mark.skipif(not (SHARED / "chinchilla_epoch.csv").exists(), reason=f"no Chinchilla points in {SHARED}")


def shapes():
    """60 trials that vary depth, width, heads and tokens apart from each other."""
    rng = np.random.default_rng(3)
    depth, width, tokens = (a.ravel().astype(float) for a in np.meshgrid([2, 4, 6, 8, 12], [128, 192, 256, 384], [2e7, 8e7, 3e8]))
    heads = rng.choice([4.0, 8.0, 16.0], size=depth.size)
    return {
        "n_layer": depth,
        "n_embd": width,
        "n_head": heads,
        "n_tokens": tokens,
        SIZE: 12 * depth * width**2,
        "lr": rng.uniform(1, 9, 60),
    }


TRUTH = {"E": 0.5, "A": 0.2, "alpha": 0.4, "B": 0.1, "beta": 0.3, "gamma": 0.03, "aspect_opt": 45.0, "c": 0.7}
DEPTH_WIDTH = {"E": 0.5, "A": 0.2, "a": 0.3, "b": 0.6, "c": 0.1}
ALL_LAWS = [
    (POWER, TRUTH),
    (POWER_FLOOR, TRUTH),
    (POWER_FLOOR_DATA, TRUTH),
    (POWER_FLOOR_CROSSED, TRUTH | {"c": 0.05}),
    (POWER_FLOOR_ASPECT, TRUTH),
    (SHAPE, DEPTH_WIDTH),
    (SHAPE_CROSSED, DEPTH_WIDTH),
    (TIMING, {"t0": 3.0, "A": 30.0, "g": 1.4, "B": 12.0, "h": 0.9}),
]


def truth_of(law, truth):
    table = shapes()
    reference = {name: float(np.exp(np.log(laws.column_values(table, name)).mean())) for name in law.columns}
    params = {name: truth[name] for name in law.parameters}
    return table, reference, params


def sizes(n=8):
    return {SIZE: np.geomspace(1e5, 2e7, n)}


def curve(columns, sd=0.0):
    return simulate(POWER_FLOOR, TRUTH, columns, {SIZE: 1e6}, sd, 0)


# ---- recovery and invariance ----


with_every_law = pytest.mark.parametrize(("law", "truth"), ALL_LAWS, ids=[law.name for law, _ in ALL_LAWS])


@with_every_law
@pytest.mark.parametrize("delta", [None, 1e-3])
def test_every_law_recovers_its_parameters_from_exact_data(law, truth, delta):
    table, reference, params = truth_of(law, truth)
    result = fit(law, table, law.predict(params, table, reference), delta=delta)
    assert result.status is FitStatus.CONVERGED, result.message
    assert result.reference == pytest.approx(reference, rel=1e-12)
    for name, value in params.items():
        assert result.params[name] == pytest.approx(value, rel=1e-9), f"{law.name} {name}"


@with_every_law
def test_predictions_agree_between_coordinates_and_named_parameters(law, truth):
    table, reference, params = truth_of(law, truth)
    result = fit(law, table, simulate(law, params, table, reference, 0.003, 0))
    assert result.predict(table) == pytest.approx(law.predict(result.params, table, result.reference), rel=1e-11)
    assert result.design.from_params(result.params)[:, 0] == pytest.approx(result.theta, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("delta", [None, 1e-3])
def test_row_order_units_and_repeated_rows_do_not_matter(delta):
    columns = sizes(12)
    loss = curve(columns, sd=0.01)
    first = fit(POWER_FLOOR, columns, loss, delta=delta)
    order = np.random.default_rng(5).permutation(12)
    shuffled = fit(POWER_FLOOR, {SIZE: columns[SIZE][order]}, loss[order], delta=delta)
    millions = fit(POWER_FLOOR, {SIZE: columns[SIZE] / 1e6}, loss, delta=delta)
    for name in POWER_FLOOR.parameters:
        assert shuffled.params[name] == first.params[name]
        assert millions.params[name] == pytest.approx(first.params[name], rel=1e-9)
    assert millions.reference[SIZE] == pytest.approx(first.reference[SIZE] / 1e6, rel=1e-12)


# ---- the optimizer ----


@with_every_law
def test_gradient_and_hessian_match_central_differences(law, truth):
    table, reference, params = truth_of(law, truth)
    loss = simulate(law, params, table, reference, 0.02, 1)
    result = fit(law, table, loss)
    data = objective_of(result.design, table, loss[None], np.ones((1, 60))).at(0.013)
    theta, one = (result.theta * 1.01 + 0.003)[:, None], np.arange(1)
    gradient, hessian = (part[..., 0] for part in objective.evaluate(data, theta, one)[1:])
    step = 1e-6  # truncation 1e-12 and rounding 1e-10 of values of order 1
    for j in range(len(theta)):
        ahead, behind = theta.copy(), theta.copy()
        ahead[j] += step
        behind[j] -= step
        up, down = objective.evaluate(data, ahead, one), objective.evaluate(data, behind, one)
        assert gradient[j] == pytest.approx((up[0] - down[0])[0] / (2 * step), rel=1e-6, abs=1e-8)
        assert hessian[j] == pytest.approx((up[1] - down[1])[:, 0] / (2 * step), rel=1e-5, abs=1e-6)


def test_batched_solve_equals_lapack_and_turns_indefinite_systems_downhill():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(50, 5, 5))
    matrix = factor @ factor.transpose(0, 2, 1)
    right = rng.normal(size=(50, 5))
    found = newton.solve(matrix.transpose(1, 2, 0), right.T).T
    assert found == pytest.approx(np.linalg.solve(matrix, right[:, :, None])[:, :, 0], rel=1e-6)
    indefinite = matrix - 2 * np.eye(5)
    assert (np.linalg.eigvalsh(indefinite).min(axis=1) < 0).any()
    assert ((newton.solve(indefinite.transpose(1, 2, 0), right.T).T * right).sum(axis=1) > 0).all()


@pytest.mark.parametrize("delta", [None, 1e-3, 1e-2])
def test_a_batch_equals_separate_fits_of_repeated_rows_however_it_is_cut(delta, monkeypatch):
    columns = sizes(10)
    loss = curve(columns, sd=0.01)
    weights = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=40)
    start = fit(POWER_FLOOR, columns, loss, delta=delta)
    whole = fit_batch(start, columns, loss, weights)
    assert whole.converged.all()
    assert whole.predict(columns).shape == (40, 10)
    for i in range(6):
        single = fit(POWER_FLOOR, {SIZE: np.repeat(columns[SIZE], weights[i])}, np.repeat(loss, weights[i]), delta=delta)
        assert whole.objective_value[i] == pytest.approx(single.objective_value, rel=1e-9)
        assert whole.params["alpha"][i] == pytest.approx(single.params["alpha"], rel=1e-6)
        moved = (single.reference[SIZE] / start.reference[SIZE]) ** single.params["alpha"]  # the amplitude, to the reference of the start
        assert whole.params["A"][i] == pytest.approx(single.params["A"] * moved, rel=1e-6)
    monkeypatch.setattr(newton, "CHUNK_ELEMENTS", 100)
    assert fit_batch(start, columns, loss, weights).params["E"] == pytest.approx(whole.params["E"], rel=1e-9)
    assert fit_batch(start, columns, loss, np.ones((2, 10))).params["E"] == pytest.approx(start.params["E"], rel=1e-10)


# ---- estimators ----


def test_huber_ignores_a_ruined_run_that_drags_least_squares_away():
    columns = sizes(16)
    loss = curve(columns, sd=0.002)
    loss[3] *= 1.2
    robust, square = fit(POWER_FLOOR, columns, loss, delta=2e-3), fit(POWER_FLOOR, columns, loss)
    assert abs(robust.params["E"] - 0.5) < 0.01 < abs(square.params["E"] - 0.5)


# ---- the published fit of Besiroglu et al. 2024 ----


def chinchilla():
    rows = list(csv.DictReader((SHARED / "chinchilla_epoch.csv").open()))
    size, flop, loss = (np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss"))
    used = loss < np.sort(loss)[-5]
    return (
        {SIZE: size[used], "n_tokens": flop[used] / (6 * size[used])},
        loss[used],
        json.loads((SHARED / "chinchilla_epoch.json").read_text()),
    )


def at_one(result, amplitude, column, exponent):
    """An amplitude extrapolated to a column value of one, as the paper reports it."""
    return result.params[amplitude] * result.reference[column] ** result.params[exponent]


@needs_chinchilla
def test_chinchilla_points_give_the_exact_huber_optimum():
    columns, loss, known = chinchilla()
    result = fit(POWER_FLOOR_DATA, columns, loss, delta=known["epoch"]["delta"])
    optimum = known["epoch"]["exact_optimum"]
    assert len(result.residuals) == 240
    assert result.objective_value <= 0.0010182740178007
    assert result.status is FitStatus.CONVERGED
    assert result.starts_agreeing == N_STARTS
    for name in ("alpha", "beta", "E"):
        assert result.params[name] == pytest.approx(optimum[name], abs=1e-9)
    assert at_one(result, "A", SIZE, "alpha") == pytest.approx(optimum["A"], rel=1e-8)


@needs_chinchilla
def test_chinchilla_bootstrap_reaches_every_published_optimum():
    columns, loss, known = chinchilla()
    published = np.load(SHARED / "chinchilla_epoch_bootstrap.npz")
    legacy = np.random.RandomState(int(published["seed"]))  # the published resampling used it
    drawn = [np.bincount(legacy.choice(np.arange(240), size=240, replace=True), minlength=240) for _ in range(4000)]
    start = fit(POWER_FLOOR_DATA, columns, loss, delta=1e-3)
    batch = fit_batch(start, columns, loss, np.array(drawn))
    assert batch.converged.all()
    assert (batch.objective_value <= published["objective"] * (1 + 1e-9)).all()
    amplitudes = {
        "A": batch.params["A"] * start.reference[SIZE] ** batch.params["alpha"],
        "B": batch.params["B"] * start.reference["n_tokens"] ** batch.params["beta"],
    }
    for name, error in known["epoch"]["published_headline"]["se"].items():
        assert np.std({**batch.params, **amplitudes}[name]) == pytest.approx(error, rel=0.005), name


# ---- doubt and refusal ----

N = sizes(9)[SIZE] / 1e6
RIDGE = sizes(30) | {"n_tokens": sizes(30)[SIZE] * 20 * np.exp(1e-6 * np.random.default_rng(0).normal(size=30))}


@pytest.mark.parametrize(
    ("law", "columns", "loss", "status", "words"),
    [
        # losses that fall ever faster: no non-negative floor helps
        (POWER_FLOOR, sizes(9), np.exp(-0.3 - 0.1 * np.log(N) - 0.01 * np.log(N) ** 2), FitStatus.BOUND_HIT, "E is at its lower bound"),
        (POWER, sizes(9), 0.6 * N**0.05, FitStatus.BOUND_HIT, "alpha is at its lower bound"),
        (POWER_FLOOR, sizes(3), curve(sizes(3)), FitStatus.SATURATED, "3 distinct points, 3 parameters"),
        (POWER_FLOOR_DATA, RIDGE, POWER_FLOOR_DATA.predict(TRUTH, RIDGE, {SIZE: 1e6, "n_tokens": 2e7}), None, ""),
    ],
    ids=["no floor", "no exponent", "saturated", "nearly equal columns"],
)
def test_doubtful_fits_say_what_is_doubtful(law, columns, loss, status, words):
    result = fit(law, columns, loss)
    assert result.status is status if status else result.status is not FitStatus.CONVERGED
    assert words in result.message


@pytest.mark.parametrize(
    ("law", "columns", "loss", "delta", "message"),
    [
        (
            POWER_FLOOR,
            {SIZE: [1e6, 1e6, 2e6]},
            [0.6, 0.61, 0.5],
            None,
            "3 parameters but the data hold 2 distinct points of params_non_emb",
        ),
        (POWER_FLOOR_DATA, sizes() | {"n_tokens": np.full(8, 81.92e6)}, curve(sizes()), None, r"'n_tokens' is 8\.192e\+07 in every row"),
        (POWER_FLOOR, sizes(), [np.nan] + [0.5] * 7, None, "loss holds nan in 1 of 8 rows"),
        (POWER_FLOOR, sizes(), [-0.1] + [0.5] * 7, None, r"loss holds -0\.1"),
        (POWER_FLOOR, sizes(), [], None, "no points to fit"),
        (POWER_FLOOR, sizes(), curve(sizes()), 0.0, "delta=0.0 is not a positive number"),
    ],
)
def test_what_cannot_be_fitted_gets_one_clear_sentence(law, columns, loss, delta, message):
    with pytest.raises(ValueError, match=message):
        fit(law, columns, loss, delta=delta)


def test_equal_inputs_give_equal_results():
    first, second = (fit(POWER_FLOOR, sizes(), curve(sizes(), sd=0.01)) for _ in range(2))
    assert first == second
    assert first.fitted == pytest.approx(first.predict(sizes()), rel=1e-12)
    assert replace(first, delta=1.0) != second
