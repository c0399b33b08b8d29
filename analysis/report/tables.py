"""The tables of the report: columns of (heading, place inside a row, format), and what is more than a list of columns.

Reads the tree of fits.json; writes nothing. Each cell knows its place in `fits.json`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from analysis.estimate import Fits, is_refused, part_of, value_of
from analysis.report.answer import length_of
from analysis.report.document import Cell, Column, Listing, at, known, listing
from analysis.report.texts import MEASURES
from analysis.wording import (
    CONVENTIONS,
    FACTORS,
    VERDICTS,
    change,
    equation,
    fixed,
    plain,
    shape_name,
    short_count,
    spanned,
    text_length,
    visible,
)

_whole, _short = "{:,.10g}".format, partial(plain, digits=3)
_nats, _signed = partial(fixed, places=3), partial(fixed, places=1, sign="+")


def _verdict(verdict: str) -> str:
    return VERDICTS.get(verdict, visible(verdict))


def _percent(value: float, sign: str = "") -> str:
    return f"{fixed(100 * value, 0 if abs(value) >= 0.1 else 1, sign)} %"


LENGTH: Column = ("training length", "n_tokens", text_length)
LEVER_NAME: Column = ("a doubling of", "factor", lambda name: FACTORS.get(name, name))
SHAPE: Column = ("shape", "", shape_name)
RATE: Column = ("rate", "lr", _short)
VERDICT: Column = ("verdict", "verdict", _verdict)
SIZE: Column = ("parameters", "params_non_embedding", short_count)
MEAN: Column = ("loss (nats)", ("mean", "low", "high"))

# ---- levers ----

LEVER: list[Column] = [
    LENGTH,
    LEVER_NAME,
    ("at", "at", lambda at: {"largest": "largest models"}.get(at, visible(at))),
    ("changes loss by (nats)", "gain_per_doubling", lambda gain: change(gain, "")),
    ("bits per token", "bits", lambda bits: fixed(-bits, 2, "+")),
    ("of reducible loss", "of_reducible", lambda share: _percent(-share, "+")),
    VERDICT,
    ("read from", "source", lambda source: {"contrast": "pairs", "law": "law"}.get(source, visible(source))),
    ("time per step", "time_per_step", lambda ratio: f"× {_short(ratio)}"),
]
NOTE = (
    "Negative is better; 95 % intervals. Pays: the interval is clear of zero. Centre: the middle of the study's shapes. Pairs: models that "
    "differ in that alone, parameters at equal width over depth; law: fitted to all shapes. 2x64: 2 layers, 64 channels."
)


def levers_listing(fits: Fits, everything: bool = False) -> Listing:
    """What a doubling buys: of the training length that the answer speaks of, or of every length."""

    def measured(row: Fits) -> bool:
        return not is_refused(row["gain_per_doubling"])

    if everything:
        return listing(fits, "/levers", "levers_by_length", "What each lever buys, at every length", LEVER, "", measured, 120)
    n_tokens = length_of(fits)
    title = "What each lever buys" + (f" at {text_length(n_tokens)}" if n_tokens else "")
    return listing(fits, "/levers", "levers", title, LEVER[1:], NOTE, lambda row: measured(row) and row["n_tokens"] == n_tokens, 120)


# ---- sweeps ----


def sweep_listing(fits: Fits, source: str, name: str, file: str) -> Listing:
    """Levels of a sweep with the gain of each step and its verdict."""
    step: Column = ("gain of this step (nats)", ("gain", "gain_low", "gain_high"))
    return listing(fits, f"{source}/levels", f"sweep_{file}", f"Sweep {name}", [(name, "value", _whole), SIZE, MEAN, step, VERDICT])


def axis_listings(fits: Fits, source: str, name: str, file: str) -> list[Listing]:
    """A field of the recipe varied at fixed shapes: mean loss by shape and value; steps with their intervals and verdicts."""
    axis = at(fits, source)["axis"]
    losses: list[Column] = [(_whole(v), "loss", lambda row, j=j: plain(row[j])) for j, v in enumerate(axis["values"])]  # type: ignore[misc]
    note = f"Mean validation loss in nats; columns: {axis['word']}."
    grid = listing(fits, f"{source}/axis/cells", f"axis_{file}", f"Sweep {name}", [SHAPE, SIZE, *losses], note)
    steps: list[Column] = [("from", "from", _whole), ("to", "to", _whole), ("gain (nats)", ("gain", "low", "high")), VERDICT]
    title = f"What each step in {axis['word']} bought"
    if axis["column"] == "unique_tokens":
        steps.insert(2, ("epochs", "epochs"))
        title = "What repeated text costs"
    note = "Differences between trials of equal shape and seed, averaged over shapes; 95 % intervals, pooled within shapes."
    return [grid, listing(fits, f"{source}/axis/steps", f"axis_steps_{file}", title, steps, note)]


# ---- equal sizes and laws ----


def shapes_listing(fits: Fits, source: str, name: str, file: str) -> Listing:
    """One row per shape, by size; how far each is behind the best of its size."""
    columns: list[Column] = [
        SIZE,
        SHAPE,
        ("width over depth", "aspect", _short),
        MEAN,
        ("behind the best of its size", ("behind", "behind_low", "behind_high")),
        VERDICT,
    ]
    title, note = f"Sweep {name}: shapes of equal size", "The best was chosen by its loss, which flatters it."
    return listing(fits, f"{source}/shapes/sizes/*/shapes", f"shapes_{file}", title, columns, note, limit=80)


PAIRS: list[Column] = [
    LENGTH,
    ("better", "equal_size/winner", shape_name),
    ("worse", "equal_size/loser", shape_name),
    ("by (nats)", "equal_size/difference"),
    ("worth in parameters", "equal_size/worth_in_parameters", lambda cell: None if is_refused(cell) else f"× {spanned(cell)}"),
]
SHAPE_LAW: list[Column] = [
    LENGTH,
    ("law", "law", lambda law: equation(str(law["equation"]), law.get("reference"))),
    *((letter, f"law/{name}") for letter, name in (("E", "E"), ("A", "A"), ("a", "a"), ("b", "b"), ("κ = b − 2a", "kappa"))),
    ("misfit", "law/residual_sd", _percent),
    ("configurations", "law/n_configurations"),
]
SIZE_LAW: list[Column] = [
    ("fit", "title", visible),
    ("N", "convention", lambda name: CONVENTIONS.get(name, name)),
    ("law", "", lambda fit: equation(str(fit.get("equation", "")), fit.get("reference"))),
    *((letter, f"parameters/{name}", known) for letter, name in zip("EABαβ", ("E", "A", "B", "alpha", "beta"), strict=True)),
    ("slope d ln L / d ln N", "slope"),
    ("misfit", "residual_sd", _percent),
    ("configurations", "n_configurations"),
]


def equal_sizes_listings(fits: Fits) -> list[Listing]:
    """Of each training length, the comparison at equal size, and the law in depth and width."""
    title, source = "The largest size that was trained in several shapes", "/shape/by_length"
    note = "κ is what shape does at equal size: above 0 wide is better, below 0 deep. Misfit: scatter of configurations around the law."
    return [
        listing(fits, source, "equal_sizes", title, PAIRS, keep=lambda row: not is_refused(row["equal_size"])),
        listing(fits, source, "shape_laws", "The law in depth and width", SHAPE_LAW, note, lambda row: not is_refused(row["law"])),
    ]


def fits_listing(fits: Fits) -> Listing:
    """The law of size alone, one row per fit that can be used: equation with its reference, exponents, slope."""
    note = "The law of size alone, for comparison with other studies: where shapes differ it misses by what shape does."
    return listing(fits, "/fits", "fits", "Laws of size alone", SIZE_LAW, note, lambda fit: fit.get("status") in ("CONVERGED", "OK"))


HELD_OUT: list[Column] = [
    ("size", "size", short_count),
    ("from so many smaller sizes", "from_sizes"),
    ("forecast (nats)", "predicted", _nats),
    ("observed (nats)", "observed", _nats),
    ("error (%)", "error_percent", _signed),
]
FORECAST: list[Column] = [
    ("configuration", "configuration", shape_name),
    ("parameters", "configuration/params_non_embedding", short_count),
    ("made", "made_at", lambda t: visible(t)[:10]),
    ("forecast (nats)", ("point", "low", "high")),
    ("outcome (nats)", "outcome/loss", _nats),
    ("error (%)", "outcome/error_percent", _signed),
    ("in the interval", "outcome/covered"),
    ("counted", "outcome/counted"),
]


# ---- training length ----


def _from_length(crossing: Fits) -> str | None:
    """The length with its interval; where all lengths lie on one side, which."""
    if is_refused(crossing):
        ends = crossing.get("bound") or {}
        return "the shortest on" if "upper" in ends else "none" if "lower" in ends else None
    low, high = ("–" if value_of(crossing[end]) is None else short_count(crossing[end]) for end in ("low", "high"))
    return f"{short_count(crossing['value'])} [{low}, {high}]"


COURSE: list[Column] = [
    LEVER_NAME,
    ("buys more than noise from (tokens)", "crossing", _from_length),
    ("gain moves per doubling of text (nats)", "per_doubling_of_text"),
]
BEST_SHAPE: list[Column] = [
    ("parameters", "best/params_non_embedding", short_count),
    LENGTH,
    ("best", "best", shape_name),
    ("next", "next", shape_name),
    ("lead (nats)", "lead"),
    ("verdict", "lead/verdict", _verdict),
]


def twice_listing(fits: Fits) -> Listing:
    """What each shape would reach on twice its longest text, by the law of length."""
    law = part_of(fits, "length_law")
    columns: list[Column] = [
        ("shape", "", lambda row: shape_name(row) if row["n_layer"] else None),
        SIZE,
        ("loss (nats)", "observed", _nats),
        ("twice the text", "n_tokens", short_count),
        ("forecast (nats)", "forecast"),
        ("gain (nats)", "gain", _nats),
    ]
    note = f"{equation(law['equation'], law['reference'])}, β = {plain(law['params']['beta'], 2)}: {law['source']}." if law else ""
    return listing(fits, "/length_law/twice", "length_law", "What twice the text would reach", columns, note)


# ---- learning rates, speed ----

STATUS = {"tuned": "tuned", "at_edge": "at the edge of what was tried", "transferred": "by the law", "tried": "tried, not tuned"}
OPTIMUM: list[Column] = [
    SHAPE,
    SIZE,
    ("best rate tried", "lr", _short),
    ("bracket", "", lambda row: " to ".join(_short(row[end]) if row.get(end) else "open" for end in ("low", "high"))),
    ("optimum", "optimum", _short),
    ("loss there", "loss"),
    ("runs", "n_runs"),
    ("given up", "n_stopped"),
    ("status", "status", lambda s: STATUS.get(s, s)),
    ("chosen by seeds compared", "chosen_by_own_seeds"),
]
SLOPE: list[Column] = [("factor", None, str), ("tuned", "tuned"), ("untuned", "untuned"), ("change", "change")]
TIMING: list[Column] = [
    SHAPE,
    ("ms per step", "ms_per_step", _short),
    ("tokens per s", "tokens_per_s", _short),
    ("peak memory (MiB)", "peak_memory_bytes", lambda v: _short(v / 2**20)),
]


# ---- what the data do not say ----


def refusals_listing(refusals: Sequence[Mapping[str, Any]]) -> Listing:
    """What was asked for and why there is no number: each reason once."""
    merged: dict[str, tuple[int, list[str]]] = {}
    for i, row in enumerate(refusals):
        merged.setdefault(visible(row.get("reason", "")), (i, []))[1].extend(subject_words(str(row.get("subject", ""))))
    rows = [
        [Cell(", ".join(dict.fromkeys(subjects)), f"/refusals/{i}/subject"), Cell(reason, f"/refusals/{i}/reason")]
        for reason, (i, subjects) in merged.items()
    ]
    return Listing("refusals", "", ["asked for", "why there is no number"], rows)


SUBJECTS = {
    "alpha": "α", "beta": "β", "kappa": "κ", "fit": "law of time per step", "heads_slowdown": "time per step of heads",
    "law": "law in depth and width", "worth_in_parameters": "worth of a shape in parameters",
    "equal_size": "comparison at equal size", "still_falling": "how steeply losses still fall",
    "compute_optimal": "compute-optimal size", "learning_rates": "learning rates", "stories": "generated text",
    "length_law": "what longer training would reach",
    "over_length": "levers over training length", "crossing": "length from which a lever pays",
}  # fmt: skip
"""Names of refused parts that do not explain themselves."""


def subject_words(subject: str) -> list[str]:
    """Dotted places in fits.json as words: 'fits.joint.parameters.E, levers.n_head.gain_per_doubling' -> ['E', 'heads']."""
    names = []
    for place in subject.split(", "):
        last = visible(place).removesuffix(".gain_per_doubling").removesuffix(".gain").split(".")[-1]
        names.append(SUBJECTS.get(last) or FACTORS.get(last) or MEASURES.get(last, (last.replace("_", " "), ""))[0])
    return names
