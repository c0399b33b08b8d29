"""Searches: what is asked for is checked, optima are bracketed, runs are compared within a size, and records are all it takes."""

import dataclasses
import math
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from study import records, run
from study.search import learning_rate as bracket
from study.search.learning_rate import Found, Probe, Try, decide, optimum, rungs, stops_at
from study.search.search_state import SEED_OFFSET, Searches, merged, plan
from study.search.settings import SearchSettings, read_settings
from study.spec import Study, TrainConfig, expand
from study.sweeps import format_sweep, parse_sweep
from study.tune.searcher import Prober, WithinSize
from tests.running import facts, rows, start, tables, wait_until

SWEEPS = ("depth:n_layer=1,2,4", "rates:kind=search:lr=1e-3,3e-2:over=depth:max_trials=8")
NOISE = 0.008
RANGE = SearchSettings(1e-3, 3e-2)


def made(probes: Sequence[tuple[float, float]]) -> list[Probe]:
    """Completed runs at (lr, loss)."""
    return [Probe(lr, "COMPLETED", ((100, loss),)) for lr, loss in probes]


def searched(settings: SearchSettings, loss: Callable[[float], float], start_lr: float = 7e-3) -> tuple[Found, list[Probe]]:
    """A search of a known loss curve."""
    probes: list[Probe] = []
    while isinstance(decision := decide(settings, start_lr, probes, NOISE), Try):
        probes += made([(decision.lr, loss(decision.lr))])
    return decision, probes


