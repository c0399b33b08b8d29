"""Intervals are exact where theory is exact, cover what they promise, and stay open or fail where the data say nothing."""

import numpy as np
import pytest
from scipy import stats

from analysis.estimate import SIZE
from analysis.fits import intervals
from analysis.fits.coordinates import build
from analysis.fits.fit import fit
from analysis.fits.intervals import Observations, bootstrap, profile, profiles
from analysis.fits.laws import POWER, POWER_FLOOR, with_aspect
from analysis.fits.profile_likelihood import SeedNoise
from analysis.fits.quantities import Gain, Loss, Parameter, Slope, read
from benchmarks.coverage import profile_batch

TRUTH = {"E": 0.5, "A": 0.2, "alpha": 0.4}
REFERENCE = {SIZE: 1e6}


def study(n_sizes, seeds=3, seed_sd=0.003, lack_of_fit=0.0, seed=0, span=(1e5, 2e7)):
    """Columns, losses and configuration of each row; the lack of fit is shared by the seeds of a configuration."""
    rng = np.random.default_rng(seed)
    size = np.geomspace(*span, n_sizes)
    deviation = lack_of_fit * rng.standard_normal(n_sizes)
    columns = {SIZE: np.repeat(size, seeds)}
    loss = POWER_FLOOR.simulate(TRUTH, columns, REFERENCE, seed_sd, rng) * np.exp(np.repeat(deviation, seeds))
    return columns, loss, np.repeat(np.arange(n_sizes), seeds)


# ---- where theory is exact: M0 is a straight line in logs ----


def straight_line():
    """The textbook intervals of a regression of log loss on log size."""
    columns, loss, group = study(9, seed_sd=0.02)
    u = np.log(columns[SIZE][::3] / 1e6)
    y = np.array([np.log(loss[group == g]).mean() for g in range(9)])
    line = stats.linregress(u, y)
    error = np.sqrt(((y - line.intercept - line.slope * u) ** 2).sum() / 7)
    target = np.log(30.0)
    leverage = 1 / 9 + (target - u.mean()) ** 2 / ((u - u.mean()) ** 2).sum()
    t = stats.t.ppf(0.975, 7)
    center = line.intercept + line.slope * target
    return Observations(POWER, columns, loss, group), line, t, center, error, leverage


def test_profiles_of_a_straight_line_are_the_t_intervals_of_regression():
    seen, line, t, center, error, leverage = straight_line()
    found = profiles(seen, {"alpha": Parameter("alpha"), "slope": Slope({SIZE: 5e6}), "loss": Loss({SIZE: 3e7})})
    assert found["alpha"].point == pytest.approx(-line.slope, rel=1e-9)
    half = t * line.stderr
    assert (found["alpha"].low, found["alpha"].high) == pytest.approx((-line.slope - half, -line.slope + half), rel=1e-5)
    assert (found["slope"].low, found["slope"].high) == pytest.approx((line.slope - half, line.slope + half), rel=1e-5)
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
    target = {SIZE: 4e7}
    amplitude = TRUTH["A"]
    truths = {
        Parameter("alpha"): TRUTH["alpha"],
        Parameter("E"): TRUTH["E"],
        "slope": -TRUTH["alpha"] * amplitude / (TRUTH["E"] + amplitude),
        "loss": float(POWER_FLOOR.predict(TRUTH, {SIZE: np.array(4e7)}, REFERENCE)),
    }
    for asked, truth in truths.items():
        quantity = {"slope": Slope(REFERENCE), "loss": Loss(target)}.get(asked, asked) if isinstance(asked, str) else asked
        found = profile_batch(POWER_FLOOR, columns, mean * np.exp(noise), quantity)
        covered = np.mean((found["low"] <= truth) & (truth <= found["high"]))
        assert 0.912 <= covered <= 0.988, f"{quantity}: {covered:.3f}"


