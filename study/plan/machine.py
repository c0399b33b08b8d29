"""What this machine gives this process: one count of processors, of memory and of processes, by affinity, control groups and limits.

Reads /proc and /sys/fs/cgroup (cgroups(7), both versions); where they are not there, only what the system tells counts.

    processors()   # 1 under `taskset -c 0`, and in a container with `--cpus 1`
"""

import os
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def processors() -> int:
    """Whole processors that this process may keep busy, at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([usable, *map(int, _quotas())]))


def memory() -> int:
    """Bytes of memory that this process and its children may use."""
    limits = [limit for name in ("memory.max", "memory.limit_in_bytes") for limit in _numbers(name, _folders("memory"))]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def processes_left() -> int | None:
    """Processes and threads that may still be started; None where nothing limits them."""
    groups = [(_numbers("pids.max", [group]), _numbers("pids.current", [group])) for group in _folders("pids")]
    left = [most - max(here, default=0) for limits, here in groups for most in limits]
    if os.getuid() and (most := resource.getrlimit(resource.RLIMIT_NPROC)[0]) != resource.RLIM_INFINITY:
        left.append(most - _threads_of(os.getuid()))
    return min(left, default=None)


def busy_cores(seconds: float = 0.2) -> float:
    """Processors that others keep busy while this process sleeps; 0 where the system does not tell."""
    try:
        before = _core_times()
        time.sleep(seconds)
        after = _core_times()
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux
        return 0.0
    idle, whole = after[0] - before[0], after[1] - before[1]
    return min(len(os.sched_getaffinity(0)) * (1 - idle / whole), float(processors())) if whole > 0 else 0.0


# ---- control groups ----


def _folders(controller: str) -> list[Path]:
    """Folders of this process's group and of all above it, for one controller; inside a container the top is the container's own."""
    found: list[Path] = []
    for line in _text(GROUPS).splitlines():
        _, names, path = line.split(":", 2)
        tops = [MOUNT, MOUNT / "unified"] if not names else [MOUNT / controller] if controller in names.split(",") else []
        for top in tops:
            group = top / path.lstrip("/")
            found += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return found


def _numbers(name: str, folders: Sequence[Path]) -> list[int]:
    """The numbers that files of a name hold; `max` and what is absent count as none."""
    return [int(word) for folder in folders for word in _text(folder / name).split()[:1] if word.lstrip("-").isdigit()]


def _quotas() -> Iterator[float]:
    """Processor time over wall time that each group allows."""
    for folder in _folders("cpu"):
        words = _text(folder / "cpu.max").split() or [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if all(word.isdigit() and int(word) for word in words):
            yield int(words[0]) / int(words[1])


def _threads_of(user: int) -> int:
    """Threads of all processes of a user, as RLIMIT_NPROC counts them (getrlimit(2))."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            count += len(os.listdir(process / "task")) if process.stat().st_uid == user else 0
        except OSError:  # it has just ended
            continue
    return count


def _core_times() -> tuple[int, int]:
    """Idle and all ticks, since the start of the machine, of the cores that this process may use (proc(5), /proc/stat)."""
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    with open("/proc/stat", encoding="ascii") as file:
        cores = [[int(value) for value in line.split()[1:9]] for line in file if line.split()[0] in ours]
    return sum(ticks[3] + ticks[4] for ticks in cores), sum(map(sum, cores))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
