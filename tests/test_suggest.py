"""Suggested trials shrink real, refitted intervals about as predicted; they are sound trials of the study; messages are sentences."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import __main__ as command
from analysis.estimate import SIZE
from analysis.findings.size_law import Fitted, all_fits
from analysis.fits.fit import fit
from analysis.fits.laws import POWER_FLOOR
from analysis.fits.profile_likelihood import SeedNoise
from analysis.fits.quantities import Loss, Parameter, Quantity, Slope, read
from analysis.next_trials import candidates, suggest
from analysis.next_trials import optimal_design as optimal
from analysis.table import configurations as replicates
from analysis.table import load as tables
from benchmarks.laws import profile_batch
from study import records
from study.plan import suggestion
from study.spec import Study, TrainConfig, Trial, expand
from tests.conftest import synthetic_row

STUDY = Study(sweeps=("width:n_embd=16,32,64,128,192", "heads:n_head=2,4,8"), seeds=(1, 2, 3))
TRUTH = {"E": 0.5, "A": 0.55, "alpha": 0.4}
TAU, SEED_SD = 0.004, 0.006  # log loss


def write_study(results: Path, trials: list[Trial], study: Study = STUDY) -> Path:
    """A results folder of a study whose widths follow a known law."""
    rng = np.random.default_rng(11)
    own = {trial.config_id: rng.normal(0, TAU) for trial in trials}
    rows = []
    for trial in trials:
        row = synthetic_row((trial.shape.n_layer, trial.shape.n_embd, trial.shape.n_head), trial.seed, rng)
        recipe = {name: value for name, value in vars(trial.train).items() if name in row}
        identity = {name: getattr(trial, name) for name in ("trial_id", "config_id", "sweeps", "n_tokens")}
        loss = truth(row[SIZE]) * np.exp(own[trial.config_id] + rng.normal(0, SEED_SD))
        rows.append({**row, **recipe, **identity, "unique_tokens": None, "val_loss": float(loss), "loss_floor": None})
    records.write_table(results / "trials.parquet", records.to_table("trials", rows))
    facts = {"name": "known", "study": asdict(study), "options": {}, "trial_ids": [t.trial_id for t in expand(study)]}
    (results / "study.json").write_text(json.dumps(facts))
    return results


def truth(sizes: Any) -> Any:
    return TRUTH["E"] + TRUTH["A"] * (np.asarray(sizes, dtype=float) / 1e5) ** -TRUTH["alpha"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in full: seven configurations, three seeds."""
    return write_study(tmp_path_factory.mktemp("known"), expand(STUDY))


# ---- the prediction against simulation ----


