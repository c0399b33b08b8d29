"""The whole job as a newcomer runs it: `python -m study.run smoke`, its results, its board, its report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from study import records
from study.plan.machine import processors
from tests.running import ROOT, facts, rows

pytestmark = pytest.mark.ray

PROGRAM = """
import sys
from study.run import main
code = main(["smoke", "--out", sys.argv[1]])
print("torch in the driver:", "torch" in sys.modules)
sys.exit(code)
"""
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "MY_PASSWORD")
SECRET = "never-to-be-written-down-but-long-enough"


@pytest.fixture(scope="module")
def smoke(story_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results folder and output of a `smoke` run in a process of its own, with a Ray of its own."""
    out = tmp_path_factory.mktemp("end_to_end") / "smoke"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | dict.fromkeys(SECRETS, SECRET)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(out)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_every_trial_is_completed_and_recorded_with_its_facts(smoke: tuple[Path, str]) -> None:
    out, said = smoke
    found, unique = rows(out), facts(out)["data"]["n_train"]
    assert len(found) == 14
    assert {row["status"] for row in found} == {"COMPLETED"}
    assert {row["trial_id"] for row in found} == set(facts(out)["trial_ids"])
    for row in found:
        assert row["loss_floor"] < row["val_loss"] < 4.2  # above the text's entropy, below log of the vocabulary
        assert row["data_sha256"] == facts(out)["data_sha256"]
        assert row["n_tokens"] == 200 * 8 * 32
        assert row["device"].startswith("cpu")
        assert row["flops"] == row["flops_per_token"] * row["n_tokens"]
        assert (row["unique_tokens"], row["epochs"]) == (unique, pytest.approx(row["n_tokens"] / unique))
        # a column that nothing fills is a promise not kept: these are of own models, of GPUs, and of trials that did not end well
        absent = set() if (ROOT / ".git").exists() else {"git_commit", "git_dirty"}
        assert {name for name, value in row.items() if value is None} == {"module", "extra", "mfu", "reason"} | absent
    shared = [row for row in found if (row["n_layer"], row["n_embd"], row["n_head"]) == (2, 32, 4)]
    assert len(shared) == 2  # trained once per seed although three sweeps hold it
    assert all(row["sweeps"] == ["depth", "width", "heads"] for row in shared)
    assert "14 of 14 trials are completed" in said


def test_curves_hold_each_evaluation_once_and_end_at_the_recorded_loss(smoke: tuple[Path, str]) -> None:
    curves = records.read(smoke[0], "curves").to_pylist()
    for row in rows(smoke[0]):
        curve = [line for line in curves if line["trial_id"] == row["trial_id"]]
        assert [line["step"] for line in curve] == [0, 50, 100, 150, 200]
        assert curve[-1]["val_loss"] == row["val_loss"]


def test_nothing_is_left_over_and_the_driver_never_loads_torch(smoke: tuple[Path, str]) -> None:
    out, said = smoke
    assert not list(out.rglob("*.bad*"))
    assert not list((out / "checkpoints").glob("*/*"))
    assert not [path for table in records.PER_TRIAL for path in (out / table).glob(".*")]
    assert "torch in the driver: False" in said


def test_the_study_file_spells_out_every_default_and_where_it_ran(smoke: tuple[Path, str]) -> None:
    found = facts(smoke[0])
    assert found["question"] == "Does everything work, from the text to the report?"
    assert (found["study"]["train"]["beta2"], found["study"]["model"]["n_embd"]) == (0.99, 32)
    assert found["versions"]["ray"].startswith("2.")
    assert found["machine"]["cpus"] == processors()
    assert "token" not in json.dumps(found["options"])


def test_tensorboard_shows_scalars_hparams_and_stories_of_each_trial(smoke: tuple[Path, str]) -> None:
    row = rows(smoke[0])[0]
    runs = sorted(path for path in (smoke[0] / "tensorboard").iterdir() if not path.name.startswith("_"))
    assert len(runs) == 14
    (folder,) = (path for path in runs if path.name.endswith(f"-s{row['seed']}-{row['config_id'][:6]}"))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()["scalars"]
    assert tags[0] == "loss/val"
    assert set(tags) == {"loss/val", "loss/val_bits_per_byte", "loss/train", "optimizer/lr", "optimizer/grad_norm", "speed/tokens_per_s"}
    curve = [line for line in records.read(smoke[0], "curves").to_pylist() if line["trial_id"] == row["trial_id"]]
    assert [event.step for event in events.Scalars("loss/val")] == [line["tokens"] for line in curve]
    assert [event.value for event in events.Scalars("loss/val")] == pytest.approx([line["val_loss"] for line in curve])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["arch/depth"].number_value == row["n_layer"]
    assert start.hparams["lr"].number_value == row["lr"]
    final = events.Tensors("stories")[-1]
    assert final.step == row["n_tokens"]
    assert "\n    " in final.tensor_proto.string_val[0].decode()
    assert "open http://localhost:6006/?pinnedCards=" in smoke[1]


def test_tensorboard_shows_the_studys_figures(smoke: tuple[Path, str]) -> None:
    events = EventAccumulator(str(smoke[0] / "tensorboard" / "_study"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert any("loss" in tag for tag in tags)
    assert all(tag.startswith("plots/") for tag in tags)
    assert all(events.Images(tag)[-1].encoded_image_string.startswith(b"\x89PNG") for tag in tags)


def test_the_run_ends_with_the_report_and_three_sentences(smoke: tuple[Path, str]) -> None:
    out, said = smoke
    answer = json.loads((out / "report" / "fits.json").read_text())["answer"]
    assert len(answer) == 3
    assert all(sentence in said for sentence in answer)
    assert any(line.startswith("report: ") and line.endswith("report.html") for line in said.splitlines())
    page = (out / "report" / "report.html").read_text()
    assert page.count("<table") >= 1
    assert page.count("<svg") >= 2
    assert all((out / "report" / name).exists() for name in ("report.md", "report.ipynb"))


def test_no_value_of_the_environment_is_stored_with_the_results(smoke: tuple[Path, str]) -> None:
    written = [path for path in smoke[0].rglob("*") if path.is_file() and "ray" not in path.relative_to(smoke[0]).parts]
    assert len(written) > 50
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
