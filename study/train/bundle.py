"""Training: one bundle of trials of one shape, plain PyTorch, no Ray.

A bundle is one program: every replica has its own weights, data order, learning rate, clipping and end, and all share each kernel launch.
Everything random is a function of (seed, step), so a checkpoint is weights, moments and counters, and a resumed run equals the unbroken
one bit for bit on a CPU.

    bundle = Bundle([trial], corpus.train, corpus.val, corpus.vocab_size, corpus.tokenizer)
    while not bundle.done: rows = bundle.advance()
    outcome = bundle.finish()[0].left()
"""

import math
import time
from collections.abc import Container, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.own import OwnModel
from models.tokenizer import Tokenizer
from models.transformer import Network, Transformer
from study.data import batches
from study.spec import Trial
from study.train import checkpoint, device_steps
from study.train.device import (
    Execution,
    choose_device,
    choose_precision,
    device_name,
    peak_memory_bytes,
    prepare_process,
    room_bytes,
    synchronize,
)
from study.train.device_steps import DeviceSteps
from study.train.evaluation import draw_samples, sample_steps, window_losses
from study.train.optimizer import clip, groups_by_replica, make_optimizer, norm_limits
from study.train.outcome import Replica
from study.train.pace import Pace

ANYWHERE = Execution()
DROPOUT_STREAM = 0x5CA1_AB1E
"""Keeps the dropout masks' stream apart from those of initialization and data."""


