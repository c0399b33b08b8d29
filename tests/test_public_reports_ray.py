"""What people reported of programs that do this job, on a real Ray: all at once, as in a container, and closed terminals."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.running import ROOT, checkpoints, heed_hang_ups, rows, tables, tiny, wait_until, workers
from tests.test_public_reports import RUN, environment_of, said

pytestmark = pytest.mark.ray


@pytest.fixture
def container(tmp_path: Path) -> SimpleNamespace:
    """A command's prefix for what many containers are like: a home and a /dev/shm that cannot be written, one processor, 256 files."""
    home = tmp_path / "home"
    home.mkdir()
    frozen = f"mount --bind {home} {home} && mount -o remount,ro,bind {home} && mount -t tmpfs -o ro none /dev/shm"
    attempt = subprocess.run(["unshare", "--mount", "sh", "-c", frozen], capture_output=True, text=True, check=False)
    if attempt.returncode:
        pytest.skip(f"this system does not let a test mount a file system: {attempt.stderr.strip()}")
    folder = tmp_path / ("漢" * 25)
    folder.mkdir()
    settings = {"HOME": str(home), "TMPDIR": str(folder), "RAY_TMPDIR": "", "SCALING_STUDY_CACHE": "", "RAY_AUTH_TOKEN": "", "TERM": "dumb"}
    return SimpleNamespace(prefix=f"{frozen} && ulimit -n 256 && exec taskset -c 0", settings=settings, home=home)


@pytest.mark.slow
def test_a_dry_run_in_a_container_writes_nothing_at_home(container: SimpleNamespace) -> None:
    command = f"{container.prefix} {sys.executable} -m study.run smoke --data.train_chars 200K --seeds 1 --sweeps width:n_embd=16 --dry-run"
    code, text = said(["unshare", "--mount", "sh", "-c", command], **container.settings)
    assert code == 0, text
    assert "one at a time" in text
    assert not list(container.home.iterdir())


@pytest.mark.slow
def test_a_study_in_a_container_with_its_output_closed_ends_with_every_row(
    container: SimpleNamespace, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = " ".join([*RUN, *tiny(out, "--no-report")])
    code, text = said(["unshare", "--mount", "sh", "-c", f"{container.prefix} {command} >&-"], 400, **container.settings)
    assert code == 0, text
    assert tables(out) == tables(undisturbed)
    assert not list(container.home.iterdir())
    facts = (out / "study.json").read_text()
    assert '"slots": 1' in facts


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_a_study_like_sigterm(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours, theirs = pty.openpty()
    attach = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", attach, *RUN, *tiny(out, "--no-report")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment_of(), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=heed_hang_ups
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    assert wait_until(lambda: (_drain(ours), checkpoints(out, 40))[1], process=process)
    pids = workers(process.pid)
    os.close(ours)  # the kernel sends SIGHUP, and every later write fails
    assert process.wait(60) == 128 + signal.SIGHUP
    assert {row["reason"] for row in rows(out) if row["status"] == "INTERRUPTED"} == {"SIGHUP"}
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=30)


def _drain(terminal: int) -> None:
    try:
        while os.read(terminal, 1 << 16):
            continue
    except OSError:
        return