@pytest.mark.parametrize("lack_of_fit", [0.0, 0.004])
def test_intervals_cover_where_the_largest_models_have_the_fewest_seeds(lack_of_fit):
    # equal weights cover the extrapolated loss in 90 % of these studies
    rng = np.random.default_rng(11)
    seeds = np.array([5, 5, 5, 3, 3, 2, 1, 1])
    columns = {SIZE: np.geomspace(1e5, 1e7, 8)}
    noise = lack_of_fit * rng.standard_normal((1000, 8)) + 0.005 * rng.standard_normal((1000, 8)) / np.sqrt(seeds)
    means = POWER_FLOOR.predict(TRUTH, columns, REFERENCE) * np.exp(noise)
    seed_variance = 0.005**2 * rng.chisquare(17, 1000) / 17
    truth = float(POWER_FLOOR.predict(TRUTH, {SIZE: np.array(4e7)}, REFERENCE))
    found = profile_batch(POWER_FLOOR, columns, means, Loss({SIZE: 4e7}), noise=SeedNoise(seeds, seed_variance))
    assert 0.93 <= np.mean((found["low"] <= truth) & (truth <= found["high"])) <= 0.97


def test_unequal_seeds_are_counted_from_the_rows():
    columns, loss, group = study(6)
    kept = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15])
    noise = Observations(POWER_FLOOR, {SIZE: columns[SIZE][kept]}, loss[kept], group[kept]).seed_noise()
    assert noise.counts.tolist() == [3, 3, 2, 2, 1, 1]
    deviations = [np.log(loss[kept][group[kept] == g]) for g in range(6)]
    assert noise.variance[0] == pytest.approx(sum(((d - d.mean()) ** 2).sum() for d in deviations) / 6, rel=1e-12)
    assert Observations(POWER_FLOOR, columns, loss, group).seed_noise() is None


def test_intervals_of_a_new_run_cover_the_run():
    rng = np.random.default_rng(9)
    columns = {SIZE: np.geomspace(1e5, 1e7, 6)}
    target = {SIZE: 3e7}
    center = float(POWER_FLOOR.predict(TRUTH, {SIZE: np.array(3e7)}, REFERENCE))
    noise = 0.005 * rng.standard_normal((400, 7))  # the last is the new run's own deviation
    means = POWER_FLOOR.predict(TRUTH, columns, REFERENCE) * np.exp(noise[:, :6])
    found = profile_batch(POWER_FLOOR, columns, means, Loss(target), new_run=True)
    run = center * np.exp(noise[:, 6])
    assert 0.917 <= np.mean((found["low"] <= run) & (run <= found["high"])) <= 0.983  # 3 standard errors of 400 studies


def test_a_batch_of_profiles_equals_single_profiles():
    columns = {SIZE: np.geomspace(1e5, 1e7, 7)}
    means = np.stack([POWER_FLOOR.simulate(TRUTH, columns, REFERENCE, 0.004, np.random.default_rng(s)) for s in range(5)])
    batch = profile_batch(POWER_FLOOR, columns, means, Parameter("E"))
    for i in range(5):
        single = profile(Observations(POWER_FLOOR, columns, means[i], np.arange(7)), Parameter("E"))
        assert batch["low"][i] == pytest.approx(single.low, rel=1e-5)
        assert batch["high"][i] == pytest.approx(single.high, rel=1e-5)
        assert batch["point"][i] == pytest.approx(single.point, rel=1e-8)


def test_an_end_of_a_profile_fits_significantly_worse_by_exactly_the_critical_value():
    columns, loss, group = study(8)
    seen = Observations(POWER_FLOOR, columns, loss, group)
    found = profile(seen, Parameter("alpha"))
    means, averaged = seen.means()
    y = np.log(averaged)

    def sum_of_squares(alpha):
        basis = np.stack([np.ones(8), (means[SIZE] / 1e6) ** -alpha], axis=1)
        # minimize over E and A on the log scale by Gauss-Newton from the linear answer
        coefficients = np.linalg.lstsq(basis, np.exp(y), rcond=None)[0]
        for _ in range(50):
            value = basis @ coefficients
            coefficients = coefficients + np.linalg.lstsq(basis / value[:, None], y - np.log(value), rcond=None)[0]
        return ((y - np.log(basis @ coefficients)) ** 2).sum()

    best = sum_of_squares(found.point)
    for end in (found.low, found.high):
        assert (sum_of_squares(end) - best) / (best / 5) == pytest.approx(stats.f.ppf(0.95, 1, 5), rel=1e-3)


# ---- seeds are not independent configurations ----


