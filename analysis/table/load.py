"""Load a results folder, or a table of runs in any form that `runs_file` reads, and say which rows may be fitted and why not the others.

Nothing is deleted: every row stays in `Table.rows`, with `usable` and, where it is false, `exclusion`. `Table.trials` holds the usable
rows. A person's mistakes (no such folder, a missing column, a truncated file) are named in one sentence each: those that leave nothing
to read are raised as ValueError, the others are listed in `Table.problems`.

    table = load(Path("results/quick")); table.trials.groupby("config_id").val_loss.mean()
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis.table import runs_file
from study import records

POSITIVE_COLUMNS = ("params_non_embedding", "params_total", "n_layer", "n_embd", "n_head", "n_tokens")
"""Columns of the laws: their logarithm is taken."""
MAY_LACK = ("params_total", "n_layer", "n_embd", "n_head")
"""Those that a table may lack altogether; what needs them is then refused."""

ADDED_LATER = ("base_width", "base_head_dim", "base_depth")
"""Columns of the recipe that older files do not have: their rows were trained as 0 says, the only parametrization there was."""

LEAK_ERRORS = 4.0
"""Standard errors of a loss by which it must lie below the text's entropy to be called a leak, not luck with the windows."""

STATUS_REASONS = {
    "STOPPED": "stopped early by a scheduler: its loss is censored and never fitted",
    "DIVERGED": "diverged to a non-finite loss",
    "FAILED": "failed",
    "INTERRUPTED": "interrupted before its last step",
}


@dataclass(frozen=True)
class Exclusion:
    """A trial that was left out of every fit, and why."""

    trial_id: str
    status: str
    reason: str


