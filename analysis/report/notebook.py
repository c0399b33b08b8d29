"""The report as a notebook: cells call functions and hold no logic; it runs from top to bottom from the results folder alone.

Reads the sections of a report; writes `report.ipynb`, executed where a Jupyter kernel can start.

    problem = write(evidence, Path("results/quick/report/report.ipynb"))   # "" or why it was saved without outputs
"""

import argparse
import asyncio
import atexit
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures import loss_and_sweeps as figures
from analysis.report import document as content
from analysis.report import html as page
from analysis.report import sections
from analysis.report import text_formats as markdown
from analysis.report.document import Section
from analysis.table.evidence import Evidence, load

if TYPE_CHECKING:
    import nbformat

SETUP = """from pathlib import Path

from analysis.figures import loss_and_sweeps as figures, shape as figures_shape, training as figures_training
from analysis.report import notebook
from analysis.table import evidence

study = evidence.load(Path({folder}))
fits, trials, curves = study.fits, study.trials, study.curves
print(notebook.opening(study))"""
"""First cell. The folder is relative to the notebook, so that a copied results folder keeps working."""

KERNEL = """import os, sys
if sys.path[0] == "":
    del sys.path[0]
from ipykernel import kernelapp
from analysis.figures import loss_and_sweeps as figures, shape as figures_shape, training as figures_training
from analysis.report import notebook
from analysis.table import evidence
if os.name == "posix" and os.getppid() != int(os.environ["JPY_PARENT_PID"]):
    sys.exit()
kernelapp.launch_new_instance()"""
"""Program of the kernel: what the first cell imports is imported while the study is still being concluded. As ipykernel_launcher does, it
takes no module from the notebook's folder; and it does not stay where the report's process has ended meanwhile."""

CALLS = {
    "loss": "figures.draw_loss_against_parameters(fits, trials=trials)",
    "residuals": "figures.draw_residuals(fits)",
    "learning_curves": "figures.draw_learning_curves(curves, trials)",
    "shares": "figures_shape.draw_shares(fits)",
    "contrasts": "figures_shape.draw_contrasts(fits)",
    "forecasts": "figures_shape.draw_forecasts(fits)",
    "learning_rates": "figures_training.draw_learning_rates(trials)",
    "gap": "figures_training.draw_gap(trials)",
    "memory": "figures_training.draw_memory(trials)",
}
"""How a notebook user draws each figure."""


class Shown:
    """Text or a section that a notebook displays as HTML, escaped by the page's template."""

    def __init__(self, section: Section) -> None:
        self.section = section

    def _repr_html_(self) -> str:
        return page.section_html(self.section)

    def __repr__(self) -> str:
        return "\n".join(markdown.section_lines(self.section))


def opening(evidence: Evidence) -> str:
    """Question and answer as plain text."""
    answer = "\n".join(cell.text for cell in sections.answer(evidence.fits))
    return content.visible(f"{evidence.fits.get('question')}\n\n{answer}")


def section(evidence: Evidence, name: str) -> Shown:
    """One section of the report by its id, for display.

    Raises:
        ValueError: there is no such section.
    """
    found = {s.id: s for s in sections.sections(evidence)}
    if name not in found:
        raise ValueError(f"no section {name!r}; the report has {', '.join(found)}")
    return Shown(found[name])


def compose(evidence: Evidence, folder: str = "'..'") -> "nbformat.NotebookNode":
    """The notebook without outputs."""
    from nbformat import v4

    calls = CALLS | _sweep_calls(evidence)
    drawable = figures.study_figure_names(evidence.fits, evidence.trials, evidence.curves)
    title = markdown.escape(str(evidence.fits.get("question") or "What do more parameters buy?"))
    note = "Every cell calls a function of `analysis`; change the arguments to look further. Figures take and return an `ax`."
    cells = [v4.new_markdown_cell(f"# {title}\n\n{note}"), v4.new_code_cell(SETUP.format(folder=folder))]
    if "loss" in drawable:
        cells.append(v4.new_code_cell(f"{calls['loss']}.figure"))
    for part in sections.sections(evidence):
        cells.append(v4.new_markdown_cell(f"## {markdown.escape(part.title)}"))
        cells += [v4.new_code_cell(f"{calls[p.name]}.figure") for p in part.pictures if p.name in drawable and p.name in calls]
        cells.append(v4.new_code_cell(f"notebook.section(study, {part.id!r})"))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _sweep_calls(evidence: Evidence) -> dict[str, str]:
    calls = {}
    for sweep in evidence.fits.get("sweeps") or []:
        calls[f"sweep_{figures.slug(sweep['name'])}"] = f"figures.draw_sweep(fits, {str(sweep['name'])!r})"
        calls[f"speed_{figures.slug(sweep['name'])}"] = f"figures.draw_sweep_speed(fits, {str(sweep['name'])!r})"
    return calls


