"""The notebook to go on from: it holds the tables and the numbers, runs from a moved folder alone, and never ends a report."""

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from analysis.__main__ import analyze
from analysis.report import notebook
from analysis.table import evidence
from tests.conftest import write_synthetic
from tests.test_report import HOSTILE, restate


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with its report, moved after it was written; its question is hostile."""
    first = tmp_path_factory.mktemp("first") / "results"
    write_synthetic(first, seeds=2, sweeps=("width", "depth"))
    restate(first, question=HOSTILE)
    analyze(first)
    place = tmp_path_factory.mktemp("moved") / "else'where"
    shutil.move(first, place)
    return place


@pytest.fixture(scope="module")
def executed(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run under a person's own settings: LaTeX in figures, a start-up file that ends the kernel, a temporary folder of a long name."""
    home = tmp_path_factory.mktemp("x" * 98)
    (home / "matplotlibrc").write_text("text.usetex: True\nlines.marker: x\n")
    (home / "profile_default" / "startup").mkdir(parents=True)
    (home / "profile_default" / "startup" / "first.py").write_text("import os; os._exit(3)")
    with pytest.MonkeyPatch.context() as there:
        there.setenv("MPLCONFIGDIR", str(home))
        there.setenv("IPYTHONDIR", str(home))
        there.setattr("tempfile.tempdir", str(home))
        assert notebook.main([str(moved)]) == 0
    return json.loads((moved / "report" / "report.ipynb").read_text(encoding="utf-8"))


def test_the_report_writes_it_without_running_it(synthetic_results: Path, tmp_path: Path) -> None:
    made = notebook.write(evidence.load(synthetic_results, {"answer": []}), tmp_path / "report.ipynb")
    saved = nbformat.read(tmp_path / "report.ipynb", as_version=4)
    assert saved == made
    assert not [cell for cell in saved.cells if cell.get("outputs")]
    assert repr(str(synthetic_results.resolve())) in saved.cells[1].source


def test_it_runs_from_top_to_bottom_from_a_moved_folder_and_prints_the_answer_first(executed: dict[str, Any], moved: Path) -> None:
    nbformat.validate(nbformat.from_dict(executed))
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 3  # DataFrames
    printed = "".join("".join(output.get("text", "")) for output in cells[0]["outputs"])
    assert all(sentence in printed for sentence in json.loads((moved / "report" / "answer.json").read_text())["sentences"])
    title = "".join(executed["cells"][0]["source"])
    assert not [sign for sign in ("<script>", "**bold**", "[link](") if sign in title]


def test_levers_and_laws_are_tables_of_the_numbers_in_fits_json(moved: Path) -> None:
    fits = evidence.load(moved).fits
    known = [row for row in fits["levers"] if "refused" not in row["gain_per_doubling"]]
    shown = notebook.levers(fits)
    assert list(shown["gain_per_doubling.value"]) == [row["gain_per_doubling"]["value"] for row in known]
    assert pd.api.types.is_numeric_dtype(shown["gain_per_doubling.low"])
    laws = [row for row in fits["shape"]["by_length"] if "refused" not in row["law"] and "value" in row["law"]["a"]]
    assert len(notebook.laws(fits)) == len(laws)
    assert notebook.levers({}).empty


def test_a_kernel_that_cannot_start_is_named_and_leaves_the_notebook(
    moved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", "/nowhere")
    monkeypatch.setattr(notebook, "KERNEL", "no-such-kernel")
    assert notebook.main([str(moved)]) == 1
    assert "without all outputs" in capsys.readouterr().out
    assert len(nbformat.read(moved / "report" / "report.ipynb", as_version=4).cells) > 10


def test_a_folder_without_a_report_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert notebook.main([str(tmp_path)]) == 1
    assert "write it with: python -m analysis" in capsys.readouterr().err
