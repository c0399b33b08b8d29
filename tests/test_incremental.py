"""The same command again runs only what is missing: what a study gains is trained, what it keeps is not, what no longer fits is named."""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from models.config import Shape
from study import run, spec
from study.command import parse
from study.data import corpus as data
from study.results import folder
from study.spec import DataConfig, Study, TrainConfig, Trial, expand
from tests.running import facts, rows, tables, tiny

pytestmark = pytest.mark.ray


@pytest.fixture
def results(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished study of three widths and one seed, to be added to."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    return out


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ("", ["3 trials = 3 configurations x 1 seeds; 3 done, 0 to run"]),
        ("--sweeps width:n_embd=16,24,32,40", ["4 trials = 4 configurations x 1 seeds; 3 done, 1 to run"]),
        ("--seeds 1 2", ["6 trials = 3 configurations x 2 seeds; 3 done, 3 to run"]),
        ("--sweeps width:n_embd=16,24,32 depth:n_layer=1,2,4", ["5 trials = 5 configurations x 1 seeds; 3 done, 2 to run"]),
        ("--sweeps width:n_embd=16,24", ["2 trials = 2 configurations x 1 seeds; 2 done, 0 to run"]),
        (
            "--train.weight_decay 0.2",
            ["0 done, 3 to run", "3 rows are of trials that the study, as it is now, does not hold; they stay and are left out"],
        ),
        ("--data.seed 1", ["0 done, 3 to run", "3 stale rows (older recipe or other data) stay in the folder and are left out"]),
    ],
    ids=["nothing", "a size", "a seed", "a sweep that shares the centre", "a size less", "a recipe", "a text"],
)
def test_what_is_added_or_changed_is_all_there_is_to_run_and_rows_that_no_longer_count_are_named(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: str, sentences: list[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # on a cluster no steps are timed for a quote
    assert run.main([*tiny(results, "--dry-run"), *change.split()]) == 0
    said = capsys.readouterr().out
    assert [sentence for sentence in sentences if sentence not in said] == []


def test_numerics_of_another_version_make_rows_stale(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = parse(tiny(results))
    corpus = data.prepare(command.study.data)
    for module in (spec, folder):
        monkeypatch.setattr(module, "RECIPE_VERSION", spec.RECIPE_VERSION + 1)
    found = folder.survey(results, expand(command.study, data.data_key(command.study.data)), corpus.sha256)
    assert (len(found.done), len(found.missing), found.stale) == (0, 3, 3)


def test_a_field_that_is_added_with_its_old_meaning_as_default_readdresses_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def config_id(**changes: float) -> str:
        return Trial(Shape(), TrainConfig(**changes), DataConfig(), 1).config_id  # type: ignore[arg-type]

    known = config_id()
    kept = tuple(f for f in fields(TrainConfig) if f.name != "dropout")
    with monkeypatch.context() as patch:  # as if dropout did not exist yet
        patch.setattr(spec, "fields", lambda value: kept if isinstance(value, TrainConfig) else fields(value))
        without = config_id()
    monkeypatch.setitem(spec._ADDED_LATER, "train.dropout", 0.0)
    assert config_id() == without
    assert without not in (known, config_id(dropout=0.1))


def test_a_default_that_changes_moves_only_the_studies_that_leave_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def ids() -> tuple[set[str], set[str]]:
        return tuple({t.trial_id for t in expand(Study(train=train))} for train in (TrainConfig(), TrainConfig(lr=4e-3)))  # type: ignore[return-value]

    left_open, spelled_out = ids()
    assert left_open == spelled_out
    defaults = TrainConfig.__init__.__defaults__
    assert defaults is not None
    monkeypatch.setattr(TrainConfig.__init__, "__defaults__", tuple(5e-3 if value == 4e-3 else value for value in defaults))
    assert TrainConfig().lr == 5e-3
    assert ids()[1] == spelled_out
    assert not ids()[0] & left_open


def test_a_length_and_a_seed_are_added_to_rows_that_stay_as_they_were_and_one_process_trains_like_two(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First one length of a trunk; then one length and one seed more, one after another in one process; against all at once in two."""
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    few = ["--train.schedule", "wsd", "--sweeps", "short:kind=grid:n_steps=60"]
    more = ["--train.schedule", "wsd", "--sweeps", "text:kind=grid:n_steps=60,120", "--seeds", "1", "2"]
    assert run.main([*tiny(grown, "--no-report"), *few]) == 0
    (first,) = rows(grown)
    assert run.main([*tiny(grown, "--no-report", "--max-concurrent", "1"), *more]) == 0
    assert "4 trials = 2 configurations x 2 seeds; 1 done, 3 to run" in capsys.readouterr().out
    assert {**first, "sweeps": ["text"]} in rows(grown)  # what was measured stays; its sweeps follow the study as it is now
    assert all(row["exclusive_timing"] for row in rows(grown))
    assert run.main([*tiny(whole, "--no-report"), *more]) == 0
    assert tables(grown) == tables(whole)
    assert not list((grown / "checkpoints").glob("*/*"))
    assert set(facts(grown)["trial_ids"]) == {row["trial_id"] for row in rows(grown)}
