"""Draw a running study's figures onto its TensorBoard board: `python -m study.plots RESULTS`, started by the board at low priority.

Reads the tables as they are; writes one event file into `tensorboard/_study`. Without intervals (no bootstrap), which the report has.
"""

import io
import os
import sys
from pathlib import Path

from study import board, records


def draw(results: Path) -> dict[str, bytes]:
    """Every figure that the present rows allow, as PNG files by name.

    Raises:
        ValueError: there is nothing to draw yet.
    """
    from analysis import conclusions, evidence, figures, table
    from analysis.fit_blocks import Options

    found = evidence.load(results, conclusions.conclude(table.load(results), Options(n_bootstrap=0)))
    images = {}
    for name, figure in figures.study_figures(found.fits, found.trials, found.curves).items():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        images[name] = file.getvalue()
    return images


def report_images(results: Path) -> dict[str, bytes]:
    """The figures of the finished report, as PNG files by name."""
    return {path.stem: path.read_bytes() for path in sorted((results / "report" / "figures").glob("*.png"))}


def publish(results: Path, images: dict[str, bytes]) -> None:
    """Put images onto the board at the tokens that all recorded trials have seen."""
    tokens = sum(row["n_tokens"] for row in records.read(results, "trials", problems=[]).to_pylist())
    board.add_figures(results / "tensorboard", images, tokens)


if __name__ == "__main__":
    os.nice(19)
    target = Path(sys.argv[1])
    publish(target, draw(target))
