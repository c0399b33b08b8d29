"""Build the report of a study: figures, one HTML page, Markdown, notebook, tables for a paper.

Reads a results folder and its conclusions; writes `figures/*.{svg,pdf,png,csv}`, `tables/*.{tex,csv}`, `report.html`, `report.md` and
`report.ipynb`. Written files are equal, byte for byte, for equal inputs.

    path = build(Path("results/quick"), fits, Path("results/quick/report"))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.figures import study, style
from analysis.report import exports, notebook, sections
from analysis.report import html as page
from analysis.report import text_formats as markdown
from analysis.table.evidence import Evidence, load


def build(results: Path, fits: Mapping[str, Any], folder: Path) -> Path:
    """Write everything into `folder` and return the path of `report.html`.

    Args:
        fits: the conclusions with their answer, as `analysis.report.answer.answered` makes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evidence = load(results, fits)
    drawn, path = save_figures(evidence, folder / "figures"), folder / "report.html"
    name, parts = sections.question(evidence)[0], sections.sections(evidence)
    path.write_text(page.render(name, parts, drawn), encoding="utf-8")
    (folder / "report.md").write_text(markdown.render(parts, name), encoding="utf-8")
    exports.write_tables([table for part in parts for table in part.listings], folder / "tables")
    notebook.write(evidence, folder / "report.ipynb")
    return path


def save_figures(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Write every figure of the study in four formats; returns the SVG text of each by name. Figures of an earlier report go."""
    drawn = study.study_figures(evidence.fits, evidence.trials, evidence.curves)
    for path in folder.glob("*.*"):
        if path.stem not in drawn and study.is_ours(path.stem):
            path.unlink()
    return {name: style.save(figure, folder, name) for name, figure in drawn.items()}
