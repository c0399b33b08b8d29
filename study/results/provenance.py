"""Where a result came from: versions, git state, machine. Standard library only.

facts = provenance(cpus=2)   # {"versions": {...}, "git_commit": ..., "git_dirty": ..., "machine": {...}}
"""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("ray", "torch", "numpy", "pyarrow", "pandas", "scipy", "optuna", "tyro", "tensorboard")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Provenance:
    """Facts of the program and of the machine that runs the driver."""

    versions: dict[str, str]
    git_commit: str
    git_dirty: bool | None
    host: str
    machine: dict[str, str | int]

    @property
    def code_version(self) -> str:
        """Commit with a mark where the tree differed from it; the package's version outside of git."""
        if not self.git_commit:
            return self.versions["scaling-study"]
        return self.git_commit[:12] + ("+dirty" if self.git_dirty else "")


def provenance(cpus: int) -> Provenance:
    """Collect the facts; what cannot be found is empty, never an error. `cpus` are those that this process may use."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("scaling-study", *PACKAGES)}}
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None
    machine: dict[str, str | int] = {
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": cpus,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    return Provenance(versions, commit, dirty, platform.node(), machine)


def version(package: str) -> str:
    """Installed version of a package without importing it, or "" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    """Output of git in the project's folder; "" without git, outside of a repository, or where the folder belongs to somebody else."""
    if not (ROOT / ".git").exists():  # installed as a package: a repository further up is not ours
        return ""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """Model name of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """Of a process of this program: it finds our packages, wherever it is started."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}
