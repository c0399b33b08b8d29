"""Runs of another program: a table in CSV, TSV, JSON lines or Parquet, its columns named on the command line, read as trials.

    rows = read(Path("runs.csv"), parse_columns("N=params,D=tokens,L=loss,n_layer=depth"))

N, L and D are needed (or C, the training compute: then D = C / 6N, Kaplan et al. 2020, section 2.1). Shapes, seeds and everything else of a
trial may be given; a column that is not given is empty, and what needs it is refused by its name. Columns of the schema's own names need no
mapping. Rows of one configuration are its seeds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study import records

LETTERS = {"N": "params_non_embedding", "D": "n_tokens", "L": "val_loss", "C": "flops"}
"""The letters of the field for columns of the trials table."""
READERS: Mapping[str, Any] = {
    ".csv": pd.read_csv,
    ".tsv": lambda path: pd.read_csv(path, sep="\t"),
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".parquet": pd.read_parquet,
}
SHAPES = ("n_layer", "n_embd", "n_head")
CHECKPOINTS = "checkpoints"
"""Schedule of rows that are taken as points along one run, which scatter together."""
MANY_LENGTHS = 5
"""Lengths of one model and seed from which rows of unknown schedule are taken as checkpoints: runs of their own are seldom so many."""


def parse_columns(text: str) -> dict[str, str]:
    """ "N=params,n_layer=depth" as {"params_non_embedding": "params", "n_layer": "depth"}.

    Raises:
        ValueError: a part is not FIELD=COLUMN, or the field is not one of a trial's.
    """
    known, found = [*LETTERS, *records.SCHEMAS["trials"].names], {}
    for part in text.split(","):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column:
            raise ValueError(f"--columns {part!r} is not FIELD=COLUMN, for example N=params,D=tokens,L=loss")
        if field not in known:
            raise ValueError(
                f"--columns {field}={column}: a run has no field {field!r}{_nearly(field, known)}; {', '.join(known[:14])}, ..."
            )
        found[LETTERS.get(field, field)] = column
    return found


def is_trials(path: Path) -> bool:
    """Whether a file is Parquet with the columns of a trials table, or damaged Parquet that should be."""
    try:
        return path.suffix.lower() not in READERS or set(records.required_columns("trials")) <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return path.suffix.lower() == ".parquet"


def read(path: Path, columns: Mapping[str, str] | None, problems: list[str]) -> pa.Table:
    """The runs of a file as rows of the trials table; shapes that are placeholders are taken as unknown.

    Args:
        columns: field of a trial -> column of the file; fields that the file has under their own name need none.
        problems: gets a sentence where shapes are placeholders.

    Raises:
        ValueError: the file cannot be read, lacks a column, or holds something else than numbers where numbers are meant.
    """
    given = _read(path)
    names = {name: name for name in records.SCHEMAS["trials"].names if name in given.columns} | dict(columns or {})
    for column in names.values():
        if column not in given.columns:
            raise ValueError(
                f"{path} has no column {column!r}{_nearly(column, given.columns)}; it has {', '.join(map(str, given.columns))}"
            )
    rows = pd.DataFrame({field: _typed(path, given[column], field) for field, column in names.items()})
    rows = _with_tokens(path, rows, given.columns)
    unknown = [name for name in SHAPES if name in rows]
    if unknown and (rows[unknown].nunique() <= 1).all() and rows["params_non_embedding"].nunique() > 1:
        rows = rows.drop(columns=unknown)
        problems.append(f"{path.name} gives one shape for several numbers of parameters, so its {', '.join(unknown)} are taken as unknown")
    rows = _identified(rows, path.stem)
    if "schedule" not in rows and _are_checkpoints(rows):
        rows = rows.assign(schedule=CHECKPOINTS)
        problems.append(
            f"{path.name} has models at {MANY_LENGTHS} lengths or more in one seed, which are taken as checkpoints of one run; "
            "where each was a run of its own, say so with a column schedule"
        )
    return _table(rows)


def _are_checkpoints(rows: pd.DataFrame) -> bool:
    """Whether most rows are one model and seed at many lengths."""
    model = [c for c in rows if c not in ("config_id", "trial_id", "n_tokens", "val_loss", "flops", "epochs", "train_loss", "val_loss_se")]
    lengths = rows.groupby(model, dropna=False)["n_tokens"].transform("nunique")
    return bool((lengths >= MANY_LENGTHS).mean() > 0.5)


def _read(path: Path) -> pd.DataFrame:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no table that can be read; give {', '.join(READERS)}, or a results folder")
    try:
        found = reader(path)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty; give a table with a row per run") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:].upper()} ({str(error).splitlines()[0][:120]})") from error
    if found.empty:
        raise ValueError(f"{path} holds no runs; give a table with a row per run")
    return pd.DataFrame(found)


def _nearly(name: str, known: Iterable[Any]) -> str:
    """A suggestion where a name is nearly right."""
    by_lower = {str(k).lower().replace("_", " "): str(k) for k in known}
    near = difflib.get_close_matches(name.lower().replace("_", " "), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def _typed(path: Path, values: pd.Series[Any], field: str) -> pd.Series[Any]:
    """Values of a field in its kind: numbers where the schema has numbers."""
    kind = records.SCHEMAS["trials"].field(field).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return values
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    wrong = np.flatnonzero(numbers.isna() & values.notna())
    if len(wrong):
        raise ValueError(
            f"{path}: row {wrong[0] + 1} of column {values.name!r} holds {str(values.iloc[wrong[0]])[:40]!r}, which is no number; "
            f"mend the row, or give another column for {field}"
        )
    return numbers


def _with_tokens(path: Path, rows: pd.DataFrame, columns: Iterable[Any]) -> pd.DataFrame:
    """The rows with training tokens, from compute where they are not given."""
    if "n_tokens" not in rows and {"flops", "params_non_embedding"} <= set(rows):
        rows = rows.assign(n_tokens=rows["flops"] / (6 * rows["params_non_embedding"]))
    missing = [letter for letter, field in LETTERS.items() if letter != "C" and field not in rows]
    if missing:
        needed = " and ".join("D (or C, training FLOP)" if letter == "D" else letter for letter in missing)
        raise ValueError(
            f"{path} has no column for {needed}; say which with --columns, for example --columns N=params,D=tokens,L=loss; "
            f"it has {', '.join(map(str, columns))}"
        )
    return rows


def _identified(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with configuration, seed, trial and status, where they are not given: rows that differ in nothing but loss are seeds."""
    if "config_id" not in rows:
        numbers = rows.drop(columns=[c for c in ("val_loss", "seed", "trial_id", "status", "flops") if c in rows])
        rows = rows.assign(config_id="c" + numbers.groupby(list(numbers.columns), sort=False, dropna=False).ngroup().astype(str))
    if "seed" not in rows:
        rows = rows.assign(seed=rows.groupby("config_id").cumcount() + 1)
    if "trial_id" not in rows:
        rows = rows.assign(trial_id="row" + pd.Series(np.arange(1, len(rows) + 1).astype(str), index=rows.index))
    return rows.assign(status=rows.get("status", "COMPLETED"), study=rows.get("study", name))


def _table(rows: pd.DataFrame) -> pa.Table:
    """Under the schema of trials, fields that are not given being empty."""
    fields = []
    for field in records.readable_schema("trials"):
        values = rows[field.name] if field.name in rows else [None] * len(rows)
        if field.name in rows and pa.types.is_integer(field.type):
            values = pd.Series(values, dtype=float).round().astype("Int64")
        elif field.name in rows and pa.types.is_string(field.type):
            values = [None if pd.isna(value) else str(value) for value in values]
        fields.append(pa.array(values, type=field.type, from_pandas=True))
    return pa.Table.from_arrays(fields, schema=records.readable_schema("trials"))
