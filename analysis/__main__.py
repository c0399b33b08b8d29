"""python -m analysis RESULTS: conclude, print a summary in blocks, write report/fits.json and the report.

Exit codes: 0 done, 1 the results cannot be read, 2 usage. A person's mistake is answered with one sentence, never with a traceback.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.estimate import Refusal
from analysis.findings import conclude as conclusions
from analysis.findings import forecasts
from analysis.findings.fit_summary import Options
from analysis.findings.size_law import Fitted
from analysis.fits import law_selection as selection
from analysis.report import terminal as summary
from analysis.table import configurations as replicates
from analysis.table import load as tables
from study.console import until_closed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="python -m analysis", description="What a study's results say, and how sure that is.")
    line.add_argument(
        "results", nargs="+", help="results folder of a study, its s3:// or gs:// address, or a trials.parquet; two are compared"
    )
    line.add_argument("--out", type=Path, help="folder for fits.json (default: RESULTS/report); the report is built in RESULTS/report")
    line.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="bootstrap replicates (default 1000; 0 leaves them out)")
    line.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    line.add_argument("--no-report", action="store_true", help="write fits.json and print the summary only")
    line.add_argument(
        "--judging",
        action="store_true",
        help="the texts are still being read: begin, and wait for the end of the input before the report "
        "(python -m study.train.text_loss RESULTS | python -m analysis RESULTS --judging)",
    )
    line.add_argument(
        "--suggest", type=int, metavar="N", help="name the N trials that would sharpen a quantity most per device-hour, and stop"
    )
    line.add_argument(
        "--for", dest="aim", metavar="QUANTITY", help="with --suggest: alpha, slope (default), loss@2M, slope:width, contrast:depth"
    )
    shape = "LAYERSxWIDTHhHEADS[@TOKENS]"
    line.add_argument("--forecast", action="append", default=[], metavar=shape, help="put a forecast of a configuration on record")
    return line


def _folder(place: str) -> Path:
    """The results as a folder: an address in an object store is fetched first, and its report is built in the copy here.

    Raises:
        ValueError: there is no such place, or it cannot be reached.
    """
    from study.results import object_store as stores

    if not stores.is_address(place):
        return Path(place)
    from study.data.corpus import default_cache_dir
    from study.results import store_sync as mirror

    stores.check_address(place)
    folder = stores.staging(place, default_cache_dir())
    mirror.fetch(place, folder)
    print(f"fetched {place} into {folder}")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    line = parser()
    given = line.parse_args(arguments)
    if given.bootstrap < 0:
        line.error(f"--bootstrap={given.bootstrap} must be 0 or more")
    if len(given.results) > 1 and (given.out or given.forecast):
        line.error("--out and --forecast go with one results folder; run the others separately")
    if given.aim and given.suggest is None:
        line.error("--for goes with --suggest N, for example --suggest 5 --for alpha")
    options = Options(n_bootstrap=given.bootstrap, seed=given.seed)
    try:
        trees = []
        given.results = [_folder(place) for place in given.results]
        for results in given.results:
            if given.suggest is not None:
                print(suggested(results, given.aim or "slope", given.suggest))
                continue
            for target in given.forecast:
                print(record_forecast(results, target))
            trees.append(analyze(results, given.out, options, not given.no_report, given.judging))
        if len(trees) == 2 and not given.no_report and all(results.is_dir() for results in given.results):
            from analysis.compare import page as compare_page

            print(f"comparison: {compare_page.build(given.results[0], given.results[1], (trees[0], trees[1]))}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        place = error.filename or "a file"
        print(f"error: {place} cannot be read or written ({error.strerror or error}); give --out a folder that can", file=sys.stderr)
        return 1
    return 0


def analyze(
    results: Path, out: Path | None = None, options: Options | None = None, report: bool = True, judging: bool = False
) -> dict[str, Any]:
    """Analyze one results folder: writes fits.json, prints the summary, builds the report; returns the conclusions.

    Args:
        judging: the table of judgements is complete only at the end of the standard input.
    """
    table = tables.load(results)
    tree = conclusions.conclude(table, options)
    folder = out or (results if results.is_dir() else results.parent) / "report"
    conclusions.write(folder / "fits.json", tree)
    print(summary.text(tree))
    if report and results.is_dir() and importlib.util.find_spec("analysis.report.build"):
        from analysis.report.build import build

        print(f"\nreport: {build(results, tree, judging=sys.stdin.read if judging else None)}")
    else:
        print(f"\nfits: {folder / 'fits.json'}")
    return tree


def suggested(results: Path, aim: str, n: int) -> str:
    """Suggest the next n trials for a quantity: writes report/suggestion.json; returns what a person reads."""
    if not results.is_dir():
        raise ValueError(f"suggestions are kept in a results folder, and {results} is a file; give the folder")
    from analysis.next_trials import suggest

    made = suggest.suggest(tables.load(results), aim, n)
    path = suggest.write(results, made)
    return f"{suggest.text(made)}\n\nwritten to {path}; to train them: python -m study.run --from-suggestion {results}"


def record_forecast(results: Path, text: str) -> str:
    """Forecast one configuration from the joint fit and put it on record in forecasts.json; returns a sentence.

    Raises:
        ValueError: the shape is malformed, has run already, or the data allow no forecast of it.
    """
    if not results.is_dir():
        raise ValueError(f"forecasts are kept in a results folder, and {results} is a file; give the folder")
    trials = tables.load(results).trials
    if trials.empty:
        raise ValueError(f"{results} holds no usable trial to forecast from; run some first")
    cells = replicates.average(trials[selection.one_recipe(trials)])
    target = forecasts.parse(text, cells)
    fitted = next((f for f in conclusions.all_fits(cells) if isinstance(f, Fitted)), None)
    if fitted is None:
        raise ValueError("all configurations have one size, which allows no forecast; add a second size")
    commits = sorted(str(c) for c in trials["git_commit"].dropna().unique())
    made = forecasts.make(fitted, target, commits[-1] if commits else None, datetime.now(UTC))
    if isinstance(made, Refusal):
        raise ValueError(made.reason)
    forecasts.add(results / "forecasts.json", made, cells)
    low, high = ("unbounded" if made[end] is None else f"{made[end]:.4f}" for end in ("low", "high"))
    return f"forecast {text}: {made['point']:.4f} [{low}, {high}] nats by {made['law']}, on record in forecasts.json"


if __name__ == "__main__":
    sys.exit(until_closed(main))
