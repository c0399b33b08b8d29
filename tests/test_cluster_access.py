"""Who may use a running cluster: a head started as the cluster files start it refuses jobs and drivers that lack its token."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def guarded_cluster() -> Iterator[tuple[str, str]]:
    """A head as the cluster files start it, with token `right`, on ports of its own; yields the dashboard's and the cluster's address."""
    pytest.importorskip("aiohttp_cors", reason="Ray's dashboard is not installed; install ray[default]")
    port, dashboard, agent, client = free_ports(4)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right" * 8, "RAY_USAGE_STATS_ENABLED": "0"}
    ports = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        start = [
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            "--num-cpus=1",
        ]
        more = [f"--temp-dir={folder}", f"--object-store-memory={80 * 2**20}", *ports]
        head = subprocess.Popen(
            [sys.executable, "-m", *start, *more], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield f"127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(timeout=60)


def submit(url: str, token: str) -> tuple[int, str]:
    """Submit a job over HTTP; returns the status and the text of the answer."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"http://{url}/api/jobs/", json.dumps({"entrypoint": "true"}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError as error:
        return 0, str(error)


@pytest.mark.ray
def test_a_job_without_the_token_is_refused(guarded_cluster: tuple[str, str]) -> None:
    url = guarded_cluster[0]
    deadline = time.monotonic() + 90
    while (answer := submit(url, token="right" * 8))[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.5)  # the head is still starting
    assert answer[0] == 200, answer[1]
    assert submit(url, token="")[0] == 401
    assert submit(url, token="wrong" * 8)[0] == 403


@pytest.mark.slow  # Ray retries for twenty seconds before it gives up
@pytest.mark.ray
def test_a_driver_without_the_token_is_refused(guarded_cluster: tuple[str, str], tmp_path: Path) -> None:
    address = guarded_cluster[1]
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}
    join = f"import ray; ray.init(address={address!r}, log_to_driver=False); print('JOINED')"
    done = subprocess.run([sys.executable, "-c", join], env=environment, capture_output=True, text=True, timeout=120)
    assert "JOINED" not in done.stdout
    assert "InvalidAuthToken" in done.stderr
