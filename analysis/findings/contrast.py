"""The one contrast of the project: by how much the losses of configurations differ, from differences within seeds.

Seeds need not scatter alike: the variance of each pair's differences is drawn towards that of its family by as many degrees of freedom
as the family says (Smyth 2004, section 6: all of them where variances look equal, none where they do not, which is then Welch's test).
Pairs may share most of their run (branches of one trunk): what they share cancels.

    family = Family.of(cells, pairs); family.contrast([(3, 5)])     # loss of configuration 3 less that of 5, positive: 5 is better
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.estimate import NATS, Estimate, Verdict, judged
from analysis.findings.sweeps import by_seed
from analysis.table.configurations import Configurations, Floats, t_quantile

Pair = tuple[int, int]
"""Indices of two configurations: the first is what the second is compared with."""
FEWEST = 4
"""Pairs with a variance of their own from which the family's spread of variances is estimated; fewer are taken to scatter alike."""
MANY = 2000
"""Pairs at most from which a family learns its scatter."""


@dataclass(frozen=True)
class Family:
    """Configurations by seed, and how the differences of one family of pairs scatter.

    Args:
        losses: nats, shape (configurations, seeds), NaN where a configuration lacks a seed.
        variance: of the difference of two losses of one seed, typical of the family; None where no seed repeats.
        prior_df: degrees of freedom by which a pair's own variance is drawn to it; inf where all are alike.
        df: degrees of freedom of the typical variance.
    """

    losses: Floats
    variance: float | None
    prior_df: float
    df: float

    @staticmethod
    def of(cells: Configurations, pairs: Sequence[Pair]) -> Family:
        """The family of these pairs."""
        losses = by_seed(cells)
        chosen = [pairs[int(i)] for i in np.unique(np.linspace(0, len(pairs) - 1, min(MANY, len(pairs))).round())] if pairs else []
        own = [found for pair in chosen if (found := _spread(losses, pair))[1] > 0]
        if not own or not any(v > 0 for v, _ in own):
            return Family(losses, *_unpaired(cells))
        variances, df = (np.array(column, dtype=float) for column in zip(*own, strict=True))
        members = {i for pair in chosen for i in pair}
        free = sum(int(cells.n_seeds[i]) - 1 for i in members) - (
            losses.shape[1] - 1 if len(members) > 2 else int(cells.n_seeds[list(members)].min()) - 1
        )
        prior_df = _prior_df(variances, df)
        return Family(losses, _typical(variances, df, prior_df), prior_df, float(max(1, min(free, df.sum()))))

    def contrast(
        self, pairs: Sequence[Pair], per: Sequence[float] | None = None, misfit: float = 0.0, df_misfit: float = 1.0, wide: bool = False
    ) -> Estimate:
        """Mean over pairs of the first's loss less the second's, nats, with its t interval (Satterthwaite's degrees of freedom).

        Args:
            per: what each difference is divided by (doublings), one per pair; 1 where absent.
            misfit: standard deviation of configurations around a smooth law, nats, where more is claimed than that these differ.
            df_misfit: its degrees of freedom.
            wide: whether more is claimed than a difference of these configurations; such a claim is never "within noise".
        """
        scale = 1 / (np.ones(len(pairs)) if per is None else np.asarray(per, dtype=float)) / len(pairs)
        means, parts = [], []
        for pair, weight in zip(pairs, scale, strict=True):
            mean, variance, df = self._mean(pair)
            means.append(weight * mean)
            parts.append((None if variance is None else weight**2 * variance, df))
            parts += [(2 * weight**2 * misfit**2, df_misfit)] if misfit else []
        value, n = float(sum(means)), sum(int(np.isfinite(self.losses[list(pair)]).all(axis=0).sum()) or 1 for pair in pairs)
        if any(variance is None for variance, _ in parts) and wide and len(pairs) >= FEWEST:
            return _among(np.array(means) * len(pairs), n)
        if any(variance is None for variance, _ in parts):
            return Estimate(value, None, None, NATS, n, "contrast, one seed", Verdict.NOT_TOLD)
        known = [(float(variance), df) for variance, df in parts if variance]
        total = sum(variance for variance, _ in known)
        half = t_quantile(total**2 / sum(v**2 / df for v, df in known)) * math.sqrt(total) if total > 0 else 0.0
        method = "contrast" + (", lack of fit in its error" if misfit else "")
        unclear = Verdict.NOT_TOLD if wide else Verdict.WITHIN_NOISE
        return Estimate(value, value - half, value + half, NATS, n, method, judged(value - half, value + half, unclear))

    def _mean(self, pair: Pair) -> tuple[float, float | None, float]:
        """Mean difference of a pair, the variance of that mean, and its degrees of freedom."""
        first, second = self.losses[pair[0]], self.losses[pair[1]]
        n = [int(np.isfinite(own).sum()) for own in (first, second)]
        both = np.isfinite(first) & np.isfinite(second)
        if both.sum() > 1 or both.sum() == max(n):
            mean, (own, df) = float(np.mean((first - second)[both])), _spread(self.losses, pair)
            if self.variance is None:
                return mean, None, 1.0
            if math.isinf(self.prior_df) or not df:
                return mean, self.variance / both.sum(), self.df
            drawn = (self.prior_df * self.variance + df * own) / (self.prior_df + df)
            return mean, drawn / both.sum(), min(self.prior_df + df, max(self.df, 1.0))
        mean = float(np.nanmean(first) - np.nanmean(second))
        return mean, None if self.variance is None else self.variance / 2 * (1 / n[0] + 1 / n[1]), self.df


