"""python -m analysis RESULTS: conclude, print a summary in blocks, write report/fits.json and the report.

Exit codes: 0 done, 1 the results cannot be read, 2 usage. A person's mistake is answered with one sentence, never with a traceback.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import conclusions, summary
from analysis import table as tables
from analysis.fit_blocks import Options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(prog="python -m analysis", description="What a study's results say, and how sure that is.")
    main_parser.add_argument("results", type=Path, nargs="+", help="results folder of a study, or a trials.parquet")
    main_parser.add_argument("--out", type=Path, help="where to write fits.json and the report (default: RESULTS/report)")
    main_parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="bootstrap replicates (default 1000; 0 leaves them out)"
    )
    main_parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    main_parser.add_argument("--no-report", action="store_true", help="write fits.json and print the summary only")
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = parser().parse_args(arguments)
    if given.bootstrap < 0:
        parser().error(f"--bootstrap={given.bootstrap} must be 0 or more")
    try:
        for results in given.results:
            analyze(results, given.out, Options(n_bootstrap=given.bootstrap, seed=given.seed), report=not given.no_report)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def analyze(results: Path, out: Path | None = None, options: Options | None = None, report: bool = True) -> dict[str, object]:
    """Analyze one results folder: writes fits.json, prints the summary, builds the report; returns the conclusions."""
    table = tables.load(results)
    tree = conclusions.conclude(table, options)
    folder = out or (results if results.is_dir() else results.parent) / "report"
    conclusions.write(folder / "fits.json", tree)
    print(summary.text(tree))
    if report and results.is_dir() and importlib.util.find_spec("analysis.report"):
        from analysis.report import build

        print(f"\nreport: {build(results, tree)}")
    else:
        print(f"\nfits: {folder / 'fits.json'}")
    return tree


if __name__ == "__main__":
    sys.exit(main())
