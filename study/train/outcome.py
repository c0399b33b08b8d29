"""One trial inside a bundle, and what it leaves: the columns of its `trials` row that only training knows, its curve, its texts.

replica = Replica(trial); ...; replica.end(step, shared); replica.row
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from study.spec import Trial


@dataclass
class Replica:
    """A trial while it trains, and when it has ended."""

    trial: Trial
    curve: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    diverged_at: int | None = None
    row: dict[str, Any] = field(default_factory=dict)
    """once it has ended: the columns of its `trials` row that training alone knows; those that follow from the trial are the recorder's"""

    def end(self, step: int, shared: Mapping[str, Any]) -> None:
        """Write the row.

        Args:
            step: that the bundle has reached.
            shared: columns of the whole bundle, `train_s` among them.
        """
        diverged = self.diverged_at is not None
        steps = step if self.diverged_at is None else self.diverged_at
        n_tokens = steps * self.trial.train.batch_size * self.trial.shape.block_size
        last = {} if diverged else self.curve[-1]
        self.row = {
            **shared,
            "trial_id": self.trial.trial_id,
            "status": "DIVERGED" if diverged else "COMPLETED",
            "reason": f"the loss was not finite at step {self.diverged_at}" if diverged else None,
            "n_steps": steps,
            "n_tokens": n_tokens,
            **{name: last.get(name) for name in ("val_loss", "val_loss_se", "val_bpb", "train_loss")},
            "best_val_loss": min((row["val_loss"] for row in self.curve), default=None),
            "tokens_per_s": n_tokens / shared["train_s"] if shared["train_s"] else None,
            "torch_version": version("torch"),
        }

    def left(self) -> dict[str, Any]:
        """What the recorder is given."""
        return {"row": self.row, "curve": self.curve, "samples": self.samples}
