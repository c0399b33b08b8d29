"""Diagnostics find what is wrong when something is, and stay quiet when nothing is."""

from typing import Any

import numpy as np
import pytest

from analysis.findings import diagnostics
from analysis.findings.size_law import Fitted, fit_size_law
from analysis.fits import law_selection as selection
from analysis.fits.laws import POWER_FLOOR, POWER_FLOOR_DATA
from analysis.table import configurations as replicates
from study import records
from tests.test_structure import size

SHAPES = [(2, d, 4) for d in (16, 24, 32, 48, 64, 96, 128, 192)]


def law(n: float) -> float:
    return 0.62 + 0.55 * (n / 1e5) ** -0.34


def cells_of(losses: dict[Any, float], sd: float, seeds: int = 3, rng: np.random.Generator | None = None, **columns: Any) -> Any:
    """Configurations of (n_layer, n_embd, n_head[, n_tokens]) with the given mean losses and seed noise."""
    rng = rng or np.random.default_rng(0)
    rows = [
        {
            "trial_id": f"{key}{seed}", "config_id": str(key), "seed": seed, "status": "COMPLETED", "n_layer": key[0], "n_embd": key[1],
            "n_head": key[2], "params_total": size(key[:3]) + 500, "params_non_embedding": size(key[:3]),
            "n_tokens": key[3] if len(key) > 3 else 512_000, "val_loss": float(mean + rng.normal(0, sd)), **columns,
        }
        for key, mean in losses.items()
        for seed in range(seeds)
    ]  # fmt: skip
    return replicates.average(records.to_table("trials", rows).to_pandas())


def fitted_to(cells: Any) -> Fitted:
    fitted = fit_size_law("joint", "all", cells)
    assert isinstance(fitted, Fitted)
    return fitted


def examined(cells: Any) -> dict[str, Any]:
    return diagnostics.examine(fitted_to(cells), replicates.measure_noise(cells))


def on_law(sd: float = 0.002, **changed: Any) -> Any:
    return cells_of({s: law(size(s)) for s in SHAPES} | changed.get("losses", {}), sd, seeds=changed.get("seeds", 3))


def test_sizes_on_the_law_are_predicted_from_the_others() -> None:
    found = examined(on_law(sd=1e-8))
    assert len(found["leave_one_size_out"]) == 8
    assert all(abs(row["error"]) < 1e-6 and row["converged"] for row in found["leave_one_size_out"])
    assert [row["from_sizes"] for row in found["leave_largest_out"]] == [3, 4, 5, 6, 7]
    assert all(abs(row["error"]) < 1e-5 for row in found["leave_largest_out"])


def test_a_size_off_the_law_shows_with_its_sign() -> None:
    losses = {s: law(size(s)) for s in SHAPES}
    losses[(2, 192, 4)] *= 1.05
    found = examined(cells_of(losses, 1e-6))
    largest = found["leave_largest_out"][-1]
    assert largest["error_percent"] == pytest.approx(5, abs=0.2)
    assert largest["size"] == pytest.approx(size((2, 192, 4)))


def test_dropping_any_size_of_a_clean_law_leaves_exponent_and_slope() -> None:
    found = examined(on_law(sd=1e-8))["drop_size"]
    assert len(found) == 8
    for row in found:
        assert row["alpha"] == pytest.approx(0.34, rel=1e-3)
        assert row["E"] == pytest.approx(0.62, rel=1e-3)


def test_lack_of_fit_is_found_where_shapes_scatter_and_not_where_only_seeds_do() -> None:
    clean = [examined(cells_of({s: law(size(s)) for s in SHAPES}, 0.004, rng=np.random.default_rng(i)))["lack_of_fit"] for i in range(12)]
    assert sum(block["p"] < 0.05 for block in clean) <= 3
    rng = np.random.default_rng(9)
    bent = examined(cells_of({s: law(size(s)) * (1 + rng.normal(0, 0.02)) for s in SHAPES}, 0.002))["lack_of_fit"]
    assert bent["p"] < 0.001
    assert bent["verdict"] == "misses"
    assert bent["residual_sd"] > 5 * bent["seed_sd_of_means"]


