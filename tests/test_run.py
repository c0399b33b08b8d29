"""The command line: what is parsed, what is refused and how it is said, what a dry run shows. No Ray starts here."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study import records, run
from study.command import parse
from study.display import overview
from study.files import read_json, write_json
from study.results import folder
from study.spec import expand
from study.study_file import preset_names, study_flags
from study.tune import signals as interrupt
from tests.conftest import write_synthetic
from tests.running import ROOT

pytestmark = pytest.mark.usefixtures("here")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the sentence on stderr; there must be no traceback."""
    try:
        code = run.main(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, " ".join(said.replace("│", " ").split())


# ---- parsing ----


def test_flags_win_over_the_study_and_the_study_over_defaults() -> None:
    study = parse(["smoke", "--train.lr", "2e-3", "--seeds", "7", "8"]).study
    assert (study.train.lr, study.seeds, study.model.n_embd, study.train.beta2) == (2e-3, (7, 8), 32, 0.99)


def test_the_study_may_come_after_flags_and_is_quick_by_default_and_underscores_and_dashes_are_one() -> None:
    assert parse(["--dry-run", "smoke"]).study == parse(["smoke", "--dry-run"]).study
    assert parse([]).name == "quick"
    assert parse(["smoke", "--train.n-steps", "5", "--dry_run"]) == parse(["smoke", "--train.n_steps", "5", "--dry-run"])


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_expands(name: str) -> None:
    trials = expand(parse([name]).study)
    assert len({trial.trial_id for trial in trials}) == len(trials) > 1
    assert len(study_flags(name)) > 5


def test_a_yaml_study_and_the_same_flags_give_the_same_study_and_its_paths_are_taken_from_the_file(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "s.yaml").write_text("data: {path: book.txt}\n")
    assert Path(parse(["sub/s.yaml"]).study.data.path) == Path("sub/book.txt")
    (here / "mine.yaml").write_text("seeds: 3\ntrain: {lr: 1e-3}\nsweeps:\n  depth: {n_layer: [1, 2]}\n  rate: {lr: [1e-3, 2e-3]}\n")
    command = parse(["mine.yaml"])
    flags = ["--seeds", "3", "--train.lr", "1e-3", "--sweeps", "depth:n_layer=1,2", "rate:lr=1e-3,2e-3"]
    (here / "empty.yaml").write_text("question: What do depth, width, heads, or simply more parameters buy?\n")
    assert command.study == parse(["empty.yaml", *flags]).study
    assert command.study_name == "mine"
    assert command.out.name.startswith("mine-")


# ---- messages ----


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["qiuck"], 2, "there is no study 'qiuck'; did you mean quick? presets are"),
        (["nowhere.yaml"], 2, "there is no study file nowhere.yaml"),
        (["smoke", "--train.lr", "-1"], 2, "lr=-1.0 must be a positive number, for example 1e-3"),
        (["smoke", "--train.lr", "fast"], 2, "'fast' is no number; give numbers such as 64, 1e-3 or 4M"),
        (["smoke", "--sweeps", "heads:n_head=3"], 2, "sweep 'heads': n_embd=32 is not divisible by n_head=3"),
        (["smoke", "--sweeps", "speed:warp=3"], 2, "sweep 'speed' changes unknown field ['warp']"),
        (["smoke", "--gpus-per-trial", "1.5"], 2, "gpus-per-trial=1.5 must be a fraction from 0 to 1 or a whole number"),
        (["smoke", "--cpus-per-trial", "inf"], 2, "cpus-per-trial=inf must be above 0"),
        (["smoke", "--lr-exponent", "99"], 2, "lr_exponent=99.0 must lie between -5 and 5"),
        (["smoke", "--train.unique-tokens", "999999999"], 1, "unique_tokens=999,999,999 must be 0 (all) or at most the"),
        (["smoke", "--model.block-size", "999999"], 1, "the text is too short for block_size=999999"),
        (["smoke", "--budget", "3"], 2, "budget='3' is not a duration; write a number with a unit, for example 90s, 30m, 2h"),
        (["smoke", "--data.path", "missing.txt"], 1, "missing.txt"),
    ],
)
def test_a_mistake_gives_one_sentence_and_the_right_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, sentence: str
) -> None:
    found, said = refused(capsys, *arguments, "--dry-run")
    assert found == code, said
    assert sentence in said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seeds: [1, 2\n", "is not valid YAML"),
        ("- a\n- b\n", "holds no study"),
        ("sedes: [1]\n", "has an unknown key 'sedes'"),
        ("out: /etc\n", "has an unknown key 'out' (where to run belongs on the command line)"),
        ("model: [1, 2]\n", "model should be a mapping of fields to values, for example model: {n_layer: 4}"),
        ("sweeps: depth\n", "sweeps should map each name to its fields"),
        ("sweeps: {../../evil: {n_layer: [1, 2]}}\n", "has a name that cannot be used"),
        ("sweeps: {-a: {n_layer: [1, 2]}}\n", "the sweep '-a' begins with a dash"),
        ("sweeps: ['-a:n_layer=1,2']\n", "the sweep '-a' begins with a dash"),
        ("train: {learning_rate: 1}\n", "--train.learning_rate"),
        ("question: !!python/object/apply:os.system ['true']\n", "holds in line 1 what no study holds"),
    ],
)
def test_a_bad_study_file_is_refused_in_words(capsys: pytest.CaptureFixture[str], here: Path, text: str, sentence: str) -> None:
    (here / "bad.yaml").write_text(text)
    code, said = refused(capsys, "bad.yaml", "--dry-run")
    assert (code, sentence in said) == (2, True), said


