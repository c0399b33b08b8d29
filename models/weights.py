"""Weights files: a model with everything that it takes to use it: shape, tokenizer, recipe version. Nothing is unpickled.

One file for each trial, `weights/<trial_id>.safetensors` of a results folder; what is no tensor stands as text in the file's metadata.

    save(folder, "0123456789abcdef-s1", model, replica=0, facts={"tokenizer": tokenizer.dump()}); model, facts = read(path)
"""

import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models import module_file
from models.config import ModelConfig
from models.own import OwnModel
from models.transformer import Network, Transformer

FORMAT = "scaling-study weights 1"


def save(folder: Path, trial_id: str, model: Network, replica: int, facts: Mapping[str, str]) -> None:
    """Write one replica's weights in float32, by the names of `Network.tensors`, atomically.

    Args:
        facts: kept beside the shape: `tokenizer` (its dump), `recipe_version`, `val_loss`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{trial_id}.{uuid.uuid4().hex[:8]}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors(replica).items()}
    try:
        save_file(tensors, scratch, {**facts, "format": FORMAT, "trial_id": trial_id, "model": json.dumps(asdict(model.config))})
        os.replace(scratch, folder / f"{trial_id}.safetensors")
    finally:
        scratch.unlink(missing_ok=True)


def read(path: Path, device: str = "cpu", module: str = "") -> tuple[Network, dict[str, str]]:
    """A model (of one replica, in evaluation mode) and its facts from a file that `save` wrote.

    Args:
        module: FILE:CLASS of a model of the user's own. Its file has to be named: reading weights runs no code that they bring along.

    Raises:
        ValueError: the file is missing, damaged or something else, or its model's own file is.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts(path, file.metadata())
            model = _empty(path, ModelConfig(**json.loads(facts["model"])), device, module)
            tensors = model.tensors(0)
            names: list[str] = list(file.keys())
            if {n: tuple(file.get_slice(n).get_shape()) for n in names} != {n: tuple(t.shape) for n, t in tensors.items()}:
                raise ValueError(f"{path} does not hold the tensors of the shape that it names")
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); train that trial again for them") from error
    return model.eval(), facts


def _empty(path: Path, config: ModelConfig, device: str, module: str) -> Network:
    if not config.module:
        return Transformer(config, device=device)
    name, _, digest = config.module.partition("@")
    if not module:
        raise ValueError(f"{path} is of your own model {module_file.without_folder(name)}; name its file: --module FILE:CLASS")
    return OwnModel(replace(config, module=module_file.resolve(f"{module}@{digest}")), device=device)


def find(results: Path, trial: str = "best") -> Path:
    """The weights file of a trial of a results folder, by the beginning of its id, or of the one with the lowest validation loss.

    Raises:
        ValueError: there is none, or several begin so.
    """
    if results.is_file():
        return results
    paths = sorted((results / "weights").glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{results} holds no weights; give a results folder whose trials are completed, or one of its weights files")
    if trial == "best":
        return min(paths, key=_val_loss)
    found = [path for path in paths if path.name.startswith(trial)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} trials of {results} begin with {trial!r}; it has {', '.join(path.stem for path in paths[:8])}")
    return found[0]


def _val_loss(path: Path) -> float:
    try:
        with safe_open(path, framework="pt") as file:
            return float(_facts(path, file.metadata()).get("val_loss", math.inf))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}); name another trial") from error


def _facts(path: Path, metadata: Mapping[str, str] | None) -> dict[str, str]:
    facts = dict(metadata or {})
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} does not hold weights of this program")
    return facts