def test_lack_of_fit_is_refused_with_one_seed() -> None:
    assert examined(on_law(seeds=1))["lack_of_fit"]["refused"]["code"] == "one_seed"


def test_a_trend_with_aspect_is_named() -> None:
    keys = [(n, d, 4) for n in (1, 2, 4, 8) for d in (32, 64, 128)]
    losses = {k: law(size(k)) * (k[1] / k[0] / 32) ** 0.02 for k in keys}
    trends = {row["column"]: row for row in examined(cells_of(losses, 0.001))["trends"]}
    assert trends["aspect"]["p"] < 0.01
    assert trends["aspect"]["slope"] == pytest.approx(0.02, abs=0.01)
    assert trends["aspect"]["verdict"] == "drifts"


def test_leverages_sum_to_the_number_of_parameters_and_the_ends_lead() -> None:
    rows = examined(on_law())["leverage"]
    assert sum(row["leverage"] for row in rows) == pytest.approx(3, abs=1e-6)
    assert rows[0]["config_id"] in ("(2, 16, 4)", "(2, 192, 4)")


def test_all_objectives_agree_on_clean_data_and_robust_ones_withstand_an_outlier() -> None:
    clean = examined(on_law(sd=1e-7))["delta_sensitivity"]
    assert {row["objective"] for row in clean} >= {"huber, delta 0.001", "least squares"}
    assert all(row["alpha"] == pytest.approx(0.34, rel=1e-3) for row in clean)
    losses = {s: law(size(s)) for s in SHAPES}
    losses[(2, 64, 4)] *= 1.1
    bent = {row["objective"]: row["alpha"] for row in examined(cells_of(losses, 1e-6))["delta_sensitivity"]}
    assert abs(bent["huber, delta 0.001"] - 0.34) < 0.01 < abs(bent["least squares"] - 0.34)


# ---- choice of law ----


def test_aicc_counts_configurations_and_prefers_the_law_that_made_the_data() -> None:
    wide = [(n, d, 4) for n in (1, 2, 4, 8) for d in (16, 32, 64, 128)]
    cells = cells_of({k: law(size(k)) for k in wide}, 0.002)
    ranked = selection.rank(cells, selection.candidate_laws(cells))
    assert ranked[0].n == 16
    assert ranked[0].fit_id == "M1"
    assert sum(selection.weights(ranked)) == pytest.approx(1)


def test_the_token_term_enters_where_tokens_vary() -> None:
    keys = [(2, d, 4, t) for d in (16, 32, 64, 128, 192) for t in (100_000, 400_000, 1_600_000)]
    cells = cells_of({k: law(size(k[:3])) + 0.2 * (k[3] / 1e6) ** -0.4 for k in keys}, 1e-7)
    fitted = fitted_to(cells)
    assert fitted.result.law == POWER_FLOOR_DATA
    assert fitted.result.params["beta"] == pytest.approx(0.4, rel=1e-3)
    assert fitted_to(on_law()).result.law == POWER_FLOOR


def test_a_fit_uses_one_recipe_and_the_tuned_learning_rate() -> None:
    rows = []
    for s in SHAPES[:3]:
        for lr, status, loss in ((1e-3, "fixed", 1.2), (3e-3, "tuned", 1.0), (9e-3, "fixed", 1.1)):
            common = {"config_id": f"{s}{lr}", "seed": 0, "status": "COMPLETED", "n_layer": s[0], "n_embd": s[1], "n_head": s[2]}
            sizes = {"params_total": size(s), "params_non_embedding": size(s), "n_tokens": 1000}
            rows.append({"trial_id": f"{s}{lr}", **common, **sizes, "val_loss": loss, "lr": lr, "lr_status": status, "batch_size": 8})
    rows.append({**rows[0], "trial_id": "other", "config_id": "other", "batch_size": 64})
    trials = records.to_table("trials", rows).to_pandas()
    chosen = trials[selection.one_recipe(trials)]
    assert list(chosen.lr_status) == ["tuned"] * 3
