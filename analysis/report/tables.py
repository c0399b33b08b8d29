"""The tables of the report: rows of (heading, where from, format) over the places of fits.json.

Reads the tree of fits.json; writes nothing. Each cell knows its place in `fits.json`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import Fits, is_refused, part_of, value_of
from analysis.report.answer import length_of
from analysis.report.document import Cell, Column, Listing, known, listing
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

LENGTH = Column("training length", "n_tokens", text_length)
LEVER_NAME = Column("a doubling of", "factor", lambda name: FACTORS.get(name, name))
SHAPE = Column("shape", "", shape_name)
VERDICT = Column("verdict", "verdict", lambda verdict: VERDICTS.get(verdict, visible(verdict)))
SIZE = Column("parameters", "params_non_embedding", short_count)


def _whole(value: Any) -> str:
    return f"{value:,.10g}"


def _percent(value: float, sign: str = "") -> str:
    return f"{fixed(100 * value, 0 if abs(value) >= 0.1 else 1, sign)} %"


# ---- levers ----

LEVER = [
    LENGTH,
    LEVER_NAME,
    Column("at", "at", lambda at: {"largest": "largest models"}.get(at, visible(at))),
    Column("changes loss by (nats)", "gain_per_doubling", lambda gain: change(gain, "")),
    Column("bits per token", "bits", lambda bits: fixed(-bits, 2, "+")),
    Column("of reducible loss", "of_reducible", lambda share: _percent(-share, "+")),
    VERDICT,
    Column("read from", "source", lambda source: {"contrast": "pairs", "law": "law"}.get(source, visible(source))),
    Column("time per step", "time_per_step", lambda ratio: f"× {plain(ratio, 3)}"),
]
NOTE = (
    "Negative is better; 95 % intervals. Pays: the interval is clear of zero. Centre: the middle of the study's shapes. Pairs: models that "
    "differ in that alone, parameters at equal width over depth; law: fitted to all shapes. 2x64: 2 layers, 64 channels."
)


def levers_listing(fits: Fits, everything: bool = False) -> Listing:
    """What a doubling buys: of the training length that the answer speaks of, or of every length."""
    n_tokens = length_of(fits)
    measured = {i: row for i, row in enumerate(fits.get("levers") or []) if not is_refused(row["gain_per_doubling"])}
    chosen = {i: row for i, row in measured.items() if everything or row["n_tokens"] == n_tokens}
    columns = LEVER if everything else LEVER[1:]
    if everything:
        return listing("levers_by_length", "What each lever buys, at every length", chosen, "/levers", columns, limit=120)
    title = "What each lever buys" + (f" at {text_length(n_tokens)}" if n_tokens else "")
    return listing("levers", title if chosen else "", chosen, "/levers", columns, NOTE if chosen else "", 120)


# ---- sweeps ----


def sweep_listing(sweep: Mapping[str, Any], source: str, file: str) -> Listing:
    """Levels of a sweep with the gain of each step and its verdict."""
    columns = [
        Column(visible(sweep["name"]), "value", _whole),
        SIZE,
        Column("loss (nats)", ("mean", "low", "high")),
        Column("gain of this step (nats)", ("gain", "gain_low", "gain_high")),
        VERDICT,
    ]
    return listing(f"sweep_{file}", f"Sweep {visible(sweep['name'])}", sweep.get("levels") or [], f"{source}/levels", columns)


def axis_listings(sweep: Mapping[str, Any], source: str, file: str) -> list[Listing]:
    """A field of the recipe varied at fixed shapes: mean loss by shape and value; steps with their intervals and verdicts."""
    axis, name = sweep["axis"], visible(sweep["name"])
    repeated = axis["column"] == "unique_tokens"
    losses = [Column(_whole(v), "loss", lambda row, j=j: plain(row[j])) for j, v in enumerate(axis["values"])]  # type: ignore[misc]
    note = f"Mean validation loss in nats; columns: {axis['word']}."
    grid = listing(f"axis_{file}", f"Sweep {name}", axis["cells"], f"{source}/axis/cells", [SHAPE, SIZE, *losses], note)
    columns = [
        Column("from", "from", _whole),
        Column("to", "to", _whole),
        *([Column("epochs", "epochs")] if repeated else []),
        Column("gain (nats)", ("gain", "low", "high")),
        VERDICT,
    ]
    title = "What repeated text costs" if repeated else f"What each step in {axis['word']} bought"
    note = "Differences between trials of equal shape and seed, averaged over shapes; 95 % intervals, pooled within shapes."
    return [grid, listing(f"axis_steps_{file}", title, axis["steps"], f"{source}/axis/steps", columns, note)]


# ---- equal sizes and laws ----


def shapes_listing(sweep: Mapping[str, Any], source: str, file: str) -> Listing:
    """One row per shape, by size; how far each is behind the best of its size."""
    rows = {f"{i}/shapes/{j}": row for i, size in enumerate(sweep["shapes"]["sizes"]) for j, row in enumerate(size["shapes"])}
    columns = [
        SIZE,
        SHAPE,
        Column("width over depth", "aspect", lambda a: plain(a, 3)),
        Column("loss (nats)", ("mean", "low", "high")),
        Column("behind the best of its size", ("behind", "behind_low", "behind_high")),
        VERDICT,
    ]
    note = "The best was chosen by its loss, which flatters it."
    made = listing(
        f"shapes_{file}", f"Sweep {visible(sweep['name'])}: shapes of equal size", rows, f"{source}/shapes/sizes", columns, note, 80
    )
    slashes = [[Cell(c.text, c.source.replace("~1", "/"), c.note, c.numeric) for c in row] for row in made.rows]  # keys here are paths
    return Listing(made.name, made.title, made.columns, slashes, made.note)


def pairs_listing(fits: Fits) -> Listing:
    """The comparison at equal size of each training length."""
    rows = (part_of(fits, "shape") or {}).get("by_length") or []
    kept = {i: row for i, row in enumerate(rows) if not is_refused(row["equal_size"])}
    columns = [
        LENGTH,
        Column("better", "equal_size/winner", shape_name),
        Column("worse", "equal_size/loser", shape_name),
        Column("by (nats)", "equal_size/difference"),
        Column("worth in parameters", "equal_size/worth_in_parameters", _worth),
    ]
    return listing("equal_sizes", "The largest size that was trained in several shapes", kept, "/shape/by_length", columns)


def _worth(cell: Mapping[str, Any]) -> str | None:
    return None if is_refused(cell) else f"× {spanned(value_of(cell), cell.get('low'), cell.get('high'))}"


def shape_laws_listing(fits: Fits) -> Listing:
    """The law in depth and width of each training length."""
    rows = (part_of(fits, "shape") or {}).get("by_length") or []
    kept = {i: row for i, row in enumerate(rows) if not is_refused(row["law"])}
    columns = [
        LENGTH,
        Column("law", "law", lambda law: equation(str(law["equation"]), law.get("reference"))),
        *(Column(letter, f"law/{name}") for letter, name in (("E", "E"), ("A", "A"), ("a", "a"), ("b", "b"), ("κ = b − 2a", "kappa"))),
        Column("misfit", "law/residual_sd", _percent),
        Column("configurations", "law/n_configurations"),
    ]
    note = "κ is what shape does at equal size: above 0 wide is better, below 0 deep. Misfit: scatter of configurations around the law."
    return listing("shape_laws", "The law in depth and width", kept, "/shape/by_length", columns, note)


def fits_listing(fits: Fits) -> Listing:
    """The law of size alone, one row per fit that can be used: equation with its reference, exponents, slope."""
    usable = {
        name: fit for name, fit in (fits.get("fits") or {}).items() if not is_refused(fit) and fit.get("status") in ("CONVERGED", "OK")
    }
    columns = [
        Column("fit", "title", visible),
        Column("N", "convention", lambda name: CONVENTIONS.get(name, name)),
        Column("law", "", lambda fit: equation(str(fit.get("equation", "")), fit.get("reference"))),
        *(
            Column(letter, f"parameters/{name}", known)
            for letter, name in (("E", "E"), ("A", "A"), ("B", "B"), ("α", "alpha"), ("β", "beta"))
        ),
        Column("slope d ln L / d ln N", "slope"),
        Column("misfit", "residual_sd", _percent),
        Column("configurations", "n_configurations"),
    ]
    note = "The law of size alone, for comparison with other studies: where shapes differ it misses by what shape does."
    return listing("fits", "Laws of size alone", usable, "/fits", columns, note)


def held_out_listing(fits: Fits) -> Listing:
    """Each size forecast from the smaller ones only."""
    found = (part_of(fits, "diagnostics") or {}).get("leave_largest_out")
    columns = [
        Column("size", "size", short_count),
        Column("from so many smaller sizes", "from_sizes"),
        Column("forecast (nats)", "predicted", lambda v: fixed(v, 3)),
        Column("observed (nats)", "observed", lambda v: fixed(v, 3)),
        Column("error (%)", "error_percent", lambda v: fixed(v, 1, "+")),
    ]
    rows = found if isinstance(found, list) else []
    return listing("held_out", "Each size forecast from the smaller ones, by size alone", rows, "/diagnostics/leave_largest_out", columns)


def backtest_listing(fits: Fits) -> Listing:
    """The forecasting law's own backtest, where there is one."""
    rows = ((part_of(fits, "forecast_law") or {}).get("backtest") or {}).get("rows") or []
    columns = [Column(str(key).replace("_", " "), str(key)) for key in dict.fromkeys(k for row in rows for k in row)]
    return listing("backtest", "The forecasting law on sizes that it had not seen", rows, "/forecast_law/backtest/rows", columns)


