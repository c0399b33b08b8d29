"""Ray itself: join a cluster or start it on this machine, and look at its nodes before any trial starts.

with ray_session(options) as joined: check_nodes(options.on_cluster)
"""

import errno
import gc
import logging
import os
import pwd
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.home import home
from study.options import Options
from study.results.provenance import ROOT, version
from study.tune import local_ray, ray_internals
from study.tune.environment import temporary_folder

LAUNCHED = "ray_bootstrap_config.yaml"
"""Where `ray up` leaves the cluster file, in the head's home."""
REACH_S = 5.0
"""Longest wait for a cluster's port to answer."""
TOKEN_WANTED = (
    "refuses this account's token; copy the file ~/.ray/auth_token of the account that started it, "
    "or name the token with RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token"
)
LOGGERS = ("ray", "ray.tune", "ray.train", "ray.data")
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Seconds until Ray gives up on its head, 60 where nothing is set."""
FAILURES = 3
"""Knocks in a row that must fail."""
AHEAD_S = 2.0
"""We speak so long before Ray does."""


@contextmanager
def ray_session(options: Options) -> Iterator[str]:
    """Join the cluster that `--address` or $RAY_ADDRESS names, else start Ray on this machine; yields what was joined, or "".

    A Ray that is already up in this process is used and left up.

    Raises:
        ValueError: the cluster cannot be reached or joined, or Ray cannot start.
    """
    address = _reachable(options) if options.on_cluster else ""
    if ray.is_initialized():
        gc.collect()  # workers of a run that failed are held by its exception's cycles, and with them the processors of this one
        yield ""
        return
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _joined(address) if address else local_ray.started(), watched(ray.get_runtime_context().gcs_address):
        yield describe_nodes(ray.get_runtime_context().gcs_address) if options.on_cluster else ""


def _reachable(options: Options) -> str:
    """The cluster's address, once its port has answered: Ray itself ends the whole process where nobody answers."""
    options.check_address()
    address = own_cluster() if options.cluster == "auto" else options.cluster
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ValueError(f"the Ray cluster at {address} cannot be reached: {error.strerror or error}") from None
    return address


