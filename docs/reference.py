"""`make reference`: docs/reference.md, every field of a study file and every flag, from the dataclasses and parsers themselves.

python -m docs.reference > docs/reference.md
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any, get_args

from analysis.__main__ import parser
from models.__main__ import export, generate, score
from models.config import Shape
from study import records
from study.options import Options
from study.search.settings import COSTS, SearchSettings, ShapeSettings
from study.spec import DataConfig, Study, TrainConfig
from study.sweeps import KINDS, Sweep

HEAD = """# Reference

Every field of a study file and every flag, written by `make reference` from the code. A field stands in a study file under its group
(`train: {lr: 4e-3}`) and is a flag, too (`--train.lr 4e-3`); flags win. Numbers may be written as `64`, `1e-3`, `2.5K` or `4M`.
"""
UNITS = {
    "base_width": "channels", "base_head_dim": "channels", "base_depth": "layers", "eval_interval": "steps", "eval_windows": "windows",
    "decay_fraction": "share of the steps", "train_chars": "characters", "train_bytes": "bytes",
    "lr_reference": "parameters", "checkpoint_s": "seconds", "stall_minutes": "minutes", "cpus_per_trial": "CPUs",
    "gpus_per_trial": "GPUs", "max_concurrent": "trials", "bundle": "trials", "price": "money per hour", "budget": "time",
    "params": "parameters", "aspects": "n_embd / n_layer", "head_dims": "channels", "max_trials": "trials", "heads": "heads",
    "grace": "share of the steps", "bootstrap": "replicates", "tokens": "tokens", "delta": "log loss",
    "suggest": "trials", "kind": " | ".join(KINDS), "against": " | ".join(COSTS),
}  # fmt: skip
"""Units of what is no column of the tables; those have theirs in `study.records`."""
NAMES = {"low, high": "lr", "ranges": "n_layer, n_embd, lr", "heads": "n_head", "limits": "max_params, max_flops, ...", "factors": "FIELD"}
"""How a sweep's fields are written, where the code that reads them has another word."""
Row = tuple[str, str, str, str]


def page() -> str:
    """The whole page."""
    parts = [
        ("A study", of_class(Study)),
        ("model: the centre, which a sweep changes", of_class(Shape, "model.")),
        ("train: the recipe", of_class(TrainConfig, "train.")),
        ("data: the text", of_class(DataConfig, "data.")),
        ("A sweep, beside the fields that it varies", of_class(Sweep)),
        ("A sweep of kind search: learning rates", of_docstring(SearchSettings)),
        ("A sweep of kind search with `against`: shapes", of_docstring(ShapeSettings)),
        ("Flags of `python -m study.run`, of no study file", of_class(Options, "--")),
        ("Flags of `python -m analysis`", of_parser()),
        *((f"Flags of `python -m models {f.__name__}`", of_docstring(f, "--")) for f in (generate, score, export)),
    ]
    return "\n".join([HEAD, *(f"## {title}\n\n{table(rows)}" for title, rows in parts)])


def table(rows: Iterator[Row]) -> str:
    """Rows as Markdown."""
    cells = [" | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(["| name | unit or values | default | what, and why |", "|---|---|---|---|", *(f"| {row} |" for row in cells)]) + "\n"


def of_class(kind: type, prefix: str = "") -> Iterator[Row]:
    """Fields of a dataclass with the texts that stand below them; groups of fields have tables of their own."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    texts = {
        a.target.id: str(ast.literal_eval(b.value))
        for a, b in pairwise(body)
        if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name) and isinstance(b, ast.Expr)
    }
    for f in fields(kind):
        if f.name in texts and f.name != "search":  # which stands in the file as its own fields
            name = prefix + (f.name.replace("_", "-") if prefix == "--" else NAMES.get(f.name, f.name))
            default = f.default if f.default_factory is MISSING else f.default_factory()
            yield f"`{name}`", unit(f.name, f.type), shown(default), texts[f.name]


def of_docstring(kind: Callable[..., Any], prefix: str = "") -> Iterator[Row]:
    """Arguments of a function or a dataclass whose docstring has a section of them."""
    given = inspect.signature(kind).parameters
    for names, text in re.findall(r"^ {4,8}(\w+(?:, \w+)*): (.+)$", inspect.getdoc(kind) or "", re.M):
        value = given[names.split(", ")[0]].default
        name = "RESULTS" if names == "results" else f"{prefix}{names}" if prefix else NAMES.get(names, names)
        yield f"`{name}`", unit(names), shown(value), text.removesuffix(".")


def of_parser() -> Iterator[Row]:
    """Arguments of the analysis."""
    for action in parser()._actions:
        name = max(action.option_strings, key=len, default=action.dest.upper())
        yield f"`{name}`", unit(action.dest), shown(action.default), str(action.help)


def unit(name: str, kind: Any = None) -> str:
    """Its unit, or the values that are allowed."""
    if choices := [c for c in get_args(kind) if isinstance(c, str)]:
        return " | ".join(choices)
    schema = records.SCHEMAS["trials"]
    column = schema.field(name).metadata[b"unit"].decode() if name in schema.names else ""
    return UNITS.get(name) or column


def shown(value: Any) -> str:
    """A default as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float, str, tuple)) or value == "==SUPPRESS==":
        return ""
    return ", ".join(map(str, value)) if type(value) is tuple else f"{value}"


if __name__ == "__main__":
    print(page(), end="")
