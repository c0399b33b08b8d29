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
from analysis.table.evidence import load


def build(results: Path, fits: Mapping[str, Any], folder: Path) -> Path:
    """Write everything into `folder` and return the path of `report.html`. Figures and tables of an earlier report go.

    Args:
        fits: the conclusions with their answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evidence, path = load(results, fits), folder / "report.html"
    figures = study.study_figures(evidence.fits, evidence.trials, evidence.curves)
    for old in (folder / "figures").glob("*.*"):
        if old.stem not in figures and study.is_ours(old.stem):
            old.unlink()
    drawn = {name: style.save(figure, folder / "figures", name) for name, figure in figures.items()}
    name, parts = sections.question(evidence)[0], sections.sections(evidence)
    path.write_text(page.render(name, parts, drawn), encoding="utf-8")
    (folder / "report.md").write_text(markdown.render(parts, name), encoding="utf-8")
    exports.write_tables([table for part in parts for table in part.listings], folder / "tables")
    notebook.write(evidence, folder / "report.ipynb")
    return path
