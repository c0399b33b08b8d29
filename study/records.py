"""The tables of a study: Arrow schemas with units, and the only code that reads or writes them.

The seam between running and concluding: `study` writes these tables, `analysis` reads them. One row per trial
(`trials`), per evaluation (`curves`) and per generated text (`samples`), each first as one file per trial, later compacted.

    write(results / "trials" / f"{trial_id}.parquet", "trials", [row]); rows = read(results, "trials").to_pylist()
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from study.files import replaced

SCHEMA_VERSION = "1.3"
"""MAJOR.MINOR: a reader refuses a newer major version; a newer minor version only adds columns."""

STATUSES = ("COMPLETED", "STOPPED", "DIVERGED", "FAILED", "INTERRUPTED")
"""COMPLETED has a finite val_loss; STOPPED ended early by a scheduler (censored, never fitted); DIVERGED met a non-finite loss;
FAILED raised (reason holds the last line of its traceback); INTERRUPTED was cut off and can be continued."""


def _field(name: str, kind: pa.DataType, unit: str, description: str, required: bool = False, nullable: bool = False) -> pa.Field:
    metadata = {"unit": unit, "description": description, "required": "yes" if required else "no"}
    return pa.field(name, kind, nullable=nullable or not required, metadata=metadata)


_int, _float, _str, _bool = pa.int64(), pa.float64(), pa.string(), pa.bool_()
_time = pa.timestamp("us", tz="UTC")

_TRIALS = [
    _field("trial_id", _str, "", "hash of architecture, recipe, data and seed", True),
    _field("config_id", _str, "", "hash of the same without the seed", True),
    _field("seed", _int, "", "seed of initialization and of data order", True),
    _field("status", _str, "", " | ".join(STATUSES), True),
    _field("n_layer", _int, "layers", "depth", True),
    _field("n_embd", _int, "channels", "width", True),
    _field("n_head", _int, "heads", "attention heads per layer", True),
    _field("params_total", _int, "parameters", "all parameters, tied head counted once", True),
    _field("params_non_embedding", _int, "parameters", "total less token and position embeddings (Kaplan et al. 2020)", True),
    _field("n_tokens", _int, "tokens", "training tokens seen, with repetition", True),
    _field("val_loss", _float, "nats/token", "loss on the fixed validation windows at the last step", True, nullable=True),
    _field("study", _str, "", "name of the study that ran the trial"),
    _field("sweeps", pa.list_(_str), "", "sweeps of the study that hold this trial's configuration"),
    _field("d_ff", _int, "channels", "hidden width of each MLP"),
    _field("block_size", _int, "tokens", "context length"),
    _field("base_width", _int, "channels", "width at which muP equals the standard parametrization; 0 is the standard one"),
    _field("base_head_dim", _int, "channels", "muP: head width at which attention is scaled as usual; 0: at every one"),
    _field("base_depth", _int, "layers", "depth at which CompleteP equals the standard parametrization; 0: depth is not followed"),
    _field("vocab_size", _int, "tokens", "size of the vocabulary, marks included"),
    _field("tokenizer", _str, "", "char | bytes | bpe:SIZE | a tokenizer.json"),
    _field("module", _str, "", "FILE:CLASS of a model of the user's own, with the hash of its file; empty: the built-in one"),
    _field("extra", _str, "", "the user's own fields of that model, as JSON"),
    _field("params_embedding", _int, "parameters", "token embedding"),
    _field("params_position", _int, "parameters", "position embedding"),
    _field("params_blocks", _int, "parameters", "transformer blocks without the final norm"),
    _field("flops_per_token", _int, "FLOP/token", "forward plus backward matrix multiplications"),
    _field("flops", _float, "FLOP", "flops_per_token times n_tokens, a trunk shared with other lengths counted in full"),
    _field("n_steps", _int, "steps", "optimizer steps taken"),
    _field("batch_size", _int, "sequences", "sequences per step"),
    _field("unique_tokens", _int, "tokens", "distinct training tokens available"),
    _field("epochs", _float, "", "n_tokens over unique_tokens"),
    _field("lr", _float, "", "peak learning rate"),
    _field(
        "lr_status",
        _str,
        "",
        "fixed | tuned | at_edge; searched: a run that chose, on a seed of its own; transferred: by a law (of before)",
    ),
    _field("weight_decay", _float, "", "AdamW weight decay of matrices"),
    _field("warmup_steps", _int, "steps", "steps of linear warm-up"),
    _field("dropout", _float, "", "dropout probability"),
    _field("schedule", _str, "", "cosine | wsd | constant"),
    _field("val_loss_se", _float, "nats/token", "standard error of val_loss over the validation windows"),
    _field("val_bpb", _float, "bits/byte", "val_loss per UTF-8 byte of the validation text: comparable across tokenizers"),
    _field("train_loss", _float, "nats/token", "loss on fixed training windows at the last step"),
    _field("best_val_loss", _float, "nats/token", "lowest val_loss of the curve"),
    _field("loss_floor", _float, "nats/token", "entropy of the validation text where it is known"),
    _field("ms_per_step", _float, "ms", "median time of one optimizer step, evaluation excluded"),
    _field("cpu_ms_per_step", _float, "ms", "median processor time of one optimizer step of one thread: what other work does not slow"),
    _field("tokens_per_s", _float, "tokens/s", "training tokens over training time, evaluation excluded; a shared trunk's time in full"),
    _field("exclusive_timing", _bool, "", "the trial had its device to itself"),
    _field("peak_memory_bytes", _int, "bytes", "peak memory of the device (CUDA) or of the process"),
    _field("gpu_fraction", _float, "GPU", "share of a GPU that was reserved"),
    _field("mps", _bool, "", "NVIDIA's MPS was on: processes that shared the GPU ran at the same time"),
    _field("bundle_size", _int, "trials", "trials trained together in one process"),
    _field("device", _str, "", "cpu | cuda | mps, with its model name"),
    _field("precision", _str, "", "float32 | bf16: the arithmetic of the linear layers"),
    _field(
        "mfu", _float, "", "FLOP/s of this trial over the bf16 peak of its device, where that is known (Chowdhery et al. 2022, appendix B)"
    ),
    _field("wall_s", _float, "s", "wall time of the trial, evaluation and restarts included; with a shared trunk, train_s plus eval_s"),
    _field(
        "train_s",
        _float,
        "s",
        "time in optimizer steps; under WSD, lengths trained from one trunk: its own decay plus its equal share of the trunk",
    ),
    _field("eval_s", _float, "s", "time in evaluation; of a shared trunk, its equal share"),
    _field("data_name", _str, "", "name of the data set"),
    _field("data_sha256", _str, "", "hash of tokens and vocabulary"),
    _field("recipe_version", _int, "", "version of the training code's numerics"),
    _field("git_commit", _str, "", "commit of the project"),
    _field("git_dirty", _bool, "", "the working tree differed from the commit"),
    _field("torch_version", _str, "", "version of torch"),
    _field("ray_version", _str, "", "version of ray"),
    _field("host", _str, "", "machine that trained the trial"),
    _field("started_at", _time, "UTC", "first start"),
    _field("finished_at", _time, "UTC", "end"),
    _field("restarts", _int, "", "times the trial was continued from a checkpoint"),
    _field("reason", _str, "", "why the status is not COMPLETED"),
]

_CURVES = [
    _field("trial_id", _str, "", "trial", True),
    _field("step", _int, "steps", "optimizer steps taken", True),
    _field("tokens", _int, "tokens", "training tokens seen", True),
    _field("train_loss", _float, "nats/token", "loss on fixed training windows"),
    _field("val_loss", _float, "nats/token", "loss on the fixed validation windows"),
    _field("val_loss_se", _float, "nats/token", "standard error of val_loss over windows"),
    _field("val_bpb", _float, "bits/byte", "val_loss per UTF-8 byte of the validation text"),
    _field("batch_loss", _float, "nats/token", "mean loss of the training batches since the last evaluation"),
    _field("lr", _float, "", "learning rate of the last step"),
    _field("grad_norm", _float, "", "mean global gradient norm before clipping since the last evaluation"),
    _field("tokens_per_s", _float, "tokens/s", "training speed since the last evaluation"),
    _field("wall_s", _float, "s", "wall time since the trial's start"),
]

_SAMPLES = [
    _field("trial_id", _str, "", "trial", True),
    _field("step", _int, "steps", "optimizer step at which the text was generated"),
    _field("prompt", _str, "", "text the model continued", True),
    _field("index", _int, "", "number of the sample for its prompt", True),
    _field("temperature", _float, "", "sampling temperature", True),
    _field("text", _str, "", "generated text without the prompt", True),
    _field("n_tokens", _int, "tokens", "length of the generated text", True),
]

SCHEMAS = {"trials": pa.schema(_TRIALS), "curves": pa.schema(_CURVES), "samples": pa.schema(_SAMPLES)}
PER_TRIAL = tuple(SCHEMAS)
"""Each table has a file for each trial, merged into one at the end."""
KEYS = {"trials": ["trial_id"], "curves": ["trial_id", "step"], "samples": ["trial_id", "prompt", "index", "temperature", "step"]}
"""Columns that identify a row. Rows can repeat after a restart: the last one wins."""


class RecordError(ValueError):
    """A results table that cannot be used; the message names the file and what to do."""


class DamagedError(RecordError):
    """A file whose bytes were read and are no whole Parquet file."""


def required_columns(table: str) -> list[str]:
    """Columns without which `analysis` cannot use the table."""
    return [field.name for field in SCHEMAS[table] if field.metadata[b"required"] == b"yes"]


def to_table(table: str, rows: Sequence[Mapping[str, Any]], study: str = "", code_version: str = "") -> pa.Table:
    """Rows as an Arrow table with the schema of `table` and its file metadata."""
    schema = SCHEMAS[table].with_metadata(_metadata(table, study, code_version))
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def _metadata(table: str, study: str, code_version: str) -> dict[str, str]:
    return {"schema": table, "schema_version": SCHEMA_VERSION, "study": study, "code_version": code_version}


def write(path: Path, table: str, rows: Sequence[Mapping[str, Any]], study: str = "", code_version: str = "") -> None:
    """Write rows atomically: a reader sees the old file or the whole new one, also after a power cut."""
    for row in rows if table == "trials" else ():
        assert row.keys() <= set(SCHEMAS[table].names), row
        assert row["status"] in STATUSES, row
        assert row["status"] != "COMPLETED" or math.isfinite(row["val_loss"]), row
    write_table(path, to_table(table, rows, study, code_version))


def write_table(path: Path, data: pa.Table) -> None:
    """Write an Arrow table to `path`, whole or not at all."""
    with replaced(path) as file:  # a handle, as Arrow takes every path for UTF-8, whatever the locale says
        pq.write_table(data, file, compression="zstd")


def read_file(path: Path, table: str, problems: list[str] | None = None) -> pa.Table:
    """One Parquet file under the present schema: unknown columns are dropped, missing optional ones are null.

    Args:
        problems: where given, gets a sentence for each optional column that is of another kind and therefore read as empty.

    Raises:
        OSError: the file cannot be opened or read.
        DamagedError: its bytes are no whole Parquet file.
        RecordError: newer major version, a required column missing (named, with those found), of another kind, or without the values that
            identify a row.
    """
    if path.is_dir():
        raise RecordError(f"{path} is a folder where a Parquet file should be; move its files to {path.parent / table}, or delete it")
    content = path.read_bytes()  # through Python: Arrow takes every path for UTF-8, whatever the locale says
    try:
        data = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        text = str(error).splitlines()[0][:200]
        damage = "it is cut short or is no Parquet file" if re.search("magic bytes|footer|file size", text) else text
        raise DamagedError(f"{path} cannot be read as Parquet ({damage}); set it aside or delete it") from error
    version = (data.schema.metadata or {}).get(b"schema_version", b"1.0").decode()
    if int(re.split(r"\D", version + ".")[0] or 0) > int(SCHEMA_VERSION.split(".")[0]):
        raise RecordError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; upgrade scaling-study")
    missing = [name for name in required_columns(table) if name not in data.column_names]
    if missing:
        raise RecordError(f"{path} lacks the columns {missing} that analysis needs; it has {data.column_names}")
    as_written = data.schema.equals(SCHEMAS[table])  # by this version: nothing to convert
    columns = data.columns if as_written else [_column(data, field, path, problems) for field in SCHEMAS[table]]
    unnamed = [key for key in KEYS[table] if columns[SCHEMAS[table].names.index(key)].null_count]
    if unnamed and data.num_rows:
        raise RecordError(f"{path} has rows without {' and '.join(unnamed)}, which identify a row; fill them in")
    return pa.Table.from_arrays(columns, schema=readable_schema(table)).replace_schema_metadata(data.schema.metadata)


@cache
def readable_schema(table: str) -> pa.Schema:
    """The schema of tables that were read: as `SCHEMAS`, but a value may be missing, for the reader to say so of that row."""
    return pa.schema([field.with_nullable(True) for field in SCHEMAS[table]])


def _column(data: pa.Table, field: pa.Field, path: Path, problems: list[str] | None) -> pa.ChunkedArray | pa.Array:
    """A column in the type that the schema gives it; numbers that are not finite become missing where whole numbers are meant."""
    if field.name not in data.column_names:
        return pa.nulls(data.num_rows, field.type)
    column = data[field.name]
    if pa.types.is_integer(field.type) and pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        kind = f"{field.type} ({field.metadata[b'description'].decode()})"
        told = f"{path} holds {column.type} values in column {field.name!r} that are not {kind}: {str(error).splitlines()[0][:120]}"
        if field.metadata[b"required"] == b"yes":
            raise RecordError(f"{told}; write that column anew") from error
        if problems is not None:
            problems.append(f"{told}; the column is read as empty")
        return pa.nulls(data.num_rows, field.type)


def files(results: Path, table: str) -> list[Path]:
    """The compacted file first, then the per-trial files: later ones win."""
    whole = results / f"{table}.parquet"
    try:
        names = sorted(os.listdir(results / table))  # not glob: that takes a folder without permission for an empty one
    except (FileNotFoundError, NotADirectoryError):
        names = []
    parts = [results / table / name for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return ([whole] if whole.exists() else []) + parts


def read(results: Path, table: str, problems: list[str] | None = None) -> pa.Table:
    """All rows of a results folder, de-duplicated by the table's key with the last row winning, sorted by it.

    Args:
        problems: where given, a file that is no such table is named here and passed over; otherwise it raises.

    Raises:
        OSError: a file cannot be opened or read.
        RecordError: a file is no such table and `problems` is None.
    """
    return _read(results, table, problems)[0]


def _read(results: Path, table: str, problems: list[str] | None) -> tuple[pa.Table, dict[str, list[int]]]:
    """All rows, and which files hold them: a per-trial file that has not changed since it was compacted is not opened again."""
    tables, held = [], dict[str, list[int]]()
    for path in files(results, table):
        facts, told = path.stat(), len(problems or ())
        stamp = [facts.st_size, facts.st_mtime_ns]
        if held.get(path.name) == stamp:
            continue
        try:
            found = read_file(path, table, problems)
        except RecordError as error:
            if problems is None:
                raise
            problems.append(str(error))
            continue
        tables.append(found)
        if path.parent == results:
            held = _parts(found)
        elif told == len(problems or ()):
            held[path.name] = stamp
    if not tables:
        return readable_schema(table).empty_table(), held
    return deduplicate(pa.concat_tables([t.replace_schema_metadata(None) for t in tables]), table), held


def _parts(whole: pa.Table) -> dict[str, list[int]]:
    """Stamps, by name, of the per-trial files whose rows a compacted table holds: all of them, in the columns of this very version."""
    facts = whole.schema.metadata or {}
    try:
        known = json.loads(facts[b"parts"])
        as_written = facts[b"schema_version"].decode() == SCHEMA_VERSION and known["n_rows"] == whole.num_rows
        return dict(known["stamps"]) if as_written else {}
    except (KeyError, ValueError, TypeError):
        return {}


def deduplicate(data: pa.Table, table: str) -> pa.Table:
    """Keep the last row of each key and sort by key."""
    keys = KEYS[table]
    order = data.append_column("_row", pa.array(range(data.num_rows), pa.int64()))
    last = order.group_by(keys, use_threads=False).aggregate([("_row", "max")])["_row_max"]
    return data.take(last).sort_by([(key, "ascending") for key in keys])


def compact(results: Path, table: str, study: str = "") -> int:
    """Merge the per-trial files into one; returns the number of rows.

    The parts stay: they are the truth, and one whose size or time has changed since, or that is new, is read again.
    """
    data, held = _read(results, table, problems=[])
    parts = json.dumps({"n_rows": data.num_rows, "stamps": held})
    write_table(results / f"{table}.parquet", data.replace_schema_metadata(_metadata(table, study, "") | {"parts": parts}))
    return int(data.num_rows)


def utc(seconds: float) -> datetime:
    """POSIX seconds as an aware UTC time, as the tables hold it."""
    return datetime.fromtimestamp(seconds, tz=UTC)
