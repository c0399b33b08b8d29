"""The notebook: cells call functions, it runs from the results folder alone, and what a model wrote is shown as text."""

import ast
import json
import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import nbformat
import pytest

from analysis.findings import conclude as conclusions
from analysis.findings.fit_summary import Options
from analysis.report import build as report
from analysis.report import notebook
from analysis.table import evidence
from analysis.table import load as table
from study import records
from tests.conftest import write_synthetic

STORY = "<script>alert(1)</script> \x1b[31m **bold** \x00"


def concluded(results: Path) -> evidence.Evidence:
    """The evidence of a results folder with fits.json written, stories included."""
    fits = conclusions.conclude(table.load(results), Options(n_bootstrap=50))
    conclusions.write(results / "report" / "fits.json", fits)
    return report.with_stories(evidence.load(results, fits), results / "report" / "fits.json")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An executed notebook of a results folder that was moved after its conclusions were written."""
    first = tmp_path_factory.mktemp("first") / "results"
    rows = write_synthetic(first, seeds=2, sweeps=("width",))
    sample = {
        "trial_id": rows[0]["trial_id"],
        "step": 2_000,
        "prompt": "Once upon a time 0",
        "index": 0,
        "temperature": 0.5,
        "text": STORY,
        "n_tokens": 9,
    }
    records.write(first / "samples" / f"{rows[0]['trial_id']}.parquet", "samples", [sample])
    concluded(first)
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.move(first, moved)
    path = moved / "report" / "report.ipynb"
    assert notebook.write(evidence.load(moved), path) == ""
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_runs_from_top_to_bottom_from_a_moved_folder(executed: dict[str, Any]) -> None:
    nbformat.validate(nbformat.from_dict(executed))
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    assert all(cell["outputs"] for cell in cells)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6


def test_the_answer_is_printed_first(executed: dict[str, Any]) -> None:
    first = next(cell for cell in executed["cells"] if cell["cell_type"] == "code")
    printed = "".join("".join(output.get("text", "")) for output in first["outputs"])
    assert "What do depth, width, heads and more parameters buy?" in printed
    assert "Doubling the parameters lowers validation loss by" in printed


def test_what_a_model_wrote_is_shown_as_text(executed: dict[str, Any]) -> None:
    shown = ["".join(o["data"]["text/html"]) for c in executed["cells"] for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    whole = "\n".join(shown)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in whole
    assert "<script" not in whole
    assert "\u241b[31m **bold** \u2400" in whole
    assert not set("\x00\x1b") & set(json.dumps(executed, ensure_ascii=False))


def test_cells_call_functions_and_hold_no_logic(synthetic_results: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(synthetic_results, results)
    made = notebook.compose(concluded(results))
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    assert len(code) >= 25
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    for source in code:
        tree = ast.parse(source)
        assert all(isinstance(node, allowed) for node in tree.body), source
        logic = (ast.BinOp, ast.Compare, ast.Lambda, ast.ListComp, ast.IfExp, ast.Subscript, ast.BoolOp)
        assert not [node for node in ast.walk(tree) if isinstance(node, logic)], source
        assert len(source.splitlines()) <= 9


def test_equal_studies_give_equal_notebooks(synthetic_results: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(synthetic_results, results)
    study = concluded(results)
    assert notebook.compose(study) == notebook.compose(study)


def test_without_a_kernel_the_notebook_is_saved_and_says_so(
    synthetic_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = evidence.load(synthetic_results, {"question": "Why?", "answer": []})
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python-here"))
    problem = notebook.write(study, tmp_path / "report.ipynb")
    assert "no-python-here" in problem
    saved = nbformat.read(tmp_path / "report.ipynb", as_version=4)
    assert "Saved without outputs" in saved.cells[0].source
    assert len(saved.cells) > 10


def test_an_unknown_section_is_named_with_those_that_exist(synthetic_results: Path) -> None:
    study = evidence.load(synthetic_results, {})
    with pytest.raises(ValueError, match="no section 'lost'; the report has loss, sweeps"):
        notebook.section(study, "lost")


def test_the_command_runs_the_notebook_of_a_results_folder_and_says_where_it_is(
    synthetic_results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "execute", lambda made, folder, limit_s, fill: "")  # running is tested above
    results = tmp_path / "my results"
    shutil.copytree(synthetic_results, results)
    assert notebook.main([str(results)]) == 1
    assert "write it with: python -m analysis" in capsys.readouterr().err
    concluded(results)
    assert notebook.main([str(results)]) == 0
    assert capsys.readouterr().out == f"notebook: {results / 'report' / 'report.ipynb'}\n"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc to see processes")
def test_where_the_study_cannot_be_concluded_the_error_comes_through_and_no_kernel_stays(tmp_path: Path) -> None:
    told = Future[evidence.Evidence]()
    told.set_exception(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        notebook.write(told, tmp_path / "report.ipynb")
    assert not [line for line in map(command_line, children(os.getpid())) if "kernelapp" in line]


def command_line(pid: int) -> str:
    """What a process was started with; "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
