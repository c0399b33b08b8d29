"""Where and whether to run: the flags that are no part of a study, and how a duration, a price and a hold-out are written.

Options(budget="2h", price="$2.50/h", hold_out="largest:2")
"""

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple

from tyro.constructors import PrimitiveConstructorSpec

from study.results.object_store import check_address, is_address
from study.spec import require

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Budget:
    """What a run may take: seconds of wall time or of device time, one of which is 0."""

    text: str
    """as a person wrote it"""
    wall_s: float = 0.0
    device_s: float = 0.0

    def __str__(self) -> str:
        return self.text


def parse_budget(text: str) -> Budget:
    """Wall time such as `90s`, `30m`, `1.5h`, `1d`, or device time such as `0.5 device-hours`; ValueError where it is neither, or none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:(s|m|min|h|d)|(?:device|GPU|core)-?\s*(?:hours?|h))\s*", text)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"budget={text!r} is not a duration; write a number with a unit, for example 90s, 30m, 2h or '0.5 device-hours'")
    amount = float(match[1])
    return Budget(text, wall_s=amount * UNITS[match[2]]) if match[2] else Budget(text, device_s=amount * 3600)


@dataclass(frozen=True)
class Price:
    """What an hour of the machine costs."""

    per_hour: float
    currency: str

    def __str__(self) -> str:
        return f"{self.currency}{self.per_hour:g}/h"


def parse_price(text: str) -> Price:
    """A price per hour such as `2.5/h`, `$2.5/h` or `EUR 3/h`; ValueError without an amount or a unit."""
    match = re.fullmatch(r"\s*([^\d\s./]{0,4})\s*(\d+(?:\.\d+)?)\s*/\s*(h|hour)\s*", text)
    if not match:
        raise ValueError(f"price={text!r} is not a price per hour; write the amount with its unit, for example --price '$2.50/h'")
    return Price(float(match[2]), match[1] + (" " if len(match[1]) > 1 else ""))


class HoldOut(NamedTuple):
    """What is forecast before it trains: so many of the largest sizes or of the longest lengths."""

    end: str = "largest"
    n: int = 0

    def __str__(self) -> str:
        return f"{self.end}:{self.n}" if self.n > 1 else self.end if self.n else ""


NOTHING = HoldOut()


def parse_hold_out(text: str) -> HoldOut:
    """`largest`, `largest:3` or `longest`; ValueError for another form, or no size at all."""
    match = re.fullmatch(r"(largest|longest)(?::([1-9]\d*))?", text.strip())
    if not match:
        raise ValueError(f"hold-out={text!r} is not known; write largest, longest, or largest:2 for the two largest sizes")
    return HoldOut(match[1], int(match[2] or 1))


def _said(value: object) -> str:
    return "" if value is None else str(value)


def _flag(metavar: str, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    """A flag whose one word is read by a function of ours."""
    return PrimitiveConstructorSpec(1, metavar, lambda words: read(words[0]), lambda value: True, lambda value: [_said(value)])


@dataclass(frozen=True)
class Options:
    """Where and whether to run, never what: nothing here enters a trial's identity."""

    dry_run: bool = False
    """show the trials and what they cost, run nothing"""
    presets: bool = False
    """list the studies that come with the program, with question and cost, run nothing"""
    out: str = ""
    """results folder, s3://BUCKET/PATH or gs://BUCKET/PATH; default results/<study>"""
    address: str = ""
    """Ray cluster to use ("auto" on its head node, "local" for this machine); default $RAY_ADDRESS, else this machine"""
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
    mps: Literal["auto", "on", "off"] = "auto"
    """NVIDIA's MPS, with which trials that share a GPU run at the same time; auto starts it on this machine where that can be done"""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """arithmetic of the linear layers; auto takes the faster safe one"""
    hold_out: Annotated[HoldOut, _flag("largest[:K]|longest[:K]", parse_hold_out)] = NOTHING
    """train the rest first, put forecasts of the K largest sizes (or longest lengths) on record, then train and score them"""
    price: Annotated[Price | None, _flag("PRICE", parse_price)] = None
    """price per hour of the machine, or of one of its GPUs, for example '$2.50/h': the quote then names a cost"""
    budget: Annotated[Budget | None, _flag("TIME", parse_budget)] = None
    """wall time such as 30m or 2h, or device time such as '0.5 device-hours': trains the most informative missing trials that fit"""
    from_suggestion: str = ""
    """train what python -m analysis RESULTS --suggest wrote: its file or RESULTS; these trials become trials of the study"""
    checkpoint_s: float = 20.0
    """seconds between checkpoints of a running trial"""
    stall_minutes: float = 30.0
    """a trial without any progress for so long is restarted"""
    timing: Literal["shared", "exclusive"] = "shared"
    """exclusive: one trial of each kind first trains with the device to itself, so that speeds can be compared"""
    track: Literal["", "wandb", "trackio", "mlflow"] = ""
    """an experiment tracker beside TensorBoard, one run per trial; its own variables (WANDB_MODE, MLFLOW_TRACKING_URI) say where"""
    report: bool = True
    """build the report at the end"""

    @property
    def cluster(self) -> str:
        """Address of the Ray cluster that the study runs on; "" for a Ray of its own on this machine."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == "local" else address

    def check_address(self) -> None:
        """Refuse (ValueError) a cluster that is not HOST:PORT, auto or local, naming where it was written."""
        address = self.cluster
        host, _, port = address.rpartition(":")
        if address in ("", "auto") or ("://" not in address and host and port.isdigit()):
            return
        where = "--address" if self.address else "the environment variable RAY_ADDRESS"
        hint = "jobs are submitted there, with: ray job submit -- python -m study.run ...; " if "://" in address else ""
        remedy = "leave it out" if self.address else "unset it"
        raise ValueError(f"{where}={address!r} is not HOST:PORT, auto or local; {hint}{remedy} to train on this machine")

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return max(1, int(self.cpus_per_trial))

    @property
    def on_cluster(self) -> bool:
        """Whether the study runs on a Ray cluster that is up."""
        return bool(self.cluster)

    def __post_init__(self) -> None:
        require(self.max_concurrent >= 0, f"max-concurrent={self.max_concurrent} must be 0 (as many as fit) or more")
        require(self.bundle >= 0, f"bundle={self.bundle} must be 0 (let the plan choose) or more trials per process")
        require(0 < self.cpus_per_trial < 1e6, f"cpus-per-trial={self.cpus_per_trial:g} must be above 0, and no more than a machine has")
        gpus = self.gpus_per_trial
        require(
            gpus is None or (0 <= gpus < 1e6 and (gpus <= 1 or float(gpus).is_integer())),
            f"gpus-per-trial={gpus} must be a fraction from 0 to 1 or a whole number of GPUs",
        )
        require(self.checkpoint_s >= 0, f"checkpoint-s={self.checkpoint_s:g} must be 0 (at every evaluation) or more")
        require(self.stall_minutes > 0, f"stall-minutes={self.stall_minutes:g} must be above 0")
        if is_address(self.out):
            check_address(self.out)

    def facts(self) -> dict[str, Any]:
        """As study.json keeps them: numbers, words, and what a person wrote."""
        return {**asdict(self), "hold_out": str(self.hold_out), "price": _said(self.price), "budget": _said(self.budget)}