def simulated_widths(sizes: np.ndarray, counts: np.ndarray, quantity: Quantity, n: int, seed: int) -> float:
    """Mean width of the profile interval over `n` studies drawn from the truth with these numbers of seeds, refitted each."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (n, len(sizes))) * np.sqrt(TAU**2 + SEED_SD**2 / counts)
    df = int(np.sum(counts - 1))
    within = SEED_SD**2 * rng.chisquare(df, n) / df
    unequal = None if (counts == counts[0]).all() else SeedNoise(counts, within)
    found = profile_batch(POWER_FLOOR, {SIZE: sizes}, truth(sizes) * np.exp(noise), quantity, noise=unequal)
    width = found["high"] - found["low"]
    assert np.isfinite(width).all()
    return float(np.mean(width))


def aim_at_truth(sizes: np.ndarray, counts: np.ndarray, quantity: Quantity) -> optimal.CurveAim:
    """The aim with everything known: the law at its truth over all points, those without trials included."""
    used = counts > 0
    result = fit(POWER_FLOOR, {SIZE: sizes[used]}, truth(sizes[used]))
    fitted = Fitted("joint", "known", result, None, SIZE)  # type: ignore[arg-type]
    direction = read(quantity, result.design).evaluate(result.theta[:, None])[1][:, 0]
    return optimal.CurveAim(fitted.jacobian({SIZE: sizes}), direction, TAU**2, SEED_SD**2)


@pytest.mark.parametrize("quantity", [Parameter("alpha"), Slope({SIZE: 1e5}), Loss({SIZE: 2e6})], ids=["alpha", "slope", "loss"])
def test_the_best_trial_shrinks_real_intervals_as_predicted_and_more_per_hour_than_the_worst(quantity: Quantity) -> None:
    sizes = np.array([8e3, 2e4, 6e4, 2e5, 6e5, 3e3, 3.5e4, 1.8e6])  # three not run yet
    counts = np.array([3, 3, 3, 3, 3, 0, 0, 0])
    hours = sizes / 1e5
    ranked = optimal.rank(aim_at_truth(sizes, counts, quantity), counts, hours)
    before = simulated_widths(sizes[:5], counts[:5], quantity, 400, seed=1)

    def realized(choice: optimal.Ranked) -> float:
        more = counts.copy()
        more[choice.point] += 1
        return 1 - simulated_widths(sizes[more > 0], more[more > 0], quantity, 400, seed=2) / before

    best, worst = ranked[0], ranked[-1]
    assert realized(best) == pytest.approx(best.gain, abs=0.05)
    assert realized(best) / best.hours > 3 * realized(worst) / worst.hours
    assert best.rate > worst.rate


def test_a_contrast_shrinks_as_its_standard_error_and_only_by_seeds_of_its_ends() -> None:
    before = np.array([2, 2, 2, 2])
    aim = optimal.ContrastAim((0, 3), sd=0.01, df=4, before=before)
    ranked = {r.point: r.gain for r in optimal.rank(aim, before, [1.0, 1.0, 1.0, 1.0])}
    t4, t5 = replicates.t_quantile(4), replicates.t_quantile(5)
    assert ranked[0] == pytest.approx(1 - t5 / t4 * np.sqrt((1 / 3 + 1 / 2) / 1))
    assert ranked[1] == pytest.approx(1 - t5 / t4)  # it measures the noise better, nothing else
    assert [r.point for r in optimal.choose(aim, before, [1.0, 1.0, 1.0, 1.1], 2)] == [0, 3]
    assert {r.point for r in optimal.choose(aim, before, [np.inf, 1.0, np.inf, np.inf], 6)} == {1}  # inf: what cannot be trained


def test_noise_is_split_into_lack_of_fit_and_seeds_as_it_was_made(tmp_path: Path) -> None:
    study = Study(sweeps=("width:n_embd=" + ",".join(str(16 * i) for i in range(1, 41)),), seeds=(1, 2, 3, 4))
    table = tables.load(write_study(tmp_path, expand(study), study))
    fitted = next(f for f in all_fits(replicates.average(table.trials)) if isinstance(f, Fitted))
    rows = fitted.jacobian({name: fitted.cells.columns[name] for name in fitted.result.law.columns})
    lack, seeds = optimal.scatter(fitted, rows)
    assert np.sqrt(seeds) == pytest.approx(SEED_SD, rel=0.15)
    assert np.sqrt(lack) == pytest.approx(TAU, rel=0.45)


def test_a_point_that_the_design_cannot_see_leaves_the_interval_unbounded() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    aim = optimal.CurveAim(rows, np.array([0.0, 1.0]), 1e-4, 1e-4)
    counts = np.array([1, 1, 1, 0])
    assert aim.half_width(counts) == np.inf
    assert [r.point for r in optimal.rank(aim, counts, [1.0] * 4)] == [3]


# ---- candidates ----


def found_in(folder: Path, trials: list[Trial], study: Study = STUDY) -> tuple[list[candidates.Candidate], Any]:
    """Candidates of a study of which these trials have run, and its rows."""
    table = tables.load(write_study(folder, trials, study))
    return candidates.find(study, table, replicates.average(table.trials)), table.rows


def test_candidates_are_unrun_trials_further_seeds_and_new_sizes_of_the_studys_sweeps(tmp_path: Path) -> None:
    known, rows = found_in(tmp_path, [t for t in expand(STUDY) if t.shape.n_embd != 128 and (t.seed != 3 or t.shape.n_embd != 32)])
    found = {c.label: c for c in known}
    assert found["4x128h4"].kind == candidates.UNRUN
    assert [found["4x128h4"].seed(i) for i in range(4)] == [1, 2, 3, 4]
    assert (found["4x32h4"].kind, found["4x32h4"].seed(0), found["4x32h4"].seed(1)) == (candidates.SEED, 3, 4)
    assert {c.shape.n_embd for c in known if c.kind == candidates.NEW} == {8, 24, 44, 92, 156, 288}
    assert found["4x64h2"].sweeps == ("heads",)
    assert all(c.shape.n_embd % c.shape.n_head == 0 for c in known)
    hours = [found[f"4x{w}h4"].hours for w in (16, 64, 192, 288)]
    assert hours == sorted(hours)
    ms = rows.loc[(rows["n_embd"] == 64) & (rows["n_head"] == 4), "ms_per_step"].mean()
    assert found["4x64h4"].hours == pytest.approx(ms * STUDY.train.n_steps / 3.6e6, rel=0.35)  # head counts share a number of FLOPs


def test_new_levels_lie_between_and_one_step_beyond() -> None:
    assert candidates.new_levels([2, 8, 32]) == pytest.approx([0.5, 4, 16, 128])
    assert candidates.new_levels([2, 8, 32], most=2.0) == pytest.approx([1, 4, 16, 64])
    assert candidates.new_levels([4]) == []


def test_matched_sweeps_grow_by_targets_with_their_own_aspects(tmp_path: Path) -> None:
    study = Study(sweeps=("shape:kind=matched:params=50K,200K,800K:aspects=8,32:head_dims=8",), seeds=(1,))
    new = [c.shape.params_non_embedding for c in found_in(tmp_path, expand(study), study)[0] if c.kind == candidates.NEW]
    assert (min(new), max(new)) == pytest.approx((12_500, 3_200_000), rel=0.05)


def test_branches_of_shared_runs_are_suggested_to_by_the_fit_of_one_length(tmp_path: Path) -> None:
    grid = "grid:kind=grid:n_embd=16,32,48,64,128:n_tokens=256K,512K,1M"
    study = Study(sweeps=(grid,), seeds=(1, 2), train=TrainConfig(schedule="wsd"))
    table = tables.load(write_study(tmp_path, expand(study), study))
    made = suggest.suggest(table, "slope", 3)
    assert made["interval"]["fit"] == "Trained on 999,936 tokens"
    assert all(t["change"]["n_tokens"] == 1_000_000 for t in made["trials"])
    with pytest.raises(ValueError, match="are branches of shared runs, which leave no interval that could shrink"):
        suggest.suggest(table, "slope:grid", 3)


# ---- the file ----


def test_suggested_trials_are_trials_of_the_study_that_have_not_run(results: Path) -> None:
    made = suggest.suggest(tables.load(results), "slope:width", 5)
    suggest.write(results / "report", made)
    back = suggestion.read(results)
    assert (back.study, back.results, back.name) == (STUDY, results.resolve(), "known")
    trials = suggestion.accepted(back.study, back.trials, "key")
    assert len({t.trial_id for t in trials}) == 5
    assert not {t.trial_id for t in trials} & {t.trial_id for t in expand(STUDY, "key")}
    assert all(t.sweeps == ("width",) for t in trials)
    gains = [t["gain_per_device_hour"] for t in made["trials"]]
    assert gains[0] == max(gains)
    assert 0 < made["expected_width_ratio"] < 1


def test_the_command_prints_a_table_and_writes_the_file(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(results), "--suggest", "3", "--for", "loss@2M"]) == 0
    said = capsys.readouterr().out
    assert said.count("new size") == 3
    assert "python -m study.run --from-suggestion" in said
    assert len(json.loads((results / suggestion.FILE).read_text())["trials"]) == 3


@pytest.mark.parametrize(
    ("wanted", "n", "words"),
    [
        ("beta", 3, "is not a quantity; give slope, alpha"),
        ("loss@big", 3, "names no number of parameters"),
        ("loss", 3, "is not a quantity"),
        ("contrast", 3, "is not a quantity"),
        ("slope:depth", 3, "there is no fit to shrink slope:depth of \\(sweeps with a fit: width\\)"),
        ("contrast:depth", 3, "there is no sweep 'depth' of two or more levels to contrast; there are width, heads"),
        ("slope", 0, "asks for no trial"),
    ],
)
def test_a_quantity_that_is_not_there_is_refused_in_words(results: Path, wanted: str, n: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        suggest.suggest(tables.load(results), wanted, n)


def test_results_that_cannot_be_continued_give_one_sentence(
    tmp_path: Path, synthetic_results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_study(tmp_path / "few", [t for t in expand(STUDY) if t.shape.n_embd in (16, 32, 64) and t.seed == 1])
    for folder, aim, words in (
        (synthetic_results, "slope", "has no study.json with a study in it"),
        (few, "contrast:heads", "no interval that could shrink: every configuration was trained with one seed"),
        (few, "E", "it has no E; ask for the slope"),
    ):
        assert command.main([str(folder), "--suggest", "3", "--for", aim]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "there is no suggestion at .*; make one with: python -m analysis RESULTS --suggest 5"),
        ("{", "cannot be read as a suggestion"),
        ('{"kind": "fits", "trials": [1]}', "is no suggestion; give the file"),
        ('{"kind": "suggestion", "trials": [{"seed": 1}], "study": {}}', "holds a trial without change and seed"),
        ('{"kind": "suggestion", "trials": [{"change": {}, "seed": 1}], "study": {"model": {"warp": 9}}}', "does not hold a study of this"),
        ("\x80\x04\x95cbuiltins\neval", "cannot be read as a suggestion"),
    ],
)
def test_a_missing_or_foreign_suggestion_is_refused_in_words(tmp_path: Path, body: str | None, words: str) -> None:
    file = tmp_path / "suggestion.json"
    if body is not None:
        file.write_text(body)
    with pytest.raises(ValueError, match=words):
        suggestion.read(file)


@pytest.mark.parametrize(
    ("change", "seed", "words"), [({"n_head": 7}, 1, "not divisible"), ({}, -1, "suggested seed -1 must lie")], ids=["shape", "seed"]
)
def test_impossible_suggested_trials_are_refused(change: dict[str, int], seed: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        suggestion.accepted(STUDY, [{"change": change, "seed": seed, "sweeps": []}])
