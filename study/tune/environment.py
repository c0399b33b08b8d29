"""What Ray reads from the environment, set before it is imported. Imports nothing of Ray.

set_ray_environment(); import ray
"""

import os
import shutil
from pathlib import Path

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
}
LOCAL_SETTINGS = {
    # Workers outlive a killed driver by 5 s instead of 60 s: they would hold its memory, on a GPU too. A cluster may be away for longer.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
LONGEST_TMPDIR = 40
"""Ray's sockets live below the temporary folder, and a socket's path may have 107 bytes."""


def set_ray_environment(on_cluster: bool = False) -> None:
    """Set what is not set already; a Ray that starts on this machine gets some more."""
    for name, value in (SETTINGS if on_cluster else SETTINGS | LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    if len(os.environ.get("TMPDIR", "")) > LONGEST_TMPDIR:
        os.environ.setdefault("RAY_TMPDIR", "/tmp")


def temporary_folder() -> Path:
    """Where a Ray on this machine keeps its logs, sockets and errors."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def no_room(out: Path | None = None) -> str:
    """What a person is told where a disk that Ray writes to is full: that of its temporary folder, or that of the results `out`."""
    folder = temporary_folder()
    free, left = (shutil.disk_usage(place).free >> 20 for place in (folder, out or folder))
    if left < free:
        return f"the disk of {out} has {left} MiB left; free some space there or name another folder with --out"
    return f"the disk of Ray's temporary folder {folder} has {free} MiB left; free some space there or name another folder with RAY_TMPDIR"
