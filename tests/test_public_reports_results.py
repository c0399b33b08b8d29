"""Faults that people reported of programs like this one, tried on this one: what is made of results. Each case in our own words."""

import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis
from analysis.figures.sweeps import slugs
from analysis.report import exports
from analysis.report.document import Cell, Listing
from study.command import parse
from study.files import read_json, write_json
from tests.running import write_study
from tests.test_public_reports_files import names

# ---- names that become equal files ----


def test_names_that_look_alike_are_files_of_their_own_even_where_case_does_not_count() -> None:
    alike = ["size (a)", "size +a+", "size .a.", "Size .A.", "x" * 40 + "1", "x" * 40 + "2", "größe", "gr_e", "../x", "(( x"]
    files = slugs({"sweeps": [{"name": name} for name in alike[::2]], "fronts": [{"name": name} for name in alike]})
    assert len({file.casefold() for file in files.values()}) == len(alike)
    assert not [file for file in files.values() if "/" in file or "." in file]


def test_no_table_of_an_earlier_report_stays_and_every_table_of_a_person_s_own_does(tmp_path: Path) -> None:
    own = {"mine.csv", "notes.tex"}
    for name in own:
        (tmp_path / name).touch()
    for name in ("sweep_old", "sweep_new"):
        exports.write_tables([Listing(name, "", ["loss"], [[Cell("1.2", numeric=True)]])], tmp_path)
        assert names(tmp_path) == {f"{name}.csv", f"{name}.tex", *own}


# ---- results that cannot be written ----


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Results on a disk that cannot be written."""
    results = tmp_path / "theirs"
    write_study(results, "smoke", lambda trial: 1 + trial.shape.params_non_embedding**-0.2)
    facts = read_json(results / "study.json")
    write_json(results / "study.json", facts | {"study": asdict(parse(["smoke"]).study)})
    (results / "forecasts.json").write_text('{"schema_version": "1.0", "forecasts": []}')
    frozen = f"mount --bind {results} {results} && mount -o remount,ro,bind {results}"
    done = subprocess.run(frozen, shell=True, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this system does not let a test mount a file system: {done.stderr.strip()}")
    yield results
    subprocess.run(["umount", "-l", results], check=True)


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        (
            "--bootstrap 0",
            {"fits.json", "answer.json", "report.html", "report.md", "report.ipynb", "figures/loss.png", "tables/levers.csv"},
        ),
        ("--suggest 2", {"suggestion.json"}),
        ("{} --bootstrap 0", {"comparison.html", "comparison.json", "figures/both.svg"}),
    ],
)
def test_all_that_is_written_goes_where_out_says(read_only: Path, flags: str, files: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = read_only.parent / "elsewhere"
    assert analysis([str(read_only), *flags.format(read_only).split(), "--out", str(out)]) == 0
    assert files <= names(out)
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("--suggest 2", "give --out a folder that can be written"),
        ("--forecast 3x32h4", "work on a copy of the results"),
        ("--export {}/a.csv", "name another place"),
    ],
)
def test_where_nothing_can_be_written_what_is_advised_helps(
    read_only: Path, flags: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analysis([str(read_only), *flags.format(read_only).split()]) == 1
    assert capsys.readouterr().err.endswith(f"cannot be read or written (Read-only file system); {advice}\n")
