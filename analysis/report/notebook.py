"""The notebook to go on from: the study's tables as DataFrames, levers, law, and one plot to change.

Reads an `Evidence`; writes `report.ipynb` without outputs. `python -m analysis.report.notebook RESULTS` runs it and saves what it shows.

    write(evidence, Path("results/quick/report/report.ipynb"))
"""

import argparse
import atexit
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat import v4

from analysis.report import sections
from analysis.report import text_formats as markdown
from analysis.table.evidence import Evidence, load
from models.home import expanded
from study.results.provenance import environment

KERNEL = "python3"
"""ipykernel offers the very interpreter under this name."""
SETUP = """%matplotlib inline
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analysis.figures.loss import draw_loss
from analysis.report import notebook
from analysis.table import evidence

plt.style.use("default")  # leave this out to draw by your own matplotlibrc
study = evidence.load(Path({folder}))
fits = study.fits
trials, curves, samples = map(pd.DataFrame, (study.trials, study.curves, study.samples))
print(*fits["answer"], sep="\\n\\n")"""
"""First cell. The folder is relative to the notebook, so that a copied results folder keeps working."""

PLOT = """means = trials.groupby(["n_tokens", "n_layer", "params_non_embedding"])["val_loss"].mean().unstack("n_layer")
longest = means.loc[means.index.get_level_values("n_tokens").max()]
axes = longest.interpolate().plot(logx=True, marker="o", xlabel="non-embedding parameters", ylabel="validation loss (nats)")"""

GO_ON = """`fits` holds every number of the report, `trials` a row per finished run, `curves` its losses, `samples` its texts.

- `python -m analysis RESULTS --next-size` names the trials that tell whether the best shape wins one size up, and what they cost.
- `python -m analysis RESULTS --suggest 5` names the trials that would sharpen a number most.
- `python -m analysis RESULTS --against BASELINE` says by its exit code whether a change was better.
- `analysis.figures` draws every figure of the page on axes of yours."""


def levers(fits: Mapping[str, Any]) -> pd.DataFrame:
    """What a doubling buys, one row per lever: nats with the ends of the 95 % interval, positive for lower loss."""
    ends = [f"gain_per_doubling.{name}" for name in ("value", "low", "high")]
    return _numbers(fits.get("levers") or [], ["n_tokens", "factor", "at", *ends, "verdict", "source", "time_per_step"], ends[0])


def laws(fits: Mapping[str, Any]) -> pd.DataFrame:
    """The law in depth and width, one row per training length: L = E + A (n_layer / reference)^-a (n_embd / reference)^-b."""
    names = [f"{name}.{end}" for name in ("E", "A", "a", "b", "kappa") for end in ("value", "low", "high")]
    names += ["reference.n_layer", "reference.n_embd", "residual_sd"]
    rows = (fits.get("shape") or {}).get("by_length") or []
    return _numbers(rows, ["n_tokens", "verdict", *(f"law.{name}" for name in names)], "law.a.value")


def _numbers(rows: Sequence[Mapping[str, Any]], columns: list[str], known: str) -> pd.DataFrame:
    """Rows of fits.json as a table of numbers, without those that were refused and columns that are empty."""
    return pd.json_normalize([dict(row) for row in rows]).reindex(columns=columns).dropna(subset=[known]).dropna(axis="columns", how="all")


def write(evidence: Evidence, path: Path) -> nbformat.NotebookNode:
    """Write the notebook without outputs, and return it."""
    same = path.parent.parent.resolve() == evidence.results.resolve()
    setup = SETUP.format(folder="'..'" if same else repr(str(evidence.results.resolve())))
    shown = "['n_layer', 'n_embd', 'n_head', 'seed', 'n_tokens', 'params_non_embedding', 'lr', 'val_loss']"
    parts = [
        (f"# {markdown.escape(sections.question(evidence)[1])}", setup),
        ("## The best trials", f'trials.sort_values("val_loss")[{shown}].head(10)'),
        ("## What a doubling buys", "notebook.levers(fits)"),
        ("## The law in depth and width", "notebook.laws(fits)"),
        ("## Loss against parameters, as on the page", "draw_loss(fits, study.trials)"),
        ("## One plot to change", PLOT),
    ]
    cells = [cell for text, code in parts for cell in (v4.new_markdown_cell(text), v4.new_code_cell(code))]
    cells.append(v4.new_markdown_cell(f"## Go on from here\n\n{GO_ON}"))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    kernel = {"display_name": "Python 3", "language": "python", "name": KERNEL}
    made = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.write(made, path)
    return made


def execute(made: nbformat.NotebookNode, folder: Path, limit_s: int = 120) -> str:
    """Run the cells in place; returns "" or why that failed.

    Args:
        limit_s: longest time of a cell.
    """
    from jupyter_client.manager import AsyncKernelManager  # loads Jupyter's client, which only this needs
    from nbclient import NotebookClient

    around = environment()
    # A socket's path may have 107 bytes (unix(7)); the kernel's is 16 longer than the folder that it lies in.
    long = len(os.fsencode(tempfile.gettempdir())) > 90
    with tempfile.TemporaryDirectory(prefix="nb-", dir="/tmp" if long else None) as private:
        around["IPYTHONDIR"] = private  # a person's start-up files are for what that person types
        # Unix sockets in a private folder where there are any: nobody else on the machine can talk to the kernel.
        places = {"transport": "ipc", "ip": f"{private}/k"} if os.name == "posix" else {}
        manager = AsyncKernelManager(kernel_name=KERNEL, connection_file=f"{private}/kernel.json", **places)
        client = NotebookClient(made, km=manager, timeout=limit_s, resources={"metadata": {"path": str(folder)}})
        try:
            client.execute(env=around, cleanup_kc=True)
        except Exception as error:  # whatever keeps a kernel from running, the notebook is there
            return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        finally:
            atexit.unregister(client._cleanup_kernel)  # nbclient leaves it where a kernel did not start, and it ends in a traceback
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, run and save the notebook of a results folder whose report is there; print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report.notebook", description="Run the notebook of a results folder and save it."
    )
    parser.add_argument("results", type=Path, help="folder that a study wrote, with its report")
    given = parser.parse_args(arguments)
    try:
        results = expanded(given.results, "RESULTS")
        path = results / "report" / "report.ipynb"
        made = write(load(results), path)
        problem = execute(made, path.parent)
        nbformat.write(made, path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"notebook: {path}" + (f" (without all outputs: {problem})" if problem else ""))
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
