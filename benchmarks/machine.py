"""What every benchmark says about where it ran, and how it keeps its figures."""

import csv
import datetime
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study.results.provenance import processor


def describe() -> str:
    """One line: processor, cores, Python and package versions, threads."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "ray"))
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}, OMP_NUM_THREADS={threads}"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows with date, machine and command, so that a figure can be traced."""
    facts = {"date": datetime.date.today().isoformat(), "machine": describe(), "command": "python -m " + " ".join(_command())}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in {**row, **facts}.items()})
    print(f"wrote {path.parent.name}/{path.name}")


def _command() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name if spec else Path(sys.argv[0]).name, *sys.argv[1:]]


def below(ancestor: int) -> list[int]:
    """All processes below one, by /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
        except OSError:
            continue
    found = list(children.get(ancestor, []))
    for pid in found:
        found += children.get(pid, [])
    return found
