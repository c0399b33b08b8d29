"""What Ray reads from the environment, set before it is imported. Imports nothing of Ray.

set_ray_environment(); import ray
"""

import os
import resource
import secrets
from pathlib import Path

from models.home import home

SETTINGS = {
    # No boxes on the terminal, no log files of its own, no phoning home.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    # Signals are ours; nothing is read from Tune's own snapshots, and each one of 10,000 trials would stop the driver for a minute.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Tune's workers have an environment of their own, so the ones that Ray starts in advance would never be used.
    "RAY_prestart_worker_first_driver": "0",
    # Under `uv run` Ray would ship the working directory, whatever lies there, and build the environment anew for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
LOCAL_SETTINGS = {
    # Workers outlive a killed driver by 5 s instead of 60 s: they would hold its memory, on a GPU too. A cluster may be away for longer.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    # A busy machine takes longer than Ray's 30 s to start the first of its processes.
    "RAY_gcs_server_port_wait_time_s": "120",
}
LONGEST_FOLDER = 39
"""Bytes: a socket's path may have 107 (unix(7)), and `/ray/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store` takes 68."""
FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where a Ray of this machine keeps its session if $TMPDIR cannot hold it."""
LEAST_ADDRESSES = 3_400 << 20
"""On two processors a study ran with 3,418 MiB, and Ray 2.60 ended its driver with 2,441."""
TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""What a person may have said about Ray's token: whether it is wanted, the token, the file that holds it."""


def set_ray_environment(on_cluster: bool = False) -> None:
    """Set what is not set already; a Ray that starts on this machine gets some more."""
    for name, value in (SETTINGS if on_cluster else SETTINGS | LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    if on_cluster:
        if not any(os.environ.get(name) for name in TOKEN) and (home() / ".ray" / "auth_token").exists():
            os.environ["RAY_AUTH_MODE"] = "token"  # a cluster that asks for none takes it, too
        return
    if not any(os.environ.get(name) for name in TOKEN[1:]):  # else Ray writes one into the home folder, readable for everyone
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not os.environ.get("RAY_TMPDIR") and why_not(temporary_folder()):
        usable = (folder for folder in FOLDERS if not why_not(Path(folder)))
        os.environ["RAY_TMPDIR"] = next(usable, str(temporary_folder()))


def temporary_folder() -> Path:
    """Where a Ray on this machine keeps its logs, sockets and errors."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def why_not(folder: Path) -> str:
    """Why Ray's session cannot live in a folder, or ""."""
    if (length := len(os.fsencode(folder))) > LONGEST_FOLDER:
        return f"its path has {length} bytes, and the sockets in it leave room for {LONGEST_FOLDER}"
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    return "" if os.access(existing, os.W_OK | os.X_OK) else "it cannot be written"


def check_address_space() -> None:
    """Refuse (ValueError) too few addresses for a process: Ray then cannot be imported, or ends this very process without a word."""
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY and allowed < LEAST_ADDRESSES:
        raise ValueError(
            f"a process of this account may span {allowed >> 20:,} MiB of addresses and Ray takes about {LEAST_ADDRESSES >> 20:,}; "
            "raise the limit (ulimit -v)"
        )
