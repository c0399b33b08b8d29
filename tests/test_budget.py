"""A budget buys the most informative trials: ends of sweeps first, seeds spread, within the quote; suggested trials join their study."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from analysis import __main__ as analysis
from study import run
from study.command import parse
from study.options import Options, parse_budget
from study.plan import budget, memory, packing
from study.plan.packing import Machine, Plan, Speeds, make_plan
from study.plan.quote import Quote, duration, make_quote
from study.plan.scope import to_time, with_timing
from study.results.folder import Survey
from study.results.trial_writer import Recorder, Where
from study.spec import Study, Trial, expand
from tests.running import ROOT, facts, rows, tables, tiny
from tests.test_run import refused

STUDY = Study(sweeps=("depth:n_layer=1,2,4,8", "width:n_embd=16,32,64,96,128", "heads:n_head=1,2,4,16"), seeds=(1, 2, 3))
TRIALS = expand(STUDY)
MACHINE = Machine(cpus=2)
TIMED = expand(Study(sweeps=("width:n_embd=32,64",), seeds=(1, 2)))


def replan(trials: Sequence[Trial]) -> Plan:
    speeds = Speeds()
    speeds.note("cpu", TRIALS[0], 64, 10.0, real=True)
    return make_plan(trials, 64, MACHINE, speeds, Options())


PLAN = replan(TRIALS)
ENDS = {config for pair in budget.sweep_ends(TRIALS).values() for config in pair}


def chosen(text: str, missing: list[Trial] = TRIALS, done: frozenset[str] = frozenset()) -> budget.Chosen:
    return budget.choose(missing, TRIALS, dict.fromkeys(done), replan(missing), parse_budget(text), replan)


# ---- what is chosen ----


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other work: beside it a budget buys less."""
    monkeypatch.setattr("study.plan.quote.busy_cores", lambda: 0.0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["wall", "device"])
def test_what_is_chosen_fits_and_nothing_that_would_fit_is_left_out(share: float, kind: str) -> None:
    def taken(trials: Sequence[Trial]) -> float:
        return replan(trials).seconds if kind == "wall" else replan(trials).device_hours

    limit = max(60.0, share * PLAN.seconds) if kind == "wall" else share * PLAN.device_hours
    found = chosen(f"{limit:.6f}s" if kind == "wall" else f"{limit:.6f} device-hours")
    assert taken(found.trials) <= limit * 1.0001
    assert len(found.trials) + len(found.left_out) == len(TRIALS)
    if kind == "device":
        assert taken([*found.trials, min(found.left_out, key=lambda t: t.shape.params_non_embedding)]) > limit


def test_every_sweep_keeps_its_ends_before_anything_is_repeated() -> None:
    shapes = {(t.shape.n_layer, t.shape.n_embd, t.shape.n_head) for t in TRIALS if t.config_id in ENDS}
    assert shapes == {(1, 64, 4), (8, 64, 4), (4, 16, 4), (4, 128, 4), (4, 64, 1), (4, 64, 16)}
    one_seed_each = replan([t for t in TRIALS if t.config_id in ENDS and t.seed == 1]).device_hours
    found = chosen(f"{1.01 * one_seed_each:.6f} device-hours")
    assert {t.config_id for t in found.trials} >= ENDS
    assert found.cut_sweeps == ()
    assert max(Counter(t.config_id for t in found.trials if t.config_id in ENDS).values()) == 1


def test_the_choice_carries_more_information_than_the_same_cost_in_the_usual_order() -> None:
    limit = 0.45 * PLAN.device_hours
    best = chosen(f"{limit:.6f} device-hours").trials
    usual: list[Trial] = []
    for trial in TRIALS:
        if replan([*usual, trial]).device_hours <= limit:
            usual.append(trial)

    def information(trials: Sequence[Trial]) -> float:
        rows = budget.features([t for t in TRIALS if t.seed == 1])
        counts = Counter(t.config_id for t in trials)
        weights = np.array([budget._weight(counts[t.config_id]) for t in TRIALS if t.seed == 1])
        return float(np.linalg.slogdet((rows * weights[:, None]).T @ rows + budget.PRIOR * np.eye(rows.shape[1]))[1])

    assert information(best) > information(usual)
    assert len({t.shape for t in best}) >= len({t.shape for t in usual})


def test_more_budget_never_loses_information_and_seeds_are_spread() -> None:
    shares = [0.2, 0.4, 0.6, 0.8]
    counts = [Counter(t.config_id for t in chosen(f"{s * PLAN.device_hours:.6f} device-hours").trials) for s in shares]
    assert all(sum(a.values()) <= sum(b.values()) for a, b in pairwise(counts))
    assert all(len(c) == len({t.config_id for t in TRIALS}) for c in counts[2:])  # all configurations before all seeds


