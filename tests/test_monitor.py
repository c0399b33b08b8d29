"""What the driver shows and writes: tallies, rows, event files, and text from models that cannot do harm."""

import io
import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import parse_qs, urlparse

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from study import records
from study.command import parse
from study.display.tensorboard import Board, hparams, publish, run_name, story_markdown
from study.display.terminal import Plain, Screen, distinctions, duration, printable, trial_name
from study.files import retried
from study.results.trial_writer import Recorder, Where
from study.spec import Trial, expand

HOSTILE = "<script>alert(1)</script> " + 30 * "word " + "**bold** \x1b[31mred\x1b[0m \x00 [link](http://x)\nnext line"


@pytest.fixture
def trials() -> list[Trial]:
    """The trials of the smoke study."""
    return expand(parse(["smoke"]).study)


def named(trials: list[Trial]) -> dict[str, Trial]:
    return {trial.trial_id: trial for trial in trials}


def plain(trials: list[Trial]) -> Plain:
    """A silent view of trials with equal costs."""
    return Plain(known := named(trials), dict.fromkeys(known, 1.0), done_before=2, say=lambda text: None)


def evaluation(trial: Trial, step: int, loss: float = 3.0) -> dict[str, Any]:
    """A `curves` row."""
    tokens = step * trial.train.batch_size * trial.shape.block_size
    trained = {"batch_loss": loss + 0.1, "grad_norm": 0.5, "tokens_per_s": 1e4} if step else {}
    return {"trial_id": trial.trial_id, "step": step, "tokens": tokens, "val_loss": loss, "lr": 1e-3, **trained}


def recorder(out: Path, trials: list[Trial]) -> Recorder:
    """A recorder as a run makes it."""
    return Recorder(out, "smoke", "abc", {"data_name": "stories", "unique_tokens": 1000}, named(trials), 64)


@pytest.mark.parametrize(
    ("device", "precision", "share"),
    [("cuda (NVIDIA H200)", "bf16", 0.25), ("cuda (NVIDIA H200)", "float32", None), ("cpu (AMD EPYC)", "bf16", None)],
)
def test_a_row_says_what_share_of_a_known_peak_was_reached(
    trials: list[Trial], tmp_path: Path, device: str, precision: str, share: float | None
) -> None:
    speed = 0.25 * 989e12 / trials[0].model(64).flops_per_token
    row = {"trial_id": trials[0].trial_id, "status": "COMPLETED", "n_steps": 5, "n_tokens": 640, "val_loss": 2.0, "device": device}
    written = recorder(tmp_path, trials).ended(
        {"row": {**row, "precision": precision, "tokens_per_s": speed}, "curve": [], "samples": []}, Where(0.0)
    )
    assert written.get("mfu") == pytest.approx(share)


# ---- live view ----


