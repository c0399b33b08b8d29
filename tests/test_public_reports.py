"""What people reported of programs that do this job, tried on this one: terminals, processors, Rays, accounts. One line a case.

Files and names are in tests/test_public_reports_files.py.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from models.home import expanded
from study.files import cache_folder
from study.options import Options
from study.plan import machine
from study.tune import cluster, environment, local_ray
from tests.running import ROOT, tiny

RUN = [sys.executable, "-m", "study.run"]
TABLE = """
import time
from study.command import parse
from study.display.terminal import open_view
from study.spec import expand
trials = {t.trial_id: t for t in expand(parse(["smoke"]).study)}
view = open_view(trials, 64, 0)
view.say("board: " + "x" * 300)
for step in range(20):
    view.progress({"trial_id": next(iter(trials)), "step": step, "val_loss": 1.0, "tokens_per_s": 1.0})
    time.sleep(0.03)
    view.said_at = -1e9
    view.tick()
view.close()
"""
"""The live view of a study in which one trial reports twenty times."""


def environment_of(**changes: str) -> dict[str, str]:
    """This environment with changes; what is empty is taken out."""
    return {name: value for name, value in {**os.environ, "PYTHONPATH": str(ROOT), **changes}.items() if value}


def said(command: list[str] | str, seconds: float = 120, **changes: str) -> tuple[int, str]:
    """Exit code and all that a command writes; there is never a traceback."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment_of(**changes), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, shell=isinstance(command, str),
        timeout=seconds,
    )  # fmt: skip
    text = done.stdout.decode(errors="replace")
    assert "Traceback" not in text, text
    return done.returncode, text


def on_terminal(command: list[str], **changes: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=ROOT, env=environment_of(**changes), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1 << 16):
            text += part
    except OSError:  # Linux: the other end is closed
        pass
    assert process.wait(60) == 0, text.decode()
    return text.decode()


# ---- terminals ----


