"""The command line: a study (preset or YAML file, flags on top) and where to run it.

`python -m study.run [STUDY] [--group.field VALUE ...]`. A YAML study is turned into flags and parsed by the same parser as the command
line, whose flags come after it and win. Imports neither torch nor ray, so that --help answers at once.

    command = parse(["quick", "--train.lr", "2e-3", "--dry-run"])
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from models.config import Extra
from models.home import expanded
from models.module_file import resolve
from study.files import cache_folder, is_file_name
from study.options import Options
from study.results.default_place import default_place, safe_name
from study.results.object_store import is_address, staging
from study.spec import Study
from study.study_file import GROUPS, preset_names, study_flags
from study.sweeps import number

DEFAULT_STUDY = "quick"
EXTRA = "--model.extra."


@dataclass(frozen=True)
class Command:
    """Train a scaling study with Ray Tune and build its report."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")] = DEFAULT_STUDY
    """a preset or a YAML file"""
    study: Annotated[Study, tyro.conf.arg(name="")] = field(default_factory=Study)
    options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)

    @property
    def study_name(self) -> str:
        """Name of the study: the preset's, or the YAML file's without its ending, reduced to safe characters."""
        return safe_name(Path(self.name).stem if is_file_name(self.name) else self.name)

    @cached_property
    def out(self) -> Path:
        """The results folder (for an object store the local one that it mirrors)."""
        if is_address(self.options.out):
            return staging(self.options.out, cache_folder()).resolve()
        if self.options.out:
            return expanded(self.options.out, "out").resolve()
        return default_place(self.name, self.study.data, _parse_with(self.name, [self.name], []).study.data)


def parse(argv: Sequence[str]) -> Command:
    """Parse the command line; prints help or the mistake and exits with 0 or 2, as command-line programs do.

    Raises:
        ValueError: no such study, or its YAML cannot be used.
    """
    name = argv[0] if argv and not argv[0].startswith("-") else DEFAULT_STUDY
    if argv and argv[0] == name:
        return _parse_with(name, [name], argv[1:])
    command = _parse_with(name, [], argv)  # STUDY may come after some flags: then parse again, on top of that study
    return command if command.name == name else _parse_with(command.name, [], argv)


def _parse_with(name: str, first: Sequence[str], rest: Sequence[str]) -> Command:
    check_flags(own := study_flags(name))
    check_flags(rest)
    command = tyro.cli(
        Command,
        registry=NUMBERS,
        prog="python -m study.run",
        args=[*first, *_gather_extra([*own, *rest])],
        description=f"{Command.__doc__} Presets: {', '.join(preset_names())}. "
        "Example: python -m study.run quick --train.lr 2e-3 --seeds 1 2 --dry-run",
    )
    model = command.study.model
    if not model.module:
        return command
    # a model of the user's own: its file is read, and the hash stands in the place where a trial's identity takes it from
    return replace(command, study=replace(command.study, model=replace(model, module=resolve(model.module))))


# ---- what tyro does not do ----

NUMBERS = ConstructorRegistry()
"""Numbers as sweeps read them, everywhere: `4M`, `1e6` and `2.5K` are whole numbers, too."""


@NUMBERS.primitive_rule
def _numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    if info.type not in (int, float):
        return None
    kind: type = info.type

    def read(words: list[str]) -> float:
        value = number(words[0])
        if not isinstance(value, (int, float)) or (kind is int and not isinstance(value, int)):
            what = "whole number; give numbers such as 64, 1e6 or 4M" if kind is int else "number; give numbers such as 64, 1e-3 or 4M"
            raise ValueError(f"{words[0]!r} is no {what}")
        return float(value) if kind is float else value

    return PrimitiveConstructorSpec(1, kind.__name__.upper(), read, lambda value: isinstance(value, kind), lambda value: [f"{value}"])


@NUMBERS.primitive_rule
def _extra(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Extra] | None:
    if info.type != Extra:
        return None

    def read(words: list[str]) -> Extra:
        pairs = [(name, number(value)) for name, _, value in (word.partition("=") for word in words[0].split(","))]
        for name, value in pairs:
            if not name.isidentifier() or not isinstance(value, (int, float)):
                raise ValueError(f"model.extra.{name}={value} is no name with a number; write it as --model.extra.n_kv_heads 2")
        return tuple(pairs)

    return PrimitiveConstructorSpec(1, "NAME=NUMBER,...", read, lambda value: True, lambda value: [",".join(f"{n}={v}" for n, v in value)])


def _gather_extra(words: Sequence[str]) -> list[str]:
    """`--model.extra.NAME VALUE`, whose names are the user's own, as one flag; the last of each name wins."""
    found, others, rest = dict[str, str](), list[str](), iter(words)
    for word in rest:
        name, equals, value = word.removeprefix(EXTRA).partition("=")
        if not word.startswith(EXTRA):
            others.append(word)
        else:
            found[name.replace("-", "_")] = value if equals else next(rest, "")
    return [f"--model.extra={','.join(f'{n}={v}' for n, v in found.items())}", *others] if found else others


def check_flags(words: Sequence[str]) -> None:
    """Refuse (ValueError) a flag that does not exist, with the nearest that does: `--n_layer` is `--model.n_layer`."""
    known = {name.replace("_", "-") for name in _flag_names()} | {"help"}
    for word in words:
        name = word[2:].partition("=")[0].replace("_", "-")
        if word.startswith("--") and name not in known and not name.startswith(("tyro-", EXTRA[2:])):
            tails, last = {n: n.rpartition(".")[2] for n in known}, name.rpartition(".")[2]
            near = [n for n in known if tails[n] == last] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            near = near or [n for n in known if tails[n] in difflib.get_close_matches(last, tails.values(), 1)]
            hint = f"did you mean {' or '.join(f'--{n}' for n in sorted(near))}? " if near else ""
            raise ValueError(f"there is no flag {word.partition('=')[0]}; {hint}python -m study.run --help lists all")


def _flag_names() -> Iterator[str]:
    for part in (*fields(Study), *fields(Options)):
        if part.name in GROUPS:
            yield from (f"{part.name}.{inner.name}" for inner in fields(part.type))  # type: ignore[arg-type]
        else:
            yield part.name
            if part.type is bool:
                yield f"no-{part.name}"
