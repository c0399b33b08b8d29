"""The command line: a study (preset or YAML file, flags on top) and where to run it.

`python -m study.run [STUDY] [--group.field VALUE ...]`. A YAML study is turned into flags and parsed by the same parser as the command
line, whose flags come after it and win. Imports neither torch nor ray, so that --help answers at once.

    command = parse(["quick", "--train.lr", "2e-3", "--dry-run"])
"""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from study.results.object_store import check_address, is_address, staging
from study.spec import Study
from study.sweeps import format_sweep

PRESETS = Path(__file__).parent / "presets"
DEFAULT_STUDY = "quick"
GROUPS = {"model": "n_layer: 4", "train": "lr: 1e-3", "data": "name: stories"}
"""The groups of a study file, each with an example."""


@dataclass(frozen=True)
class Options:
    """Where and whether to run, never what: nothing here enters a trial's identity."""

    dry_run: bool = False
    """show the trials and what they cost, run nothing"""
    out: str = ""
    """results folder, s3://BUCKET/PATH or gs://BUCKET/PATH; default results/<study>"""
    address: str = ""
    """Ray cluster to use ("auto" on its head node); default $RAY_ADDRESS, else this machine"""
    max_concurrent: int = 0
    """most trials at once; 0 means as many as fit"""
    cpus_per_trial: float = 1.0
    """CPUs (and threads) of each trial"""
    gpus_per_trial: float | None = None
    """share of a GPU for each trial: a fraction up to 1 or a whole number; default 1 where there are GPUs"""
    bundle: int = 0
    """trials of one shape trained together in one process; 0 lets the plan choose"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where tensors live"""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """arithmetic of the linear layers; auto takes the faster safe one"""
    hold_out: str = ""
    """largest or largest:K, longest or longest:K: train the rest first, put forecasts of the K largest sizes (longest lengths) on record,
    then train and score them"""
    price: str = ""
    """price per hour of the machine, or of one of its GPUs, for example '$2.50/h': the quote then names a cost"""
    budget: str = ""
    """wall time such as 30m or 2h, or device time such as '0.5 device-hours': trains the most informative missing trials that fit"""
    from_suggestion: str = ""
    """train what python -m analysis RESULTS --suggest wrote: its file or RESULTS; these trials become trials of the study"""
    checkpoint_s: float = 20.0
    """seconds between checkpoints of a running trial"""
    stall_minutes: float = 30.0
    """a trial without any progress for so long is restarted"""
    timing: Literal["shared", "exclusive"] = "shared"
    """exclusive: one trial of each kind first trains with the device to itself, so that speeds can be compared"""
    report: bool = True
    """build the report at the end"""

    @property
    def on_cluster(self) -> bool:
        """Whether the study runs on a Ray cluster that is up, not on a Ray of its own on this machine."""
        return bool(self.address or os.environ.get("RAY_ADDRESS"))

    def __post_init__(self) -> None:
        _require(self.max_concurrent >= 0, f"max-concurrent={self.max_concurrent} must be 0 (as many as fit) or more")
        _require(self.bundle >= 0, f"bundle={self.bundle} must be 0 (let the plan choose) or more trials per process")
        parse_price(self.price)
        parse_hold_out(self.hold_out)
        _require(0 < self.cpus_per_trial < 1e6, f"cpus-per-trial={self.cpus_per_trial:g} must be above 0, and no more than a machine has")
        gpus = self.gpus_per_trial
        _require(
            gpus is None or (0 <= gpus < 1e6 and (gpus <= 1 or float(gpus).is_integer())),
            f"gpus-per-trial={gpus} must be a fraction from 0 to 1 or a whole number of GPUs",
        )
        _require(self.checkpoint_s >= 0, f"checkpoint-s={self.checkpoint_s:g} must be 0 (at every evaluation) or more")
        _require(self.stall_minutes > 0, f"stall-minutes={self.stall_minutes:g} must be above 0")
        if is_address(self.out):
            check_address(self.out)
        if self.budget:
            parse_budget(self.budget)


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

    @property
    def out(self) -> Path:
        """The results folder (for an object store the local one that it mirrors).

        Other data than the study's own get a folder of their own, so that studies do not mix.
        """
        if is_address(self.options.out):
            from study.data.corpus import default_cache_dir

            return staging(self.options.out, default_cache_dir()).resolve()
        if self.options.out:
            return Path(self.options.out).expanduser().resolve()
        data, own = self.study.data, _parse_with(self.name, [self.name], []).study.data
        other = data != own and (safe_name(Path(data.path).stem) if data.path else safe_name(data.name) if data.name != own.name else "")
        return Path("results").resolve() / (f"{self.study_name}-{other}" if other else self.study_name)


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
    return tyro.cli(
        Command,
        prog="python -m study.run",
        args=[*first, *study_flags(name), *rest],
        description=f"{Command.__doc__} Presets: {', '.join(preset_names())}. "
        "Example: python -m study.run quick --train.lr 2e-3 --seeds 1 2 --dry-run",
    )