def test_what_is_done_is_known_and_not_bought_again() -> None:
    done = frozenset(t.trial_id for t in TRIALS if t.config_id in ENDS and t.seed == 1)
    missing = [t for t in TRIALS if t.trial_id not in done]
    found = chosen(f"{0.25 * PLAN.device_hours:.6f} device-hours", missing, done)
    assert not {t.trial_id for t in found.trials} & done
    assert {t.config_id for t in found.trials} - ENDS  # inner levels now, for the ends are there
    assert found.cut_sweeps == ()


def test_ten_thousand_trials_are_chosen_from_in_seconds() -> None:
    grid = "g:kind=grid:n_layer=" + ",".join(map(str, range(1, 41))) + ":n_embd=" + ",".join(str(16 * i) for i in range(1, 64))
    many = expand(Study(sweeps=(grid,), seeds=(1, 2, 3, 4)))
    plan = replan(many)
    began = time.process_time()
    found = budget.choose(many, many, {}, plan, parse_budget(f"{0.02 * plan.device_hours:.3f} device-hours"), replan)
    assert time.process_time() - began < 5
    assert 0 < len(found.trials) < len(many) == 10_080


# ---- what is said ----


def test_what_is_left_out_is_said_with_count_and_reason_and_listed_in_a_dry_run() -> None:
    found = chosen(f"{0.5 * PLAN.device_hours:.6f} device-hours")
    line, *rest = found.lines(detailed=True)
    assert f"the {len(found.trials)} most informative of 33 missing trials fit by the quote, {len(found.left_out)} are left out" in line
    assert "the same command without --budget trains them" in line
    assert "seeds)" in rest[-1]
    assert len(found.lines(detailed=False)) == len(found.lines(detailed=True)) - 1
    assert chosen("9d").lines(detailed=False) == ["budget 9d: all 33 fit"]


def test_a_budget_too_small_for_one_trial_names_the_cheapest() -> None:
    with pytest.raises(ValueError, match=r"budget=10s is too small for one trial: the cheapest \(1x64h4, 2,000 steps\) is quoted at \d+s"):
        chosen("10s")
    with pytest.raises(ValueError, match=r"is quoted at 0\.00\d+ device-hours of device time; give at least that"):
        chosen("0.00001 device-hours")
    with pytest.raises(ValueError) as said:
        chosen("1s")
    named = str(said.value).split("quoted at ")[1].split(" ")[0]
    assert chosen(named).trials  # what the sentence names is enough


def test_a_budget_is_a_duration_or_device_time() -> None:
    assert parse_budget("0.5 device-hours").device_s == 1800
    assert parse_budget("2 GPU-hours").device_s == 7200
    assert [parse_budget(text).wall_s for text in ("90s", "30m", "1.5h", "2 d")] == [90, 1800, 5400, 172800]
    for text in ("3", "90", "-3s", "soon", "0h", "0 device-hours", "device-hours", "-1 device-hours", "2 hours of device"):
        with pytest.raises(ValueError, match=r"2h or '0\.5 device-hours'"):
            parse_budget(text)


def test_the_guard_stops_a_run_when_device_time_would_be_used_up() -> None:
    assert budget.guard_seconds(parse_budget("2h"), PLAN, spent_s=60) == 7200 - 60 - packing.END_S  # the report is part of the two hours
    assert budget.guard_seconds(parse_budget("60s"), PLAN, spent_s=90) == budget.LEAST_S
    assert budget.guard_seconds(None, PLAN) == 0
    half, whole = (budget.guard_seconds(parse_budget(f"{f * PLAN.device_hours:.9f} device-hours"), PLAN) for f in (1, 2))
    ends = packing.START_S + packing.WORKER_START_S
    assert half == pytest.approx(PLAN.seconds - packing.END_S, rel=1e-6)
    assert whole - ends == pytest.approx(2 * (half - ends), rel=1e-6)


def test_beside_other_work_fewer_trials_are_chosen_and_the_quote_tells_both_times() -> None:
    quoted = Quote(PLAN, MACHINE, 64, Options(), busy_cores=2.0)
    assert quoted.stretch == 2.0
    assert f"beside it the study takes about {duration(2 * PLAN.seconds)}" in "\n".join(quoted.lines())
    assert replace(quoted, busy_cores=0.1).stretch == 1.0
    free, busy = (budget.choose(TRIALS, TRIALS, {}, PLAN, parse_budget("15m"), replan, stretch).trials for stretch in (1.0, 2.0))
    assert 0 < len(busy) < len(free)