class Bundle:
    """Replicas training together. `advance` goes to the next evaluation; `save` and `restore` make it exact across interruptions.

    Args:
        trials: of one `Trial.bundle_key`.
        train_tokens, val_tokens: (n,) integer arrays, memory-mapped or not.
        tokenizer: for generated samples and bits per byte; without one there are none.

    Raises:
        ValueError: the trials cannot share a bundle, or the data are too short for the block size.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        train_tokens: np.ndarray,
        val_tokens: np.ndarray,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        execution: Execution = ANYWHERE,
    ) -> None:
        if len({trial.bundle_key for trial in trials}) != 1:
            raise ValueError(
                f"{len(trials)} trials of different shape, batch, length or evaluation cannot share a bundle; train them apart"
            )
        self.replicas = [Replica(trial) for trial in trials]
        self.recipe, shape = trials[0].train, trials[0].shape
        self.device = choose_device(execution.device)
        prepare_process(execution, self.device)
        self.tokenizer, self.vocab_size, self.val_tokens = tokenizer, vocab_size, val_tokens
        self.train_tokens = [batches.first_tokens(train_tokens, trial.train.unique_tokens) for trial in trials]
        config, seeds = trials[0].model(vocab_size), [t.seed for t in trials]
        self.model: Network = (
            OwnModel(config, seeds, str(self.device)) if shape.module else Transformer(config, seeds, self.recipe.dropout, str(self.device))
        )
        self.model.precision = choose_precision(execution.precision, self.device, shape.n_embd)
        recipes = [trial.train for trial in trials]
        resident = not shape.module and device_steps.fits(train_tokens, self.recipe.dropout, room_bytes(execution, self.device))
        self.optimizer = make_optimizer(self.model, recipes, resident)
        self.device_steps = DeviceSteps(self.model, self.optimizer, trials, train_tokens) if resident else None
        self.norm_limits = norm_limits(recipes, self.device)
        self.val_windows = self._windows(val_tokens)
        targets = self.val_windows[1]
        self.val_bytes = tokenizer.count_bytes(targets.flatten().tolist()) / targets.numel() if tokenizer else 0.0
        """UTF-8 bytes of the validation text per token to predict; end-of-text marks are tokens without bytes"""
        self.train_windows = self._windows(self.train_tokens[0])
        self.step, self.restarts, self.notes = 0, 0, list[str]()
        self.pace = Pace(one_thread=self.device.type == "cpu" and torch.get_num_threads() == 1)
        self.block_size = shape.block_size
        self.sample_at = sample_steps(self.recipe)
        self.writing: Future[None] | None = None

    # ---- progress ----

    @property
    def done(self) -> bool:
        """Every replica has reached its last step or has diverged."""
        finished = self.step >= self.recipe.n_steps and bool(self.replicas[0].curve)
        return finished or all(r.diverged_at is not None for r in self.replicas)

    def advance(self) -> list[dict[str, Any]]:
        """Train to the next evaluation and evaluate; returns one `curves` row per replica that is still alive.

        The first call of a new bundle evaluates the untrained model (step 0).
        """
        began = time.perf_counter()
        batch_loss = grad_norm = None
        if self.replicas[0].curve:
            goal = min(self.recipe.n_steps, (self.step // self.recipe.eval_interval + 1) * self.recipe.eval_interval)
            batch_loss, grad_norm = self._train_until(goal)
        trained = time.perf_counter()
        rows = self._evaluate(batch_loss, grad_norm, trained - began)
        if self.tokenizer and self.step in self.sample_at:  # stories as they improve
            self._collect_samples(n_prompts=2, n_tokens=100, temperatures=(0.8,), repeats=1)
        self.pace.add(train_s=trained - began, eval_s=time.perf_counter() - trained)
        for row in rows:
            row["wall_s"] = self.pace.wall_s
        return rows

    def _train_until(self, goal: int) -> tuple[Tensor, Tensor]:
        """Optimizer steps up to `goal`; returns mean batch loss and mean gradient norm per replica, (K,) each."""
        losses, norms = [], []
        first = self.step
        self.model.train()
        if self.device_steps:
            return self._train_on_device(self.device_steps, goal)
        while self.step < goal:
            with self.pace.step() if self.device.type == "cpu" else nullcontext():  # a GPU's steps end after their launch
                loss, norm = self._train_step()
            losses.append(loss)
            norms.append(norm)
            self.step += 1
            if self.device.type == "cpu":
                self._note_divergence(loss, self.step - 1)
                if self.done:
                    break
        table = torch.stack(losses).cpu()  # (steps, K): the only host synchronization on a GPU
        if self.device.type != "cpu":
            synchronize(self.device)
            for offset, loss in enumerate(table):
                self._note_divergence(loss, first + offset)
        return table.mean(0), torch.stack(norms).cpu().mean(0)

    def _train_on_device(self, steps: DeviceSteps, goal: int) -> tuple[Tensor, Tensor]:
        silent = [index for index, replica in enumerate(self.replicas) if replica.diverged_at is not None]
        losses, norms = steps.run(self.step, goal, silent)
        for offset, loss in enumerate(losses):
            self._note_divergence(loss, self.step + offset)
        self.step = goal
        if steps.note:
            self.notes.append(steps.note)
            steps.note = ""
        return losses.mean(0), norms.mean(0)

    def time_steps(self, count: int) -> float:
        """Milliseconds per step of the next `count` steps, without evaluation or record; processor time where one thread does it all."""
        clock = time.thread_time if self.pace.one_thread else time.perf_counter
        began = clock()
        if self.device_steps:
            self._train_on_device(self.device_steps, self.step + count)
        for _ in range(0 if self.device_steps else count):
            self._train_step()
            self.step += 1
        synchronize(self.device)
        return (clock() - began) / count * 1e3

    def _train_step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step of every replica; returns losses and gradient norms before clipping, (K,) each."""
        pairs = [
            batches.window(tokens, r.trial.seed, self.step, self.recipe.batch_size, self.block_size)
            for r, tokens in zip(self.replicas, self.train_tokens, strict=True)
        ]
        tokens, targets = (self._to_device(np.stack(side)) for side in zip(*pairs, strict=True))  # (K, B, T), by (seed, step) alone
        if self.recipe.dropout or self.model.config.module:
            torch.manual_seed(DROPOUT_STREAM + (self.replicas[0].trial.seed << 32) + self.step)
        self.model.flat_grad.zero_()
        losses = self.model.loss(tokens, targets)
        losses.sum().backward()
        norms = clip(self.model.flat_grad, self.norm_limits)
        for replica, groups in zip(self.replicas, groups_by_replica(self.optimizer), strict=True):
            rate = 0.0 if replica.diverged_at is not None else replica.trial.train.lr_at(self.step)
            for group in groups:
                group["lr"] = rate * group["rate"]
        self.optimizer.step()
        return losses.detach(), norms

    def _note_divergence(self, losses: Tensor, step: int) -> None:
        """Mark replicas whose loss is not finite and silence them: no gradient of theirs can reach a neighbor, and none is applied."""
        if bool(torch.isfinite(losses).all()):
            return
        for index, replica in enumerate(self.replicas):
            if replica.diverged_at is None and not math.isfinite(float(losses[index])):
                replica.diverged_at = step
                self.model.flat[index].zero_()

    # ---- evaluation ----

    def _windows(self, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = batches.evaluation_windows(tokens, self.recipe.eval_windows, self.replicas[0].trial.shape.block_size)
        return self._to_device(x), self._to_device(y)

    def _evaluate(self, batch_loss: Tensor | None, grad_norm: Tensor | None, seconds: float) -> list[dict[str, Any]]:
        last = self.step >= self.recipe.n_steps
        val = window_losses(self.model, *self.val_windows, self.recipe.batch_size)  # (K, windows)
        train = window_losses(self.model, *self.train_windows, self.recipe.batch_size) if last else None
        tokens_per_step = self.recipe.batch_size * self.block_size
        rows = []
        for index, replica in enumerate(self.replicas):
            if replica.diverged_at is not None:
                continue
            steps = self.step - (replica.curve[-1]["step"] if replica.curve else 0)
            val_loss = float(val[index].mean())
            row: dict[str, Any] = {
                "trial_id": replica.trial.trial_id,
                "step": self.step,
                "tokens": self.step * tokens_per_step,
                "train_loss": float(train[index].mean()) if train is not None else None,
                "val_loss": val_loss,
                "val_bpb": val_loss / math.log(2) / self.val_bytes if self.val_bytes else None,
                "val_loss_se": float(val[index].std() / math.sqrt(val.shape[1])) if val.shape[1] > 1 else None,
                "batch_loss": float(batch_loss[index]) if batch_loss is not None else None,
                "lr": replica.trial.train.lr_at(max(0, self.step - 1)),
                "grad_norm": float(grad_norm[index]) if grad_norm is not None else None,
                "tokens_per_s": steps * tokens_per_step / seconds if steps and seconds else None,
            }
            if not math.isfinite(val_loss):
                replica.diverged_at = self.step
                continue
            replica.curve.append(row)
            rows.append(row)
        return rows

    def _collect_samples(self, **how: Any) -> None:
        assert self.tokenizer is not None
        texts = draw_samples(self.model, self.val_tokens, self.tokenizer, **how)
        for replica, rows in zip(self.replicas, texts, strict=True):
            if replica.diverged_at is None:
                replica.samples += [{"trial_id": replica.trial.trial_id, "step": self.step, **row} for row in rows]

    # ---- state ----

    def save(self, folder: Path, beside: bool = False) -> None:
        """Write a checkpoint of every live replica (see `study.train.checkpoint`); valid between calls of `advance`.

        Args:
            beside: copy the state and write it while training goes on; the next `save`, `settle` or `finish` waits for it.

        Raises:
            OSError: this checkpoint, or the last one written beside training, could not be written.
        """
        step, named = self.step, [(r.trial.trial_id, *state) for r, state in zip(self.replicas, self.states(), strict=True)]
        if beside:  # lists and tensors change with the next step
            named = [
                (trial_id, {n: t.detach().to("cpu", copy=True) for n, t in ts.items()}, deepcopy(facts)) for trial_id, ts, facts in named
            ]

        def write() -> None:
            for trial_id, tensors, facts in named:
                checkpoint.save(folder, trial_id, step, tensors, facts)

        self.settle()
        self.writing = checkpoint.beside.submit(write)
        if not beside:
            self.settle()

    def settle(self) -> None:
        """Wait for a checkpoint that is being written; raises what stopped it."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def states(self) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Each replica's tensors (views) and facts: all that its future depends on; valid between calls of `advance`."""
        shared = {"restarts": self.restarts, **self.pace.state()}
        return [
            (self._tensors(index), {"curve": r.curve, "samples": r.samples, "diverged_at": r.diverged_at, **shared})
            for index, r in enumerate(self.replicas)
        ]

    def restore(self, folder: Path, among: Container[int] | None = None) -> bool:
        """Continue from the newest checkpoint, at one of the steps `among`, that every replica has whole; False where there is none.

        Damaged or foreign checkpoints are set aside and named in `notes`.
        """
        ids = [r.trial.trial_id for r in self.replicas]
        common = set.intersection(*(set(checkpoint.steps(folder, trial_id)) for trial_id in ids))
        for step in sorted((s for s in common if among is None or s in among), reverse=True):
            shapes = {name: t.shape for name, t in self._tensors(0).items()}
            states = [checkpoint.load(folder, trial_id, step, shapes, self.notes) for trial_id in ids]
            whole = [state for state in states if state is not None]
            if len(whole) == len(ids):
                break
        else:
            return False
        for index, (replica, (tensors, facts)) in enumerate(zip(self.replicas, whole, strict=True)):
            for name, tensor in self._tensors(index).items():
                tensor.copy_(tensors[name])
            replica.curve, replica.samples, replica.diverged_at = facts["curve"], facts["samples"], facts["diverged_at"]
        for state in self.optimizer.state.values():
            state["step"].fill_(step)
        facts = whole[0][1]
        self.step, self.restarts = step, facts["restarts"] + 1
        self.pace.adopt(facts)
        return True

    def _tensors(self, index: int) -> dict[str, Tensor]:
        """Views of everything that one replica's future depends on."""
        state = {"weights": self.model.flat[index]} | {f"buffer.{name}": buffer for name, buffer in self.model.state().items()}
        for group in groups_by_replica(self.optimizer)[index]:
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{group['name']}.{moment}"] = self.optimizer.state[group["params"][0]][moment]
        return state

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    # ---- end ----

    def finish(self) -> list[Replica]:
        """Generate the final texts and write each trial's row; returns the replicas, in the order given."""
        try:
            self.settle()
        except (OSError, SafetensorError) as error:  # the trial is finished all the same
            self.notes.append(f"a checkpoint of trial {self.replicas[0].trial.trial_id} could not be written ({error})")
        if self.tokenizer and any(r.diverged_at is None for r in self.replicas):
            self._collect_samples()
        shared = {
            **self.pace.columns(self.step),
            "device": device_name(self.device),
            "precision": self.model.precision,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "restarts": self.restarts,
            "bundle_size": len(self.replicas),
        }
        for replica in self.replicas:
            replica.end(self.step, shared)
        return self.replicas
