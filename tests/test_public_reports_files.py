"""Faults that people reported of programs like this one, tried on this one: files, names and text, each case in our own words."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.__main__ import main as analysis
from study import records, run
from study.command import parse
from study.data import corpus as data
from study.display.overview import cautions
from study.files import read_json, write_json
from study.results import folder
from study.results.object_store import Store
from study.results.store_sync import Mirror
from study.spec import DataConfig, expand
from study.study_file import preset_names
from study.sweeps import parse_sweep
from study.train import checkpoint
from tests.running import ROOT
from tests.test_records import losses, write_part
from tests.test_run import refused

# ---- a file that cannot be opened is not a damaged one ----


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any account can reach and write, as a shared one."""
    path = Path(tempfile.mkdtemp(prefix="study-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def as_somebody_else(theirs: Path) -> Iterator[None]:
    """An account that may not read a colleague's file: root, who may read all, becomes nobody for the time being."""
    theirs.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        theirs.chmod(0o700)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own in the working directory that finds our packages."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def names(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


@pytest.mark.parametrize("theirs", ["trials/a.parquet", "trials.parquet", "trials"])
def test_a_table_without_permission_ends_the_command_and_stays(place: Path, theirs: str) -> None:
    for trial_id in "ab":
        write_part(place, trial_id)
    records.compact(place, "trials")
    before = names(place)
    (place / "trials" / "b.parquet").write_bytes(b"PAR1")  # and a damaged one beside it
    os.utime(place / "trials" / "a.parquet", (1, 1))
    with as_somebody_else(place / theirs), pytest.raises(PermissionError, match=theirs):
        folder.survey(place, [], "sha")
    assert names(place) == before


def test_a_study_json_without_permission_is_not_taken_for_an_empty_one(place: Path) -> None:
    path = place / "study.json"
    path.write_text('{"suggested": [1]}')
    with as_somebody_else(path), pytest.raises(PermissionError, match=r"study\.json"):
        read_json(path)
    assert read_json(path) == {"suggested": [1]}


@pytest.mark.parametrize("part", ["meta.json", "train.bin", "."])
@pytest.mark.parametrize("verify_bytes", [data.VERIFY_BYTES, 0])
def test_a_cached_text_without_permission_is_named_and_stays(
    place: Path, part: str, verify_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "VERIFY_BYTES", verify_bytes)  # large texts are not hashed
    config = DataConfig(train_chars=2000)
    cached = data.prepare(config, place).path
    before = names(place)
    with as_somebody_else(cached / part), pytest.raises(ValueError, match=rf"{part} cannot be read .*SCALING_STUDY_CACHE"):
        data.prepare(config, place)
    assert names(place) == before
    (cached / (part if part != "." else "val.bin")).write_bytes(b"")
    assert data.prepare(config, place).path == cached  # bytes that were read and are wrong are set aside


@pytest.mark.parametrize("part", ["state.json", "state.safetensors"])
def test_a_checkpoint_without_permission_is_not_set_aside(place: Path, part: str) -> None:
    step = place / "t" / "step-00000020"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    (step / "state.safetensors").write_bytes(b"x")
    before, notes = names(place), list[str]()
    with as_somebody_else(step / part), pytest.raises(PermissionError, match=part):
        checkpoint.load(place, "t", 20, {}, notes)
    assert names(place) == before
    assert checkpoint.load(place, "t", 20, {}, notes) is None
    assert len(notes) == 1


def test_a_folder_that_cannot_be_listed_is_not_deleted_from_its_store(place: Path) -> None:
    mirror = Mirror(Store.at("s3://nowhere/a"), place / "a")
    (mirror.folder / "trials").mkdir()
    with as_somebody_else(mirror.folder / "trials"), pytest.raises(PermissionError):
        mirror.push()


@pytest.mark.parametrize("name", ["ü".encode(), "ü".encode("latin-1"), "宽度".encode()])
@pytest.mark.parametrize("locale", ["de_DE.ISO-8859-1", "C"])
def test_results_in_a_folder_of_any_name_are_read_under_any_locale(tmp_path: Path, name: bytes, locale: str) -> None:
    charmap = subprocess.run(
        ["localedef", "--no-archive", "-i", "de_DE", "-f", "ISO-8859-1", tmp_path / "de_DE.ISO-8859-1"], capture_output=True, check=False
    )
    if charmap.returncode and locale != "C":
        pytest.skip("no locales can be made here")
    out = tmp_path / os.fsdecode(name)
    write_part(out, "a")
    damaged = write_part(out, "b")
    damaged.write_bytes(b"PAR1")
    code = (
        "import sys; from pathlib import Path; from study.results import folder; from study import records;"
        "out = Path(sys.argv[1]); folder.survey(out, [], 'x'); print(sys.getfilesystemencoding(), records.compact(out, 'trials'))"
    )
    done = python("-c", code, str(out), LC_ALL=locale, LOCPATH=str(tmp_path), PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.stdout.split() == ["iso8859-1" if locale != "C" else "ascii", "1"], done.stderr
    assert losses(out) == {"a": 2.0}
    assert len(list((out / "trials").glob("b.parquet.bad-*"))) == 1


# ---- one folder for each study and each text ----


def write(path: str, text: str = "question: q\n") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("first", "second"),
    [("西游记.txt", "红楼梦.txt"), ("a/input.txt", "b/input.txt"), ("a b.txt", "a-b.txt"), ("x" * 99 + "1", "x" * 99 + "2")],
)
def test_two_texts_never_share_a_results_folder(here: Path, first: str, second: str) -> None:
    one, other = (parse(["quick", "--data.path", text]).out for text in (first, second))
    assert one != other
    assert one == parse(["quick", "--data.path", str(here / first)]).out  # one text, however it is named
    assert Path(first).stem[:3].replace(" ", "-") in one.name


@pytest.mark.parametrize(("first", "second"), [("宽度.yaml", "深度.yaml"), ("a/study.yaml", "b/study.yaml"), ("चौड़ाई.yaml", "quick.yaml")])
def test_two_study_files_never_share_a_results_folder_nor_one_with_a_preset(here: Path, first: str, second: str) -> None:
    one, other = (parse([write(name)]).out for name in (first, second))
    assert len({one, other, parse(["quick"]).out}) == 3
    assert one.name.startswith(Path(first).stem + "-")
    shutil.copytree(here, here.with_name("moved"))  # a project moved with its results
    os.chdir(here.with_name("moved"))
    assert parse([first]).out.name == one.name


def test_texts_that_are_no_files_have_folders_of_their_own_too(here: Path) -> None:
    others = "seed 5", "train_chars 1M", "tokenizer bytes", "name tinystories", "name hub:a/b-c", "name hub:a-b/c"
    outs = {parse(["quick", *(f"--data.{other}".split() if other else [])]).out for other in ("", *others)}
    assert len(outs) == 7
    assert {here / "results" / "quick", here / "results" / "quick-tinystories"} <= outs


@pytest.mark.parametrize(
    ("arguments", "former"),
    [
        (["mine.yaml"], "mine"),
        (["宽度.yaml"], "study"),
        (["quick", "--data.path", "My book.txt"], "quick-My-book"),
        (["quick", "--data.seed", "5"], "quick"),
    ],
)
def test_a_folder_that_an_earlier_version_named_continues_for_its_own_study_only(here: Path, arguments: list[str], former: str) -> None:
    write("mine.yaml"), write("宽度.yaml"), write("elsewhere/mine.yaml"), write("elsewhere/My book.txt")
    command = parse(arguments)
    facts = {
        "name": former.partition("-")[0],
        "command": shlex.join(["python", "-m", "study.run", *arguments]),
        "study": asdict(command.study),
    }
    del facts["study"]["data"]["tokenizer"]  # of a version that did not know it
    write_json(here / "results" / former / "study.json", facts)
    assert command.out == here / "results" / former
    another = [*arguments[:-1], "6" if arguments[-1] == "5" else f"elsewhere/{arguments[-1]}"]
    write("elsewhere/宽度.yaml")
    assert parse(another).out != here / "results" / former
    write_json(here / "results" / former / "study.json", {**facts, "command": "python -m study.run --from-suggestion x"})
    assert command.out == here / "results" / former


def test_another_text_in_an_existing_folder_few_words_and_a_wild_rate_are_said_before_the_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("short.txt", "It was a dark night.\n" * 95)
    write_json(here / "r" / "study.json", {"data_sha256": "another", "data": {"source": "your text old.txt"}})
    arguments = ["smoke", "--data.path", "short.txt", "--out", "r", "--train.lr", "7", "--train.n_steps", "1500"]
    assert run.main([*arguments, "--train.eval_windows", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "training tokens from a text of 1,7" in said
    assert "lr=7 is far above" in said
    assert "r holds results of another text (your text old.txt)" in said


@pytest.mark.parametrize("name", [name for name in preset_names() if name != "original"])
def test_presets_give_no_cause_for_a_warning(here: Path, name: str) -> None:
    command = parse([name])
    corpus = SimpleNamespace(train=range(command.study.data.train_chars), sha256="x")
    assert cautions(expand(command.study), corpus, command.out) == []  # type: ignore[arg-type]


# ---- a home that cannot be found ----


@pytest.mark.parametrize(
    "arguments", ["smoke --out ~nosuchuser/x", "smoke --data.path ~nosuchuser/x", "~nosuchuser/x.yaml", "--from-suggestion ~nosuchuser/x"]
)
def test_a_home_that_cannot_be_found_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    assert run.main([*arguments.split(), "--dry-run"]) in (1, 2)
    said = capsys.readouterr().err
    assert "~nosuchuser/x" in said
    assert "begins with a home folder that cannot be found" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["~nosuchuser/x", "{} --out ~nosuchuser/x", "{} --against ~nosuchuser/x"])
def test_the_analysis_says_so_too(synthetic_results: Path, capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    assert analysis(arguments.format(synthetic_results).split()) == 1
    assert "=~nosuchuser/x begins with a home folder that cannot be found" in capsys.readouterr().err


def test_a_tilde_means_home_everywhere(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(here))
    write("mine.yaml", "data: {path: ~/my.txt}\n")
    write("my.txt", "It was a dark night.\n" * 500)
    monkeypatch.setenv("SCALING_STUDY_CACHE", "~/cache")
    assert parse(["~/mine.yaml", "--out", "~/r"]).out == here / "r"
    assert run.main(["~/mine.yaml", "--train.n_steps", "20", "--dry-run"]) == 0
    assert (here / "cache" / "corpora").is_dir()
    assert not (here / "~").exists()
    monkeypatch.setenv("SCALING_STUDY_CACHE", "~nosuchuser/x")
    assert run.main(["smoke", "--dry-run"]) == 1
    assert "SCALING_STUDY_CACHE=~nosuchuser/x begins with" in capsys.readouterr().err


# ---- study files as they are written ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sweeps:\n  width: {n_embd: [16]}\n  width: {n_embd: [32]}\n", "has the key 'width' twice, in lines 2 and 3"),
        ("seeds: [1]\nquestion: q\nseeds: [2]\n", "has the key 'seeds' twice, in lines 1 and 3"),
        ("train:\n  lr: 1e-3\n  'lr': 2e-3\n", "has the key 'lr' twice, in lines 2 and 3"),
        ("a: &a [*a]\n", "holds in line 1 what no study holds"),
        ("seeds: !!binary aGk=\nx: !mine 3\n", "holds in line 2 what no study holds"),
    ],
)
def test_what_a_study_file_says_twice_or_nobody_can_mean_is_refused_with_its_lines(here: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse([write("bad.yaml", text)])


def test_values_are_read_as_they_stand_and_numbers_may_have_suffixes_everywhere(here: Path) -> None:
    text = "question: yes\nseeds: 010\ntrain: {n_steps: 010, lr: 1e-3}\ndata: {train_chars: 4M}\nsweeps: {on: {n_layer: [010, 2]}}\n"
    study = parse([write("s.yaml", text), "--train.unique_tokens", "2.5K", "--train.beta1=1e-1"]).study
    assert (study.question, study.seeds, study.data.train_chars) == ("yes", (10,), 4_000_000)
    assert (study.train.n_steps, study.train.lr, study.train.unique_tokens, study.train.beta1) == (10, 1e-3, 2500, 0.1)
    assert [trial.shape.n_layer for trial in expand(study)] == [10, 2]
    assert expand(study)[0].sweeps == ("on",)
    assert parse([write("s.yaml", "question: 1:30\nmodel:\nseeds: ~\n")]).study.question == "1:30"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--n_layer 4", "there is no flag --n_layer; did you mean --model.n-layer?"),
        ("--lr=1e-3", "did you mean --train.lr?"),
        ("--train.bach 3", "did you mean --train.batch-size?"),
        ("--learning_rate 1", "there is no flag --learning_rate"),
        ("--train.n_steps 4X", "'4X' is no whole number; give numbers such as 64, 1e6 or 4M"),
        ("--train.n_steps 1.5", "'1.5' is no whole number"),
    ],
)
def test_a_flag_that_does_not_exist_names_the_nearest(here: Path, capsys: pytest.CaptureFixture[str], flags: str, words: str) -> None:
    code, said = refused(capsys, "smoke", *flags.split())
    assert (code, words in said) == (2, True), said


@pytest.mark.parametrize("question", ['"a\\e[2Jb"', '"a\\0b"', '"a\\x9b2Jb"', '"a\\nb"'])
def test_a_question_holds_no_control_characters(here: Path, question: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = write("s.yaml", f"question: {question}\n")
    assert run.main([name, "--train.n_steps", "20", "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.isprintable()
    assert parse([name]).study.question.split()[0] == "a"


STEERING = ("a\x1b[2J", "$x$", "a\u202eb", "-a", "../../evil", "/tmp/evil", "a/b", "a\\b", "..", "a\nb", "x" * 61)


@pytest.mark.parametrize(("name", "allowed"), [("größe", True), ("चौड़ाई", True), *((name, False) for name in STEERING)])
def test_sweeps_are_named_in_any_script_without_signs_that_steer_nor_like_paths(name: str, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(ValueError, match="has a name that cannot be used"):
        assert parse_sweep(f"{name}:n_layer=1").name == name


# ---- packages of the user's with the names of ours ----


@pytest.mark.parametrize("file", ["models.py", "models/__init__.py", "analysis.py"])
def test_a_file_that_hides_one_of_our_packages_is_named(here: Path, file: str) -> None:
    write(file, "raise SystemExit('not ours')\n")
    done = python("-m", "study.run", "smoke")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {here / file} hides the package {Path(file).parts[0].removesuffix('.py')} of this program, for python -m looks into the "
        "working directory first; give the same flags to the command scaling-study run, which does not, or work in another folder\n"
    )


def test_a_study_py_beside_the_results_is_named_by_the_analysis(here: Path) -> None:
    write("study.py", "answer = 42\n")
    assert (
        python("-m", "analysis", "x").stderr
        == "error: a study.py in the working directory hides a package of this program; use: scaling-study report RESULTS\n"
    )


def test_the_console_command_does_not_look_into_the_working_directory(here: Path, synthetic_results: Path) -> None:
    for name in ("models.py", "study.py", "analysis.py", "numpy.py"):
        write(name, "raise SystemExit('not ours')\n")
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["scaling-study"].partition(":")
    script = write("bin/scaling-study", f"import sys; from {module} import {function}; sys.exit({function}())\n")  # as pip writes it
    assert "to run" in python(script, "run", "smoke", "--dry-run").stdout
    done = python(script, "report", str(synthetic_results), "--no-report", "--bootstrap", "0", "--out", "r")
    assert (done.returncode, Path("r/fits.json").exists()) == (0, True), done.stderr
    assert "holds no weights" in python(script, "score", str(synthetic_results), "--text", "models.py").stderr
    assert python(script).returncode == 2
    assert "scaling-study run" in python(script, "--help").stdout