@dataclass(frozen=True)
class Table:
    """The trials of one study.

    Args:
        path: results folder, or the Parquet file that was read.
        rows: every trial, one row each, with the columns of the `trials` schema and `usable` (bool) and `exclusion` (text).
        problems: one sentence for each thing that was wrong with the files.
        study: contents of study.json, empty where there is none.
    """

    path: Path
    rows: pd.DataFrame
    problems: tuple[str, ...]
    study: Mapping[str, Any]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Rows that may be fitted: present in the study, COMPLETED, finite positive loss, positive sizes, of seeds that chose no rate."""
        return self.completed[self.completed["lr_status"] != "searched"].reset_index(drop=True)

    @cached_property
    def completed(self) -> pd.DataFrame:
        """Those rows, and the runs of searches for a learning rate: on seeds of their own, they choose a rate and claim nothing."""
        usable = self.rows[self.rows["usable"]].reset_index(drop=True)
        whole = [name for name in (*POSITIVE_COLUMNS, "seed") if name not in MAY_LACK or usable[name].notna().all()]
        return usable.astype(dict.fromkeys(whole, "int64"))  # a value missing elsewhere makes a column float

    @cached_property
    def excluded(self) -> list[Exclusion]:
        """The other rows, with their reason."""
        out = self.rows[~self.rows["usable"]]
        return [Exclusion(str(t), str(s), str(r)) for t, s, r in zip(out["trial_id"], out["status"], out["exclusion"], strict=True)]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per evaluation of every trial, sorted by trial and step; empty where there are none."""
        return self._side_table("curves")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per generated text; empty where there are none."""
        return self._side_table("samples")

    def _side_table(self, name: str) -> pd.DataFrame:
        if not self.path.is_dir():
            return records.SCHEMAS[name].empty_table().to_pandas()
        return _read(self.path, name, [])[0].to_pandas()

    @property
    def name(self) -> str:
        """The study's name: from study.json, from the rows, or the folder's."""
        named = [str(v) for v in self.rows["study"].dropna().unique()][:1]
        return str(self.study.get("name") or (named or [self.path.resolve().stem])[0])


def load(results: Path, columns: Mapping[str, str] | None = None) -> Table:
    """Read the trials of a results folder or of a single file.

    Args:
        columns: of a file that another program wrote: field of a trial -> its column there.

    Raises:
        ValueError: nothing at that path, no trial in it, or no file of it can be read (RecordError names the file and the columns).
    """
    path = Path(results)
    if not path.exists():
        raise ValueError(f"there is no results folder {path}; give a folder that `python -m study.run` wrote, or a table of runs")
    if columns and path.is_dir():
        raise ValueError(f"--columns names the columns of a table of runs, and {path} is a folder; give the file, or leave --columns out")
    problems: list[str] = []
    foreign = path.is_file() and (columns or not runs_file.is_trials(path))
    data, n_files = (runs_file.read(path, columns, problems), 1) if foreign else _read(path, "trials", problems)
    if not n_files and problems:
        raise records.RecordError(problems[0])
    if data.num_rows == 0:
        raise ValueError(
            f"{path} holds no trials (trials.parquet or trials/*.parquet); run `python -m study.run` first, or give another folder"
        )
    study = _read_study(path, problems) if path.is_dir() else {}
    rows = data.to_pandas()
    rows = _separate_configurations(rows.assign(**{column: rows[column].fillna(0) for column in ADDED_LATER}), problems)
    reasons = exclusion_reasons(rows, study)
    return Table(path, rows.assign(usable=[not reason for reason in reasons], exclusion=reasons), tuple(problems), study)


# ---- files ----


def _read(path: Path, name: str, problems: list[str]) -> tuple[pa.Table, int]:
    """Rows of all readable files (the last of a repeated key wins) and the number of those files."""
    files = [path] if path.is_file() else _needed_files(path, name)
    parts: list[pa.Table] = []
    for file in files:
        try:
            part = records.read_file(file, name, problems)
        except records.RecordError as error:
            problems.append(str(error))
            continue
        if name == "trials" and len(part) > 1:
            problems.extend(_repeated_ids(part, file))
        parts.append(part.replace_schema_metadata(None))
    if not parts:
        return records.readable_schema(name).empty_table(), 0
    whole = pa.concat_tables(parts)
    if name == "curves" and len(parts) == 1 and _sorted_unique(whole):
        return whole, 1
    return records.deduplicate(whole, name), len(parts)


def _needed_files(results: Path, name: str) -> list[Path]:
    """The compacted file, then the parts that may hold something newer than it (the parts are the truth, reading 100,000 of them is slow).

    A part is passed over only where the whole has its trial, COMPLETED and so final, and was written after it.
    """
    files = records.files(results, name)
    whole = results / f"{name}.parquet"
    if len(files) < 1000 or files[0] != whole:
        return files
    try:
        trials = records.read_file(results / "trials.parquet", "trials").select(["trial_id", "status"])
    except records.RecordError:
        return files
    final = set(trials.filter(pc.equal(trials["status"], "COMPLETED"))["trial_id"].to_pylist())
    written = whole.stat().st_mtime
    return [whole, *(p for p in files[1:] if p.stem not in final or p.stat().st_mtime > written)]


def _sorted_unique(curves: pa.Table) -> bool:
    """Whether the rows are already in (trial_id, step) order without repeats, as `records.compact` writes them."""
    trial, step = curves["trial_id"].combine_chunks(), curves["step"].combine_chunks()
    if len(trial) < 2:
        return True
    same = pc.equal(trial[1:], trial[:-1])
    ordered = pc.if_else(same, pc.greater(step[1:], step[:-1]), pc.greater(trial[1:], trial[:-1]))
    return bool(pc.all(ordered).as_py())


def _repeated_ids(part: pa.Table, file: Path) -> Iterable[str]:
    ids = part["trial_id"].to_pandas()
    if repeated := list(map(str, ids[ids.duplicated(keep=False)].unique())):
        shown = ", ".join(repeated[:3]) + (", ..." if len(repeated) > 3 else "")
        yield f"{file.name} repeats {len(repeated)} trial ids ({shown}); the last row of each is used: give every trial its own trial_id"


def _read_study(results: Path, problems: list[str]) -> dict[str, Any]:
    path = results / "study.json"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        wrong = f"cannot be read as JSON ({str(error).splitlines()[0][:80]})"
    else:
        if isinstance(study, dict):
            return study
        wrong = f"holds {type(study).__name__}, not an object"
    problems.append(f"{path} {wrong}; all rows are taken as belonging to the study")
    return {}


def _separate_configurations(rows: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Where one config_id covers several shapes or budgets, make it as many configurations: means over unlike models mean nothing."""
    shape = ["params_non_embedding", "params_total", "n_layer", "n_embd", "n_head", "n_tokens"]
    spread = rows.groupby("config_id")[shape].nunique().gt(1).any(axis=1)
    mixed = list(spread.index[spread])
    if not mixed:
        return rows
    problems.append(
        f"{len(mixed)} config_id values ({', '.join(map(str, mixed[:3]))}) cover several shapes or token budgets; "
        "each shape is taken as its own configuration"
    )
    suffix = rows["n_layer"].astype(str) + "x" + rows["n_embd"].astype(str) + "h" + rows["n_head"].astype(str)
    suffix += "d" + rows["n_tokens"].astype(str)
    return rows.assign(config_id=rows["config_id"].where(~rows["config_id"].isin(mixed), rows["config_id"].astype(str) + "/" + suffix))


# ---- rows ----


