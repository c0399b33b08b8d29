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
from analysis.fits.fit import FitError, FitStatus, fit, fit_batch, objective_of
from analysis.fits.fit_result import coordinate_names
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_CROSSED, POWER_FLOOR_DATA, SHAPE, SHAPE_CROSSED, TIMING, with_aspect

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
    (with_aspect(POWER), TRUTH),
    (with_aspect(POWER_FLOOR_DATA), TRUTH),
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


def curve(columns, sd=0.0, seed=0, **changes):
    params = {"E": 0.5, "A": 0.2, "alpha": 0.4, **changes}
    return POWER_FLOOR.simulate(params, columns, {SIZE: 1e6}, sd, np.random.default_rng(seed))


# ---- recovery and invariance ----


@pytest.mark.parametrize(("law", "truth"), ALL_LAWS, ids=[law.name for law, _ in ALL_LAWS])
@pytest.mark.parametrize("delta", [None, 1e-3])
def test_every_law_recovers_its_parameters_from_exact_data(law, truth, delta):
    table, reference, params = truth_of(law, truth)
    result = fit(law, table, law.predict(params, table, reference), delta=delta)
    assert result.status is FitStatus.CONVERGED, result.message
    assert result.reference == pytest.approx(reference, rel=1e-12)
    for name, value in params.items():
        assert result.params[name] == pytest.approx(value, rel=1e-9), f"{law.name} {name}"


def test_predictions_agree_between_coordinates_and_named_parameters():
    for law, truth in ALL_LAWS:
        table, reference, params = truth_of(law, truth)
        result = fit(law, table, law.simulate(params, table, reference, 0.003, np.random.default_rng(0)))
        assert result.predict(table) == pytest.approx(law.predict(result.params, table, result.reference), rel=1e-11)
        assert result.design.from_params(result.params)[:, 0] == pytest.approx(result.theta, rel=1e-8, abs=1e-9)
        assert len(coordinate_names(law)) == len(result.theta)


@pytest.mark.parametrize("delta", [None, 1e-3])
def test_row_order_units_and_repeated_rows_do_not_matter(delta):
    columns = sizes(12)
    loss = curve(columns, sd=0.01)
    first = fit(POWER_FLOOR, columns, loss, delta=delta)
    order = np.random.default_rng(5).permutation(12)
    shuffled = fit(POWER_FLOOR, {SIZE: columns[SIZE][order]}, loss[order], delta=delta)
    millions = fit(POWER_FLOOR, {SIZE: columns[SIZE] / 1e6}, loss, delta=delta)
    weights = np.arange(12) % 3
    weighted = fit(POWER_FLOOR, columns, loss, weights=weights, delta=delta)
    repeated = fit(POWER_FLOOR, {SIZE: np.repeat(columns[SIZE], weights)}, np.repeat(loss, weights), delta=delta)
    for name in POWER_FLOOR.parameters:
        assert shuffled.params[name] == first.params[name]
        assert millions.params[name] == pytest.approx(first.params[name], rel=1e-9)
        assert weighted.params[name] == pytest.approx(repeated.params[name], rel=1e-9)
    assert weighted.objective_value == pytest.approx(repeated.objective_value, rel=1e-10)
    assert millions.reference[SIZE] == pytest.approx(first.reference[SIZE] / 1e6, rel=1e-12)


def test_a_given_reference_moves_only_the_amplitude():
    columns = sizes()
    loss = curve(columns, sd=0.01)
    here, there = fit(POWER_FLOOR, columns, loss), fit(POWER_FLOOR, columns, loss, reference={SIZE: 1e4})
    assert there.params["alpha"] == pytest.approx(here.params["alpha"], rel=1e-9)
    assert there.params["A"] == pytest.approx(here.params["A"] * (here.reference[SIZE] / 1e4) ** here.params["alpha"], rel=1e-9)


# ---- the optimizer ----