def test_help_costs_little_more_than_the_parser_of_flags_itself() -> None:
    """Under half a second on a processor of 2023; in units of importing tyro, so that it holds on slower ones."""

    def seconds(*command: str) -> tuple[float, str]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout

    helps = [seconds("-m", "study.run", "--help") for _ in range(3)]
    assert "--train.lr FLOAT" in helps[0][1]
    assert "presets" in helps[0][1].lower()
    assert min(helps)[0] < 5 * min(seconds("-c", "import tyro")[0] for _ in range(3))


# ---- before anything starts ----


def test_a_dry_run_shows_every_configuration_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["smoke", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "14 trials = 7 configurations x 2 seeds; 0 done, 14 to run" in said
    assert "depth, width, heads" in said
    assert not (here / "results").exists()


def test_a_dry_run_of_data_that_are_not_here_downloads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert run.main(["smoke", "--data.name", "tinystories", "--dry-run"]) == 0
    assert "not on this machine yet" in capsys.readouterr().out
    assert time.monotonic() - began < 5


def test_a_survey_tells_done_missing_stale_and_foreign_rows_apart(here: Path) -> None:
    trials = expand(parse(["smoke"]).study)
    template = write_synthetic(here / "synthetic", seeds=1)[0]
    held = [("COMPLETED", "now"), ("DIVERGED", "now"), ("FAILED", "now"), ("COMPLETED", "old data"), ("COMPLETED", "now")]
    ids = [*(trial.trial_id for trial in trials[:4]), "somebody-else"]
    for trial_id, (status, sha256) in zip(ids, held, strict=True):
        row = {**template, "trial_id": trial_id, "status": status, "data_sha256": sha256}
        records.write(here / "out" / "trials" / f"{trial_id}.parquet", "trials", [row])
    found = folder.survey(here / "out", trials, "now")
    assert set(found.done) == {trials[0].trial_id, trials[1].trial_id}
    assert len(found.missing) == len(trials) - 2
    assert (found.failed_before, found.stale, found.foreign) == (1, 1, 1)
    assert trials[3] in found.missing


def test_json_is_replaced_whole_and_damaged_json_reads_as_nothing(here: Path) -> None:
    path = here / "study.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [p.name for p in here.iterdir()] == ["study.json"]
    path.write_text("{")
    assert read_json(path) == {}


def test_numbers_are_short() -> None:
    told = {12: "12", 999: "999", 1234: "1.23K", 4_845_824: "4.85M", 81_920_000: "81.9M", 1.5e13: "1.50e+13"}
    assert {x: overview.compact(x) for x in told} == told


def test_an_interrupt_outside_of_training_ends_the_run_with_its_code() -> None:
    with interrupt.Interrupts() as interrupts:
        with pytest.raises(interrupt.Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) != interrupts._handle


@pytest.mark.parametrize("file", ["...yaml", "..yaml", "a b;c.yaml", "$(x).yaml"])
def test_a_study_file_of_any_name_has_its_results_inside_the_results_folder(file: str, here: Path) -> None:
    (here / file).write_text("question: q\n")
    out = parse([str(here / file)]).out
    assert out.parent == here / "results"
    assert out.name not in ("", ".", "..")