@contextmanager
def _joined(address: str) -> Iterator[None]:
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # then the job has shipped the code, else all workers run this driver's
    with local_ray.quiet() as said:
        try:
            ray_internals.ask_head(address)
            ray.init(
                address=address,
                runtime_env=None if inside_job else {"py_modules": [str(ROOT / name) for name in ("study", "models", "analysis")]},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ray.exceptions.AuthenticationError as error:
            raise ValueError(f"the Ray cluster at {address} {TOKEN_WANTED}") from error
        except Exception as error:
            reason = local_ray.first_sentence(str(error)) or said()
            raise ValueError(f"the Ray cluster at {address} cannot be joined: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def own_cluster() -> str:
    """The address that `auto` means: the cluster that this user began or joined on this machine with `ray start`.

    Raises:
        ValueError: there is none, or it is another person's.
    """
    noted = ray_internals.cluster_of_this_machine(temporary_folder())
    if noted is None:
        raise ValueError("address=auto finds no Ray cluster that was started on this machine with ray start; name it as HOST:PORT")
    address, user = noted
    if user != os.getuid():
        name = pwd.getpwuid(user).pw_name if any(entry.pw_uid == user for entry in pwd.getpwall()) else f"user {user}"
        raise ValueError(f"the Ray cluster on this machine belongs to {name}; to join it all the same, name it: --address {address}")
    return address


def gpus_per_trial(options: Options) -> float:
    """What each bundle reserves: what was asked for, else a whole GPU where there are any or the cluster will bring some."""
    if options.gpus_per_trial is not None:
        return options.gpus_per_trial
    if options.device not in ("auto", "cuda"):
        return 0.0
    comes = options.on_cluster and (options.device == "cuda" or brings_gpus(home() / LAUNCHED))
    return 1.0 if comes or ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def brings_gpus(launched: Path) -> bool:
    """Whether the cluster file that `ray up` left on the head names nodes with GPUs that may still be started."""
    try:
        types = yaml.safe_load(launched.read_text(encoding="utf-8"))["available_node_types"].values()
        return any(float(kind["resources"].get("GPU", 0)) >= 1 and kind.get("max_workers", 1) > 0 for kind in types)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return False


def alive() -> list[dict[str, Any]]:
    """Nodes of the cluster that are up, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def describe_nodes(address: str) -> str:
    """What a person is told first, in the place of a quote: what was joined, what is up there, and why its time is not known."""
    nodes = [node["Resources"] for node in alive()]
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    kinds = sorted({key.removeprefix("accelerator_type:") for node in nodes for key in node if key.startswith("accelerator_type:")})
    named = f" ({', '.join(kinds)})" if kinds else ""
    up = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} with {cpus:g} CPUs and {gpus:g} GPUs{named}"
    return (
        f"joined the Ray cluster at {address}: {up}; no quote, because the time of a step on its machines is not known before one has run"
    )


def check_resources(wanted: Iterable[tuple[float, float]], on_cluster: bool) -> str:
    """Whether the nodes that are up can hold every bundle.

    Args:
        wanted: (CPUs, GPUs) of each bundle.

    Returns:
        A warning where an autoscaling cluster may still bring such a node, else "".

    Raises:
        ValueError: this machine never can, so the study would wait for ever.
    """
    nodes = [node["Resources"] for node in alive()]
    for cpus, gpus in sorted(set(wanted), reverse=True):
        if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            continue
        most = max((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes)
        text = f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs, the largest node has {most[0]:g} CPUs and {most[1]:g} GPUs"
        if not on_cluster:
            raise ValueError(f"{text}; lower --cpus-per-trial or --gpus-per-trial")
        return (
            f"{text}; waiting until the cluster has such a node; where it never will, stop and lower --cpus-per-trial or --gpus-per-trial"
        )
    return ""


def check_nodes(on_cluster: bool, timeout_s: float = 120) -> None:
    """Ask every node of a cluster for its versions: a trial must not fail for a missing package an hour later.

    Raises:
        ValueError: a node lacks a package or has another version of ray or torch than this driver.
    """
    if not on_cluster:
        return
    probe = ray.remote(num_cpus=0)(_versions)
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node for node in alive()
    }
    for answer, node in asked.items():
        host = node["NodeManagerHostname"]
        try:
            found = ray.get(answer, timeout=timeout_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if node["NodeID"] not in [other["NodeID"] for other in alive()]:  # a spot machine that was taken away in this moment
                continue
            raise ValueError(f"node {host} cannot run a task of this program: {local_ray.first_sentence(str(error))}") from None
        for name, theirs in found.items():
            # A build's local part (+cpu, +cu130) may differ: a CPU head drives GPU workers.
            if theirs.split("+")[0] != version(name).split("+")[0]:
                raise ValueError(
                    f"node {host} has {name} {theirs or 'not installed'}, this driver has {version(name)}; install the same on all"
                )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ray", "torch", "numpy", "safetensors")}


# ---- a head that goes ----


@contextmanager
def watched(address: str) -> Iterator[None]:
    """End the run in one sentence when the head process at HOST:PORT is gone: Ray itself would end it from inside, with a line of its own.

    A thread of ours knocks at its port once a second.
    """
    ended = threading.Event()
    patience_s = max(1.0, float(os.environ.get(RECONNECT, "60")) - AHEAD_S)
    thread = threading.Thread(target=_watch, args=(address, patience_s, ended), name="head", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(address: str, patience_s: float, ended: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    failed = list[float]()
    while not ended.wait(1.0):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            failed.clear()
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno in (errno.EMFILE, errno.ENFILE):
                continue  # says something about us, nothing about the head
            failed.append(time.monotonic())  # from the first failure on: a driver that was itself stopped for a while knocks again
            if len(failed) >= FAILURES and failed[-1] - failed[0] > patience_s - 1 and not ended.is_set():
                _leave(address)


def _leave(address: str) -> None:
    """End this process at once: tables and checkpoints are written whole or not at all, and the main thread may wait for Ray for ever."""
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")  # the live table hides the cursor
    said = f"Ray's head at {address} is gone; what is done is kept, and the same command continues"
    os.write(2, f"\nstudy.run: {said}\n".encode())
    os._exit(1)