def exclusion_reasons(rows: pd.DataFrame, study: Mapping[str, Any]) -> list[str]:
    """Why each row may not be fitted; an empty text where it may. The first reason that holds is given."""
    reasons = np.full(len(rows), "", dtype=object)

    def mark(where: Any, text: Any) -> None:
        chosen = np.asarray(where, dtype=bool) & (reasons == "")
        reasons[chosen] = np.broadcast_to(np.asarray(text, dtype=object), len(rows))[chosen]

    for column, word in (("recipe_version", "recipe version"), ("data_sha256", "data")):
        wanted = study.get(column)
        if wanted not in (None, "", []):
            allowed = wanted if isinstance(wanted, list) else [wanted]
            shown = ", ".join(str(value)[:12] for value in allowed)
            found = rows[column].astype("string").str.removesuffix(".0").str[:12].fillna("")
            known = rows[column].notna() & ~rows[column].isin(allowed)
            mark(known, "stale: " + word + " " + found.to_numpy(dtype=object) + f", the study now has {shown}")
    if not study.get("data_sha256"):
        mark(*_of_other_text(rows))
    if isinstance(study.get("trial_ids"), list) and study["trial_ids"]:
        mark(~rows["trial_id"].isin(list(study["trial_ids"])), "not in the present study")
    status, given = rows["status"].fillna("missing"), rows["reason"].fillna("").to_numpy(dtype=object)
    for name, text in STATUS_REASONS.items():
        mark(status == name, [text + (f": {why}" if why and name != "STOPPED" else "") for why in given])
    mark(status != "COMPLETED", "status " + status.to_numpy(dtype=object) + " is not one of " + ", ".join(records.STATUSES))
    loss = rows["val_loss"].to_numpy(dtype=float, na_value=np.nan)
    mark(np.isnan(loss), "its val_loss is missing (NaN)")
    mark(np.isinf(loss), "its val_loss is infinite")
    mark(loss <= 0, "its val_loss is not positive, so its logarithm cannot be fitted")
    floor, error = (rows[column].to_numpy(dtype=float, na_value=np.nan) for column in ("loss_floor", "val_loss_se"))
    with np.errstate(invalid="ignore"):
        leaked = loss + LEAK_ERRORS * np.nan_to_num(error) < floor
    mark(leaked, "its val_loss lies below the text's entropy, which no honest model can: validation text has leaked into training")
    for column in POSITIVE_COLUMNS:
        values = rows[column].to_numpy(dtype=float, na_value=np.nan)
        if column in MAY_LACK and np.isnan(values).all():
            continue
        mark(~(np.isfinite(values) & (values > 0)), f"its {column} is missing or not positive")
    for column in ("config_id", "seed"):
        mark(rows[column].isna(), f"its {column} is missing")
    return [str(reason) for reason in reasons]


def _of_other_text(rows: pd.DataFrame) -> tuple[Any, Any]:
    """Rows of another text than most completed ones, where no study says which is meant, and why they are left out."""
    text = rows["data_sha256"].astype("string")
    done = text[rows["status"] == "COMPLETED"].value_counts()
    if len(done) < 2:
        return np.zeros(len(rows), dtype=bool), ""
    most = str(done.index[0])
    why = "stale: data " + text.str[:12].fillna("").to_numpy(dtype=object) + f", most trials are of {most[:12]}"
    return text.notna() & (text != most), why


SAME_SIZE = 0.05
"""Relative step of N up to which configurations have the same size: shapes matched to 2 % on either side of a target differ by 4.1 %. What
such a difference is worth is taken off along the curve before shapes are compared."""


def size_labels(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """The size of each configuration, counted from the smallest: a new one begins where N steps up by more than SAME_SIZE."""
    order = np.argsort(values, kind="stable")
    steps = np.diff(np.log(values[order]), prepend=np.log(values[order][:1])) > np.log1p(SAME_SIZE)
    labels = np.empty(len(values), dtype=np.intp)
    labels[order] = np.cumsum(steps)
    return labels


def distinct_sizes(values: NDArray[np.float64]) -> int:
    """Number of values that differ by more than SAME_SIZE from the next smaller one."""
    return int(size_labels(values).max()) + 1 if len(values) else 0


STALE_PREFIXES = ("stale:", "not in the present study")


def counts(table: Table) -> dict[str, int]:
    """Numbers of trials by fate, and of distinct configurations, seeds and sizes among those that may be fitted."""
    rows, trials = table.rows, table.trials
    stale = rows["exclusion"].str.startswith(STALE_PREFIXES)
    present = rows[~stale]
    by_status = {name.lower(): int((present["status"] == name).sum()) for name in records.STATUSES}
    return {
        "trials": len(rows),
        **{name: by_status[name] for name in ("completed", "stopped", "diverged", "failed", "interrupted")},
        "stale": int(stale.sum()),
        "usable": len(trials),
        "configurations": int(trials["config_id"].nunique()),
        "seeds": int(trials["seed"].nunique()),
        "sizes": distinct_sizes(trials["params_non_embedding"].to_numpy(float)),
    }
