"""What a trial leaves when its training ends: the columns of its `trials` row that training knows, its curve, its texts.

Outcome(finished_row(replica, ran, vocab_size, unique_tokens), replica.curve, replica.samples)
"""

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from study.spec import RECIPE_VERSION, Trial


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


@dataclass(frozen=True)
class Ran:
    """How the bundle ran: what all its replicas share."""

    step: int
    device: str
    precision: str
    ms_per_step: float | None
    cpu_ms_per_step: float | None
    train_s: float
    eval_s: float
    wall_s: float
    peak_memory_bytes: int
    restarts: int
    bundle_size: int


def finished_row(replica: Replica, ran: Ran, vocab_size: int, unique_tokens: int) -> dict[str, Any]:
    """The columns of a trial's `trials` row that training knows."""
    trial, curve = replica.trial, replica.curve
    model = trial.model(vocab_size)
    diverged = replica.diverged_at is not None
    steps = replica.diverged_at if replica.diverged_at is not None else ran.step
    n_tokens = steps * trial.train.batch_size * trial.shape.block_size
    last = {} if diverged else curve[-1]
    recipe = ("batch_size", "lr", "weight_decay", "dropout", "schedule")
    how = (
        "ms_per_step", "cpu_ms_per_step", "device", "precision", "peak_memory_bytes", "train_s", "eval_s", "wall_s", "restarts",
        "bundle_size",
    )  # fmt: skip
    return {
        "trial_id": trial.trial_id,
        "config_id": trial.config_id,
        "seed": trial.seed,
        "sweeps": list(trial.sweeps),
        "lr_status": trial.lr_status,
        "recipe_version": RECIPE_VERSION,
        **model.columns(),
        **{name: getattr(trial.train, name) for name in recipe},
        **{name: getattr(ran, name) for name in how},
        "status": "DIVERGED" if diverged else "COMPLETED",
        "reason": f"the loss was not finite at step {replica.diverged_at}" if diverged else None,
        "n_steps": steps,
        "n_tokens": n_tokens,
        "unique_tokens": unique_tokens,
        "epochs": n_tokens / unique_tokens,
        "flops": float(model.flops_per_token) * n_tokens,
        **{name: last.get(name) for name in ("val_loss", "val_loss_se", "val_bpb", "train_loss")},
        "best_val_loss": min((row["val_loss"] for row in curve), default=None),
        "tokens_per_s": n_tokens / ran.train_s if ran.train_s else None,
        "torch_version": version("torch"),
    }
