"""Steps that need nothing from the host train like steps that do; what only a GPU can show is skipped without one."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from study.data import batches
from study.spec import Trial
from study.train.bundle import Bundle
from study.train.device import Execution
from study.train.device_steps import DeviceSteps, fits, keep
from study.train.optimizer import make_optimizer
from tests.rounding import drift, float64
from tests.running import finished
from tests.test_train import CHARACTERS, LONGEST_SUM, RECIPE, bundle, corpus, losses, trial

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")


def without_the_host(*trials: Trial) -> Bundle:
    """A bundle that trains as on a GPU: tables, cursor and tensors of rates; only the capture is a GPU's alone."""
    whole = bundle(*trials)
    whole.optimizer = make_optimizer(whole.model, [t.train for t in trials], on_device=True)
    whole.device_steps = DeviceSteps(whole.model, whole.optimizer, trials, corpus()[0])
    return whole


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_cut_on_the_device_are_those_of_the_data(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.train.device_steps.CHUNK", 5000)  # copied in several parts, the last one shorter
    specs = [trial(3), trial(4, unique_tokens=2000)]
    tokens = corpus()[0].astype(dtype)
    whole = bundle(*specs)
    steps = DeviceSteps(whole.model, whole.optimizer, specs, tokens)
    steps._lay_down(17, 3, ())
    for step in range(17, 20):
        found = steps.windows()
        for k, spec in enumerate(specs):
            expected = batches.window(batches.first_tokens(tokens, spec.train.unique_tokens), spec.seed, step, 4, 32)
            for got, wanted in zip(found, expected, strict=True):
                assert torch.equal(got[k], torch.from_numpy(np.ascontiguousarray(wanted)))
        steps.cursor += 1


def test_steps_without_the_host_have_the_losses_of_steps_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.train.device_steps.MOST_ROWS", 7)  # a stretch of several tables
    specs = [trial(1), trial(2, lr=3e-3, grad_clip=0.05, schedule="wsd", unique_tokens=2000), trial(3, lr=1e300, grad_clip=0.0)]
    with float64():
        plain, fast = finished(bundle(*specs)), finished(without_the_host(*specs))
    for one, other in zip(plain.finish(), fast.finish(), strict=True):
        assert losses(other) == pytest.approx(losses(one), rel=drift(RECIPE.n_steps, LONGEST_SUM))
        assert (other.row["status"], other.row["n_steps"]) == (one.row["status"], one.row["n_steps"])
    assert [row["lr"] for row in fast.replicas[1].curve] == [row["lr"] for row in plain.replicas[1].curve]


def test_a_corpus_too_large_for_the_device_and_dropout_stay_with_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = corpus()[0]
    assert fits(tokens, 0.0, 1 << 34)
    assert fits(tokens.astype(np.uint16), 0.0, 1 << 34)
    for dropout, room in ((0.1, 1 << 34), (0.0, 3 * len(tokens)), (0.0, 0)):  # a quarter of the room, at most; none without a GPU
        assert not fits(tokens, dropout, room)
    assert not fits(tokens.astype(np.float32), 0.0, 1 << 34)
    monkeypatch.setattr("study.train.device_steps.MOST_BYTES", len(tokens) - 1)
    assert not fits(tokens, 0.0, 1 << 34)


def test_a_corpus_is_kept_once_for_all_bundles_of_a_process() -> None:
    tokens, device = corpus()[0], torch.device("cpu")
    kept = keep(tokens, device)
    assert torch.equal(kept, torch.from_numpy(tokens))
    assert keep(tokens[:500], device).data_ptr() == kept.data_ptr()
    other = keep(tokens.copy(), device)
    assert other.data_ptr() != kept.data_ptr()


def on_gpu(trials: Sequence[Trial], precision: str = "float32") -> Bundle:
    return finished(Bundle(trials, *corpus(), len(CHARACTERS), None, Execution(device="cuda", precision=precision)))  # type: ignore[arg-type]


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_captured_step_is_used_and_trains_like_its_kernels_launched_one_by_one(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [trial(1), trial(2, lr=3e-3)]
    captured = on_gpu(specs, precision)
    assert captured.device_steps is not None
    assert captured.device_steps.graph is not None, captured.notes
    monkeypatch.setattr("study.train.device_steps.WARM_UP", 10**9)
    singly = on_gpu(specs, precision)
    assert singly.device_steps is not None
    assert singly.device_steps.graph is None
    for one, other in zip(captured.finish(), singly.finish(), strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-4 if precision == "float32" else 1e-2)


@needs_gpu
def test_a_gpu_has_the_losses_of_a_cpu() -> None:
    specs = [trial(1), trial(2, lr=3e-3, schedule="wsd", unique_tokens=2000)]
    plain = finished(bundle(*specs))
    for one, other in zip(on_gpu(specs).finish(), plain.finish(), strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-2)  # its float32 products are TF32
