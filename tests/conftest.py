"""Fixtures shared by several test files: a synthetic study on disk whose truth is known.

`synthetic_results` is a results folder (trials, curves, samples, study.json) of three one-factor sweeps x 4 levels x 3 seeds, drawn from
a known law with seed noise. No training happens; the tables are written by `study.records`, exactly as a run writes them.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import ModelConfig
from study import records
from study.tune import environment

environment.set_ray_environment()  # before any test module imports Ray

TRUTH = {"E": 0.62, "A": 0.55, "alpha": 0.34, "reference": 100_000.0, "seed_sd": 0.006}
"""Law of the synthetic study: L = E + A (N / reference)^-alpha, plus normal seed noise (nats)."""

SWEEPS = {
    "depth": [(1, 64, 4), (2, 64, 4), (4, 64, 4), (8, 64, 4)],
    "width": [(2, 32, 4), (2, 64, 4), (2, 96, 4), (2, 192, 4)],
    "heads": [(2, 64, 1), (2, 64, 2), (2, 64, 4), (2, 64, 8)],
}
"""(n_layer, n_embd, n_head) of each sweep; 2x64 with 4 heads is in all three, so there are ten configurations."""

WORDS = "the a little big red dog cat tree ball house ran saw found gave said was to and with it very happy sad then"
N_STEPS, BATCH, BLOCK, VOCAB = 1_000, 8, 64, 70


def true_loss(model: ModelConfig) -> float:
    """Expected loss of a model under TRUTH, with a small penalty for many layers and none for heads."""
    ratio = model.params_non_embedding / TRUTH["reference"]
    return TRUTH["E"] + TRUTH["A"] * ratio ** -TRUTH["alpha"] + 0.012 * np.log2(model.n_layer / 2)


def synthetic_row(shape: tuple[int, int, int], seed: int, rng: np.random.Generator) -> dict[str, Any]:
    """One COMPLETED row of `trials` with every column that the report shows."""
    n_layer, n_embd, n_head = shape
    model = ModelConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_head, block_size=BLOCK, vocab_size=VOCAB)
    loss = float(true_loss(model) + rng.normal(0, TRUTH["seed_sd"]))
    tokens = N_STEPS * BATCH * BLOCK
    ms = 2.0 + n_layer * (0.6 + n_embd / 60 + 0.12 * n_head) + float(rng.normal(0, 0.05))
    return {
        "trial_id": f"{n_layer}x{n_embd}h{n_head}s{seed}", "config_id": f"{n_layer}x{n_embd}h{n_head}", "seed": seed, "status": "COMPLETED",
        "n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "params_total": model.params_total,
        "params_non_embedding": model.params_non_embedding, "params_blocks": model.params_blocks,
        "params_embedding": model.params_embedding, "params_position": model.params_position, "n_tokens": tokens, "val_loss": loss,
        "study": "synthetic", "sweeps": [name for name, shapes in SWEEPS.items() if shape in shapes], "d_ff": model.d_ff,
        "block_size": BLOCK, "vocab_size": VOCAB, "flops_per_token": model.flops_per_token, "flops": float(model.flops_per_token * tokens),
        "n_steps": N_STEPS, "batch_size": BATCH, "unique_tokens": 2_000_000, "epochs": tokens / 2_000_000, "lr": 3e-3, "lr_status": "fixed",
        "weight_decay": 0.1, "dropout": 0.0, "schedule": "cosine", "val_loss_se": 0.004, "train_loss": loss - 0.03, "best_val_loss": loss,
        "loss_floor": 0.41, "ms_per_step": ms, "tokens_per_s": BATCH * BLOCK / ms * 1000, "exclusive_timing": True,
        "peak_memory_bytes": 120_000_000 + 16 * model.params_total, "gpu_fraction": 0.0, "bundle_size": 1, "device": "cpu",
        "precision": "float32", "wall_s": ms * N_STEPS / 1000 + 2, "train_s": ms * N_STEPS / 1000, "eval_s": 1.5, "data_name": "stories",
        "data_sha256": "synthetic", "recipe_version": 1, "git_commit": "0" * 40, "git_dirty": False, "torch_version": "2.13.0",
        "ray_version": "2.60.0", "host": "test", "started_at": records.utc(1.79e9), "finished_at": records.utc(1.79e9 + ms), "restarts": 0,
    }  # fmt: skip


def synthetic_curve(row: dict[str, Any], evaluations: int = 12) -> list[dict[str, Any]]:
    """A learning curve that falls as a power of the step to the row's final loss."""
    steps = np.linspace(N_STEPS / evaluations, N_STEPS, evaluations).astype(int)
    losses = row["val_loss"] + 2.2 * ((steps / 40.0) ** -0.9 - (N_STEPS / 40.0) ** -0.9)
    return [
        {"trial_id": row["trial_id"], "step": int(s), "tokens": int(s) * BATCH * BLOCK, "val_loss": float(v), "train_loss": float(v) - 0.03}
        for s, v in zip(steps, losses, strict=True)
    ]


