"""Build the report of a study: figures, one HTML page, Markdown, notebook, tables for a paper.

Reads a results folder and its conclusions; writes `report/`: `figures/*.{svg,pdf,png,csv}`, `tables/*.{tex,csv}`, `report.html`,
`report.md`, `report.ipynb`. Written files are equal, byte for byte, for equal inputs (the executed notebook excepted).

    path = build(Path("results/quick"), fits)
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.figures import loss_and_sweeps as figures
from analysis.figures import style
from analysis.findings import conclude as conclusions
from analysis.report import exports, notebook, sections, story_section
from analysis.report import html as page
from analysis.report import text_formats as markdown
from analysis.table.evidence import Evidence, load
from analysis.text import findings as text_study


def build(
    results: Path,
    fits: Mapping[str, Any],
    out: Path | None = None,
    run_notebook: bool = True,
) -> Path:
    """Write everything under `report/` and return the path of `report.html`.

    Args:
        fits: the conclusions, as `analysis.findings.conclude` makes them.
        out: another folder to write to instead of `<results>/report`.
        run_notebook: save the notebook with its outputs; that takes a few seconds.
    """
    folder = out or results / "report"
    folder.mkdir(parents=True, exist_ok=True)
    path, told = folder / "report.html", Future[Evidence]()
    if run_notebook:
        notebook.missing()
    with ThreadPoolExecutor(1) as beside:  # the notebook's kernel is a process of its own and keeps another core busy
        try:
            written = beside.submit(notebook.write, told, folder / "report.ipynb", run_notebook)
            evidence = with_stories(load(results, fits), folder / "fits.json")
            told.set_result(evidence)
        finally:
            told.cancel()  # without effect where there is evidence; else the notebook would wait for ever
        drawn = save_figures(evidence, folder / "figures")
        path.write_text(page.render(evidence, drawn), encoding="utf-8")
        (folder / "report.md").write_text(markdown.render(evidence, list(drawn)), encoding="utf-8")
        exports.write_tables(sections.sections(evidence), folder / "tables")
        written.result()
    return path


def with_stories(evidence: Evidence, path: Path) -> Evidence:
    """The evidence with what its generated text says; `fits.json` gains it too, so that every number of the report stands there."""
    if "measures" in (evidence.fits.get("stories") or {}):
        return evidence
    fits = {**evidence.fits, "stories": text_study.conclude(evidence)}
    fits["refusals"] = [*(fits.get("refusals") or []), *story_refusals(fits["stories"])]
    conclusions.write(path, fits)
    return replace(evidence, fits=fits)


def story_refusals(stories: Mapping[str, Any]) -> list[dict[str, str]]:
    """Refused measures as rows of the list of refusals."""
    if "refused" in stories:
        return [{"subject": "stories", **stories["refused"]}]
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, m in stories["measures"].items():
        if "refused" in m:
            reasons.setdefault((m["refused"]["code"], m["refused"]["reason"]), []).append(story_section.MEASURES[name][0])
    return [{"subject": "stories: " + ", ".join(titles), "code": code, "reason": reason} for (code, reason), titles in reasons.items()]


FIGURES = ("loss", "residuals", "shares", "contrasts", "forecasts", "learning_curves", "learning_rates", "gap", "memory")


def save_figures(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Write every figure of the study in four formats; returns the SVG text of each by name. Figures of an earlier report go."""
    drawn = figures.study_figures(evidence.fits, evidence.trials, evidence.curves)
    for path in folder.glob("*.*"):
        if path.stem not in drawn and (path.stem in FIGURES or path.stem.startswith(("sweep_", "speed_"))):
            path.unlink()
    return {name: style.save(figure, folder, name) for name, figure in drawn.items()}
