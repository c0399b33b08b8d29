"""Several hosts on this machine, for tests that need what a cluster needs: SSH, own homes, own addresses, own processes.

Each host is a set of Linux namespaces: its own processes, network card, /tmp, /dev/shm and home folder (through its own /etc/passwd),
with an sshd that only the other hosts can reach. The network has no way out, so nothing listens on this machine, and a program that ends
processes by name, as `ray stop` does, ends only its own host's. All end with the process that made them.

with Hosts(folder, ["head", "worker"], path=...) as hosts: hosts.run("laptop", ["ssh", hosts.address["head"], "hostname"])
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pytest

ROOT = Path(__file__).parent.parent
Step = Callable[..., str]
SSHD = "/usr/sbin/sshd"
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
NETWORK = "10.77.0"
WAIT = "while :; do sleep 0.5; done"  # a shell as first process also collects the processes that others leave behind

OUTER = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
ip link set lo up
ip link add hub type bridge
ip link set hub up
"""

HOST = """
set -e
mount --bind {folder}/tmp /tmp
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd
hostname {name}
{sshd} -f {folder}/sshd_config
touch {folder}/up
"""


def why_not() -> str:
    """Why hosts cannot be made here, or ""."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    missing = [tool for tool in ("setpriv", "unshare", "nsenter", "ip", "mount", "ssh", "ssh-keygen", "rsync") if not shutil.which(tool)]
    missing += [] if Path(SSHD).exists() else ["sshd"]
    if missing:
        return f"needs {', '.join(missing)} (Debian: openssh-server, openssh-client, rsync, iproute2, util-linux)"
    attempt = "ip link add a0 type veth peer name a1 && ip link add b0 type bridge && mount -t tmpfs tmpfs /run"
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", attempt], capture_output=True, text=True)
    return f"this system forbids namespaces: {done.stderr.strip()[:200]}" if done.returncode else ""


def copy_project(target: Path) -> None:
    """Copy the files of this project, without what git ignores."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\n"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def shell_on_laptop(hosts: "Hosts") -> Step:
    """A function that runs a shell command on the laptop, in ~/project, prints it with its time, and returns what it wrote."""

    def run(command: str, expected: int = 0, timeout: float = 300, quiet: bool = False, **environment: str) -> str:
        start = time.monotonic()
        settings = {"RAY_AUTH_MODE": "token", "PYTHONWARNINGS": "ignore", **environment}
        done = hosts.run("laptop", ["bash", "-c", f"cd project && {command}"], timeout, **settings)
        if not quiet:
            print(f"$ {command}\n  exit {done.returncode}, {time.monotonic() - start:.1f} s")
        assert done.returncode == expected, done.stdout[-6000:]
        return done.stdout

    return run


class Hosts:
    """Named hosts and a `laptop` that can reach all of them over SSH as root; use as a context manager."""

    def __init__(self, folder: Path, names: list[str], path: str) -> None:
        """Args: folder: an empty folder outside of /tmp, with a short name; path: PATH of every shell on every host."""
        self.folder, self.path = folder, path
        self.address = {name: f"{NETWORK}.{number}" for number, name in enumerate(["laptop", *names], 1)}
        self.first: dict[str, int] = {}
        self._outer: subprocess.Popen[bytes] | None = None

    def home(self, name: str) -> Path:
        """Home folder of a host's user."""
        return self.folder / name / "home"

    def __enter__(self) -> "Hosts":
        self._write_files()
        script = OUTER + "".join(self._start_of(name) for name in self.address) + WAIT
        alone = "setpriv --pdeathsig KILL unshare --net --mount --pid --fork --mount-proc --kill-child bash -c"
        command = [*alone.split(), script]
        self._outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]})
        deadline = time.monotonic() + 30
        while not all((self.folder / name / "up").exists() for name in self.address):
            assert self._outer.poll() is None, "the hosts did not start"
            assert time.monotonic() < deadline, "the hosts did not start within 30 s"
            time.sleep(0.1)
        for name in self.address:
            self.first[name] = self._first_process(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._outer is not None
        self._outer.send_signal(signal.SIGKILL)  # --kill-child: takes the namespace's first process along, and that all others
        self._outer.wait()

    def run(self, name: str, command: list[str], timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, in its home folder; output and errors come back together as stdout."""
        return subprocess.run(
            self._enter(name, command), env=self._environment(name, environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout,
        )  # fmt: skip

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on a host and leave it running."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            self._enter(name, command), env=self._environment(name, environment), stdin=quiet, stdout=quiet, stderr=quiet
        )

    def _enter(self, name: str, command: list[str]) -> list[str]:
        return ["nsenter", "--target", str(self.first[name]), "--all", f"--wd={self.home(name)}", *command]

    def _environment(self, name: str, more: dict[str, str]) -> dict[str, str]:
        return {"HOME": str(self.home(name)), "PATH": self.path, "LANG": "C.UTF-8", "USER": "root", **more}

    def _first_process(self, name: str) -> int:
        """Process id, as seen from outside, of the first process of a host."""
        for status in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"HOST_FOLDER={self.folder / name}".encode() in status.read_bytes().split(b"\0"):
                    facts = dict(line.split(":", 1) for line in (status.parent / "status").read_text().splitlines())
                    if facts["NSpid"].split()[-1] == "1":
                        return int(status.parent.name)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        raise AssertionError(f"host {name} has no first process")

    def _start_of(self, name: str) -> str:
        """Shell lines that connect a host to the hub and start it."""
        number = self.address[name].rpartition(".")[2]
        script = self.folder / name / "start.sh"
        return f"""
ip netns add {name}
ip link add card{number} type veth peer name eth0 netns {name}
ip link set card{number} master hub up
ip -n {name} link set lo up
ip -n {name} addr add {self.address[name]}/24 dev eth0
ip -n {name} link set eth0 up
ip -n {name} route add default via {self.address[name]}
HOST_FOLDER={self.folder / name} ip netns exec {name} unshare --pid --mount --uts --fork --mount-proc --kill-child bash {script} &
"""

    def _write_files(self) -> None:
        keys = self.folder / "keys"
        keys.mkdir()
        for key in ("user", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / key)], check=True)
        for name, address in self.address.items():
            self._write_host(name, address, keys)

    def _write_host(self, name: str, address: str, keys: Path) -> None:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        (folder / "home" / ".ssh").mkdir(parents=True)
        shutil.copy(keys / "user.pub", folder / "home" / ".ssh" / "authorized_keys")
        if name == "laptop":
            shutil.copy(keys / "user", folder / "home" / ".ssh" / "id_ed25519")
        (folder / "home" / ".bashrc").write_text(f"export PATH={self.path}\n")
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        (folder / "passwd").write_text("\n".join([f"root:x:0:0:root:{folder / 'home'}:/bin/bash", *others]) + "\n")
        settings = {
            "ListenAddress": address, "HostKey": keys / "host", "AuthorizedKeysFile": ".ssh/authorized_keys", "StrictModes": "no",
            "UsePAM": "no", "PidFile": "none", "PermitRootLogin": "prohibit-password", "Subsystem": "sftp internal-sftp", "MaxStartups": 50,
        }  # fmt: skip
        (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        (folder / "start.sh").write_text(HOST.format(folder=folder, name=name, sshd=SSHD) + WAIT)


@contextmanager
def started(names: list[str], programs: str = "") -> Iterator[Hosts]:
    """Hosts in a folder of their own, with this Python's programs and those in a folder beside theirs; skips where none can be made."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/var/tmp"))
    try:
        with Hosts(folder, names, f"{folder}/{programs}:{PATH}" if programs else PATH) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
