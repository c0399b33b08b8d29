"""NVIDIA's Multi-Process Service: trials that share a GPU run at the same time, where they would otherwise take turns.

Names, limits and commands: docs.nvidia.com/deploy/mps. Imports neither torch nor ray.

    with started("auto", True, Path("/tmp")) as (pipe, problem): ...   # the driver: a daemon of this run's own, on this machine
    on = join(pipe, 0.25)                                              # a worker, before CUDA starts
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
OFF = os.devnull
"""A pipe directory where no daemon can be."""
WATCH = f"""
read _
daemon=$(cat "${PIPE}/{CONTROL}.pid")
echo quit -t 5 | timeout 10 {CONTROL}
for second in 1 2 3 4 5 6 7 8; do kill -0 $daemon || break; sleep 1; done
kill $daemon
rm -rf "${PIPE}"
"""
"""Waits until the driver closes its end or is gone, however it went; then ends the daemon of this directory, and no other."""
PATIENCE_S = 10.0


@contextmanager
def started(wanted: str, shared: bool, folder: Path) -> Iterator[tuple[str, str]]:
    """A daemon until the body ends, where one is wanted and none runs; yields what workers `join`, and what went wrong or "".

    Args:
        wanted: auto, on or off.
        shared: trials share GPUs of this machine, so `auto` wants it.
        folder: the daemon's own folder is made in it; a short path, for it holds a socket.
    """
    if wanted == "off":
        yield OFF, ""
    elif not (shared or wanted == "on") or _asked(os.environ):
        yield "", ""
    elif not shutil.which(CONTROL):
        yield "", "" if wanted == "auto" else _without(f"there is no {CONTROL} on this machine")
    elif _others():
        yield "", _without("a daemon that this study did not start runs on this machine")
    else:
        own = tempfile.mkdtemp(prefix="mps-", dir=folder)
        # The server numbers anew the GPUs that its daemon sees, and a worker's own number would then name another one.
        plain = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment = {**plain, PIPE: own, "CUDA_MPS_LOG_DIRECTORY": own}
        nothing = subprocess.DEVNULL
        with subprocess.Popen(
            ["sh", "-c", WATCH], stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, env=environment, start_new_session=True
        ):
            problem = _start(environment, Path(own))
            yield ("", _without(problem)) if problem else (own, "")


def _without(reason: str) -> str:
    return f"NVIDIA's MPS is not on: {reason}; trials that share a GPU take turns"


def _start(environment: Mapping[str, str], own: Path) -> str:
    """Start daemon and server, as a client would; returns why that failed, or ""."""
    said = own / "said"
    try:
        with said.open("w") as file:  # no pipe: a daemon that kept it open would be waited for
            subprocess.run([CONTROL, "-d"], stdout=file, stderr=file, env=environment, timeout=PATIENCE_S, check=True)
        _asked(environment, f"start_server -uid {os.getuid()}")
        ends = time.monotonic() + PATIENCE_S
        while not _asked(environment, "get_server_list").strip():
            if time.monotonic() > ends:
                return f"{CONTROL} starts no server"
            time.sleep(0.2)
    except (OSError, subprocess.SubprocessError) as error:
        return " ".join(said.read_text(errors="replace").split())[:200] or str(error)
    return ""


def _asked(environment: Mapping[str, str], question: str = "get_default_active_thread_percentage") -> str:
    """What the daemon of an environment's pipe directory answers; "" where none does."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [CONTROL], input=question, capture_output=True, text=True, timeout=PATIENCE_S, check=True, env=environment
        ).stdout
    return ""


def _others() -> bool:
    """Whether any control daemon runs, wherever its pipe directory is; the kernel keeps 15 letters of a name."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if name.read_text().strip() == CONTROL[:15]:
                return True
    return False


# ---- in a worker ----


def join(pipe: str, share: float) -> bool:
    """Have this process, in which CUDA has not started, use a daemon with the limits of its share; returns whether one is there.

    Twice the share of the threads: the manual's advice where clients leave some of theirs idle. Memory is the share itself.

    Args:
        pipe: the daemon's directory, or "" for the one where CUDA looks anyway, or `OFF`.
        share: of a GPU.
    """
    if not share:
        return False
    if pipe and (share < 1 or pipe == OFF):
        os.environ[PIPE] = pipe
    on = pipe != OFF and bool(_asked(os.environ))
    if on and share < 1:
        os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{min(100.0, 200 * share):.0f}"
        if memory := _memory_mib():
            os.environ["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={int(share * memory)}M"
    return on


def _memory_mib() -> int:
    """Memory of the GPU that this process sees; 0 where nothing tells."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    command = ["nvidia-smi", "-i", gpu, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0
