"""Laws predict what their equations say, and refuse tables that they cannot read."""

import subprocess
import sys

import numpy as np
import pytest

from analysis.estimate import SIZE
from analysis.fits import laws
from analysis.fits.laws import POWER, POWER_FLOOR, POWER_FLOOR_ASPECT, POWER_FLOOR_CROSSED, POWER_FLOOR_DATA, SHAPE_CROSSED, TIMING

SHAPES = {"n_layer": [2, 4, 6], "n_embd": [128, 256, 384], "n_head": [4, 8, 8], "n_tokens": [1e7, 2e7, 4e7], SIZE: [1e6, 2e6, 3e6]}


@pytest.mark.parametrize(
    ("law", "params", "columns", "reference", "expected"),
    [
        (POWER_FLOOR, {"E": 0.5, "A": 0.2, "alpha": 0.5}, {SIZE: [1e6, 4e6]}, {SIZE: 1e6}, [0.7, 0.6]),
        (POWER, {"c": 0.8 * 1e6**0.1, "alpha": 0.1}, {SIZE: [1e6, 2e6]}, {SIZE: 1.0}, [0.8, 0.8 * 2**-0.1]),  # at another reference
        (  # Hoffmann et al. 2022, eq. 10: amplitudes at one parameter and one token
            POWER_FLOOR_DATA,
            {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28},
            {SIZE: [70e9], "n_tokens": [1.4e12]},
            {SIZE: 1.0, "n_tokens": 1.0},
            [1.69 + 406.4 * 70e9**-0.34 + 410.7 * 1.4e12**-0.28],
        ),
        (
            POWER_FLOOR_ASPECT,
            {"E": 0.0, "A": 1.0, "alpha": 0.0, "gamma": 0.1, "aspect_opt": 40.0},
            {SIZE: [1.0, 1.0, 1.0], "aspect": [20.0, 40.0, 80.0]},
            {SIZE: 1.0, "aspect": 7.0},
            np.exp([0.1 * np.log(2) ** 2, 0.0, 0.1 * np.log(2) ** 2]),
        ),
        (
            TIMING,
            {"t0": 2.0, "A": 3.0, "g": 2.0, "B": 5.0, "h": 1.0},
            {"n_layer": [4], "n_embd": [32], "n_head": [4]},
            {"n_layer": 2, "n_embd": 16, "n_head": 8},
            [2.0 + 3.0 * 2 * 4 + 5.0 * 2 / 2],
        ),
    ],
    ids=lambda law: getattr(law, "name", ""),
)
def test_laws_predict_what_their_equations_say(law, params, columns, reference, expected):
    assert law.predict(params, columns, reference) == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("law", [POWER, POWER_FLOOR_CROSSED, POWER_FLOOR_DATA, POWER_FLOOR_ASPECT, SHAPE_CROSSED, TIMING])
def test_every_law_lists_the_columns_and_parameters_that_predict_uses(law):
    rng = np.random.default_rng(0)
    params = {name: float(rng.uniform(0.1, 1)) for name in law.parameters}
    reference = {name: float(laws.column_values(SHAPES, name)[0]) for name in law.columns}
    found = law.predict(params, SHAPES, reference)
    assert found.shape == (3,)
    for name in law.parameters:
        assert name in law.equation, f"{name} is missing from {law.equation}"
        assert (law.predict({**params, name: params[name] * 1.5}, SHAPES, reference) != found).any()


def test_renamed_columns_fit_another_way_to_count_parameters():
    assert POWER_FLOOR.on(params_non_embedding="params_total").columns == ("params_total",)
    assert POWER_FLOOR.columns == (SIZE,)


@pytest.mark.parametrize(
    ("name", "values"), [("aspect", [64, 64, 64]), ("head_dim", [32, 32, 48]), ("shape_size", [2 * 128**2, 4 * 256**2, 6 * 384**2])]
)
def test_columns_that_are_not_there_are_derived_from_the_shape(name, values):
    assert laws.column_values(SHAPES, name) == pytest.approx(values)


def test_a_missing_column_is_named_with_the_columns_found():
    with pytest.raises(ValueError, match=r"'n_tokens' is missing; the columns found are n_layer, n_embd"):
        laws.column_values({"n_layer": [1], "n_embd": [8]}, "n_tokens")


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_columns_that_are_not_positive_are_refused(bad):
    with pytest.raises(ValueError, match=r"'n_layer' holds .* \(in 1 of 2 rows\)"):
        laws.column_values({"n_layer": [2.0, bad]}, "n_layer")


def test_importing_the_fitting_modules_loads_neither_torch_nor_ray_nor_pandas():
    code = (
        "import sys, analysis.fits.laws, analysis.fits.fit, analysis.fits.intervals\n"
        "heavy = ('torch', 'ray', 'pandas', 'pyarrow', 'matplotlib', 'scipy.optimize', 'scipy.stats')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