def forecasts_listing(found: Sequence[Mapping[str, Any]]) -> Listing:
    """Each forecast on record with its interval, and its outcome where the configuration has run since."""
    columns = [
        Column("configuration", "configuration", shape_name),
        Column("parameters", "configuration/params_non_embedding", short_count),
        Column("made", "made_at", lambda t: visible(t)[:10]),
        Column("forecast (nats)", ("point", "low", "high")),
        Column("outcome (nats)", "outcome/loss", lambda v: fixed(v, 3)),
        Column("error (%)", "outcome/error_percent", lambda v: fixed(v, 1, "+")),
        Column("in the interval", "outcome/covered"),
        Column("counted", "outcome/counted"),
    ]
    return listing("forecasts", "Forecasts on record and their outcomes", found, "/forecasts", columns)


# ---- training length ----


def _from_length(crossing: Fits) -> str | None:
    """The length with its interval; where all lengths lie on one side, which."""
    if is_refused(crossing):
        ends = crossing.get("bound") or {}
        return "the shortest on" if "upper" in ends else "none" if "lower" in ends else None
    low, high = ("" if value_of(crossing[end]) is None else short_count(crossing[end]) for end in ("low", "high"))
    return f"{short_count(crossing['value'])} [{low}, {high}]"


def courses_listing(fits: Fits) -> Listing:
    """From which training length each lever buys more than the noise, and how its gain moves with more text."""
    courses = (part_of(fits, "over_length") or {}).get("courses") or []
    columns = [
        LEVER_NAME,
        Column("buys more than noise from (tokens)", "crossing", _from_length),
        Column("gain moves per doubling of text (nats)", "per_doubling_of_text"),
    ]
    note = "Of shapes that ran every length; the rest is in fits.json under over_length."
    return listing("over_length", "When a lever begins to pay", courses, "/over_length/courses", columns, note)


