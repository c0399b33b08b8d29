"""Every study in examples/ runs to its end: the same kinds of sweeps, schedule and tokens, with two values and a few steps each."""

import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from study import run
from study.command import parse
from study.data.corpus import prepare
from study.search.search_state import plan
from study.sweeps import number
from study.train.branched_bundle import BranchedBundle
from study.train.branches import families
from study.train.device import Execution
from tests.running import ROOT, rows

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
SHORTER, CONTEXT = 100, 16


def shortened(path: Path, folder: Path) -> Path:
    """The example with a hundredth of its steps, a short context, two values of each factor, one seed and little text."""
    body: dict[str, Any] = yaml.safe_load(path.read_text())
    train = body["train"]
    train |= {name: train[name] // SHORTER for name in ("n_steps", "eval_interval")} | {"warmup_steps": 2, "eval_windows": 8}
    body["data"]["train_chars"], body["model"]["block_size"] = 40_000, CONTEXT
    for sweep in body["sweeps"].values():
        sweep |= {name: values[:2] for name, values in sweep.items() if isinstance(values, list)}
        sweep |= {"n_tokens": [int(number(n)) * CONTEXT // (64 * SHORTER) for n in sweep["n_tokens"]]} if "n_tokens" in sweep else {}
        sweep |= {"max_trials": 3} if "max_trials" in sweep else {}
        sweep |= {name: sweep[name][:1] for name in ("params", "head_dims") if name in sweep}
    shutil.copy(path.parent / "llama.py", folder)
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(body | {"seeds": [1]}))
    return copy


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_planned_and_its_trials_train_to_their_end(
    path: Path, story_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does it, in this process; of a search, each size at the study's own rate."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # on a cluster no steps are timed for a quote
    file = str(shortened(path, tmp_path))
    assert run.main([file, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    study = parse([file]).study
    corpus, searches = prepare(study.data), plan(study)
    trials = {trial.trial_id: trial for trial in [*searches.plain, *searches.expected()]}
    outcomes = []
    for family in families(list(trials.values())):
        texts = corpus.train, corpus.val, corpus.vocab_size, corpus.tokenizer
        bundle = BranchedBundle(family, tmp_path, *texts, Execution("cpu", "float32", 1))
        while not bundle.done:
            bundle.advance()
            outcomes += bundle.outcomes
    assert {outcome.row["trial_id"] for outcome in outcomes} == set(trials)
    assert {outcome.row["status"] for outcome in outcomes} == {"COMPLETED"}
    assert all(outcome.row["val_bpb"] < outcome.row["val_loss"] * 1.5 for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs_to_its_end(path: Path, local_ray: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run.main([str(shortened(path, tmp_path)), "--out", str(out), "--no-report", "--max-concurrent", "1"]) == 0
    assert {row["status"] for row in rows(out)} <= {"COMPLETED", "STOPPED"}
    assert all(row["val_bpb"] < row["val_loss"] * 1.5 for row in rows(out))


@pytest.mark.slow
def test_the_hosted_notebook_runs_from_top_to_bottom_in_a_fresh_environment(tmp_path: Path) -> None:
    """As on a machine that has Jupyter and nothing of ours: the notebook installs the project from a copy of it."""
    source, folder, python = tmp_path / "source", tmp_path / "examples", tmp_path / "venv/bin/python"
    for part in ("study", "models", "analysis", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / part, source / part)
    folder.mkdir()
    venv.create(tmp_path / "venv", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "nbclient", "ipykernel"], check=True, timeout=600)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}  # whose torch comes without CUDA where an index offers it
    environment |= {"SCALING_STUDY_SOURCE": str(source), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    run_it = "import nbclient, nbformat, sys; n = nbformat.read(sys.argv[1], 4); nbclient.NotebookClient(n, timeout=1800).execute(); "
    run_it += "nbformat.write(n, 'executed.ipynb')"
    notebook = str(ROOT / "examples/hosted.ipynb")
    subprocess.run([python, "-c", run_it, notebook], cwd=folder, env=environment, check=True, timeout=3000)
    shutil.rmtree(tmp_path / "venv")  # gigabytes
    cells = nbformat.read(folder / "executed.ipynb", 4).cells
    shown = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    assert any("srcdoc=" in output.get("data", {}).get("text/html", "") for output in shown)
    assert any("20 of 20 trials are completed" in output.get("text", "") for output in shown)