def write(evidence: Evidence | Future[Evidence], path: Path, run: bool = True, limit_s: int = 120) -> str:
    """Write the notebook, executed where that is possible.

    Args:
        evidence: of the study; the kernel starts while that of the future is still being made.
        run: save the notebook with its outputs.
        limit_s: longest time of a cell.

    Returns:
        "" or the reason why the notebook holds no outputs.
    """
    import nbformat

    made = nbformat.v4.new_notebook()

    def fill() -> None:
        study = evidence.result() if isinstance(evidence, Future) else evidence
        same = path.parent.parent.resolve() == study.results.resolve()
        made.update(compose(study, "'..'" if same else repr(str(study.results.resolve()))))

    problem = execute(made, path.parent, limit_s, fill) if run else "not asked for"
    if not made.cells:
        fill()
    if problem:
        made.cells[0].source += f"\n\nSaved without outputs: {markdown.escape(problem)}. Run all cells to see them."
    nbformat.write(made, path)
    return problem


def missing() -> str:
    """Import what running a notebook needs; returns "" or what is not installed.

    Call it before a thread runs `write` beside matplotlib: both import IPython, and an import half done in another thread fails.
    """
    try:
        import IPython  # noqa: F401
        import jupyter_client.manager  # noqa: F401
        import nbclient  # noqa: F401
    except ImportError as error:
        return f"{error.name or error} is not installed"
    return ""


def execute(made: "nbformat.NotebookNode", folder: Path, limit_s: int, fill: Callable[[], None]) -> str:
    """Run the cells in place with this very interpreter as the kernel; returns "" or why it failed.

    Args:
        fill: puts the cells into `made`; called when the kernel has started.
    """
    if lacking := missing():
        return lacking
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="nb-") as private:
        warnings.simplefilter("ignore")
        # Unix sockets in a private folder where there are any: nobody else on the machine can talk to the kernel.
        places = {"transport": "ipc", "ip": f"{private}/k"} if os.name == "posix" else {}
        manager = AsyncKernelManager(connection_file=f"{private}/kernel.json", **places)
        if manager.kernel_spec is None:
            return "no Jupyter kernel is installed"
        manager.kernel_spec.argv = [sys.executable, "-c", KERNEL, "-f", "{connection_file}", "--matplotlib=inline"]

        async def started(notebook: "nbformat.NotebookNode") -> None:
            with suppress(Exception):  # nbclient would leave the kernel running; `write` fills again and meets the same error
                await asyncio.to_thread(fill)

        quick = {"shutdown_kernel": "immediate", "startup_timeout": 60, "record_timing": False, "on_notebook_start": started}
        client = NotebookClient(made, km=manager, timeout=limit_s, resources={"metadata": {"path": str(folder)}}, **quick)
        try:
            asyncio.run(client.async_execute(env=_environment(), cleanup_kc=True))
        except (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError, OSError) as error:
            return str(error).strip().splitlines()[-1][:200]
        finally:
            atexit.unregister(client._cleanup_kernel)
    return ""


def _environment() -> dict[str, str]:
    """The kernel's environment: this project is importable from wherever the notebook stands."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *[p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and save the notebook of a results folder whose report is there; print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report.notebook", description="Run the notebook of a results folder and save it."
    )
    parser.add_argument("results", type=Path, help="folder that a study wrote, with its report")
    results = parser.parse_args(arguments).results
    try:
        evidence = load(results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = results / "report" / "report.ipynb"
    problem = write(evidence, path)
    print(f"notebook: {path}" + (f" (without outputs: {problem})" if problem else ""))
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
