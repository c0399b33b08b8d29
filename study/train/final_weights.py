"""Final weights of every trial, and how to read a model back: `weights/<trial_id>.safetensors`, the shape in the file's metadata.

A results folder thus holds its models, not only their losses. Nothing is unpickled.

    model = load(Path("results/quick/weights/0123456789abcdef-s1.safetensors")); logits = model(tokens)   # (1, B, T) -> (1, B, T, V)
"""

import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.config import ModelConfig
from models.transformer import Transformer, parameter_shapes

if TYPE_CHECKING:
    from study.train.bundle import Bundle

FORMAT = "scaling-study weights 1"


def save(folder: Path, trial_id: str, model: Transformer, replica: int) -> None:
    """Write one replica's weights in float32, by the names of `models.transformer.parameter_shapes`, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{trial_id}.{uuid.uuid4().hex[:8]}"
    tensors = {name: getattr(model, name)[replica].detach().cpu().contiguous() for name in model.names}
    try:
        save_file(tensors, scratch, {"format": FORMAT, "trial_id": trial_id, "model": json.dumps(asdict(model.config))})
        os.replace(scratch, folder / f"{trial_id}.safetensors")
    finally:
        scratch.unlink(missing_ok=True)


def keep(bundle: "Bundle", folder: Path) -> list[str]:
    """Save every replica that did not diverge; returns a sentence for each that could not be written: the results do not depend on it."""
    problems = []
    for index, replica in enumerate(bundle.replicas):
        if replica.diverged_at is None:
            try:
                save(folder, replica.trial.trial_id, bundle.model, index)
            except (OSError, SafetensorError) as error:
                problems.append(f"the weights of trial {replica.trial.trial_id} could not be kept ({error})")
    return problems


def load(path: Path, device: str = "cpu") -> Transformer:
    """A model (of one replica, in evaluation mode) from a file that `save` wrote.

    Raises:
        ValueError: the file is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                raise ValueError(f"{path} does not hold weights of this program")
            config = ModelConfig(**json.loads(facts["model"]))
            expected = parameter_shapes(config)
            names: list[str] = list(file.keys())
            if {name: tuple(file.get_slice(name).get_shape()) for name in names} != expected:
                raise ValueError(f"{path} does not hold the tensors of the shape that it names")
            model = Transformer(config, device=device)
            with torch.no_grad():
                for name in expected:
                    getattr(model, name)[0].copy_(file.get_tensor(name))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); train that trial again for them") from error
    return model.eval()