# ---- study files ----


def preset_names() -> list[str]:
    """Names of the studies that come with the program."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def is_file_name(name: str) -> bool:
    """Whether STUDY means a file rather than a preset."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def find_study(name: str) -> Path:
    """The YAML file of a preset's name or of a path.

    Raises:
        ValueError: neither exists; the nearest preset is named.
    """
    if is_file_name(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no study file {name}; give a YAML file or one of the presets {', '.join(preset_names())}")
        return path
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no study {name!r}; {hint}presets are {', '.join(preset_names())}, or give a path to a YAML file")
    return PRESETS / f"{name}.yaml"


def load_yaml(path: Path) -> dict[str, Any]:
    """A study file as a mapping.

    Raises:
        ValueError: not readable, not YAML, or with keys that a study does not have.
    """
    import yaml

    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(body, dict):
        raise ValueError(f"{path} holds no study: it should be a mapping with keys such as question, seeds, model, train, data, sweeps")
    allowed = [f.name for f in fields(Study)]
    for key in body:
        if key not in allowed:
            where = " (where to run belongs on the command line)" if key in {f.name for f in fields(Options)} else ""
            raise ValueError(f"{path} has an unknown key {key!r}{where}; a study has {', '.join(allowed)}")
    return body


def study_flags(name: str) -> list[str]:
    """A study file as command-line flags. A relative data.path is taken from the file's own folder."""
    path = find_study(name)
    body = load_yaml(path)
    flags: list[str] = []
    lists_first = sorted(body.items(), key=lambda item: item[0] not in ("sweeps", "seeds"))
    for key, value in lists_first:  # a list swallows the words after it, so that no list may come last
        if key == "sweeps":
            flags += ["--sweeps", *_sweep_lines(path, value)]
        elif key == "seeds":
            flags += ["--seeds", *map(str, value if isinstance(value, list) else [value])]
        elif key in GROUPS and value is not None and not isinstance(value, dict):
            raise ValueError(f"{path}: {key} should be a mapping of fields to values, for example {key}: {{{GROUPS[key]}}}")
        elif isinstance(value, dict):
            flags += [f"--{key}.{inner}={_text(path, key, inner, item)}" for inner, item in value.items() if item is not None]
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags


def _sweep_lines(path: Path, value: Any) -> list[str]:
    if isinstance(value, dict) and all(isinstance(body, dict) for body in value.values()):
        return [format_sweep(str(name), body) for name, body in value.items()]
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return value
    raise ValueError(f"{path}: sweeps should map each name to its fields, for example depth: {{n_layer: [1, 2, 4]}}")


def _text(path: Path, group: str, name: str, value: Any) -> str:
    if (group, name) == ("data", "path") and value:
        return str(path.parent / Path(str(value)).expanduser())
    return str(value)


# ---- small readers ----


def safe_name(text: str) -> str:
    """A name that is safe as a folder: letters, digits, dot, dash and underscore, not starting with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "study"


def seconds(text: str) -> float:
    """A duration such as 90s, 30m, 1.5h or 1d in seconds.

    Raises:
        ValueError: no number, no unit, or nothing at all.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*", text)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"budget={text!r} is not a duration; write a number with a unit, for example 90s, 30m, 2h or '0.5 device-hours'")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2]]


def parse_budget(text: str) -> tuple[float, float]:
    """A budget as (seconds of wall time, seconds of device time), one of which is 0: `2h`, `0.5 device-hours`.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:device|GPU|core)-?\s*(?:hours?|h)\s*", text)
    if match and float(match[1]) > 0:
        return 0.0, float(match[1]) * 3600
    return seconds(text), 0.0


def parse_hold_out(text: str) -> tuple[str, int]:
    """`largest`, `largest:3` or `longest` as what is held out and how many sizes or lengths of it; nothing is 0.

    Raises:
        ValueError: another form, or no size at all.
    """
    match = re.fullmatch(r"(largest|longest)(?::(\d+))?", text.strip()) if text else None
    if text and (not match or match[2] == "0"):
        raise ValueError(f"hold-out={text!r} is not known; write largest, longest, or largest:2 for the two largest sizes")
    return (match[1], int(match[2] or 1)) if match else ("largest", 0)


def parse_price(text: str) -> tuple[float, str]:
    """A price per hour such as `2.5/h`, `$2.5/h` or `EUR 3/h` as (amount, currency); nothing is (0, "").

    Raises:
        ValueError: no amount, or no unit.
    """
    if not text:
        return 0.0, ""
    match = re.fullmatch(r"\s*([^\d\s./]{0,4})\s*(\d+(?:\.\d+)?)\s*/\s*(h|hour)\s*", text)
    if not match:
        raise ValueError(f"price={text!r} is not a price per hour; write the amount with its unit, for example --price '$2.50/h'")
    return float(match[2]), match[1] + (" " if len(match[1]) > 1 else "")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
