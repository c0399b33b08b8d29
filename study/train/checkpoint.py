"""Checkpoints: what an exact resume needs, one folder per trial and step, safetensors and plain JSON.

    <folder>/<trial_id>/step-00000250/{state.safetensors, state.json}

Written beside its place and renamed, so a checkpoint is whole or absent. Nothing is ever unpickled. One that cannot be read or belongs to
something else is renamed to `*.bad`, named, and passed over.
"""

import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
KEEP = 2
"""Newest checkpoints kept per trial: one may be cut short by a full disk while the other is whole."""


def save(folder: Path, trial_id: str, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write one trial's checkpoint atomically and drop all but the newest `KEEP`."""
    place = folder / trial_id / f"step-{step:08d}"
    scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, scratch / "state.safetensors")
        text = json.dumps({"format": FORMAT, "trial_id": trial_id, "step": step, **facts})
        (scratch / "state.json").write_text(text, encoding="utf-8")
        for name in ("state.safetensors", "state.json"):
            _sync(scratch / name)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(scratch, place)
        _sync(place.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in steps(folder, trial_id)[KEEP:]:
        shutil.rmtree(folder / trial_id / f"step-{old:08d}", ignore_errors=True)


beside = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
"""Writes while training goes on, one checkpoint after the other; a future's `result` raises what stopped its write."""


def steps(folder: Path, trial_id: str) -> list[int]:
    """Steps at which the trial has a checkpoint, newest first."""
    found = [p.name.removeprefix("step-") for p in (folder / trial_id).glob("step-*")]
    return sorted((int(name) for name in found if name.isdigit()), reverse=True)


def load(
    folder: Path, trial_id: str, step: int, shapes: dict[str, torch.Size], notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of one checkpoint, or None after setting a damaged or foreign one aside.

    Args:
        shapes: the tensors that this trial's state consists of; anything else is foreign.
        notes: gets one sentence for each checkpoint set aside.

    Raises:
        OSError: a file of it cannot be opened or read, which says nothing about what it holds.
    """
    place = folder / trial_id / f"step-{step:08d}"
    try:
        facts: dict[str, Any] = json.loads((place / "state.json").read_text(encoding="utf-8"))
        open(place / "state.safetensors", "rb").close()  # whether it can be opened at all: safetensors has one error for both
        tensors = load_file(place / "state.safetensors")
        _check(facts, tensors, trial_id, step, shapes)
    except (FileNotFoundError, ValueError, SafetensorError) as error:
        aside = place.with_name(f"{place.name}.{uuid.uuid4().hex[:4]}.bad")
        try:
            os.replace(place, aside)
        except OSError:
            return None
        notes.append(f"checkpoint {place.name} of trial {trial_id} is unusable ({str(error)[:100]}); set aside as {aside.name}")
        return None
    return tensors, facts


def _check(facts: Any, tensors: dict[str, Tensor], trial_id: str, step: int, shapes: dict[str, torch.Size]) -> None:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError("state.json is not of this format")
    if facts.get("trial_id") != trial_id or facts.get("step") != step:
        raise ValueError(f"it belongs to trial {facts.get('trial_id')} at step {facts.get('step')}")
    if {name: t.shape for name, t in tensors.items()} != shapes:
        raise ValueError("its tensors are not those of this trial")


def _sync(path: Path) -> None:
    """Make a file's or folder's content survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
