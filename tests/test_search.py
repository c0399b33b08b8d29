"""Searches: what is asked for is checked, optima are bracketed, runs are compared within a size, and records are all it takes."""

import dataclasses
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from study import records
from study.search import learning_rate as bracket
from study.search import search_state as search
from study.search.learning_rate import Found, Probe, Refine, Try, decide, guess, middle, optimum, predict_rate, rate_law, rungs, stops_at
from study.search.search_state import Searches, SizeSearch, merged, plan
from study.search_settings import SearchSettings, read_settings
from study.spec import Study, TrainConfig, expand
from study.sweeps import format_sweep, parse_sweep
from tests.running import facts, rows, start, tables, wait_until

SWEEPS = ("depth:n_layer=1,2,4", "rates:kind=search:lr=1e-3,3e-2:over=depth:max_trials=8:transfer.n_layer=8,1")
NOISE = 0.008


def made(probes: Sequence[tuple[float, float]]) -> list[Probe]:
    """Completed runs at (lr, loss)."""
    return [Probe({"lr": lr}, "COMPLETED", ((100, loss),)) for lr, loss in probes]


def searched(settings: SearchSettings, loss: Callable[[float], float], start_lr: float = 7e-3) -> tuple[Found, list[Probe]]:
    """A search of a known loss curve; where Optuna would be asked, the middle of the wider gap is taken."""
    probes: list[Probe] = []
    while not isinstance(decision := decide(settings, {"lr": start_lr}, probes, NOISE), Found):
        point = decision.point if isinstance(decision, Try) else guess(settings, decision, probes) or middle(decision, probes)
        probes += made([(point["lr"], loss(point["lr"]))])
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
        ("s:kind=search:lr=1e-3,1e-2:batch_size=1.5,8", "must be whole numbers"),
        ("s:kind=search:lr=1e-3,1e-2:transfer=128", "write transfer.n_embd"), ("s:kind=search:lr=1e-3,1e-2:n_embdd=16", "unknown field"),
        ("s:kind=search:lr=1e-3,1e-2:n_head=3", "not divisible"), ("s:kind=search:lr=1e-3,1e-2:over=deep", "over=deep is no sweep"),
        ("s:kind=search:lr=1e-3,1e-2:transfer.n_embdd=16", "unknown field"), ("s:kind=search:lr=1e-3,1e-2:over=s", "the study has none"),
    ],
)  # fmt: skip
def test_impossible_searches_are_refused_with_what_to_do(sweep: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(Study(sweeps=(sweep,)))


def test_a_search_reads_the_same_from_one_line_and_from_a_study_file() -> None:
    body = {"kind": "search", "lr": [1e-3, 3e-2], "over": ["depth"], "max_trials": 8, "transfer": {"n_layer": [8, 1]}}
    assert parse_sweep(format_sweep("rates", body)) == parse_sweep(SWEEPS[1])
    settings, sizes = read_settings("s", {"lr": (1e-3, 1e-2), "n_embd": (16, 32)})
    assert sizes == {"n_embd": (16, 32)}
    assert settings == SearchSettings({"lr": (1e-3, 1e-2)})


def test_sizes_come_from_other_sweeps_or_from_a_product_and_each_holds_the_studys_own_rate() -> None:
    found = plan(Study(sweeps=SWEEPS, lr_exponent=-0.15))
    assert [(s.base.shape.n_layer, s.base.sweeps) for s in found.sizes] == [(1, ("depth",)), (2, ("depth",)), (4, ("depth",))]
    assert [s.base.trial_id for s in found.sizes] == [t.trial_id for t in found.plain if t.seed == 1]
    assert [t.shape.n_layer for t in found.transfers["rates"]] == [8]
    product = plan(Study(sweeps=("s:kind=search:lr=1e-3,3e-2:n_layer=1,2:n_embd=16,32",)))
    assert len(product.sizes) == 4
    assert expand(product.study) == []


# ---- decisions ----


@pytest.mark.parametrize("best", [2e-4, 1.2e-3, 4e-3, 7e-3, 2e-2, 1.5e-1])
@pytest.mark.parametrize("curvature", [0.03, 0.3])
def test_an_optimum_is_found_between_worse_neighbors_also_outside_of_the_range(best: float, curvature: float) -> None:
    settings = SearchSettings({"lr": (1e-3, 3e-2)}, max_trials=12)
    found, probes = searched(settings, lambda lr: 1 + curvature * math.log(lr / best) ** 2)
    assert found.status == "tuned"
    assert found.point is not None
    chosen = found.point["lr"]
    assert curvature * math.log(chosen / best) ** 2 <= 1.5 * NOISE  # what is left to gain is noise
    reached = min(p.loss for p in probes)
    assert any(p.lr < chosen and p.loss > reached + NOISE for p in probes)
    assert any(p.lr > chosen and p.loss > reached + NOISE for p in probes)
    assert optimum(probes) == pytest.approx(best, rel=0.05)
    assert len(probes) <= 8


def test_a_search_that_runs_out_of_trials_at_an_end_says_so() -> None:
    found, probes = searched(SearchSettings({"lr": (1e-3, 3e-2)}, max_trials=4), lambda lr: 1 - 0.1 * math.log(lr))
    assert found.status == "at_edge"
    assert len(probes) == 4
    assert found.point == {"lr": max(p.lr for p in probes)}
    assert max(p.lr for p in probes) > 3e-2  # the range has grown


def test_a_difference_within_the_noise_closes_no_side() -> None:
    settings = SearchSettings({"lr": (1e-3, 3e-2)})
    flat = made([(2e-3, 1.005), (7e-3, 1.0), (2e-2, 1.2)])
    assert decide(settings, {"lr": 7e-3}, flat, 0.01) == Try({"lr": 1e-3})  # the range's end comes first
    assert isinstance(decide(settings, {"lr": 7e-3}, flat, 0.001), Refine | Found)


def test_runs_that_diverge_close_the_upper_side_and_a_first_one_leads_down() -> None:
    settings = SearchSettings({"lr": (1e-3, 3e-1)}, max_trials=5)
    diverged = Probe({"lr": 0.3}, "DIVERGED", ())
    assert decide(settings, {"lr": 0.3}, [diverged], NOISE) == Try({"lr": 0.1})
    assert decide(settings, {"lr": 0.3}, [diverged] * 5, NOISE) == Found("at_edge", None)
    decision = decide(settings, {"lr": 0.1}, [diverged, *made([(0.1, 1.0), (0.0333, 1.1)])], NOISE)
    assert decision == Refine(0.0333, 0.3)


def test_a_stopped_run_is_compared_where_it_was_stopped() -> None:
    best = Probe({"lr": 1e-2}, "COMPLETED", ((50, 2.0), (100, 1.0)))
    stopped = Probe({"lr": 3e-2}, "STOPPED", ((50, 2.1),))
    assert bracket.is_worse(stopped, best, 0.05)
    assert not bracket.is_worse(stopped, best, 0.2)
    assert stopped.loss == math.inf


def test_a_run_is_stopped_only_at_a_rung_and_only_where_it_is_worse_than_the_best_by_more_than_the_noise() -> None:
    settings, train = SearchSettings({"lr": (1e-3, 3e-2)}, grace=0.5, reduction=2), TrainConfig(n_steps=1000, eval_interval=200)
    others = [Probe({"lr": 1e-2}, "COMPLETED", ((400, 2.2), (600, 2.0), (1000, 1.5))), Probe({"lr": 2e-2}, "COMPLETED", ((600, 2.1),))]
    assert bracket.rungs(settings, train) == [600]
    assert stops_at(settings, train, {400: 2.5}, others, NOISE) is None
    assert stops_at(settings, train, {400: 2.5, 600: 2.5}, others, NOISE) == 600
    assert stops_at(settings, train, {600: 2.5, 800: 1.0}, others, NOISE) == 600  # a rung passed before an interruption still counts
    assert stops_at(settings, train, {600: 2.0 + NOISE / 2}, others, NOISE) is None
    assert stops_at(settings, train, {600: 2.5}, [], NOISE) is None
    assert stops_at(dataclasses.replace(settings, grace=1), train, {600: 2.5}, others, NOISE) is None
    assert stops_at(SearchSettings({"lr": (1, 2), "batch_size": (4, 8)}), train, {600: 2.5}, others, NOISE) is None


def test_a_higher_rate_that_catches_up_before_the_decay_is_neither_stopped_nor_called_worse() -> None:
    settings, train = SearchSettings({"lr": (1e-3, 3e-2)}), TrainConfig(n_steps=1500, eval_interval=250)
    best = Probe({"lr": 7e-3}, "COMPLETED", ((500, 2.19), (750, 1.984), (1500, 1.585)))
    catching_up, falling_behind = ((500, 2.283), (750, 2.022)), ((500, 2.338), (750, 2.216))
    assert stops_at(settings, train, dict(catching_up), [best], 0.025) is None
    assert stops_at(settings, train, dict(falling_behind), [best], 0.025) == 750
    assert not bracket.is_worse(Probe({"lr": 2e-2}, "STOPPED", catching_up), best, 0.025)
    assert bracket.is_worse(Probe({"lr": 2e-2}, "STOPPED", falling_behind), best, 0.025)


def test_a_neighbor_that_was_given_up_makes_no_parabola_but_a_run_halfway_to_it() -> None:
    settings = SearchSettings({"lr": (1e-3, 3e-2)})
    probes = [*made([(2e-3, 1.2), (6e-3, 1.0)]), Probe({"lr": 2.4e-2}, "STOPPED", ((50, 2.0),))]
    assert bracket.parabola(probes[1], probes) is None
    assert guess(settings, Refine(2e-3, 2.4e-2), probes) == {"lr": 1.2e-2}


def test_the_law_of_rates_is_recovered_and_needs_three_sizes() -> None:
    law = rate_law([(n, 3e-2 * n**-0.2) for n in (1e4, 5e4, 2e5)])
    assert law is not None
    assert predict_rate(law, 1e6) == pytest.approx(3e-2 * 1e6**-0.2)
    assert rate_law([(1e4, 1e-2), (1e4, 2e-2), (2e4, 1e-2)]) is None


# ---- records ----


def recorded(size: SizeSearch, losses: dict[float, float], **facts: Any) -> list[dict[str, Any]]:
    """Rows of completed runs of a size."""
    shape = size.base.shape
    own = {"n_layer": shape.n_layer, "n_embd": shape.n_embd, "n_head": shape.n_head, "val_loss_se": 0.02, "n_steps": 2000, **facts}
    return [
        {
            **own,
            "status": "COMPLETED",
            "trial_id": (t := size.probe({"lr": lr})).trial_id,
            "config_id": t.config_id,
            "seed": t.seed,
            "lr": lr,
            "val_loss": loss,
        }
        for lr, loss in losses.items()
    ]


def whole() -> tuple[Searches, list[dict[str, Any]]]:
    """A study whose three sizes were searched to the end."""
    found = plan(Study(sweeps=SWEEPS))
    lines = []
    for size, best in zip(found.sizes, (8e-3, 4e-3, 2e-3), strict=True):
        lines += recorded(size, {lr: 1 + 0.1 * math.log(lr / best) ** 2 for lr in (best / 3, best, best * 3)})
    return found, lines


def test_the_records_alone_tell_what_was_tuned_and_what_the_law_carries_over() -> None:
    found, lines = whole()
    assert len(found.upper_bound()) == 3 * 8 + 3 * 2 + 3
    found.see(lines, {})
    assert found.upper_bound() == []
    tuned = [t for t in found.trials() if t.lr_status == "tuned"]
    assert {(t.shape.n_layer, t.train.lr) for t in tuned} == {(1, 8e-3), (2, 4e-3), (4, 2e-3)}
    assert {t.seed for t in tuned} == {1, 2, 3}
    assert {t.sweeps for t in tuned} == {("depth", "rates")}
    carried = [t for t in found.trials() if t.lr_status == "transferred"]
    assert {t.shape.n_layer for t in carried} == {8}
    assert carried[0].train.lr == pytest.approx(1e-3, rel=0.02)  # the optimum halves as the depth doubles
    assert all(t.lr_status == "fixed" for t in found.plain if t.train.lr not in (8e-3, 4e-3, 2e-3))


def test_rows_of_other_shapes_seeds_and_recipes_are_no_runs_of_a_size() -> None:
    found, lines = whole()
    found.see(
        [row | {"seed": 2} for row in lines] + [row | {"n_layer": 3} for row in lines] + [row | {"trial_id": "x"} for row in lines], {}
    )
    assert not any(size.probes for size in found.sizes)
    found.see([row | {"status": "INTERRUPTED"} for row in lines], {})
    assert not any(size.probes for size in found.sizes)


def test_noise_is_measured_between_replicates_of_the_studys_other_sweeps() -> None:
    found, lines = whole()
    config = found.plain[0].config_id
    ids = [t.trial_id for t in found.plain if t.config_id == config]
    losses = (1.0, 1.1, 1.2)
    found.see(lines + [lines[0] | {"trial_id": i, "config_id": config, "val_loss": v} for i, v in zip(ids, losses, strict=True)], {})
    assert found.replicate_noise == pytest.approx(math.sqrt(2) * 0.1)
    found.see(lines, {})
    assert found.replicate_noise is None
    assert found.sizes[0].noise(None) == 0.02


def test_a_trial_that_another_sweep_wants_whole_may_not_stop_and_keeps_all_its_sweeps() -> None:
    found = plan(Study(sweeps=SWEEPS))
    base = found.sizes[0].base
    (one,) = merged([base, found.sizes[0].probe({"lr": base.train.lr}), dataclasses.replace(base, sweeps=("x",), lr_status="tuned")])
    assert (one.sweeps, one.lr_status, one.may_stop) == (("depth", "rates", "x"), "tuned", False)


def test_a_larger_batch_takes_fewer_steps() -> None:
    study = Study(sweeps=("s:kind=search:lr=1e-3,3e-2:batch_size=4,64:warmup_steps=10,500",))
    (size,) = plan(study).sizes
    trial = size.probe({"lr": 1e-3, "batch_size": 32.0, "warmup_steps": 50.0})
    assert (trial.train.batch_size, trial.train.n_steps, trial.train.warmup_steps) == (32, 500, 50)
    assert trial.n_tokens == size.base.n_tokens


@pytest.mark.ray
@pytest.mark.parametrize("ranges", ["lr=1e-3,3e-2", "lr=1e-3,3e-2:weight_decay=0.01,1:warmup_steps=10,400"])
def test_optunas_suggestions_follow_from_the_records_and_never_repeat_a_run(ranges: str) -> None:
    from study.tune.searcher import suggest

    def fresh() -> SizeSearch:
        (size,) = plan(Study(sweeps=(f"s:kind=search:{ranges}",))).sizes
        size.probes = {
            str(i): Probe({**size.start, "lr": lr}, status, ((100, loss),))
            for i, (lr, loss, status) in enumerate([(1e-3, 1.4, "STOPPED"), (4e-3, 1.0, "COMPLETED"), (2e-2, 1.3, "COMPLETED")])
        }
        return size

    first, again = fresh(), fresh()
    asked = []
    for size in (first, again):
        for n in range(6):
            point = suggest(size, Refine(1e-3, 2e-2))
            assert 1e-3 < point["lr"] < 2e-2
            size.probes[f"new{n}"] = Probe(point, "COMPLETED", ((100, 1 + 0.1 * math.log(point["lr"] / 5e-3) ** 2),))
            asked.append(point)
    assert asked[:6] == asked[6:]
    assert len({tuple(sorted(p.items())) for p in asked}) == 6


@pytest.mark.ray
def test_a_run_that_was_continued_is_judged_by_all_of_its_curve() -> None:
    from study.tune.searcher import Prober

    def stopped(cut: int) -> tuple[bool, list[int]]:
        """Whether a bad run, cut off after so many evaluations, is given up with its first report; its steps that remain."""
        found = plan(Study(sweeps=("s:kind=search:lr=1e-3,3e-2",)))
        (size,) = found.sizes
        steps = range(50, rungs(size.settings, size.base.train)[0] + 51, 50)
        size.probes = {
            str(i): Probe({"lr": rate}, "COMPLETED", tuple((step, 1.0 + i / 100) for step in steps))
            for i, rate in enumerate((0.004, 0.008))
        }
        prober = Prober(found, [size], lambda trial: (1.0, 0.0), lambda trial: 1.0)
        prober.running["bad"] = size
        lines = [{"trial_id": "bad", "step": step, "val_loss": 5.0} for step in steps]
        earlier, rows = lines[:cut], lines[cut:]
        return prober.stop({"earlier": earlier, "rows": rows}), [row["step"] for row in [*earlier, *rows]]

    whole = stopped(0)
    assert whole[0]
    assert stopped(len(whole[1])) == whole
    assert all(stopped(cut) == whole for cut in range(1, len(whole[1])))


# ---- a real run ----


def small(out: Path) -> list[str]:
    """A study of two widths whose rates are searched, with a third by the law only where it can be."""
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
    from study import run

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
        first = [row for row in own if row["seed"] == 1 and row["status"] == "COMPLETED"]
        assert min(first, key=lambda row: row["val_loss"])["lr"] == best[0]["lr"]
        assert 3 <= len({row["lr"] for row in own}) <= 5
    stopped = [row for row in lines if row["status"] == "STOPPED"]
    assert all(30 <= row["n_steps"] < 60 and row["lr_status"] == "fixed" and row["val_loss"] for row in stopped)
    assert {row["trial_id"] for row in lines} == set(facts(search_done)["trial_ids"])


@pytest.mark.ray
def test_the_same_command_trains_nothing_again(search_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from study import run

    before = {path: path.stat().st_mtime_ns for path in (search_done / "trials").iterdir()}
    assert run.main(small(search_done)) == 0
    assert {path: path.stat().st_mtime_ns for path in (search_done / "trials").iterdir()} == before
    assert "0 to run" in capsys.readouterr().out


@pytest.mark.ray
def test_a_search_continues_from_its_records_to_the_same_tables(search_done: Path, tmp_path: Path) -> None:
    from study import run

    out = tmp_path / "cut"
    shutil.copytree(search_done, out)
    began = sorted(row["started_at"] for row in rows(out))[6]  # the four runs at the common rate and two more
    assert forget(out, lambda row: row["started_at"] >= began) >= 3
    assert run.main(small(out)) == 0
    assert tables(out) == tables(search_done)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_that_was_killed_continues_to_the_same_tables(search_done: Path, tmp_path: Path) -> None:
    from study import run

    out = tmp_path / "killed"
    process = start(small(out), tmp_path / "log")
    assert wait_until(lambda: len(list(out.glob("trials/*.parquet"))) >= 6, 400, process)  # four at the common rate, two more
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(rows(out)) < len(rows(search_done))
    assert run.main(small(out)) == 0
    assert tables(out) == tables(search_done)


def test_a_quote_covers_the_runs_that_a_search_may_make() -> None:
    found = search.plan(Study(sweeps=SWEEPS, seeds=(1, 2)))
    extra = found.upper_bound()
    assert len(extra) == 3 * 8 + 3 + 2
    assert "rates" in found.lines()[0]
    assert "upper bound" in found.lines()[-1]
    assert not {t.trial_id for t in extra} & {t.trial_id for t in found.plain if t.shape.n_layer != 8}