# ---- what is asked for ----


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("s:kind=search", "lists no values"), ("s:kind=search:n_embd=16,32", "empty search space"),
        ("s:kind=search:lr=3e-2,1e-3", "lr=0.03,0.001 is reversed"), ("s:kind=search:lr=1e-3,1e-3", "reversed or empty"),
        ("s:kind=search:lr=0,1e-3", "must lie above 0"), ("s:kind=search:lr=-1,1e-3", "must lie above 0"),
        ("s:kind=search:lr=1e-3,inf", "must lie above 0"), ("s:kind=search:lr=1e-3", "is no range"),
        ("s:kind=search:lr=low,high", "is no range"),
        ("s:kind=search:lr=1e-3,1e-2:max_trials=2", "takes 3 or more"), ("s:kind=search:lr=1e-3,1e-2:max_trials=4.5", "one whole number"),
        ("s:kind=search:lr=1e-3,1e-2:grace=0", "grace=0; give a share"), ("s:kind=search:lr=1e-3,1e-2:reduction=1", "a number above 1"),
        ("s:kind=search:lr=1e-3,1e-2:n_embdd=16", "unknown field"), ("s:kind=search:lr=1e-3,1e-2:over=s", "the study has none"),
        ("s:kind=search:lr=1e-3,1e-2:n_head=3", "not divisible"), ("s:kind=search:lr=1e-3,1e-2:over=deep", "over=deep is no sweep"),
        ("arch:kind=search:against=params:n_embd=1.5,8", "must be whole numbers"),
    ],
)  # fmt: skip
def test_impossible_searches_are_refused_with_what_to_do(sweep: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(Study(sweeps=(sweep,)))


def test_a_search_reads_the_same_from_one_line_and_from_a_study_file() -> None:
    body = {"kind": "search", "lr": [1e-3, 3e-2], "over": ["depth"], "max_trials": 8}
    assert parse_sweep(format_sweep("rates", body)) == parse_sweep(SWEEPS[1])
    settings, sizes = read_settings("s", {"lr": (1e-3, 1e-2), "n_embd": (16, 32)})
    assert sizes == {"n_embd": (16, 32)}
    assert settings == SearchSettings(1e-3, 1e-2)


def test_sizes_come_from_other_sweeps_or_from_a_product_and_each_holds_the_studys_own_rate() -> None:
    found = plan(Study(sweeps=SWEEPS, lr_exponent=-0.15))
    assert [(s.base.shape.n_layer, s.base.sweeps) for s in found.all] == [(1, ("depth",)), (2, ("depth",)), (4, ("depth",))]
    assert [s.base.config_id for s in found.all] == [t.config_id for t in found.plain if t.seed == 1]
    product = plan(Study(sweeps=("s:kind=search:lr=1e-3,3e-2:n_layer=1,2:n_embd=16,32",)))
    assert len(product.all) == 4
    assert expand(product.study) == []


# ---- decisions ----


@pytest.mark.parametrize("best", [2e-4, 1.2e-3, 4e-3, 7e-3, 2e-2, 1.5e-1])
@pytest.mark.parametrize("curvature", [0.03, 0.3])
def test_an_optimum_is_found_between_worse_neighbors_also_outside_of_the_range(best: float, curvature: float) -> None:
    settings = dataclasses.replace(RANGE, max_trials=12)
    found, probes = searched(settings, lambda lr: 1 + curvature * math.log(lr / best) ** 2)
    assert found.status == "tuned"
    assert (chosen := found.lr) is not None
    assert curvature * math.log(chosen / best) ** 2 <= 1.5 * NOISE  # what is left to gain is noise
    reached = min(p.loss for p in probes)
    assert any(p.lr < chosen and p.loss > reached + NOISE for p in probes)
    assert any(p.lr > chosen and p.loss > reached + NOISE for p in probes)
    assert optimum(probes) == pytest.approx(best, rel=0.05)
    assert len(probes) <= 8


def test_a_search_that_runs_out_of_trials_at_an_end_says_so() -> None:
    found, probes = searched(dataclasses.replace(RANGE, max_trials=4), lambda lr: 1 - 0.1 * math.log(lr))
    assert found.status == "at_edge"
    assert len(probes) == 4
    assert found.lr == max(p.lr for p in probes) > 3e-2  # the range has grown


def test_a_difference_within_the_noise_closes_no_side() -> None:
    flat = made([(2e-3, 1.005), (7e-3, 1.0), (2e-2, 1.2)])
    assert decide(RANGE, 7e-3, flat, 0.01) == Try(1e-3)  # the range's end comes first
    assert decide(RANGE, 7e-3, flat, 0.001) != Try(1e-3)


def test_runs_that_diverge_close_the_upper_side_and_a_first_one_leads_down() -> None:
    settings = SearchSettings(1e-3, 3e-1, max_trials=5)
    diverged = Probe(0.3, "DIVERGED", ())
    assert decide(settings, 0.3, [diverged], NOISE) == Try(0.1)
    assert decide(settings, 0.3, [diverged] * 5, NOISE) == Found("at_edge", None)
    decision = decide(settings, 0.1, [diverged, *made([(0.1, 1.0), (0.0333, 1.1)])], NOISE)
    assert decision == Try(pytest.approx(math.sqrt(0.03), rel=1e-2))  # halfway to the run that did not end


def test_a_stopped_run_is_compared_where_it_was_stopped() -> None:
    best = Probe(1e-2, "COMPLETED", ((50, 2.0), (100, 1.0)))
    stopped = Probe(3e-2, "STOPPED", ((50, 2.1),))
    assert bracket.is_worse(stopped, best, 0.05)
    assert not bracket.is_worse(stopped, best, 0.2)
    assert stopped.loss == math.inf


def test_a_run_is_stopped_only_at_a_rung_and_only_where_it_is_worse_than_the_best_by_more_than_the_noise() -> None:
    settings, train = dataclasses.replace(RANGE, reduction=2), TrainConfig(n_steps=1000, eval_interval=200)
    others = [Probe(1e-2, "COMPLETED", ((400, 2.2), (600, 2.0), (1000, 1.5))), Probe(2e-2, "COMPLETED", ((600, 2.1),))]
    assert bracket.rungs(settings, train) == [600]
    assert stops_at(settings, train, {400: 2.5}, others, NOISE) is None
    assert stops_at(settings, train, {400: 2.5, 600: 2.5}, others, NOISE) == 600
    assert stops_at(settings, train, {600: 2.5, 800: 1.0}, others, NOISE) == 600  # a rung passed before an interruption still counts
    assert stops_at(settings, train, {600: 2.0 + NOISE / 2}, others, NOISE) is None
    assert stops_at(settings, train, {600: 2.5}, [], NOISE) is None
    assert stops_at(dataclasses.replace(settings, grace=1), train, {600: 2.5}, others, NOISE) is None


def test_a_higher_rate_that_catches_up_before_the_decay_is_neither_stopped_nor_called_worse() -> None:
    settings, train = RANGE, TrainConfig(n_steps=1500, eval_interval=250)
    best = Probe(7e-3, "COMPLETED", ((500, 2.19), (750, 1.984), (1500, 1.585)))
    catching_up, falling_behind = ((500, 2.283), (750, 2.022)), ((500, 2.338), (750, 2.216))
    assert stops_at(settings, train, dict(catching_up), [best], 0.025) is None
    assert stops_at(settings, train, dict(falling_behind), [best], 0.025) == 750
    assert not bracket.is_worse(Probe(2e-2, "STOPPED", catching_up), best, 0.025)
    assert bracket.is_worse(Probe(2e-2, "STOPPED", falling_behind), best, 0.025)


def test_a_neighbor_that_was_given_up_makes_no_parabola_but_a_run_halfway_to_it() -> None:
    probes = [*made([(2e-3, 1.2), (6e-3, 1.0)]), Probe(2.4e-2, "STOPPED", ((50, 1.5), (60, 1.4)))]
    probes[1] = Probe(6e-3, "COMPLETED", ((50, 1.2), (60, 1.1), (100, 1.0)))
    assert bracket.parabola(probes[1], probes) is None
    assert decide(RANGE, 6e-3, probes, NOISE) == Try(1.2e-2)


# ---- records ----


def whole() -> tuple[Searches, dict[str, Mapping[str, Any]]]:
    """A study whose three sizes were searched to the end, with the rows of their runs."""
    found = plan(Study(sweeps=SWEEPS))
    lines: dict[str, Mapping[str, Any]] = {}
    for size, best in zip(found.all, (8e-3, 4e-3, 2e-3), strict=True):
        for lr in (best / 3, best, best * 3):
            run_, loss = size.probe(lr), 1 + 0.1 * math.log(lr / best) ** 2
            ids = {"trial_id": run_.trial_id, "config_id": run_.config_id, "seed": run_.seed, "lr": lr}
            lines[run_.trial_id] = {**ids, "val_loss_se": 0.02, "n_steps": 2000, "status": "COMPLETED", "val_loss": loss}
    return found, lines


def test_the_records_alone_tell_what_was_tuned_and_no_seed_of_a_claim_has_chosen() -> None:
    found, lines = whole()
    assert len(found.to_come()) == 3 * 8 + 3 * 3
    assert f"the quote holds {3 * 8 + 3 * 3} runs" in found.lines()[-1]
    found.see(lines, {})
    assert found.to_come() == []
    tuned = [t for t in found.trials() if t.lr_status == "tuned"]
    assert {(t.shape.n_layer, t.train.lr, t.seed) for t in tuned} == {
        (n, lr, s) for n, lr in ((1, 8e-3), (2, 4e-3), (4, 2e-3)) for s in (1, 2, 3)
    }
    assert {t.sweeps for t in tuned} == {("depth", "rates")}
    assert {t.seed for t in found.trials() if t.lr_status == "searched"} == {1 + SEED_OFFSET}
    assert plan(Study(sweeps=SWEEPS, seeds=(1, 1 + SEED_OFFSET))).all[0].base.seed == 2 + SEED_OFFSET
    assert all(t.lr_status == "fixed" for t in found.plain if t.train.lr not in (8e-3, 4e-3, 2e-3))


def test_rows_of_other_shapes_seeds_and_recipes_are_no_runs_of_a_size() -> None:
    found, lines = whole()
    changes: list[dict[str, Any]] = [{"seed": 1}, {"lr": 1e-5}, {"status": "INTERRUPTED"}]
    others = [{key: {**row, **change} for key, row in lines.items()} for change in changes]
    for rows_ in (*others, {f"x{key}": row for key, row in lines.items()}):
        found.see(rows_, {})
        assert not any(size.probes for size in found.all)


def test_noise_is_measured_between_replicates_of_the_studys_other_sweeps() -> None:
    found, lines = whole()
    config = found.plain[0].config_id
    ids = [t.trial_id for t in found.plain if t.config_id == config]
    row = next(iter(lines.values()))
    more = {i: {**row, "config_id": config, "val_loss": v} for i, v in zip(ids, (1.0, 1.1, 1.2), strict=True)}
    found.see(lines | more, {})
    assert found.all[0].noise == pytest.approx(math.sqrt(2) * 0.1)
    found.see(lines, {})
    assert found.all[0].noise == 0.02


def test_a_trial_that_another_sweep_wants_whole_may_not_stop_and_keeps_all_its_sweeps() -> None:
    found = plan(Study(sweeps=SWEEPS))
    base = found.all[0].base
    (one,) = merged(
        [base, dataclasses.replace(base, sweeps=("rates",), may_stop=True), dataclasses.replace(base, sweeps=("x",), lr_status="tuned")]
    )
    assert (one.sweeps, one.lr_status, one.may_stop) == (("depth", "rates", "x"), "tuned", False)


@pytest.mark.ray
def test_a_run_that_was_continued_is_judged_by_all_of_its_curve() -> None:
    def stopped(cut: int) -> tuple[bool, list[int]]:
        """Whether a bad run, cut off after so many evaluations, is given up with its first report; its steps that remain."""
        found = plan(Study(sweeps=("s:kind=search:lr=1e-3,3e-2",)))
        (size,) = found.all
        steps = range(50, rungs(size.settings, size.base.train)[0] + 51, 50)
        size.probes = {
            str(i): Probe(rate, "COMPLETED", tuple((step, 1.0 + i / 100) for step in steps)) for i, rate in enumerate((0.004, 0.008))
        }
        prober = Prober(found, [size], lambda trial: (1.0, 0.0), 64, None)  # type: ignore[arg-type]
        prober.running["bad"] = size
        lines = [{"trial_id": "bad", "step": step, "val_loss": 5.0} for step in steps]
        earlier, rows = lines[:cut], lines[cut:]
        decision = WithinSize(prober).on_trial_result(None, None, {"earlier": earlier, "rows": rows})
        return decision == "STOP", [row["step"] for row in [*earlier, *rows]]

    whole = stopped(0)
    assert whole[0]
    assert stopped(len(whole[1])) == whole
    assert all(stopped(cut) == whole for cut in range(1, len(whole[1])))


# ---- a real run ----


def small(out: Path) -> list[str]:
    """A study of two widths whose rates are searched."""
    return [
        "smoke", "--out", str(out), "--no-report", "--seeds", "1", "2", "--precision", "float32", "--checkpoint-s", "0",
        "--train.n_steps", "60", "--train.eval_interval", "10", "--train.eval_windows", "16", "--train.lr", "1e-2", "--sweeps",
        "width:n_embd=16,24", "rates:kind=search:over=width:lr=3e-3,3e-2:max_trials=5",
    ]  # fmt: skip


def forget(out: Path, gone: Callable[[dict[str, Any]], bool]) -> int:
    """Take rows out of a results folder, as if the run had been killed before it made them."""
    ids = [row["trial_id"] for row in rows(out) if gone(row)]
    for table in records.PER_TRIAL:
        (out / f"{table}.parquet").unlink()
        for trial_id in ids:
            (out / table / f"{trial_id}.parquet").unlink(missing_ok=True)
    return len(ids)


@pytest.fixture(scope="module")
def search_done(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the small study, never interrupted."""
    out = tmp_path_factory.mktemp("search") / "whole"
    assert run.main(small(out)) == 0
    return out


@pytest.mark.ray
def test_a_study_with_a_search_ends_with_all_seeds_at_the_tuned_rates(search_done: Path) -> None:
    lines = rows(search_done)
    for width in (16, 24):
        own = [row for row in lines if row["n_embd"] == width]
        best = [row for row in own if row["lr_status"] in ("tuned", "at_edge")]
        assert sorted(row["seed"] for row in best) == [1, 2]
        assert all(row["status"] == "COMPLETED" and set(row["sweeps"]) == {"width", "rates"} for row in best)
        chose = [row for row in own if row["lr_status"] == "searched"]
        assert {row["seed"] for row in chose} == {1 + SEED_OFFSET}
        assert min((row for row in chose if row["status"] == "COMPLETED"), key=lambda row: row["val_loss"])["lr"] == best[0]["lr"]
        assert 3 <= len({row["lr"] for row in chose}) <= 5
    stopped = [row for row in lines if row["status"] == "STOPPED"]
    assert all(30 <= row["n_steps"] < 60 and row["lr_status"] == "searched" and row["val_loss"] for row in stopped)
    assert {row["trial_id"] for row in lines} == set(facts(search_done)["trial_ids"])


@pytest.mark.ray
def test_the_same_command_trains_nothing_again(search_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (search_done / "trials").iterdir()}

    before = written()
    assert run.main(small(search_done)) == 0
    assert written() == before
    assert "0 to run" in capsys.readouterr().out


@pytest.mark.ray
def test_a_search_continues_from_its_records_to_the_same_tables_also_one_run_at_a_time(search_done: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    shutil.copytree(search_done, out)
    began = sorted(row["started_at"] for row in rows(out))[6]  # the four runs at the common rate and two more
    assert forget(out, lambda row: row["started_at"] >= began) >= 3
    assert run.main([*small(out), "--max-concurrent", "1"]) == 0
    assert tables(out) == tables(search_done)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_that_was_killed_continues_to_the_same_tables(search_done: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = start(small(out), tmp_path / "log")
    assert wait_until(lambda: len(list(out.glob("trials/*.parquet"))) >= 6, 400, process)  # four at the common rate, two more
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(rows(out)) < len(rows(search_done))
    assert run.main(small(out)) == 0
    assert tables(out) == tables(search_done)