def synthetic_samples(row: dict[str, Any], rng: np.random.Generator, prompts: int = 4) -> list[dict[str, Any]]:
    """Generated texts at two temperatures: random words, more of them misspelled in models of higher loss."""
    samples = []
    for temperature in (0.5, 0.8):
        for prompt in range(prompts):
            words = list(rng.choice(WORDS.split(), size=60))
            wrong = rng.random(60) < 0.12 * row["val_loss"]
            text = " ".join(w + "q" if bad else w for w, bad in zip(words, wrong, strict=True))
            common = {"trial_id": row["trial_id"], "step": N_STEPS, "index": 0, "temperature": temperature}
            samples.append({**common, "prompt": f"Once upon a time {prompt}", "text": text, "n_tokens": len(text)})
    return samples


def write_synthetic(results: Path, seeds: int = 3, sweeps: tuple[str, ...] = tuple(SWEEPS), compacted: bool = True) -> list[dict[str, Any]]:
    """Write a synthetic results folder and return its trial rows."""
    rng = np.random.default_rng(7)
    shapes = dict.fromkeys(shape for name in sweeps for shape in SWEEPS[name])
    rows = [synthetic_row(shape, seed, rng) for shape in shapes for seed in range(seeds)]
    for row in rows:
        row["sweeps"] = [name for name in row["sweeps"] if name in sweeps]
        records.write(results / "trials" / f"{row['trial_id']}.parquet", "trials", [row], study="synthetic")
        records.write(results / "curves" / f"{row['trial_id']}.parquet", "curves", synthetic_curve(row), study="synthetic")
        records.write(results / "samples" / f"{row['trial_id']}.parquet", "samples", synthetic_samples(row, rng), study="synthetic")
    if compacted:
        for table in ("trials", "curves", "samples"):
            records.compact(results, table, study="synthetic")
    facts = {
        "name": "synthetic",
        "question": "What do depth, width, heads and more parameters buy?",
        "trial_ids": [r["trial_id"] for r in rows],
    }
    (results / "study.json").write_text(json.dumps(facts, indent=2))
    return rows


@pytest.fixture(scope="session")
def synthetic_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder of ten configurations x 3 seeds (read it, do not write into it: copy it first)."""
    results = tmp_path_factory.mktemp("synthetic") / "synthetic"
    write_synthetic(results)
    return results


# ---- a command without Ray ----


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story_cache: Path) -> Path:
    """An empty working directory; as on a cluster, no steps are timed for a quote."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    return place


# ---- a real local Ray ----


@cache
def needs_ray(file: str) -> bool:
    """Whether tests of a file start or use a Ray."""
    return re.search(r"\bmark\.ray\b|\blocal_ray: None", (Path(__file__).parent / Path(file).name).read_text(encoding="utf-8")) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that take longest come first."""
    items.sort(key=lambda item: not needs_ray(item.location[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay whole, and all that need Ray stay on one worker, which starts one Ray and one tiny study."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if needs_ray(file) else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def story_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this test session; programs started by tests use it too."""
    cache = tmp_path_factory.mktemp("cache")
    before = os.environ.get("SCALING_STUDY_CACHE")
    os.environ["SCALING_STUDY_CACHE"] = str(cache)
    yield cache
    os.environ.pop("SCALING_STUDY_CACHE")
    if before is not None:
        os.environ["SCALING_STUDY_CACHE"] = before


@pytest.fixture(scope="session")
def local_ray(story_cache: Path) -> Iterator[None]:
    """One real Ray with two CPUs for the whole session; `study.run.main` uses the Ray that is already up."""
    from study.tune import local_ray as own_ray

    before = os.environ.pop("RAY_ADDRESS", None)  # tests never join somebody's cluster
    with own_ray.started(cpus=2):
        yield
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


@pytest.fixture(scope="session")
def undisturbed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the tiny study (`tests.running.tiny`) without any fault (read them, do not write into them)."""
    from study import run
    from tests.running import tiny

    out = tmp_path_factory.mktemp("tiny") / "undisturbed"
    assert run.main(tiny(out, "--no-report")) == 0
    return out
