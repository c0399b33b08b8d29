"""Laws predict what their equations say, and refuse tables that they cannot read."""

import math
import subprocess
import sys

import numpy as np
import pytest

from analysis.fits import laws
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_DATA, SHAPE_CROSSED, TIMING, with_aspect

SHAPES = {"n_layer": [2, 4, 6], "n_embd": [128, 256, 384], "n_head": [4, 8, 8], "n_tokens": [1e7, 2e7, 4e7]}


def test_amplitude_is_the_reducible_loss_at_the_reference():
    size = {"params_non_embedding": [1e6, 4e6]}
    found = POWER_FLOOR.predict({"E": 0.5, "A": 0.2, "alpha": 0.5}, size, {"params_non_embedding": 1e6})
    assert found == pytest.approx([0.7, 0.6], rel=1e-14)


def test_published_chinchilla_surface_predicts_its_own_loss():
    # Hoffmann et al. 2022, eq. 10: amplitudes at one parameter and one token
    params = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
    found = POWER_FLOOR_DATA.predict(
        params, {"params_non_embedding": 70e9, "n_tokens": 1.4e12}, {"params_non_embedding": 1.0, "n_tokens": 1.0}
    )
    expected = 1.69 + 406.4 * math.exp(-0.34 * math.log(70e9)) + 410.7 * math.exp(-0.28 * math.log(1.4e12))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert 1.93 < float(found) < 1.94


def test_an_amplitude_moved_to_another_reference_gives_the_same_curve():
    size = {"params_non_embedding": np.geomspace(1e5, 1e8, 5)}
    at_million = POWER.predict({"c": 0.8, "alpha": 0.1}, size, {"params_non_embedding": 1e6})
    at_one = POWER.predict({"c": 0.8 * 1e6**0.1, "alpha": 0.1}, size, {"params_non_embedding": 1.0})
    assert at_million == pytest.approx(at_one, rel=1e-13)


def test_aspect_penalty_is_one_at_its_optimum_and_symmetric_in_log_aspect():
    law = with_aspect(POWER_FLOOR)
    params = {"E": 0.0, "A": 1.0, "alpha": 0.0, "gamma": 0.1, "aspect_opt": 40.0}
    columns = {"params_non_embedding": np.ones(3), "aspect": [20.0, 40.0, 80.0]}
    found = law.predict(params, columns, {"params_non_embedding": 1.0})
    assert found[1] == pytest.approx(1.0, rel=1e-14)
    assert found[0] == pytest.approx(found[2], rel=1e-14)
    assert found[0] == pytest.approx(math.exp(0.1 * math.log(2) ** 2), rel=1e-14)


def test_aspect_and_head_dim_are_derived_from_the_shape():
    assert laws.column_values(SHAPES, "aspect") == pytest.approx([64, 64, 64])
    assert laws.column_values(SHAPES, "head_dim") == pytest.approx([32, 32, 48])


def test_every_law_lists_the_columns_and_parameters_that_predict_uses():
    rng = np.random.default_rng(0)
    table = {**SHAPES, "params_non_embedding": [1e6, 2e6, 3e6]}
    for law in (
        POWER,
        POWER_FLOOR_DATA,
        with_aspect(POWER_FLOOR_DATA),
        SHAPE_CROSSED,
        TIMING,
    ):
        params = {name: float(rng.uniform(0.1, 1)) for name in law.parameters}
        found = law.predict(params, table, {name: float(laws.column_values(table, name)[0]) for name in law.columns})
        assert found.shape == (3,)
        for name in law.parameters:
            assert name in law.equation, f"{name} is missing from {law.equation}"
            assert not np.allclose(law.predict({**params, name: params[name] * 1.5}, table, dict.fromkeys(law.columns, 2.0)), found)


def test_parameter_arrays_give_a_row_for_each_replicate():
    params = {"E": np.array([[0.5], [0.6]]), "A": np.array([[0.2], [0.2]]), "alpha": np.array([[0.5], [0.5]])}
    found = POWER_FLOOR.predict(params, {"params_non_embedding": [1e6, 4e6, 16e6]}, {"params_non_embedding": 1e6})
    assert found == pytest.approx(np.array([[0.7, 0.6, 0.55], [0.8, 0.7, 0.65]]), rel=1e-13)


def test_simulated_noise_has_the_asked_size_and_follows_its_generator():
    size = {"params_non_embedding": np.full(20_000, 1e6)}
    arguments = ({"c": 0.7, "alpha": 0.1}, size, {"params_non_embedding": 1e6}, 0.02)
    first = POWER.simulate(*arguments, np.random.default_rng(1))
    assert np.std(np.log(first)) == pytest.approx(0.02, rel=0.02)
    assert np.array_equal(first, POWER.simulate(*arguments, np.random.default_rng(1)))
    assert not np.array_equal(first, POWER.simulate(*arguments, np.random.default_rng(2)))


def test_renamed_columns_fit_another_way_to_count_parameters():
    assert POWER_FLOOR.on(params_non_embedding="params_total").columns == ("params_total",)
    assert POWER_FLOOR.columns == ("params_non_embedding",)


def test_a_missing_column_is_named_with_the_columns_found():
    with pytest.raises(ValueError, match=r"'n_tokens' is missing; the columns found are n_layer, n_embd"):
        laws.column_values({"n_layer": [1], "n_embd": [8]}, "n_tokens")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_columns_that_are_not_positive_are_refused(bad):
    with pytest.raises(ValueError, match=r"'n_layer' holds .* \(in 1 of 2 rows\)"):
        laws.column_values({"n_layer": [2.0, bad]}, "n_layer")


def test_laws_with_repeated_names_are_refused():
    with pytest.raises(ValueError, match="twice"):
        with_aspect(with_aspect(POWER))


def test_importing_the_fitting_modules_loads_neither_torch_nor_ray_nor_pandas():
    code = (
        "import sys, analysis.fits.laws, analysis.fits.fit, analysis.fits.intervals\n"
        "heavy = ('torch', 'ray', 'pandas', 'pyarrow', 'matplotlib', 'scipy.optimize', 'scipy.stats')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
