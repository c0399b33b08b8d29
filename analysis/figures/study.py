"""Every figure that a study's conclusions and rows allow, by file name; also drawn while a study runs.

for name, figure in study_figures(fits, trials, curves).items(): style.save(figure, folder, name)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.estimate import Fits, Row, value_of
from analysis.figures import laws, style, sweeps, training
from analysis.figures.loss import draw_loss

NAMES = (
    "loss", "levers", "residuals", "forecasts", "learning_curves", "learning_rates", "gap", "memory", "shares", "contrasts", "rate_law",
)  # fmt: skip
"""Beside those of sweeps; earlier versions drew the last three, and rebuilt reports drop them."""


def study_figures(fits: Fits, trials: Sequence[Row] = (), curves: Sequence[Row] = ()) -> dict[str, Figure]:
    """Draw them.

    Args:
        fits: the conclusions (`fits.json`); parts may be missing.
        trials: COMPLETED rows of the table `trials`.
        curves: rows of the table `curves`.
    """
    return {
        name: drawn if isinstance(drawn := draw(), Figure) else style.figure_of(drawn) for name, draw in _drawings(fits, trials, curves)
    }


def study_figure_names(fits: Fits, trials: Sequence[Row] = (), curves: Sequence[Row] = ()) -> list[str]:
    """The names of `study_figures`, without drawing."""
    return [name for name, _ in _drawings(fits, trials, curves)]


def is_ours(name: str) -> bool:
    """Whether a report names a figure so."""
    return name in NAMES or name.startswith(("sweep_", "speed_"))


def tried_rates(trials: Sequence[Row]) -> bool:
    """Whether some shape was trained at several learning rates: only then does a figure of rates compare anything."""
    rates: dict[tuple[int, ...], set[float]] = {}
    for t in trials:
        rates.setdefault((t["n_layer"], t["n_embd"], t["n_head"]), set()).add(value_of(t.get("lr")) or 0.0)
    return any(len(found - {0.0}) > 1 for found in rates.values())


def _drawings(fits: Fits, trials: Sequence[Row], curves: Sequence[Row]) -> Iterator[tuple[str, Callable[[], Axes | Figure]]]:
    files, primary = sweeps.slugs(fits), (fits.get("fits") or {}).get(str(fits.get("primary_fit"))) or {}
    if trials:
        yield "loss", partial(draw_loss, fits, trials)
    if laws.levers_over_length(fits):
        yield "levers", partial(laws.draw_levers, fits)
    for sweep in filter(sweeps.has_panel, fits.get("sweeps") or []):
        yield f"sweep_{files[sweep['name']]}", partial(sweeps.draw_sweep, fits, sweep["name"])
        if sweeps.is_timed(sweep) and not sweep.get("shapes"):
            yield f"speed_{files[sweep['name']]}", partial(sweeps.draw_sweep_speed, fits, sweep["name"])
    if primary.get("residuals"):
        yield "residuals", partial(laws.draw_residuals, fits)
    if fits.get("forecasts"):
        yield "forecasts", partial(laws.draw_forecasts, fits)
    if {t["trial_id"] for t in trials} & {row["trial_id"] for row in curves}:
        yield "learning_curves", partial(training.draw_learning_curves, curves, trials)
    if tried_rates(trials):
        yield "learning_rates", partial(training.draw_learning_rates, trials)
    if any(value_of(t.get("train_loss")) is not None for t in trials):
        yield "gap", partial(training.draw_gap, trials)
    if any(value_of(t.get("peak_memory_bytes")) for t in trials):
        yield "memory", partial(training.draw_memory, trials)
