"""What longer training would reach: a floor and an amplitude of each shape's own, one exponent of text for all.

    L_s(D) = E_s + B_s (D / D0)^-beta            B_s >= 0; E_s at least the text's entropy where that is known

At fixed size the law of Hoffmann et al. 2022 (eq. 2) with an amplitude that may differ between shapes, which the additive law denies. beta
minimises the squared relative residuals; E_s and B_s follow from it in closed form. Asked for the two longest lengths of `horizon` the
additive law errs two and five times as much, on `horizon-completep`, whose shapes differ less, as much (`make bench-laws`).

An interval is twice the root mean square error of forecasting each later length from the earlier ones, and holds for steps no longer than
those. Errors of shapes go together, since all share beta: it covers most shapes or few.

    found = fit_length_law(tokens, loss); found.predict(shape=0, n_tokens=2e7)        # tokens (lengths,), loss (shapes, lengths)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.estimate import NATS, Code, Estimate, Refusal
from analysis.fits.forecast_law import WIDTH
from analysis.table.configurations import Floats

EQUATION = "E_s + B_s * D^-beta"
SOURCE = "Hoffmann et al. 2022, eq. 2, with a floor and an amplitude of each shape's own"
BETAS = np.geomspace(0.05, 3.0, 400)
"""Exponents that are tried: steps of one percent."""
MIN_LENGTHS, MIN_DF = 3, 4


@dataclass(frozen=True)
class LengthFit:
    """The fitted law.

    Args:
        beta: exponent of text.
        floor, amplitude: E_s and B_s in nats, (shapes,).
        reference: D0 in tokens.
        longest: of each shape, in tokens, (shapes,).
        residual_sd: relative.
        backtest: per held-out length {"n_tokens", "n", "from_lengths", "median_error", "rms_error"}, errors relative.
        step: longest ratio between a held-out length and the one before it; intervals reach no further.
    """

    beta: float
    floor: Floats
    amplitude: Floats
    reference: float
    longest: Floats
    residual_sd: float
    backtest: tuple[dict[str, float], ...]
    step: float
    n: int

    @property
    def half_width(self) -> float | None:
        """Relative half-width of an interval; None where no length could be forecast from three shorter ones."""
        squares = [(row["n"], row["rms_error"] ** 2) for row in self.backtest]
        return WIDTH * float(np.sqrt(sum(n * e for n, e in squares) / sum(n for n, _ in squares))) if squares else None

    def predict(self, shape: int, n_tokens: float) -> Estimate:
        """Loss of a shape trained longer; without an interval where the backtest says nothing of so long a step."""
        value = float(self.floor[shape] + self.amplitude[shape] * (n_tokens / self.reference) ** -self.beta)
        half, method = self.half_width, "backtest over length"
        if half is None or n_tokens > 1.01 * self.step * self.longest[shape]:
            return Estimate(value, None, None, NATS, self.n, method)
        return Estimate(value, value * (1 - half), value * (1 + half), NATS, self.n, method)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "equation": EQUATION,
            "source": SOURCE,
            "params": {"beta": self.beta},
            "reference": {"n_tokens": self.reference},
            "residual_sd": self.residual_sd,
            "half_width": self.half_width,
            "backtest": list(self.backtest),
            "n_configurations": self.n,
        }


def fit_length_law(tokens: Floats, loss: Floats, floor: float = 0.0) -> LengthFit | Refusal:
    """Fit the law.

    Args:
        tokens: training lengths, ascending, (lengths,).
        loss: mean losses of shapes, each trained at MIN_LENGTHS of them or more, in nats, (shapes, lengths); NaN where not trained.
        floor: entropy of the text in nats.
    """
    known = np.isfinite(loss)
    if not len(loss) or int(known.sum(1).min()) < MIN_LENGTHS:
        return Refusal(Code.FIXED_TOKENS, f"no shape was trained at {MIN_LENGTHS} lengths within one epoch; train more lengths of each")
    if (df := int(known.sum()) - 2 * len(loss) - 1) < MIN_DF:
        return Refusal(Code.TOO_FEW_DF, f"{len(loss)} shapes leave {df} degrees of freedom for a law of length; it needs {MIN_DF}")
    reference = float(np.exp(np.mean(np.log(tokens))))
    beta, own_floor, amplitude, squares = _solve(tokens / reference, loss, floor)
    if beta in (BETAS[0], BETAS[-1]):
        return Refusal(
            Code.AT_BOUND, "the losses do not flatten as a power of the text, so what longer training buys is not known; train longer"
        )
    rows, steps = [], []
    for last in range(MIN_LENGTHS, len(tokens)):
        before, here = loss[:, :last], known[:, last] & (known[:, :last].sum(1) >= MIN_LENGTHS)
        if int(np.isfinite(before[here]).sum()) - 2 * int(here.sum()) - 1 < MIN_DF:
            continue
        exponent, e, b, _ = _solve(tokens[:last] / reference, before[here], floor)
        error = (e + b * (tokens[last] / reference) ** -exponent) / loss[here, last] - 1
        rows.append({"n_tokens": float(tokens[last]), "n": int(here.sum()), "from_lengths": last,
                     "median_error": float(np.median(np.abs(error))), "rms_error": float(np.sqrt(np.mean(error**2)))})  # fmt: skip
        steps.append(float(tokens[last] / tokens[last - 1]))
    longest = np.where(known, tokens, 0.0).max(1)
    scatter = float(np.sqrt(squares / df))
    return LengthFit(beta, own_floor, amplitude, reference, longest, scatter, tuple(rows), max(steps, default=0.0), int(known.sum()))


def _solve(ratio: Floats, loss: Floats, least: float) -> tuple[float, Floats, Floats, float]:
    """The best beta with its floors, amplitudes and sum of squared relative residuals: weighted regression of each shape at every beta."""
    known = np.isfinite(loss)
    weight = np.where(known, 1 / np.where(known, loss, 1.0) ** 2, 0.0)[None]  # (1, shapes, lengths)
    value, x = np.where(known, loss, 0.0)[None], ratio[None, None] ** -BETAS[:, None, None]
    total = weight.sum(-1)
    mean_x, mean = (weight * x).sum(-1) / total, (weight * value).sum(-1) / total
    away = x - mean_x[..., None]
    amplitude = np.maximum((weight * away * value).sum(-1) / (weight * away**2).sum(-1), 0.0)
    floor = mean - amplitude * mean_x
    through = (weight * x * (value - least)).sum(-1) / (weight * x**2).sum(-1)  # the least floor, where the free one lies below it
    amplitude, floor = np.where(floor < least, np.maximum(through, 0.0), amplitude), np.maximum(floor, least)
    squares = (weight * (floor[..., None] + amplitude[..., None] * x - value) ** 2).sum((1, 2))
    best = int(np.argmin(squares))
    return float(BETAS[best]), floor[best], amplitude[best], float(squares[best])