def test_repeating_the_seeds_does_not_shorten_an_interval():
    columns, loss, group = study(6, lack_of_fit=0.01)
    once = profile(Observations(POWER_FLOOR, columns, loss, group), Parameter("alpha"))
    tripled = Observations(POWER_FLOOR, {SIZE: np.tile(columns[SIZE], 3)}, np.tile(loss, 3), np.tile(group, 3))
    again = profile(tripled, Parameter("alpha"))
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=1e-6)
    assert again.n_configurations == 6


def test_a_configuration_whose_rows_differ_is_refused():
    columns, loss, _ = study(6)
    with pytest.raises(ValueError, match="rows of one configuration differ in 'params_non_embedding'"):
        profile(Observations(POWER_FLOOR, columns, loss, np.zeros(18)), Parameter("E"))


# ---- open and failed intervals ----


def test_a_floor_that_the_data_do_not_show_has_an_interval_down_to_zero():
    columns = {SIZE: np.geomspace(1e5, 4e5, 6)}
    loss = POWER.simulate({"c": 0.8, "alpha": 0.1}, columns, REFERENCE, 0.003, np.random.default_rng(2))
    asked = {"E": Parameter("E"), "alpha": Parameter("alpha"), "slope": Slope({SIZE: 2e5})}
    found = profiles(Observations(POWER_FLOOR, columns, loss, np.arange(6)), asked)
    assert found["E"].status == "open_low"
    assert found["E"].low == 0
    assert 0 < found["E"].high < loss.min()
    assert found["slope"].status == "closed"  # what the data do determine
    assert found["slope"].low < -0.1 < found["slope"].high
    assert found["alpha"].high > 2 * found["alpha"].low  # or infinite: not a number to report


def test_as_many_parameters_as_configurations_fail_with_a_reason():
    columns, loss, group = study(3)
    found = profile(Observations(POWER_FLOOR, columns, loss, group), Parameter("alpha"))
    assert found.status == "failed"
    assert "no degree of freedom" in found.reason
    assert np.isnan(found.low)


def test_one_size_only_fails_with_a_reason():
    columns, loss, group = study(1)
    assert "distinct" in profile(Observations(POWER_FLOOR, columns, loss, group), Parameter("alpha")).reason


def test_a_law_without_floor_has_no_interval_for_it():
    columns, loss, group = study(6)
    found = profile(Observations(POWER, columns, loss, group), Parameter("E"))
    assert found.status == "failed"
    assert "no parameter 'E'" in found.reason


def test_exact_data_give_intervals_that_are_nearly_points():
    columns = {SIZE: np.geomspace(1e5, 2e7, 7)}
    found = profile(Observations(POWER_FLOOR, columns, POWER_FLOOR.predict(TRUTH, columns, REFERENCE), np.arange(7)), Parameter("alpha"))
    assert found.low <= 0.4 * (1 + 1e-9)
    assert found.high >= 0.4 * (1 - 1e-9)
    assert found.high - found.low < 1e-5


def test_bad_losses_and_quantities_get_a_sentence():
    columns, loss, group = study(6)
    loss[2] = np.nan
    with pytest.raises(ValueError, match="loss holds nan"):
        profile(Observations(POWER_FLOOR, columns, loss, group), Parameter("E"))
    with pytest.raises(ValueError, match="give Loss quantities only"):
        profile(Observations(POWER_FLOOR, *study(6)), Parameter("E"), new_run=True)


# ---- bootstrap ----


def test_bootstrap_agrees_with_the_profile_where_configurations_are_many():
    columns, loss, group = study(30, seed_sd=0.006, lack_of_fit=0.006)
    seen = Observations(POWER_FLOOR, columns, loss, group)
    found = bootstrap(seen, fit(POWER_FLOOR, columns, loss), {"slope": Slope(REFERENCE)}, np.random.default_rng(0))["slope"]
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
    columns, loss, group = study(3)
    seen = Observations(POWER_FLOOR, columns, loss, group)
    found = bootstrap(seen, fit(POWER_FLOOR, columns, loss), {"E": Parameter("E")}, np.random.default_rng(0), 100)["E"]
    assert found.status == "failed"
    assert "of 100 resamples determine the law" in found.reason


# ---- quantities ----


@pytest.mark.parametrize("seed", [0, 1])
def test_derivatives_of_every_quantity_match_central_differences(seed):
    law = with_aspect(POWER_FLOOR)
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
    columns, loss, _ = study(8)
    result = fit(POWER_FLOOR, columns, loss)
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
