"""Intervals are exact where theory is exact, cover what they promise, and stay open or fail where the data say nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.estimate import SIZE
from analysis.fits import intervals
from analysis.fits.coordinates import build
from analysis.fits.fit import fit
from analysis.fits.intervals import Observations, bootstrap, profile, profiles
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_ASPECT
from analysis.fits.profile_likelihood import SeedNoise, fit_means, fit_to
from analysis.fits.quantities import Gain, Loss, Parameter, Slope, Sum, read
from benchmarks.laws import configurations, profile_batch, simulate

TRUTH = {"E": 0.5, "A": 0.2, "alpha": 0.4}
REFERENCE = {SIZE: 1e6}
AHEAD = {SIZE: 4e7}
LOSS_AHEAD = float(POWER_FLOOR.predict(TRUTH, AHEAD, REFERENCE))


def study(n_sizes, seeds=3, seed_sd=0.003, lack_of_fit=0.0, law=POWER_FLOOR):
    """A study of a law whose lack of fit is shared by the seeds of a configuration."""
    columns = {SIZE: np.geomspace(1e5, 2e7, n_sizes)}
    losses = np.stack([simulate(POWER_FLOOR, TRUTH, columns, REFERENCE, seed_sd, seed) for seed in range(seeds)], axis=1)
    return Observations(law, configurations(columns, losses * np.exp(lack_of_fit * np.random.default_rng(9).standard_normal((n_sizes, 1)))))


def fitted(seen, delta=None):
    return fit(seen.law, seen.cells.columns, seen.cells.loss, delta=delta)


def covered(found, truth):
    return np.mean((found["low"] <= truth) & (truth <= found["high"]))


# ---- where theory is exact: M0 is a straight line in logs ----


def straight_line():
    """The textbook intervals of a regression of log loss on log size."""
    seen = study(9, seed_sd=0.02, law=POWER)
    u, y = np.log(seen.cells.columns[SIZE] / 1e6), seen.cells.log_means()
    line = stats.linregress(u, y)
    error = np.sqrt(((y - line.intercept - line.slope * u) ** 2).sum() / 7)
    target = np.log(30.0)
    leverage = 1 / 9 + (target - u.mean()) ** 2 / ((u - u.mean()) ** 2).sum()
    return seen, line, stats.t.ppf(0.975, 7), line.intercept + line.slope * target, error, leverage


def test_profiles_of_a_straight_line_are_the_t_intervals_of_regression():
    seen, line, t, center, error, leverage = straight_line()
    found = profiles(
        seen, {"alpha": Parameter("alpha"), "slope": Slope({SIZE: 5e6}), "loss": Loss({SIZE: 3e7}), "sum": Sum({"alpha": 2.0})}
    )
    half = t * line.stderr
    assert found["alpha"].point == pytest.approx(-line.slope, rel=1e-9)
    assert (found["alpha"].low, found["alpha"].high) == pytest.approx((-line.slope - half, -line.slope + half), rel=1e-5)
    assert (found["slope"].low, found["slope"].high) == pytest.approx((line.slope - half, line.slope + half), rel=1e-5)
    assert found["sum"].low == pytest.approx(2 * found["alpha"].low, rel=1e-5)
    half = t * error * np.sqrt(leverage)
    assert (found["loss"].low, found["loss"].high) == pytest.approx(tuple(np.exp([center - half, center + half])), rel=1e-6)
    assert {interval.status for interval in found.values()} == {"closed"}


def test_interval_of_a_new_run_is_the_prediction_interval_of_regression():
    seen, _, t, center, error, leverage = straight_line()
    found = profile(seen, Loss({SIZE: 3e7}), new_run=True)
    half = t * error * np.sqrt(1 + leverage)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp([center - half, center + half])), rel=1e-6)


# ---- coverage ----


@pytest.mark.parametrize("lack_of_fit", [0.0, 0.006])
@pytest.mark.parametrize("n_sizes", [5, 8, 16])
def test_nominal_95_percent_intervals_cover_the_truth(n_sizes, lack_of_fit):
    # 300 studies leave 1.3 % of sampling error, so the bounds here are 95 % -+ 3 of those; benchmarks.fits counts more studies
    rng = np.random.default_rng([n_sizes, int(1e4 * lack_of_fit)])
    columns = {SIZE: np.geomspace(1e5, 1e7, n_sizes)}
    mean = POWER_FLOOR.predict(TRUTH, columns, REFERENCE)
    noise = lack_of_fit * rng.standard_normal((300, n_sizes)) + 0.003 / np.sqrt(3) * rng.standard_normal((300, n_sizes))
    slope = -TRUTH["alpha"] * TRUTH["A"] / (TRUTH["E"] + TRUTH["A"])
    for quantity, truth in (
        (Parameter("alpha"), TRUTH["alpha"]),
        (Parameter("E"), TRUTH["E"]),
        (Slope(REFERENCE), slope),
        (Loss(AHEAD), LOSS_AHEAD),
    ):
        share = covered(profile_batch(POWER_FLOOR, columns, mean * np.exp(noise), quantity), truth)
        assert 0.912 <= share <= 0.988, f"{quantity}: {share:.3f}"


@pytest.mark.parametrize("lack_of_fit", [0.0, 0.004])
def test_intervals_cover_where_the_largest_models_have_the_fewest_seeds(lack_of_fit):
    # equal weights cover the extrapolated loss in 90 % of these studies
    rng = np.random.default_rng(11)
    seeds = np.array([5, 5, 5, 3, 3, 2, 1, 1])
    columns = {SIZE: np.geomspace(1e5, 1e7, 8)}
    noise = lack_of_fit * rng.standard_normal((1000, 8)) + 0.005 * rng.standard_normal((1000, 8)) / np.sqrt(seeds)
    means = POWER_FLOOR.predict(TRUTH, columns, REFERENCE) * np.exp(noise)
    seed_variance = 0.005**2 * rng.chisquare(17, 1000) / 17
    found = profile_batch(POWER_FLOOR, columns, means, Loss(AHEAD), noise=SeedNoise(seeds, seed_variance))
    assert 0.93 <= covered(found, LOSS_AHEAD) <= 0.97


def test_unequal_seeds_are_weighed_by_what_they_and_the_scatter_say():
    seen = study(6, seed_sd=0.02, lack_of_fit=0.02)
    counts, kept = np.array([3, 3, 2, 2, 1, 1]), np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15])
    cut = {name: getattr(seen.cells, name)[kept] for name in ("cell_config", "cell_seed", "cell_loss")}
    cells = replace(seen.cells, n_seeds=counts, **cut)
    logs = [np.log(cells.losses(i)) for i in range(6)]
    variance = sum(((own - own.mean()) ** 2).sum() for own in logs) / 6
    means = np.exp([own.mean() for own in logs])[None]
    columns = {SIZE: cells.columns[SIZE]}
    found, told = fit_to(POWER_FLOOR, cells), fit_means(POWER_FLOOR, columns, means, noise=SeedNoise(counts, np.array([variance])))
    assert found.data.weights == pytest.approx(told.data.weights, rel=1e-9)
    assert found.data.weights[0, 0] > 1.2 * found.data.weights[0, 5]
    assert np.ptp(fit_to(POWER_FLOOR, seen.cells).data.weights) == 0


def test_intervals_of_a_new_run_cover_the_run():
    rng = np.random.default_rng(9)
    columns = {SIZE: np.geomspace(1e5, 1e7, 6)}
    noise = 0.005 * rng.standard_normal((400, 7))  # the last is the new run's own deviation
    means = POWER_FLOOR.predict(TRUTH, columns, REFERENCE) * np.exp(noise[:, :6])
    found = profile_batch(POWER_FLOOR, columns, means, Loss(AHEAD), new_run=True)
    assert 0.917 <= covered(found, LOSS_AHEAD * np.exp(noise[:, 6])) <= 0.983  # 3 standard errors of 400 studies


def test_a_batch_of_profiles_equals_single_profiles():
    columns = {SIZE: np.geomspace(1e5, 1e7, 7)}
    means = np.stack([simulate(POWER_FLOOR, TRUTH, columns, REFERENCE, 0.004, study) for study in range(5)])
    batch = profile_batch(POWER_FLOOR, columns, means, Parameter("E"))
    for i in range(5):
        single = profile(Observations(POWER_FLOOR, configurations(columns, means[i][:, None])), Parameter("E"))
        assert (batch["low"][i], batch["high"][i]) == pytest.approx((single.low, single.high), rel=1e-5)
        assert batch["point"][i] == pytest.approx(single.point, rel=1e-8)


def test_an_end_of_a_profile_fits_significantly_worse_by_exactly_the_critical_value():
    seen = study(8)
    found = profile(seen, Parameter("alpha"))
    y = seen.cells.log_means()

    def sum_of_squares(alpha):
        basis = np.stack([np.ones(8), (seen.cells.columns[SIZE] / 1e6) ** -alpha], axis=1)
        # minimize over E and A on the log scale by Gauss-Newton from the linear answer
        coefficients = np.linalg.lstsq(basis, np.exp(y), rcond=None)[0]
        for _ in range(50):
            value = basis @ coefficients
            coefficients = coefficients + np.linalg.lstsq(basis / value[:, None], y - np.log(value), rcond=None)[0]
        return ((y - np.log(basis @ coefficients)) ** 2).sum()

    best = sum_of_squares(found.point)
    for end in (found.low, found.high):
        assert (sum_of_squares(end) - best) / (best / 5) == pytest.approx(stats.f.ppf(0.95, 1, 5), rel=1e-3)


def test_repeating_the_seeds_does_not_shorten_an_interval():
    seen = study(6, lack_of_fit=0.01)
    tripled = configurations(seen.cells.columns, np.tile(seen.cells.cell_loss.reshape(6, 3), 3))
    once, again = (profile(Observations(POWER_FLOOR, cells), Parameter("alpha")) for cells in (seen.cells, tripled))
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=1e-6)
    assert again.n_configurations == 6


# ---- open and failed intervals ----


def test_a_floor_that_the_data_do_not_show_has_an_interval_down_to_zero():
    columns = {SIZE: np.geomspace(1e5, 4e5, 6)}
    loss = simulate(POWER, {"c": 0.8, "alpha": 0.1}, columns, REFERENCE, 0.003, 2)
    asked = {"E": Parameter("E"), "alpha": Parameter("alpha"), "slope": Slope({SIZE: 2e5})}
    found = profiles(Observations(POWER_FLOOR, configurations(columns, loss[:, None])), asked)
    assert found["E"].status == "open_low"
    assert found["E"].low == 0
    assert 0 < found["E"].high < loss.min()
    assert found["slope"].status == "closed"  # what the data do determine
    assert found["slope"].low < -0.1 < found["slope"].high
    assert found["alpha"].high > 2 * found["alpha"].low  # or infinite: not a number to report


@pytest.mark.parametrize(
    ("seen", "quantity", "reason"),
    [
        (study(3), "alpha", "no degree of freedom"),
        (study(1), "alpha", "3 parameters but there are 1 distinct configurations"),
        (study(6, law=POWER), "E", "no parameter 'E'"),
    ],
)
def test_what_has_no_interval_fails_with_a_reason(seen, quantity, reason):
    found = profile(seen, Parameter(quantity))
    assert found.status == "failed"
    assert reason in found.reason
    assert np.isnan(found.low)


def test_exact_data_give_intervals_that_are_nearly_points():
    found = profile(study(7, seeds=1, seed_sd=0.0), Parameter("alpha"))
    assert found.low <= 0.4 * (1 + 1e-9)
    assert found.high >= 0.4 * (1 - 1e-9)
    assert found.high - found.low < 1e-5


def test_only_a_loss_is_asked_of_a_new_run():
    with pytest.raises(ValueError, match="give Loss quantities only"):
        profile(study(6), Parameter("E"), new_run=True)


# ---- bootstrap ----


def test_bootstrap_agrees_with_the_profile_where_configurations_are_many():
    seen = study(30, seed_sd=0.006, lack_of_fit=0.006)
    found = bootstrap(seen, fitted(seen), {"slope": Slope(REFERENCE)}, np.random.default_rng(0))["slope"]
    profiled = profile(seen, Slope(REFERENCE))
    assert found.high - found.low == pytest.approx(profiled.high - profiled.low, rel=0.3)


def test_resampling_draws_configurations_then_seeds():
    group = np.repeat(np.arange(6), [1, 2, 3, 3, 3, 6])
    weights = intervals.resample(group, 4000, np.random.default_rng(0))
    assert weights.sum(axis=1) == pytest.approx(np.full(4000, 6.0))
    by_configuration = np.stack([weights[:, group == g].sum(axis=1) for g in range(6)], axis=1)
    assert by_configuration == pytest.approx(np.round(by_configuration))  # whole configurations
    assert by_configuration.mean(axis=0) == pytest.approx(np.ones(6), abs=0.06)
    assert weights.mean(axis=0) == pytest.approx(1 / np.bincount(group)[group], rel=0.1)


def test_resamples_that_cannot_determine_the_law_are_left_out_and_too_many_of_them_fail():
    seen = study(3)
    found = bootstrap(seen, fitted(seen), {"E": Parameter("E")}, np.random.default_rng(0), 100)["E"]
    assert found.status == "failed"
    assert "of 100 resamples determine the law" in found.reason


# ---- quantities ----


@pytest.mark.parametrize("seed", [0, 1])
def test_derivatives_of_every_quantity_match_central_differences(seed):
    law = POWER_FLOOR_ASPECT
    rng = np.random.default_rng(seed)
    columns = {SIZE: rng.uniform(1e5, 1e7, 20), "aspect": rng.uniform(10, 90, 20)}
    design = build(law, columns, rng.normal(size=20) * 0.1, np.ones(20))
    theta = design.from_params({"E": 0.4, "A": 0.3, "alpha": 0.35, "gamma": 0.05, "aspect_opt": 40.0})
    place, other = {SIZE: 2e6, "aspect": 30.0}, {SIZE: 5e6, "aspect": 60.0}
    for quantity in [
        *map(Parameter, ("E", "alpha", "gamma", "aspect_opt")),
        Loss(place),
        Slope(place),
        Slope(place, "aspect"),
        Gain(place, other),
        Sum({"alpha": 1.0, "gamma": -2.0}),
    ]:
        reading = read(quantity, design)
        gradient, hessian = (part[..., 0] for part in reading.evaluate(theta)[1:])
        for j in range(len(theta)):
            ahead, behind = theta.copy(), theta.copy()
            ahead[j] += 1e-6
            behind[j] -= 1e-6
            up, down = reading.evaluate(ahead), reading.evaluate(behind)
            assert gradient[j] == pytest.approx((up[0] - down[0])[0] / 2e-6, rel=1e-5, abs=1e-7), quantity
            assert hessian[j] == pytest.approx((up[1] - down[1])[:, 0] / 2e-6, rel=1e-4, abs=1e-5), quantity


def test_quantities_report_what_their_names_say():
    result = fitted(study(8))
    theta = result.theta[:, None]

    def value(quantity):
        reading = read(quantity, result.design)
        return float(reading.report(reading.evaluate(theta)[0])[0])

    for name, number in result.params.items():
        assert value(Parameter(name)) == pytest.approx(number, rel=1e-12)
    at, more = {SIZE: 3e6}, {SIZE: 3e6 * np.exp(1e-5)}
    assert value(Loss(at)) == pytest.approx(float(result.predict(at)[0]), rel=1e-12)
    reducible = value(Loss(at)) - result.params["E"]
    assert value(Slope(at)) == pytest.approx(-result.params["alpha"] * reducible / value(Loss(at)), rel=1e-8)
    assert value(Gain(more, at)) == pytest.approx(-1e-5 * value(Slope(at)) * value(Loss(at)), rel=1e-4)