def test_progress_is_weighted_by_flops_not_by_trials(trials: list[Trial]) -> None:
    view = plain(trials[:3])
    view.flops = {trials[0].trial_id: 6.0, trials[1].trial_id: 3.0, trials[2].trial_id: 1.0}
    view.began = time.monotonic() - 10
    view.progress(evaluation(trials[0], trials[0].train.n_steps // 2))
    failed = {"trial_id": trials[2].trial_id, "status": "FAILED", "reason": "x", "seed": 1, "config_id": "x"}
    view.ended({**failed, **asdict(trials[2].shape)}, [])
    assert view.share() == pytest.approx(0.4)
    assert view.seconds_left() == pytest.approx(15, rel=0.02)
    assert view.counts() == {"done": 2, "running": 1, "failed": 1, "all": 5}


def test_nothing_is_promised_before_anything_is_known(trials: list[Trial]) -> None:
    assert plain(trials).seconds_left() is None
    assert "left" not in plain(trials).headline()
    assert Plain({}, {}).share() == 1.0


def test_a_terminal_shows_running_and_finished_configurations(trials: list[Trial], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    screen = Screen(named(trials), dict.fromkeys(named(trials), 1.0), 2, console)
    screen.progress(evaluation(trials[0], 50, 2.5))
    write = recorder(tmp_path, trials)
    for trial, loss in ((trials[1], 2.0), (trials[8], 2.2)):
        outcome = {"row": {"trial_id": trial.trial_id, "status": "COMPLETED", "val_loss": loss, "n_tokens": 10, "n_steps": 2}}
        screen.ended(write.ended({**outcome, "curve": [], "samples": []}, Where(time.time())), [])
    screen.note(HOSTILE)
    screen.close()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 of 16 trials done, 1 running" in said
    assert "50 of 200" in said
    assert "2.1000" in said  # the mean of two seeds
    assert "\x1b[31m" not in said
    assert "\x00" not in said


def test_durations_and_control_characters_are_readable() -> None:
    assert [duration(s) for s in (4.4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 05 min"]
    assert printable("a\x1b[31mb\x00c\u202ed\ne") == "a?[31mb?c?d\ne"


# ---- records ----


def test_a_trial_that_is_cut_off_keeps_its_curve_and_says_why(trials: list[Trial], tmp_path: Path) -> None:
    curve = [evaluation(trials[0], 0, 4.0), evaluation(trials[0], 50, 3.0)]
    where = Where(time.time() - 5, gpu_fraction=0.25, bundle_size=4, host="node7")
    recorder(tmp_path, trials).cut_off(trials[0].trial_id, "INTERRUPTED", "Ctrl-C", curve, where)
    (row,) = records.read(tmp_path, "trials").to_pylist()
    expected = {"status": "INTERRUPTED", "reason": "Ctrl-C", "val_loss": 3.0, "n_steps": 50, "gpu_fraction": 0.25, "bundle_size": 4}
    assert {name: row[name] for name in expected} == expected
    assert row["host"] == "node7"
    assert row["params_total"] == trials[0].model(64).params_total
    assert [line["step"] for line in records.read(tmp_path, "curves").to_pylist()] == [0, 50]


def test_a_write_that_fails_for_a_moment_is_tried_again_and_one_that_keeps_failing_is_not_hidden(
    trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.results.trial_writer.PATIENCE_S", (0.05, 0.05))
    out = tmp_path / "out"
    out.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="out"):
        recorder(out, trials).cut_off(trials[0].trial_id, "FAILED", "x", [], Where(time.time()))
    comes_back = Mock(side_effect=[OSError("away"), OSError("away"), None])
    retried(comes_back, (0.05, 0.05))
    assert comes_back.call_count == 3


# ---- board ----


def read_run(folder: Path) -> EventAccumulator:
    """A run's events as TensorBoard reads them."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()


def test_a_run_is_continued_without_repeating_or_contradicting_points(trials: list[Trial], tmp_path: Path) -> None:
    trial, folder = trials[0], tmp_path / run_name(trials[0])

    def draw(*rows: tuple[int, float]) -> None:
        board = Board(tmp_path, named(trials), 64)
        for step, loss in rows:
            board.progress(evaluation(trial, step, loss))
        board.close()

    draw((0, 4.0), (50, 4.0), (100, 4.0), (50, 9.9))  # a retry reports again
    time.sleep(1.1)  # event files are ordered by the second in their names
    draw((100, 3.0), (150, 3.0))  # another run, from the checkpoint at step 50
    scalars = read_run(folder).Scalars("loss/val")
    step_tokens = trial.train.batch_size * trial.shape.block_size
    assert [(event.step // step_tokens, event.value) for event in scalars] == [(0, 4.0), (50, 4.0), (100, 3.0), (150, 3.0)]
    draw((0, 2.0))  # from the start again: what was there is void
    assert [event.value for event in read_run(folder).Scalars("loss/val")] == [2.0]


def test_stories_are_code_blocks_whatever_they_contain(trials: list[Trial], tmp_path: Path) -> None:
    sample = {"prompt": "Once", "text": HOSTILE, "temperature": 0.8, "index": 0, "step": 200, "n_tokens": 9}
    board = Board(tmp_path, named(trials), 64)
    board.progress(evaluation(trials[0], 0))
    row = {"trial_id": trials[0].trial_id, "status": "COMPLETED", "batch_size": 8, "block_size": 32}
    board.ended(row, [sample])
    (event,) = read_run(tmp_path / run_name(trials[0])).Tensors("stories")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 200 * 8 * 32
    assert text == story_markdown(sample)
    lines = text.split("\n")[2:]
    assert all(line.startswith("    ") and len(line) <= 104 for line in lines)
    assert "".join(line[4:] for line in lines) == "Once|" + printable(HOSTILE).replace("\n", "")
    assert not {"\x1b", "\x00"} & set(text)


def test_runs_sort_by_size_and_the_five_hparams_that_are_shown_tell_them_apart(trials: list[Trial]) -> None:
    names = [run_name(trial) for trial in trials]
    assert len(set(names)) == len(trials)
    assert sorted(names)[0].startswith("01x0032-h04-51.2K-s1-")
    longer = replace(trials[0], train=replace(trials[0].train, n_steps=400))
    assert run_name(longer).startswith("01x0032-h04-102K-s1-")
    assert sorted(hparams(longer, 64))[:5] == ["arch/depth", "arch/heads", "arch/width", "data/tokens_M", "lr"]


def test_what_tells_trials_of_one_shape_apart_is_part_of_their_name(trials: list[Trial]) -> None:
    first = trials[0]
    longer = replace(first, train=replace(first.train, n_steps=400, eval_interval=100))
    faster = replace(first, train=replace(first.train, lr=0.5))
    assert set(distinctions(trials).values()) == {""}
    assert list(distinctions([first, longer]).values()) == [", 51.2K tokens", ", 102K tokens"]
    assert list(distinctions([first, longer, faster]).values())[2] == ", 51.2K tokens, lr 0.5"
    view = Plain(known := named([first, longer]), dict.fromkeys(known, 1.0))
    assert view.name({**asdict(longer.shape), "config_id": longer.config_id}) == "1 layer x 32, 4 heads, 102K tokens"
    known[faster.trial_id] = faster
    view.expect({faster.trial_id: 1.0})
    assert trial_name(faster, view.distinctions) == "1 layer x 32, 4 heads, 51.2K tokens, lr 0.5, seed 1"


def test_the_link_opens_the_learning_curves_without_smoothing(trials: list[Trial], tmp_path: Path) -> None:
    line = Board(tmp_path / "a folder", named(trials), 64).how_to_open()
    assert "--logdir '" in line
    link = parse_qs(urlparse(line.split()[-1]).query)
    assert link["smoothing"] == ["0"]
    assert [card["tag"] for card in json.loads(link["pinnedCards"][0])] == ["loss/val", "loss/train"]
    (color,) = link["runColorGroup"]
    seeds = [re.match(color.removeprefix("regex:"), run_name(t)) for t in trials if t.config_id == trials[0].config_id]
    assert len(seeds) > 1
    assert len({match.group(1) for match in seeds if match}) == 1


def test_a_large_board_says_that_its_runs_must_be_ticked(trials: list[Trial], tmp_path: Path) -> None:
    many = [replace(trials[0], seed=seed) for seed in range(40)]
    assert Board(tmp_path, named(many), 64).how_to_open().endswith("tick the box beside Run: of so many, none is drawn at first)")
    assert "tick" not in Board(tmp_path, named(many[:39]), 64).how_to_open()


def test_the_figure_that_answers_the_question_is_the_first_image(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + (7).to_bytes(4, "big") + (5).to_bytes(4, "big")
    publish(tmp_path, {"gap": png, "loss": png, "contrasts": png})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "_study"), size_guidance={"images": 0}).Reload()
    assert min(events.Tags()["images"]) == "plots/0_loss"