def _among(differences: Floats, n: int) -> Estimate:
    """Mean of differences of unlike configurations with one seed each: their scatter holds the seeds' noise, and more."""
    value, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    low, high = (value + side * t_quantile(len(differences) - 1) * error for side in (-1, 1))
    return Estimate(value, low, high, NATS, n, "contrast, scatter among pairs", judged(low, high, Verdict.NOT_TOLD))


def _spread(losses: Floats, pair: Pair) -> tuple[float, int]:
    """Variance of a pair's differences over their common seeds, and its degrees of freedom."""
    gap = losses[pair[0]] - losses[pair[1]]
    gap = gap[np.isfinite(gap)]
    return (float(np.var(gap, ddof=1)), len(gap) - 1) if len(gap) > 1 else (0.0, 0)


def _unpaired(cells: Configurations) -> tuple[float | None, float, float]:
    """Twice the variance within configurations, where no pair has two seeds in common."""
    df = int(np.sum(cells.n_seeds - 1))
    within = float(np.sum((cells.cell_loss - cells.loss[cells.cell_config]) ** 2))
    return (2 * within / df, math.inf, float(df)) if df and within > 0 else (None, math.inf, 1.0)


def _prior_df(variances: Floats, df: Floats) -> float:
    """Smyth 2004, section 6.2: the spread of log variances beyond what sampling explains, as degrees of freedom of a common prior.

    One standard error is added to that spread, so that unequal variances are seldom missed: intervals of 9 pairs of three seeds then cover
    93.8 and 92.7 % where some configurations scatter 2.5 and 5 times as much as others (92.7 and 91.9 % without), and are 9 % wider where
    all are alike.
    """
    if len(variances) < FEWEST:
        return math.inf
    expected = float(np.mean(special.polygamma(1, df / 2)))
    error = math.sqrt((float(np.mean(special.polygamma(3, df / 2))) + 2 * expected**2) / len(variances))
    beyond = float(np.var(_logs(variances, df), ddof=1)) - expected + error
    return 2 * _inverse_trigamma(beyond) if beyond > 0 else math.inf


def _typical(variances: Floats, df: Floats, prior_df: float) -> float:
    """The common variance: pooled where all are alike, else the scale of the prior (Smyth 2004, section 6.2)."""
    if math.isinf(prior_df):
        return float(np.sum(variances * df) / df.sum())
    return math.exp(float(np.mean(_logs(variances, df)) + special.digamma(prior_df / 2)) - math.log(prior_df / 2))


def _logs(variances: Floats, df: Floats) -> Floats:
    """Log variances less what their degrees of freedom add on average."""
    known = np.maximum(variances, 1e-4 * np.median(variances))
    return np.asarray(np.log(known) - special.digamma(df / 2) + np.log(df / 2), dtype=float)


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on its reciprocal (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        x += trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
    return float(x)