def twice_listing(fits: Fits) -> Listing:
    """What each shape would reach on twice its longest text, by the law of length."""
    law = part_of(fits, "length_law") or {}
    columns = [
        Column("shape", "", lambda row: shape_name(row) if row["n_layer"] else None),
        SIZE,
        Column("loss (nats)", "observed", lambda v: fixed(v, 3)),
        Column("twice the text", "n_tokens", short_count),
        Column("forecast (nats)", "forecast"),
        Column("gain (nats)", "gain", lambda v: fixed(v, 3)),
    ]
    note = f"{equation(law['equation'], law['reference'])}, β = {plain(law['params']['beta'], 2)}: {law['source']}." if law else ""
    return listing("length_law", "What twice the text would reach", law.get("twice") or [], "/length_law/twice", columns, note)


def best_shapes_listing(fits: Fits) -> Listing:
    """The best shape of each size at each length, and its lead over the next."""
    rows = (part_of(fits, "over_length") or {}).get("best_shapes") or []
    columns = [
        Column("parameters", "best/params_non_embedding", short_count),
        LENGTH,
        Column("best", "best", shape_name),
        Column("next", "next", shape_name),
        Column("lead (nats)", "lead"),
        Column("verdict", "lead/verdict", lambda verdict: VERDICTS.get(verdict, visible(verdict))),
    ]
    return listing("best_shapes", "The best shape of each size at each length", rows, "/over_length/best_shapes", columns)


