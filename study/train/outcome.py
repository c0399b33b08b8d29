"""What a trial leaves when its training ends: the columns of its `trials` row that only training knows, its curve, its texts.

Outcome(finished_row(replica, step, shared), replica.curve, replica.samples)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from study.spec import Trial


@dataclass
class Outcome:
    """One trial's row, curve and generated texts, ready to be recorded."""

    row: dict[str, Any]
    curve: list[dict[str, Any]]
    samples: list[dict[str, Any]]


@dataclass
class Replica:
    """One trial inside a bundle, while it trains."""

    trial: Trial
    curve: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    diverged_at: int | None = None


def finished_row(replica: Replica, step: int, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a trial's `trials` row that training alone knows; those that follow from the trial are the recorder's.

    Args:
        step: that the bundle has reached.
        shared: columns of the whole bundle, `train_s` among them.
    """
    trial, curve = replica.trial, replica.curve
    diverged = replica.diverged_at is not None
    steps = step if replica.diverged_at is None else replica.diverged_at
    n_tokens = steps * trial.train.batch_size * trial.shape.block_size
    last = {} if diverged else curve[-1]
    return {
        **shared,
        "trial_id": trial.trial_id,
        "status": "DIVERGED" if diverged else "COMPLETED",
        "reason": f"the loss was not finite at step {replica.diverged_at}" if diverged else None,
        "n_steps": steps,
        "n_tokens": n_tokens,
        **{name: last.get(name) for name in ("val_loss", "val_loss_se", "val_bpb", "train_loss")},
        "best_val_loss": min((row["val_loss"] for row in curve), default=None),
        "tokens_per_s": n_tokens / shared["train_s"] if shared["train_s"] else None,
        "torch_version": version("torch"),
    }