@pytest.mark.parametrize(
    ("changes", "redrawn"),
    [
        ({"TERM": "xterm-256color", "PAGER": ""}, True),
        ({"TERM": "newer-than-this-machine"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({"TERM": "unknown"}, False),
        ({"TERM": "xterm-color", "JPY_PARENT_PID": "1"}, False),
    ],
)
def test_the_table_is_redrawn_where_that_works_else_plain_lines_are_said_and_a_link_is_one_line(
    changes: dict[str, str], redrawn: bool
) -> None:
    text = on_terminal([sys.executable, "-c", TABLE], **changes)
    assert ("\x1b[" in text) == redrawn
    assert "x" * 300 in text
    assert redrawn or 20 <= text.count("trials done") <= 22


def test_a_notebook_s_cell_holds_lines_and_no_copies_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "view.py").write_text(TABLE)
    cell = nbformat.v4.new_code_cell(f"!PYTHONPATH={ROOT} {sys.executable} {tmp_path / 'view.py'}")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    text = "".join(output["text"] for output in cell["outputs"])
    assert "\x1b[" not in text
    assert "running" in text


# ---- an output that is gone ----


@pytest.mark.parametrize(
    ("ending", "changes", "expected"),
    [
        (">&- 2>&- <&-", {}, ""),
        ("> /dev/full", {}, "what was printed is lost: the standard output cannot be written (No space left on device)"),
        ("", {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, "what does ? buy"),
    ],
)
def test_printing_never_ends_a_command(ending: str, changes: dict[str, str], expected: str, story_cache: Path) -> None:
    command = f"{sys.executable} -m study.run smoke --question 'what does ü buy' --dry-run {ending}"
    code, text = said(command, **changes, RAY_ADDRESS="10.0.0.1:6379")  # on a cluster no steps are timed for a quote
    assert code == 0
    assert expected in text


def test_a_file_that_is_opened_never_takes_the_place_of_a_closed_output(tmp_path: Path) -> None:
    program = f"""
from study.console import until_closed
def main():
    file = open({str(tmp_path / "file")!r}, "w")
    print("to nobody", flush=True)
    file.write("kept")
    file.close()
    return 3
raise SystemExit(until_closed(main))
"""
    (tmp_path / "program.py").write_text(program)
    assert said(f"{sys.executable} {tmp_path / 'program.py'} >&- 2>&-") == (3, "")
    assert (tmp_path / "file").read_text() == "kept"


# ---- processors, memory and processes ----


def test_one_processor_is_counted_under_affinity() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    (first, *_) = os.sched_getaffinity(0)
    program = f"import os; os.sched_setaffinity(0, [{first}]); from study.plan.machine import processors; print(processors())"
    assert said([sys.executable, "-c", program]) == (0, "1\n")


def grouped(place: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]) -> None:
    """This process in made-up control groups, whose files lie in a folder."""
    for name, text in {"groups": groups, **files}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    monkeypatch.setattr(machine, "GROUPS", place / "groups")
    monkeypatch.setattr(machine, "MOUNT", place)


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),  # the group above limits, too
        ("0::/\n", {"cpu.max": "150000 100000"}, 1),  # a container sees its own group as the top; one and a half are one
        ("3:cpu,cpuacct:/docker/7\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),  # version 1
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_control_groups_of_both_versions_limit_the_one_count(
    groups: str, files: dict[str, str], count: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(tmp_path, monkeypatch, groups, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert machine.processors() == (count or 3)


def test_few_processes_allowed_are_named_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(tmp_path, monkeypatch, "1:pids:/job\n", {"pids/job/pids.max": "100", "pids/job/pids.current": "20"})
    with pytest.raises(ValueError, match=r"may start 80 more processes and threads and Ray takes about \d+; raise the limit"):
        local_ray.check()


def test_a_limit_of_addresses_that_ray_cannot_live_with_is_named(story_cache: Path, tmp_path: Path) -> None:
    command = " ".join([*RUN, *tiny(tmp_path), "--address", "127.0.0.1:1"])
    sentence = "a process of this account may span 2,441 MiB of addresses and Ray takes about 3,400; raise the limit (ulimit -v)"
    assert said(f"ulimit -v 2500000; {command}") == (1, f"study.run: {sentence}\n")


# ---- temporary folders, homes and addresses ----


def test_an_account_without_a_home_keeps_its_texts_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "SCALING_STUDY_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("os.access", lambda place, mode: place != Path("/"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"scaling-study-{os.getuid()}"
    with pytest.raises(ValueError, match=r"--out=~/x begins with a home folder that cannot be found"):
        expanded("~/x", "--out")


@pytest.mark.parametrize("name", ["é" * 20, "漢" * 25, "x" * 60])
def test_a_temporary_folder_that_is_too_long_in_bytes_is_left_alone_and_one_that_was_asked_for_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / name
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    environment.set_ray_environment()
    assert os.environ["RAY_TMPDIR"] in environment.FOLDERS
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(ValueError, match=r"has \d+ bytes, and the sockets in it leave room for 39; name another folder with RAY_TMPDIR"):
        local_ray.check()


@pytest.mark.parametrize(
    ("flags", "changes", "sentence"),
    [
        ([], {"RAY_ADDRESS": "http://127.0.0.1:8265"}, "the environment variable RAY_ADDRESS='http://127.0.0.1:8265' is not HOST:PORT"),
        ([], {"RAY_ADDRESS": "ray://10.0.0.1:10001"}, "unset it to train on this machine"),
        (["--address", "head"], {}, "--address='head' is not HOST:PORT, auto or local; leave it out to train on this machine"),
    ],
)
def test_an_address_that_is_none_is_named_where_it_was_written(
    flags: list[str], changes: dict[str, str], sentence: str, story_cache: Path
) -> None:
    code, text = said([*RUN, "smoke", "--dry-run", *flags], **changes)
    assert (code, sentence in text) == (2, True), text


@pytest.mark.parametrize(("variable", "flag", "on_cluster"), [("local", "", False), ("10.0.0.1:6379", "", True), ("x:1", "local", False)])
def test_local_is_this_machine_with_a_quote(variable: str, flag: str, on_cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert Options(address=flag).on_cluster == on_cluster


def test_auto_never_joins_another_person_s_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ValueError, match="finds no Ray cluster"):
        cluster.own_cluster()
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("10.0.0.1:6379")
    assert cluster.own_cluster() == "10.0.0.1:6379"
    if os.getuid():
        pytest.skip("only root can give a file to another user")
    os.chown(note, 12345, 12345)
    with pytest.raises(ValueError, match=r"belongs to user 12345; to join it all the same, name it: --address 10.0.0.1:6379"):
        cluster.own_cluster()


def test_a_start_that_fails_in_any_way_is_one_sentence(tmp_path: Path) -> None:
    for reason, sentence in (
        ("Exception: The current node timed out during startup.", "were not ready in time (its load is"),
        ("Check failed: Timed out waiting for file /x/metrics_agent_port", "try again when it has less to do"),
        ("something new. And more.", f"Ray cannot start on this machine: something new; its logs are in {tmp_path}"),
    ):
        assert sentence in local_ray.explain(reason, tmp_path)


def test_a_file_in_the_place_of_ray_s_folder_is_named(story_cache: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        (Path(short) / "ray").touch()
        code, text = said([*RUN, *tiny(tmp_path)], RAY_TMPDIR=short)
    assert code == 1, text
    assert re.search(rf"Ray cannot start on this machine: .*File exists: '{short}/ray'$", text.strip())
