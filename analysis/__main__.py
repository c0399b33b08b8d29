"""python -m analysis RESULTS: conclude, print the answer, write report/fits.json, report/answer.json and the report.

Exit codes: 0 done, 1 the results cannot be read, 2 usage; with --against 0, 3, 4, 5 (EXITS). A person's mistake is answered with one
sentence, never with a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

try:
    import study.entry  # noqa: F401
except ModuleNotFoundError:
    raise SystemExit(
        "error: a study.py in the working directory hides a package of this program; use: scaling-study report RESULTS"
    ) from None

from analysis.compare.paired_differences import against
from analysis.estimate import Code, Refusal
from analysis.findings import conclude as conclusions
from analysis.findings import forecasts
from analysis.findings.fit_summary import Options
from analysis.findings.size_law import Fitted, all_fits
from analysis.next_trials import next_size as next_trials
from analysis.next_trials import suggest as suggestions
from analysis.report import answer as answers
from analysis.report import terminal as summary
from analysis.table import configurations as replicates
from analysis.table import load as tables
from analysis.table import runs_file
from analysis.table.recipe import one_recipe
from models.home import expanded
from study.console import until_closed
from study.files import cache_folder
from study.results import object_store as stores
from study.results import store_sync as mirror

EXITS = """exit codes: 0 done, 1 the results cannot be read, 2 usage;
with --against: 0 better than the baseline, 3 within noise, 4 worse, 5 cannot be told (no shape of equal length in common, another text, no
seeds to tell noise by), so that a loop can keep or drop a change. Nothing is written then, nor with --json."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(
        prog="python -m analysis",
        description="What a study's results say, and how sure that is.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    line.add_argument(
        "results",
        nargs="+",
        help="results folder of a study, its s3:// or gs:// address, or a table of runs (.csv, .tsv, .jsonl, .parquet); two are compared",
    )
    line.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where all that is written goes (default: RESULTS/report, or report/ beside a table)"
    )
    line.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="bootstrap replicates behind the intervals of --delta (default 1000)"
    )
    line.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    line.add_argument(
        "--columns",
        metavar="N=NAME,...",
        type=columns_of,
        help="columns of a table of runs: N=params,D=tokens,L=loss (C=flop for D), n_layer=...",
    )
    line.add_argument(
        "--delta", type=float, help="fit laws in N by Huber of this width in log loss, as published fits are (default: least squares)"
    )
    line.add_argument("--export", type=Path, metavar="TIDY.csv", help="write the means of the configurations as a table, and stop")
    line.add_argument("--no-report", action="store_true", help="write fits.json and print the summary only")
    line.add_argument("--json", action="store_true", help="print the answer for programs (the contents of report/answer.json), and stop")
    line.add_argument("--against", metavar="BASELINE", help="say whether RESULTS are better than those of BASELINE, by the exit code too")
    line.add_argument("--next-size", action="store_true", help="name the trials that tell whether the best shape wins at the next size too")
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
    if not stores.is_address(place):
        return expanded(place, "RESULTS")
    stores.check_address(place)
    folder = stores.staging(place, cache_folder())
    mirror.fetch(place, folder)
    print(f"fetched {place} into {folder}")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    line = parser()
    given = line.parse_args(arguments)
    if given.bootstrap < 0:
        line.error(f"--bootstrap={given.bootstrap} must be 0 or more")
    if given.forecast and (given.out or len(given.results) > 1):
        line.error("--forecast puts a forecast on record in one results folder; give it without --out, and one folder")
    if given.out and len(given.results) > 2:
        line.error("--out goes with one results folder, or with two that are compared; run the others separately")
    if len(given.results) > 1 and (given.columns or given.export):
        line.error("--columns and --export go with one table of runs; run the others separately")
    if given.delta is not None and not given.delta > 0:
        line.error(f"--delta={given.delta} must be a positive width of log loss, for example 0.001")
    if given.aim and given.suggest is None:
        line.error("--for goes with --suggest N, for example --suggest 5 --for alpha")
    if given.against and (len(given.results) > 1 or given.suggest is not None or given.next_size):
        line.error("--against BASELINE judges one results folder; give --suggest and --next-size in a run of their own")
    try:
        return _do(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        elsewhere = "work on a copy of the results" if given.forecast else "give --out a folder that can be written"
        advice = "name another place" if given.out or given.export else elsewhere
        what = f"{error.filename or 'a file'} cannot be read or written ({error.strerror or error})"
        print(f"error: {what}; {advice}", file=sys.stderr)
        return 1


def _do(given: argparse.Namespace) -> int:
    """What the flags ask for; returns the exit code."""
    folders, out = [_folder(place) for place in given.results], given.out and expanded(given.out, "out")
    if given.against:
        from analysis.compare import page as compare_page  # matplotlib loads with it

        found = against(tables.load(folders[0]), tables.load(_folder(given.against)))
        print(compare_page.judgement_text(found))
        return int(found.outcome)
    if given.suggest is not None or given.next_size:
        for results in folders:
            print(suggested(results, given.aim or "slope", given.suggest, out) if given.suggest is not None else next_size(results, out))
        return 0
    if given.export:
        path = expanded(given.export, "export")
        print(f"means of {export(tables.load(folders[0], given.columns), path)} configurations: {path}")
        return 0
    options = Options(n_bootstrap=given.bootstrap, seed=given.seed, delta=given.delta)
    if given.json:
        for results in folders:
            print(json.dumps(answers.answer(conclusions.conclude(tables.load(results, given.columns), options)), indent=1, allow_nan=False))
        return 0
    if len(folders) == 2 and not given.no_report and all(results.is_dir() for results in folders):
        trees = [conclusions.conclude(tables.load(results), options) for results in folders]
        from analysis.compare import page as compare_page  # matplotlib loads with it

        print(f"comparison: {compare_page.build(folders[0], folders[1], (trees[0], trees[1]), out)}")
        return 0
    for results in folders:
        for target in given.forecast:
            print(record_forecast(results, target))
        analyze(results, out, options, not given.no_report, given.columns)
    return 0


def analyze(
    results: Path,
    out: Path | None = None,
    options: Options | None = None,
    report: bool = True,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Analyze one results folder: writes fits.json, prints the summary, builds the report; returns the conclusions.

    With `out` everything is written there, and nothing into the results.
    """
    folder = out or (results if results.is_dir() else results.parent) / "report"
    try:
        tree = conclusions.conclude(tables.load(results, columns), options)
        tree["answer"] = answers.sentences(tree)
        conclusions.write(folder / "fits.json", tree)
        conclusions.write(folder / "answer.json", answers.answer(tree))
        if out is None:
            forecasts.record_outcomes(results / "forecasts.json", tree["forecasts"])
        print(summary.text(tree))
        if report:
            from analysis.report.build import build  # matplotlib loads with it

            print(f"\nreport: {build(results, tree, folder)}")
        else:
            print(f"\nfits: {folder / 'fits.json'}")
    except Exception:
        for name in ("report.html", "report.md", "report.ipynb", "answer.json", "fits.json"):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)  # an old one would look current
        raise
    return tree


def export(table: tables.Table, path: Path) -> int:
    """Write a row for each configuration, for other tools: its columns, mean loss, standard deviation over seeds; returns their number."""
    if table.trials.empty:
        raise ValueError("no usable run, so nothing to export")
    cells = replicates.average(table.trials)
    known = {name: values for name, values in cells.columns.items() if np.isfinite(values).any() and name != "is_branch"}
    sd = [float(np.std(own, ddof=1)) if len(own := cells.losses(i)) > 1 else None for i in range(len(cells))]
    pd.DataFrame({"config_id": cells.config_id, **known, "n_seeds": cells.n_seeds, "val_loss": cells.loss, "val_loss_sd": sd}).to_csv(
        path, index=False
    )
    return len(cells)


def columns_of(text: str) -> dict[str, str]:
    """The argument of --columns."""
    try:
        return runs_file.parse_columns(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def next_size(results: Path, out: Path | None = None) -> str:
    """Name and quote the trials that tell whether a win holds at the next size: writes suggestion.json; returns the text."""
    made = next_trials.next_size(tables.load(results))
    path = suggestions.write(out or results / "report", made)
    rows = [f"  {t['label']:<12} seed {t['seed']}  {t['params_non_embedding']:>12,} parameters" for t in made["trials"]]
    told = f"python -m study.run --from-suggestion {path if out else results}"
    cost = f"together about {made['device_hours']:.2g} core- or GPU-hours; train them with: {told}"
    return "\n".join(["the best shape of equal size against the one least like it, one size up:", "", *rows, "", cost])


def suggested(results: Path, aim: str, n: int, out: Path | None = None) -> str:
    """Suggest the next n trials for a quantity: writes suggestion.json; returns what a person reads."""
    if not results.is_dir():
        raise ValueError(f"suggestions are kept in a results folder, and {results} is a file; give the folder")
    made = suggestions.suggest(tables.load(results), aim, n)
    path = suggestions.write(out or results / "report", made)
    return f"{suggestions.text(made)}\n\nwritten to {path}; to train them: python -m study.run --from-suggestion {path if out else results}"


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
    cells = replicates.average(trials[one_recipe(trials)])
    target = forecasts.parse(text, cells)
    commits, texts = (sorted(str(value) for value in trials[name].dropna().unique()) for name in ("git_commit", "data_sha256"))
    source = forecasts.Source(commits[-1] if commits else None, datetime.now(UTC), texts[0] if texts else None)
    made = forecasts.by_length(cells, target, source)
    if isinstance(made, Refusal):
        made = forecasts.by_shape(cells, target, source)
    if isinstance(made, Refusal) and made.code != Code.EXTRAPOLATION:  # the law of shapes is not determined: that of size alone
        fitted = next((f for f in all_fits(cells) if isinstance(f, Fitted)), None)
        if fitted is None:
            raise ValueError("all configurations have one size, which allows no forecast; add a second size")
        made = forecasts.make(fitted, target, source)
    if isinstance(made, Refusal):
        raise ValueError(made.reason)
    forecasts.add(results / "forecasts.json", made, cells)
    low, high = ("unbounded" if made[end] is None else f"{made[end]:.4f}" for end in ("low", "high"))
    interval = f"without an interval ({made['interval_refused']})" if made["interval_refused"] else f"[{low}, {high}] nats"
    return f"forecast {text}: {made['point']:.4f} {interval} by {made['law']}: {made['equation']}, on record in forecasts.json"


if __name__ == "__main__":
    sys.exit(until_closed(main))
