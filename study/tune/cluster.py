"""Ray itself: join a cluster or start it on this machine, and look at its nodes before any trial starts.

with ray_session(options) as on_cluster: check_nodes(on_cluster)
"""

import functools
import importlib
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from study.options import Options
from study.tune import environment, head

OBJECT_STORE_BYTES = 100 * 2**20
"""On one machine tokens are memory-mapped files, so Ray's store holds small things only; a /dev/shm of 64 MB (Docker) is no obstacle."""

LEAST_ROOM_BYTES = 16 * 2**20
"""A session's logs and sockets take about 1 MiB at first."""

LAUNCHED = "ray_bootstrap_config.yaml"
"""Where `ray up` leaves the cluster file, in the head's home."""
REACH_S = 5.0
"""Longest wait for a cluster's port to answer."""


@contextmanager
def ray_session(options: Options) -> Iterator[bool]:
    """Join the cluster that `--address` or $RAY_ADDRESS names, else start Ray on this machine; yields whether it is a cluster.

    A Ray that is already up in this process is used and left up.

    Raises:
        ValueError: the cluster cannot be reached.
    """
    address = options.address or os.environ.get("RAY_ADDRESS", "")
    _check_reachable(address)
    if ray.is_initialized():
        yield bool(options.address)
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address:
            inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # then the job has shipped the code
            ray.init(
                address=address,
                runtime_env=None if inside_job else {"py_modules": _own_packages()},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            check_room()
            with _groups_of_their_own():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray cannot start on this machine"
        raise ValueError(f"{what}: {_first_sentence(error)}") from error
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with head.watched(ray.get_runtime_context().gcs_address):
            yield bool(address)
    finally:
        ray.shutdown()


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Ray's processes that start here are not in the driver's process group.

    A batch system sends its SIGTERM to the whole group, and Ray ends a driver at once whose raylet is gone: one time in six before the
    driver had recorded what was running. On Linux these processes end with the driver in any case (prctl(2), PR_SET_PDEATHSIG).
    """
    services: Any = importlib.import_module("ray._private.services")
    plain = getattr(services, "ConsolePopen", None)
    if plain is None or sys.platform != "linux":
        yield
        return
    services.ConsolePopen = functools.partial(plain, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = plain


def check_room() -> None:
    """Look at the disk that Ray's processes start on: without room they wait half a minute for a file and do not say why.

    Raises:
        ValueError: it is full.
    """
    try:
        free = shutil.disk_usage(environment.temporary_folder()).free
    except OSError:
        return  # Ray makes the folder, or says why not
    if free < LEAST_ROOM_BYTES:
        raise ValueError(environment.no_room())


def _check_reachable(address: str) -> None:
    """Knock at the cluster's port: Ray itself ends the whole process where nobody answers."""
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ValueError(
            f"address={address!r} is not HOST:PORT or auto; from another machine use: ray job submit -- python -m study.run ..."
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ValueError(f"the Ray cluster at {address} cannot be reached: {error.strerror or error}") from None


def _own_packages() -> list[str]:
    """Folders of our packages, shipped to the workers so that all run the code of this driver."""
    root = Path(__file__).parents[2]
    return [str(root / name) for name in ("study", "models", "analysis")]


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:300]


def gpus_per_trial(options: Options) -> float:
    """What each bundle reserves: what was asked for, else a whole GPU where there are any or the cluster will bring some."""
    if options.gpus_per_trial is not None:
        return options.gpus_per_trial
    if options.device not in ("auto", "cuda"):
        return 0.0
    comes = options.on_cluster and (options.device == "cuda" or brings_gpus(Path.home() / LAUNCHED))
    return 1.0 if comes or ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def brings_gpus(launched: Path) -> bool:
    """Whether the cluster file that `ray up` left on the head names nodes with GPUs that may still be started."""
    import yaml

    try:
        types = yaml.safe_load(launched.read_text(encoding="utf-8"))["available_node_types"].values()
        return any(float(kind["resources"].get("GPU", 0)) >= 1 and kind.get("max_workers", 1) > 0 for kind in types)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return False


def describe_nodes() -> str:
    """What a person is told in the place of a quote: what is up, and why its time is not known."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    kinds = sorted({key.removeprefix("accelerator_type:") for node in nodes for key in node if key.startswith("accelerator_type:")})
    named = f" ({', '.join(kinds)})" if kinds else ""
    return (
        f"cluster: {len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs{named} are up; no quote, "
        "because the time of a step on its machines is not known before one has run"
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
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
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
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from study.results.provenance import version

    probe = ray.remote(num_cpus=0)(_versions)
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in ray.nodes()
        if node["Alive"]
    }
    for answer, node in asked.items():
        host = node["NodeManagerHostname"]
        try:
            found = ray.get(answer, timeout=timeout_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if _is_gone(node["NodeID"]):  # a spot machine that was taken away in this moment
                continue
            raise ValueError(f"node {host} cannot run a task of this program: {_first_sentence(error)}") from None
        for name, theirs in found.items():
            # A build's local part (+cpu, +cu130) may differ: a CPU head drives GPU workers.
            if theirs.split("+")[0] != version(name).split("+")[0]:
                raise ValueError(
                    f"node {host} has {name} {theirs or 'not installed'}, this driver has {version(name)}; install the same on all"
                )


def _is_gone(node_id: str) -> bool:
    return not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def _versions() -> dict[str, str]:
    from study.results.provenance import version

    return {name: version(name) for name in ("ray", "torch", "numpy", "safetensors")}
