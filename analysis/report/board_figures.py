"""A running study's figures on its board: `python -m analysis.report.board_figures RESULTS`, started by the board at low priority.

Reads the tables as they are; writes one event file into `tensorboard/_study`.
"""

import io
import os
import sys
from pathlib import Path

from analysis.figures.study import study_figures
from analysis.figures.style import look
from analysis.findings.conclude import conclude
from analysis.table import evidence
from analysis.table import load as table
from study.display import tensorboard as board


def draw(results: Path) -> dict[str, bytes]:
    """Every figure that the present rows allow, as PNG files by name.

    Raises:
        ValueError: there is nothing to draw yet.
    """
    found = evidence.load(results, conclude(table.load(results)))
    images = {}
    with look():
        for name, figure in study_figures(found.fits, found.trials, found.curves).items():
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=110)
            images[name] = file.getvalue()
    return images


if __name__ == "__main__":
    os.nice(19)
    target = Path(sys.argv[1])
    board.publish(target, draw(target))