def test_device_time_without_a_quote_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, story_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert run.main(["smoke", "--dry-run", "--out", str(tmp_path), "--budget", "1 device-hours"]) == 1
    assert "needs a quote, and there is none on a cluster; give a wall time such as 2h" in capsys.readouterr().err


# ---- on a real Ray ----


@contextmanager
def quoted_at(ms: float, command: list[str]) -> Iterator[None]:
    """A step of every kind that was timed is quoted at so many ms for the time being."""
    machine = make_quote(expand(parse(command).study), 64, Options(precision="float32")).machine
    speeds = Speeds.load()
    before = deepcopy(speeds.seen)
    for entry in speeds.seen[machine.name].values():
        entry["ms"] = ms
    speeds.save()
    yield
    replace(speeds, seen=before).save()


def test_suggested_trials_are_bought_within_a_budget_and_the_study_as_typed_goes_on_with_the_rest(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    assert analysis.main([str(out), "--suggest", "2"]) == 0
    suggested = json.loads((out / "report" / "suggestion.json").read_text())["trials"]
    command = ["--from-suggestion", str(out), "--no-report", "--precision", "float32", "--checkpoint-s", "0"]
    assert run.main([*command, "--dry-run"]) == 0  # times what was never timed here
    capsys.readouterr()
    with quoted_at(2000.0, tiny(out)):  # far above the truth, so that the guard does not interfere
        assert run.main([*command, "--budget", "0.12 device-hours"]) == 0
    assert "the 1 most informative of 2 missing trials fit by the quote, 1 are left out" in capsys.readouterr().out
    after = rows(out)
    assert len(after) == 4
    assert all(row["status"] == "COMPLETED" and row["sweeps"] == ["width"] for row in after)
    (bought,) = ((row["n_embd"], row["seed"]) for row in after if row["trial_id"] not in {row["trial_id"] for row in rows(undisturbed)})
    assert bought in {(t["change"].get("n_embd", 32), t["seed"]) for t in suggested}
    assert facts(out)["suggested"] == [{k: t[k] for k in ("change", "seed", "sweeps")} for t in suggested]
    assert len(facts(out)["trial_ids"]) == 5
    assert run.main(tiny(out, "--no-report", "--dry-run")) == 0  # the study as it was typed still holds them
    shapes = {trial_id.rpartition("-s")[0] for trial_id in facts(out)["trial_ids"]}  # which ones follows from their times here
    assert f"5 trials = {len(shapes)} configurations x 1 seeds; 4 done, 1 to run" in capsys.readouterr().out


def test_a_wall_time_that_the_quote_missed_stops_the_run_and_the_same_command_continues(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tiny(tmp_path, "--no-report")
    for name in ("START_S", "WORKER_START_S", "END_S"):
        monkeypatch.setattr(budget, name, 0.0)
        monkeypatch.setattr(packing, name, 0.0)
    monkeypatch.setattr(packing, "TRIAL_S", 0.0)
    with quoted_at(1e-6, command):
        assert run.main([*command, "--budget", "0.2s", "--max-concurrent", "1"]) == 1
    assert "the budget of 0.2s is used up; what is done is kept" in capsys.readouterr().err
    assert all(row["status"] != "COMPLETED" for row in rows(tmp_path))


# ---- one trial of each kind has its device to itself, and nothing but times changes ----


def test_one_trial_of_each_kind_is_timed_and_one_that_is_missing_is_preferred() -> None:
    narrow, wide = ([trial for trial in TIMED if trial.shape.n_embd == width] for width in (32, 64))
    assert to_time(TIMED, {}) == [narrow[0], wide[0]]
    assert to_time(TIMED, {narrow[0].trial_id: {"exclusive_timing": False}, wide[0].trial_id: {"exclusive_timing": True}}) == [narrow[1]]


def test_what_is_done_but_was_never_alone_runs_again_and_keeps_its_row_until_the_new_one_is_written(tmp_path: Path) -> None:
    done = {trial.trial_id: {"status": "COMPLETED", "exclusive_timing": False} for trial in TIMED}
    found = with_timing(Survey(done, (), 0, 0, 0), TIMED)
    assert [trial.seed for trial in found.missing] == [1, 1]
    assert found.again == {trial.trial_id for trial in found.missing}
    assert len(found.done) == 2
    columns = {"data_name": "x", "data_sha256": "x", "loss_floor": None, "unique_tokens": 1000}
    first = TIMED[0]
    recorder = Recorder(tmp_path, "s", "v", columns, {t.trial_id: t for t in TIMED}, 64, again=found.again)
    for one, written in ((recorder, 0), (replace(recorder, again=frozenset()), 1)):
        one.cut_off(first.trial_id, "INTERRUPTED", "Ctrl-C", [], Where(0.0))
        assert len(rows(tmp_path)) == written


@pytest.mark.ray
def test_a_finished_study_is_timed_afterwards_and_its_losses_stay(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    shared = next(row for row in rows(out) if not row["exclusive_timing"])  # two of the three shared the machine
    command = tiny(out, "--no-report", "--timing", "exclusive", "--sweeps", f"width:n_embd={shared['n_embd']}")
    assert run.main(command) == 0
    assert {row["trial_id"]: row["exclusive_timing"] for row in rows(out)}[shared["trial_id"]]
    assert tables(out) == tables(undisturbed)
    assert "1 to run" in capsys.readouterr().out
    assert run.main(command) == 0
    assert "1 done, 0 to run" in capsys.readouterr().out


# ---- refused before anything starts ----


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--price 2.50", "price='2.50' is not a price per hour; write the amount with its unit, for example --price '$2.50/h'"),
        ("--hold-out largest:9", "leaves fewer than two of the study's 5 sizes to forecast from; hold out 3 at most, or add sizes"),
        ("--hold-out all", "hold-out='all' is not known; write largest, longest, or largest:2"),
        ("--sweeps m:kind=matched:params=90:aspects=16:head_dims=16", "no shape lies within 2% of params=[90]"),
        ("--model.n_layer 100000000", "n_layer=100000000, n_embd=48, batch_size=8, block_size=32 needs about"),
        ("--sweeps width:n_embd=32,4194304", "n_embd=4194304, batch_size=8, block_size=32 needs about 7,066 TiB to train"),
        ("--model.n_embd 1000000007 --model.n_head 4", "n_embd=1000000007 is not divisible by n_head=4; choose n_head=1"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence_and_nothing_is_written(
    arguments: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = refused(capsys, "smoke", *arguments.split(), "--no-report")
    assert (code, sentence in said) == (2, True), said
    assert not list(tmp_path.iterdir())


def test_memory_is_held_against_this_machine_and_against_none_where_another_trains() -> None:
    shapes = [replace(TRIALS[0], shape=replace(TRIALS[0].shape, n_embd=width)) for width in (1024, 8192, 32768)]
    assert memory.room(Options(device="cpu"))[0] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for elsewhere in (Options(dry_run=True), Options(address="auto")):
        assert memory.room(elsewhere) == (memory.ABSURD, "the most that a trial may have is")
    with pytest.raises(ValueError, match=r"n_embd=32768.*GiB to train and this machine has .* choose a smaller shape"):
        memory.check_memory(shapes, Options(device="cpu"))
    memory.check_memory(shapes, Options(dry_run=True))
    memory.check_memory(shapes[:1], Options(device="cpu"))


@pytest.mark.parametrize("module", ["study.run", "analysis"])
def test_output_that_nobody_reads_ends_quietly(module: str, synthetic_results: Path, tmp_path: Path, story_cache: Path) -> None:
    arguments = {"study.run": "smoke --dry-run", "analysis": f"{synthetic_results} --no-report --bootstrap 0 --out {tmp_path}"}[module]
    environment = {**os.environ, "RAY_ADDRESS": "10.0.0.1:6379", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = f"{sys.executable} -m {module} {arguments} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "141"
    assert done.stderr == ""


# ---- suggestions on the command line ----


def test_a_missing_or_foreign_suggestion_gives_one_sentence(
    tmp_path: Path, story_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = {"kind": "suggestion", "name": "mine", "study": asdict(STUDY), "trials": [{"change": {"n_embd": 48}, "seed": 1, "sweeps": []}]}
    Path("alone.json").write_text(json.dumps(body))
    for arguments, words in (
        (["smoke", "--from-suggestion", "alone.json"], "was made for the study mine, not for what the command line says"),
        (["--train.lr", "1e-3", "--from-suggestion", "alone.json"], "leave out STUDY and its flags"),
        (["--from-suggestion", "alone.json"], "alone.json lies outside of its results folder; say with --out"),
    ):
        code, said = refused(capsys, *arguments, "--dry-run")
        assert (code, words in said) == (2, True), said
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # no quote: nothing is timed
    assert run.main(["--from-suggestion", "alone.json", "--out", "here", "--dry-run"]) == 0
    assert "34 trials" in capsys.readouterr().out
