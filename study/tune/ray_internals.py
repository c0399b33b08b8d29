"""Every private part of Ray 2.60 that this program touches, each with its reason; tests/test_ray_internals.py fails where one changes."""

import contextlib
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import ray

PATIENCE_S = 120.0
"""Longest wait for a node that is still starting; Ray's own is 30 s, without a look at whether its processes live."""


class NodeEnded(ConnectionError):
    """One of the processes that `ray.init` started ended before the node was up."""


@contextlib.contextmanager
def watched_start() -> Iterator[list[Popen[bytes]]]:
    """Within it `ray.init` starts its processes outside of the driver's process group, and fails as soon as one of them has ended.

    Yields them, as they begin.

    A batch system sends its SIGTERM to the whole group, and Ray ends a driver at once whose raylet is gone: one time in six before the
    driver had recorded what was running. On Linux these processes end with the driver in any case (prctl(2), PR_SET_PDEATHSIG).
    A raylet gives its own helpers 15 s to start and ends where they need longer; Ray looks on for 30 s more and does not say why.
    """
    services: Any = importlib.import_module("ray._private.services")
    plain, look_up, begun = services.ConsolePopen, services.get_node, list[Popen[bytes]]()

    def begin(*arguments: Any, **options: Any) -> Popen[bytes]:
        begun.append(plain(*arguments, **options, **({"process_group": 0} if sys.platform == "linux" else {})))
        return begun[-1]

    services.ConsolePopen, services.get_node = begin, functools.partial(_patiently, look_up, begun)
    try:
        yield begun
    except BaseException:
        for process in begun:
            process.kill()
            process.wait()
        raise
    finally:
        services.ConsolePopen, services.get_node = plain, look_up


def _patiently(look_up: Callable[..., Any], begun: list[Popen[bytes]], *arguments: Any) -> Any:
    """Ask for the node until it is there, one of its processes has ended, or patience is at its end."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return look_up(*arguments)
        except RuntimeError:
            ended = [process for process in begun if process.poll() is not None]
            if ended or time.monotonic() > ends:
                name = Path(str(ended[0].args[0])).name if ended else ""  # type: ignore[index]
                raise NodeEnded(f"its process {name} ended while it started" if ended else "its processes do not answer") from None


def ask_head(address: str) -> None:
    """Ask a cluster's head for its number: it answers at once, where `ray.init` tries for 20 s with a token that is refused.

    Raises:
        ray.exceptions.AuthenticationError: it wants another token.
        Exception: it is no head of a Ray cluster, or one of another version.
    """
    importlib.import_module("ray._raylet").GcsClient(address=address)


def logs_of(begun: list[Popen[bytes]]) -> Path | None:
    """The folder of their logs, as Ray told them."""
    words = [str(word) for process in begun for word in process.args]  # type: ignore[union-attr]
    return next((Path(word.partition("=")[2]) for word in words if word.startswith("--log_dir=")), None)


def last_words(logs: Path | None) -> str:
    """What the raylet or the head wrote as it ended; "" where they said nothing."""
    for name in ("raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out"):
        lines = list[str]()
        with contextlib.suppress(OSError):
            lines = (logs / name).read_text(encoding="utf-8", errors="replace").splitlines() if logs else []
        for line in reversed(lines):
            if "Check failed" in line or " C " in line[:40]:
                return line.partition("Check failed: ")[2] or line
    return ""


def cluster_of_this_machine(temporary: Path) -> tuple[str, int] | None:
    """Address of the cluster that `ray start` began or joined here last, and the user's number; None where none is noted."""
    note = temporary / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        return note.read_text(encoding="utf-8").strip(), note.stat().st_uid
    return None


# ---- Ray Tune's trials ----


def forget_means(trial: Any) -> None:
    """Ray Tune keeps ended trials with 17 KB of running means each, which nothing here reads."""
    trial.metric_n_steps.clear()
    trial.metric_analysis.clear()


def newest_failure(trial: Any) -> str:
    """The traceback of a trial's newest failure, as Ray Tune wrote it down."""
    return Path(trial.error_file).read_text(encoding="utf-8", errors="replace").split("Failure # ")[-1]


def try_with(trial: Any, request: Any) -> None:
    """Have a failed trial tried again with other resources, without counting the failure: there is a remedy."""
    trial.update_resources(request)
    trial.run_metadata.num_failures -= 1


def kill_worker(trial: Any) -> bool:
    """End the process that a running trial has, so that Ray Tune starts it again; False where it has none."""
    actor = trial.temporary_state.ray_actor
    if trial.status != "RUNNING" or actor is None:
        return False
    ray.kill(actor)
    return True


def reserved_gpus(trainable: Any) -> float | None:
    """What a worker's trial reserves by now: more than was planned after it ran out of memory; None outside of Ray Tune."""
    request = trainable.trial_resources if getattr(trainable, "_trial_info", None) else None
    return float(request.required_resources.get("GPU", 0.0)) if request else None