# ---- learning rates, speed ----

STATUS = {"tuned": "tuned", "at_edge": "at the edge of what was tried", "transferred": "by the law", "tried": "tried, not tuned"}


def optima_listing(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """The best learning rate of each shape with its bracket."""
    columns = [
        SHAPE,
        SIZE,
        Column("best rate tried", "lr", lambda v: plain(v, 3)),
        Column("bracket", "", lambda row: " to ".join(plain(row[end], 3) if row.get(end) else "open" for end in ("low", "high"))),
        Column("optimum", "optimum", lambda v: plain(v, 3)),
        Column("loss there", "loss"),
        Column("runs", "n_runs"),
        Column("given up", "n_stopped"),
        Column("status", "status", lambda s: STATUS.get(s, s)),
        Column("chosen by seeds compared", "chosen_by_own_seeds"),
    ]
    note = "The bracket's ends are the nearest rates whose loss is worse by more than the noise; open: none was tried."
    return listing("rate_optima", "Best learning rate of each shape", rows, "/learning_rates/rows", columns, note)


def slopes_listing(slopes: Mapping[str, Any]) -> Listing:
    """Slopes of ln loss with and without tuning."""
    rows = {name: slopes[name] for name in ("depth", "width", "size") if name in slopes}
    columns = [Column("tuned", "tuned"), Column("untuned", "untuned"), Column("change", "change")]
    made = listing("rate_slopes", "Slopes of ln loss with and without tuning", rows, "/learning_rates/slopes", columns)
    return Listing(made.name, made.title, ["factor", *made.columns], [[Cell(n), *r] for n, r in zip(rows, made.rows, strict=True)])


def front_listing(block: Mapping[str, Any], source: str, word: str, file: str) -> Listing:
    """Runs of a search over shapes by their cost."""
    columns = [
        SHAPE,
        Column(word, "cost"),
        Column("loss", "loss"),
        Column("rate", "lr", lambda v: plain(v, 3)),
        Column("", "verdict", visible),
    ]
    return listing(f"front_{file}", f"Search {visible(block['name'])}", block["rows"], f"{source}/rows", columns, "", 80)


def timing_listing(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """Time per step of configurations that had their device to themselves."""
    alone = {i: row for i, row in enumerate(rows) if row.get("exclusive")}
    columns = [
        SHAPE,
        Column("ms per step", "ms_per_step", lambda v: plain(v, 3)),
        Column("tokens per s", "tokens_per_s", lambda v: plain(v, 3)),
        Column("peak memory (MiB)", "peak_memory_bytes", lambda v: plain(v / 2**20, 3)),
    ]
    return listing("timing", "Time per step", alone, "/timing/rows", columns, limit=40)


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
