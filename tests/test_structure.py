"""Size or shape: known effects are recovered at equal size, intervals cover, noise is not called an effect."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from analysis.estimate import Verdict
from analysis.findings import one_factor as sweeps
from analysis.findings import refusal_rules as verdicts
from analysis.findings import shape_effects as structure
from analysis.findings import size_law
from analysis.findings.size_law import Fitted, fit_size_law, mean_variance
from analysis.table import configurations as replicates
from study import records
from study.command import parse
from study.spec import expand

DEPTH = [(1, 64, 4), (4, 64, 4), (8, 64, 4)]
WIDTH = [(2, 32, 4), (2, 64, 4), (2, 96, 4), (2, 160, 4)]
HEADS = [(2, 64, 1), (2, 64, 2), (2, 64, 8)]
Shape = tuple[int, int, int]


def size(shape: Shape) -> int:
    n_layer, n_embd, _ = shape
    return n_layer * (12 * n_embd**2 + 2 * n_embd) + n_embd


def law(n: float) -> float:
    return 0.62 + 0.55 * (n / 1e5) ** -0.34


def slope(n: float) -> float:
    """dL/dlnN of the law, nats."""
    return -0.34 * 0.55 * (n / 1e5) ** -0.34


def cells_of(losses: Mapping[Shape, float], sd: float = 0.0, seeds: int = 3, rng: np.random.Generator | None = None) -> Any:
    """Configurations of the given mean losses, with seed noise; sweeps named as in the constants above."""
    rng = rng or np.random.default_rng(0)
    rows = [
        {
            "trial_id": f"{shape}{seed}", "config_id": f"{shape[0]}x{shape[1]}h{shape[2]}", "seed": seed, "status": "COMPLETED",
            "n_layer": shape[0], "n_embd": shape[1], "n_head": shape[2], "params_total": size(shape) + 5000,
            "params_non_embedding": size(shape), "n_tokens": 512_000, "val_loss": float(mean + rng.normal(0, sd)),
            "sweeps": names_of(shape),
        }
        for shape, mean in losses.items()
        for seed in range(seeds)
    ]  # fmt: skip
    return replicates.average(records.to_table("trials", rows).to_pandas())


def names_of(shape: Shape) -> list[str]:
    center = shape == (2, 64, 4)
    return [n for n, held in (("depth", DEPTH), ("width", WIDTH), ("heads", HEADS)) if shape in held or center] or ["matched"]


def study(effects: Mapping[Shape, float] | None = None) -> dict[Shape, float]:
    """Losses of the three sweeps on the law, plus effects in nats."""
    return {shape: law(size(shape)) + (effects or {}).get(shape, 0.0) for shape in WIDTH + DEPTH + HEADS}


def contrasts_of(cells: Any) -> dict[str, dict[str, Any]]:
    found = sweeps.find_sweeps(cells)
    width = next(s for s in found if s.name == "width")
    curve = fit_size_law("sweep:width", "width", cells.take(list(width.members)), sweep="width")
    assert isinstance(curve, Fitted)
    rows = structure.contrasts(cells, [curve], found, replicates.measure_noise(cells))
    return {row["config_id"]: row for row in rows}


@pytest.mark.parametrize(("preset", "n_sizes"), [("matched", 5), ("matched-gpu", 7)])
def test_shapes_that_a_study_matched_are_of_one_size(preset: str, n_sizes: int) -> None:
    shapes = {t.shape for t in expand(parse([preset]).study)}
    cells = cells_of({(s.n_layer, s.n_embd, s.n_head): law(s.params_non_embedding) for s in shapes}, seeds=1)
    assert verdicts.sizes(cells) == n_sizes
    assert len(structure.matched_pairs(cells, "params_non_embedding")) == len(cells) - n_sizes  # all but the middle of each size


# ---- truth ----


def test_effects_at_equal_size_are_recovered_without_noise() -> None:
    effects = {(1, 64, 4): -0.012, (4, 64, 4): 0.012, (8, 64, 4): 0.024, (2, 64, 8): 0.005}
    found = contrasts_of(cells_of(study(effects), sd=1e-9))
    for shape, effect in effects.items():
        row = found[f"{shape[0]}x{shape[1]}h{shape[2]}"]
        assert row["delta"] == pytest.approx(effect, abs=2e-4)
        worth = np.exp(-effect / -slope(size(shape)))
        assert row["parameter_equivalent"] == pytest.approx(worth, rel=0.02)


def test_parameter_equivalents_agree_with_a_model_whose_parameters_count_for_less() -> None:
    """A shape that wastes 10 % of its parameters has the loss of 0.9 N: the linear formula is within a point of it."""
    wasted = law(0.9 * size((4, 64, 4))) - law(size((4, 64, 4)))
    row = contrasts_of(cells_of(study({(4, 64, 4): wasted}), sd=1e-9))["4x64h4"]
    assert row["parameter_equivalent"] == pytest.approx(0.9, abs=0.01)


def test_on_a_flat_curve_an_effect_has_a_size_in_nats_but_none_in_parameters() -> None:
    rising = {shape: 1.0 + 0.01 * np.log(size(shape)) + (0.05 if shape == (2, 64, 8) else 0.0) for shape in WIDTH + DEPTH + HEADS}
    heads = contrasts_of(cells_of(rising, sd=0.004))["2x64h8"]
    assert heads["parameter_equivalent"] is None
    assert heads["pe_low"] is heads["pe_high"] is None
    assert heads["low"] < 0.05 < heads["high"]


def test_intervals_cover_and_noise_is_rarely_called_an_effect() -> None:
    """60 studies x 4 contrasts; binomial limits of a nominal 95 % at 240 correlated draws."""
    rng = np.random.default_rng(5)
    effects = {(1, 64, 4): -0.012, (8, 64, 4): 0.024}
    covered = false = 0
    for _ in range(60):
        for key, row in contrasts_of(cells_of(study(effects), sd=0.006, rng=rng)).items():
            shape = tuple(int(v) for v in key.replace("x", " ").replace("h", " ").split())
            truth = effects.get(shape, 0.0)  # type: ignore[call-overload]
            covered += row["low"] <= truth <= row["high"]
            false += truth == 0 and row["p"] < 0.05
    assert 0.90 * 240 <= covered <= 0.99 * 240
    assert false <= 0.11 * 120


def test_matched_shapes_are_compared_after_taking_off_what_their_small_difference_in_size_is_worth() -> None:
    wide, deep = (2, 64, 4), (8, 32, 4)
    assert abs(size(deep) / size(wide) - 1) < 0.02
    losses = {shape: law(size(shape)) for shape in [*WIDTH, deep]}
    row = contrasts_of(cells_of(losses, sd=1e-9))["8x32h4"]
    assert row["delta"] == pytest.approx(0, abs=2e-4)
    assert abs(law(size(deep)) - law(size(wide))) > 5 * abs(row["delta"])


def test_no_configuration_is_compared_outside_the_range_of_the_curve() -> None:
    losses = study() | {(24, 64, 4): law(size((24, 64, 4)))}
    assert size((24, 64, 4)) > size((2, 160, 4))
    assert "24x64h4" not in contrasts_of(cells_of(losses, sd=0.001))


def test_one_seed_gives_effects_but_no_verdict() -> None:
    for row in contrasts_of(cells_of(study(), sd=0.006, seeds=1)).values():
        assert row["verdict"] is Verdict.NOT_TOLD
        assert row["p"] is None


# ---- sweeps ----


def test_gains_carry_intervals_per_layer_and_per_million_parameters() -> None:
    cells = cells_of(study(), sd=0.003)
    depth = next(s for s in sweeps.describe_all(cells, replicates.measure_noise(cells)) if s["name"] == "depth")
    level = depth["levels"][-1]
    assert level["gain_per_unit"] == pytest.approx(level["gain"] / 4)
    assert level["gain_per_million"] == pytest.approx(level["gain"] / (4 * 49_280 / 1e6))
    assert level["gain_low"] < level["gain"] < level["gain_high"]
    assert level["verdict"] is Verdict.GAIN


def test_a_sweep_without_effect_is_within_noise() -> None:
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(40):
        cells = cells_of(dict.fromkeys(HEADS, 1.0), sd=0.01, rng=rng)
        verdicts.append(sweeps.describe_all(cells, replicates.measure_noise(cells))[0]["verdict"])
    assert sum(v is Verdict.WITHIN_NOISE for v in verdicts) >= 34


def test_one_factor_sweeps_are_found_where_the_table_names_none() -> None:
    rows = {shape: law(size(shape)) for shape in WIDTH + DEPTH + HEADS}
    cells = cells_of(rows)
    unnamed = replicates.Configurations(**{**cells.__dict__, "sweeps": tuple(() for _ in range(len(cells)))})
    found = {s.name: s.factor for s in sweeps.find_sweeps(unnamed)}
    assert found == {"depth": "n_layer", "width": "n_embd", "heads": "n_head"}


def test_returns_fall_below_the_noise_where_the_law_says_so() -> None:
    shapes = [(2, d, 4) for d in (16, 32, 64, 128, 256)]
    flat = {shape: 0.6 + 0.5 * (size(shape) / 1e4) ** -1.0 for shape in shapes}
    cells = cells_of(flat, sd=0.004, rng=np.random.default_rng(1))
    noise = replicates.measure_noise(cells)
    fitted = fit_size_law("joint", "all", cells)
    assert isinstance(noise, replicates.Noise)
    assert isinstance(fitted, Fitted)
    block = size_law.diminishing(fitted, noise)
    assert isinstance(block, dict)
    # 0.5 (N/1e4)^-1 / 2 = detectable
    truth = 1e4 * 0.25 / noise.detectable
    assert block["below_noise_from"]["size"] == pytest.approx(truth, rel=0.1)
    assert block["smallest"]["low"] < block["smallest"]["gain"] < block["smallest"]["high"]


def test_the_variance_of_a_mean_pools_seeds_unless_the_curve_misfits() -> None:
    cells = cells_of({s: law(size(s)) for s in WIDTH}, sd=0.005)
    noise = replicates.measure_noise(cells)
    fitted = fit_size_law("joint", "all", cells)
    assert isinstance(fitted, Fitted)
    assert isinstance(noise, replicates.Noise)
    assert mean_variance(fitted, noise)[1] == fitted.df + noise.difference_df
    bent = cells_of({s: law(size(s)) + (0.1 if s[1] == 64 else 0) for s in WIDTH}, sd=0.005)
    misfit = fit_size_law("joint", "all", bent)
    assert isinstance(misfit, Fitted)
    assert mean_variance(misfit, replicates.measure_noise(bent))[1] == misfit.df


def test_the_layer_from_which_one_more_is_lost_in_the_noise() -> None:
    depth = [(n, 64, 4) for n in (1, 2, 4, 8, 16)]
    cells = cells_of({s: 0.6 + 0.5 * (size(s) / 5e4) ** -1.0 for s in depth}, sd=0.004, rng=np.random.default_rng(1))
    noise = replicates.measure_noise(cells)
    sweep = next(s for s in sweeps.describe_all(cells, noise) if s["factor"] == "n_layer")
    fitted = fit_size_law("sweep:depth", "depth", cells)
    assert isinstance(fitted, Fitted)
    assert isinstance(noise, replicates.Noise)
    found = size_law.unit_below_noise(fitted, sweep, noise)
    # 0.5 / n - 0.5 / (n + 1) = 0.5 / (n (n + 1)) = detectable, to within the width of a layer and the law's small offset in N
    truth = np.sqrt(0.5 / noise.detectable)
    assert found is not None
    assert abs(found["value"] - truth) < 1.5


def test_p_values_are_adjusted_for_the_number_of_contrasts() -> None:
    """Holm's method by hand: 0.001 * 4, 0.02 * 3, 0.04 * 2 raised to the one before, 0.5."""
    base = {"delta": 0.1, "low": 0.0, "high": 0.2, "parameter_equivalent": None, "pe_low": None}
    rows = [{**base, "pe_high": None, "p": p, "verdict": Verdict.WITHIN_NOISE} for p in (0.04, 0.001, 0.5, 0.02)]
    undecided = {**base, "pe_high": None, "p": None, "p_adjusted": None, "verdict": Verdict.NOT_TOLD}
    found = structure.adjusted([*rows, undecided])
    assert [row["p_adjusted"] for row in found] == pytest.approx([0.08, 0.004, 0.5, 0.06, None])
    differ, within = Verdict.DIFFER, Verdict.WITHIN_NOISE
    assert [row["verdict"] for row in found] == [within, differ, within, within, Verdict.NOT_TOLD]
