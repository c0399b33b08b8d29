"""`--timing exclusive`: one trial of each kind of step has its device to itself, and nothing but times changes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from study import run
from study.plan.scope import to_time, with_timing
from study.results.folder import Survey
from study.results.trial_writer import Recorder, Where
from study.spec import Study, expand
from tests.running import rows, tables, tiny

TRIALS = expand(Study(sweeps=("width:n_embd=32,64",), seeds=(1, 2)))


def test_one_trial_of_each_kind_is_timed_and_one_that_is_missing_is_preferred() -> None:
    by_width = {width: [trial for trial in TRIALS if trial.shape.n_embd == width] for width in (32, 64)}
    assert to_time(TRIALS, {}) == [by_width[32][0], by_width[64][0]]
    shared = {"status": "COMPLETED", "exclusive_timing": False}
    done = {by_width[32][0].trial_id: shared, by_width[64][0].trial_id: shared | {"exclusive_timing": True}}
    assert to_time(TRIALS, done) == [by_width[32][1]]


def test_what_is_done_but_was_never_alone_runs_again_and_keeps_its_row_until_the_new_one_is_written(tmp_path: Path) -> None:
    done = {trial.trial_id: {"status": "COMPLETED", "exclusive_timing": False} for trial in TRIALS}
    found = with_timing(Survey(done, (), 0, 0, 0), TRIALS)
    assert [trial.seed for trial in found.missing] == [1, 1]
    assert found.again == {trial.trial_id for trial in found.missing}
    assert len(found.done) == 2
    columns = {"data_name": "x", "data_sha256": "x", "loss_floor": None, "unique_tokens": 1000}
    first = TRIALS[0]
    recorder = Recorder(tmp_path, "s", "v", columns, {t.trial_id: t for t in TRIALS}, 64, again=found.again)
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
