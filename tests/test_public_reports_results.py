"""Faults that people reported of programs like this one, tried on this one: what is made of results. Each case in our own words."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.__main__ import main as analysis
from analysis.figures.sweeps import slugs
from analysis.report import exports
from analysis.report.document import Cell, Listing
from tests.running import write_study
from tests.test_public_reports_files import as_somebody_else, names, place  # noqa: F401

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


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a colleague's."""
    results = tmp_path_factory.mktemp("theirs") / "theirs"
    write_study(results, "smoke", lambda trial: 1 + trial.shape.params_non_embedding**-0.2)
    (results / "forecasts.json").write_text('{"schema_version": "1.0", "forecasts": []}')
    return results


@pytest.fixture
def read_only(place: Path, theirs: Path) -> Iterator[Path]:  # noqa: F811
    """The same in a folder that this account may read but not write."""
    results = theirs.rename(place / "theirs")
    before = names(results)
    with as_somebody_else():
        yield results
    assert names(results) == before
    results.rename(theirs)


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
    line = [str(read_only), *flags.format(read_only).split()]
    assert analysis(line) == 1
    assert capsys.readouterr().err.endswith("cannot be read or written (Permission denied); give --out a folder that can be written\n")
    out = read_only.parent / "elsewhere"
    assert analysis([*line, "--out", str(out)]) == 0
    assert files <= names(out)
    assert str(out) in capsys.readouterr().out


def test_a_forecast_that_cannot_go_on_record_names_what_would_help(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis([str(read_only), "--forecast", "3x64h4", "--bootstrap", "0"]) == 1
    assert "work on a copy of the results" in capsys.readouterr().err