@pytest.mark.parametrize(("law", "truth"), ALL_LAWS[2:9:2], ids=[law.name for law, _ in ALL_LAWS[2:9:2]])
def test_gradient_and_hessian_match_central_differences(law, truth):
    table, reference, params = truth_of(law, truth)
    loss = law.simulate(params, table, reference, 0.02, np.random.default_rng(1))
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
def test_a_batch_equals_separate_fits_from_their_own_grids_however_it_is_cut(delta, monkeypatch):
    columns = sizes(10)
    loss = curve(columns, sd=0.01)
    weights = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=40) + 0.01
    start = fit(POWER_FLOOR, columns, loss, delta=delta)
    whole = fit_batch(start, columns, loss, weights)
    assert whole.converged.all()
    assert whole.predict(columns).shape == (40, 10)
    for i in range(6):
        single = fit(POWER_FLOOR, columns, loss, weights=weights[i], reference=start.reference, delta=delta)
        assert whole.objective_value[i] == pytest.approx(single.objective_value, rel=1e-9)
        assert whole.params["alpha"][i] == pytest.approx(single.params["alpha"], rel=1e-6)
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
    assert result.n_points == 240
    assert result.objective_value <= 0.0010182740178007
    assert result.gradient_norm <= 1e-10
    assert result.starts_agreeing == result.n_starts
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


def test_a_curve_without_floor_hits_the_bound_of_the_floor():
    # losses that fall ever faster: no non-negative floor helps
    columns = sizes(9)
    u = np.log(columns[SIZE] / 1e6)
    result = fit(POWER_FLOOR, columns, np.exp(-0.3 - 0.1 * u - 0.01 * u**2))
    assert result.status is FitStatus.BOUND_HIT
    assert "E is at its lower bound" in result.message
    assert not result.status.usable


def test_losses_that_do_not_fall_hit_the_bound_of_the_exponent():
    columns = sizes(9)
    result = fit(POWER, columns, 0.6 * (columns[SIZE] / 1e6) ** 0.05)
    assert result.status is FitStatus.BOUND_HIT
    assert result.params["alpha"] == 0


def test_an_aspect_ridge_is_reported_as_no_optimum():
    table, reference, params = truth_of(with_aspect(POWER_FLOOR), TRUTH)
    law = with_aspect(POWER_FLOOR)
    result = fit(law, table, law.predict({**params, "gamma": -0.03}, table, reference))
    assert result.status is FitStatus.NO_OPTIMUM


def test_three_sizes_for_three_parameters_are_called_saturated():
    result = fit(POWER_FLOOR, sizes(3), curve(sizes(3)))
    assert result.status is FitStatus.SATURATED


def test_nearly_equal_columns_are_called_ill_conditioned():
    columns = {**sizes(30), "n_tokens": sizes(30)[SIZE] * 20 * np.exp(1e-6 * np.random.default_rng(0).normal(size=30))}
    loss = POWER_FLOOR_DATA.predict({**TRUTH, "beta": 0.4}, columns, {SIZE: 1e6, "n_tokens": 2e7})
    result = fit(POWER_FLOOR_DATA, columns, loss)
    assert not result.status.usable


def test_two_sizes_cannot_determine_three_parameters():
    columns = {SIZE: [1e6, 1e6, 2e6, 2e6]}
    with pytest.raises(FitError, match="3 parameters but the data hold 2 distinct points of params_non_embedding"):
        fit(POWER_FLOOR, columns, [0.6, 0.61, 0.5, 0.52])


def test_a_constant_column_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'n_tokens' is 8\.192e\+07 in every row"):
        fit(POWER_FLOOR_DATA, {**sizes(), "n_tokens": np.full(8, 81.92e6)}, curve(sizes()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [np.nan] + [0.5] * 7}, "loss holds nan in 1 of 8 rows"),
        ({"loss": [-0.1] + [0.5] * 7}, r"loss holds -0\.1"),
        ({"loss": []}, "no points to fit"),
        ({"loss": [0.5] * 7}, "has shape"),
        ({"weights": np.zeros(8)}, "not all zero"),
        ({"weights": np.ones(5)}, "weights of shape"),
        ({"delta": 0.0}, "delta=0.0 is not a positive number"),
    ],
)
def test_bad_input_gets_one_clear_sentence(change, message):
    arguments = {"loss": curve(sizes()), **change}
    with pytest.raises(ValueError, match=message):
        fit(POWER_FLOOR, sizes(), arguments.pop("loss"), **arguments)


def test_equal_inputs_give_equal_results():
    first, second = (fit(POWER_FLOOR, sizes(), curve(sizes(), sd=0.01)) for _ in range(2))
    assert first == second
    assert first.fitted == pytest.approx(first.predict(sizes()), rel=1e-12)
    assert replace(first, n_starts=1) != second
