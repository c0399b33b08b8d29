"""Final weights of every trial: a results folder holds its models, not only their losses (see `models.weights`).

problems = keep(bundle, out / "weights")
"""

from pathlib import Path

from safetensors import SafetensorError

from models import weights
from study.spec import RECIPE_VERSION
from study.train.bundle import Bundle


def keep(bundle: Bundle, folder: Path) -> list[str]:
    """Save every replica that did not diverge; returns a sentence for each that could not be written: the results do not depend on it."""
    problems = []
    shared = {"recipe_version": str(RECIPE_VERSION)} | ({"tokenizer": bundle.tokenizer.dump()} if bundle.tokenizer else {})
    for index, replica in enumerate(bundle.replicas):
        if replica.diverged_at is None:
            facts = shared | {"val_loss": repr(replica.curve[-1]["val_loss"])}
            try:
                weights.save(folder, replica.trial.trial_id, bundle.model, index, facts)
            except (OSError, SafetensorError) as error:
                problems.append(f"the weights of trial {replica.trial.trial_id} could not be kept ({error})")
    return problems
