"""The tables of the report: fits, conventions, sweeps, shares, contrasts.

Reads the conclusions (the dict of `fits.json`); writes nothing. Each cell knows its place in `fits.json`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import is_refused, part_of, reason_of, value_of
from analysis.figures.loss_and_sweeps import MOST_LEVELS, slug
from analysis.figures.style import CONVENTIONS, short_count
from analysis.findings.size_law import AT_LENGTH
from analysis.report import document as content
from analysis.report.document import Cell, Listing, escape_pointer, number, plain, pretty, ratio_cell, sentence, shape_name, span_cell
from analysis.wording import contrast_label

Fits = Mapping[str, Any]


def fits_listing(fits: Fits) -> Listing:
    """One row per fit: parameters at their reference, slope, points, status."""
    rows = []
    for fit_id, fit in fits["fits"].items():
        source = f"/fits/{escape_pointer(fit_id)}"
        if is_refused(fit):
            rows.append([Cell(fit_id, source), *[Cell("–")] * 4, Cell("refused", source, reason_of(fit)), Cell("–")])
            continue
        found = fit.get("parameters") or {}
        cells = [number(found[p], f"{source}/parameters/{p}") if p in found else Cell("–") for p in ("alpha", "E")]
        slope = number(fit.get("slope"), f"{source}/slope") if fit.get("slope") is not None else Cell("–")
        points = Cell(f"{plain(fit.get('n_configurations'))} × {plain(fit.get('n_seeds'))}", f"{source}/n_configurations", numeric=True)
        title = fit_title(fits, fit_id, fit)
        named = Cell(title, source, pretty(str(fit.get("equation", ""))))
        r2 = value_of(fit.get("r2"))
        quality = Cell("–" if r2 is None else content.fixed(r2, 3), f"{source}/r2", numeric=True)
        status = Cell(str(fit.get("status", "")).lower().replace("_", " "), f"{source}/status", str(fit.get("status_text", "")))
        rows.append([named, *cells, slope, points, quality, status])
    columns = ["fit", "exponent α", "E (nats)", "slope d ln L / d ln N", "points × seeds", "R²", "status"]
    note = "95 % intervals in brackets; the slope is at the geometric mean of the sizes. E: the loss that this law would reach without end."
    return Listing("fits", "Fits", columns, rows, note)


def fit_title(fits: Fits, fit_id: str, fit: Mapping[str, Any]) -> str:
    """The title of a fit; one that differs from the primary fit in how it counts parameters says only that."""
    primary = part_of(fits["fits"], str(fits.get("primary_fit"))) or {}
    counted = CONVENTIONS.get(fit.get("convention", ""), "")
    if fit.get("convention") == primary.get("convention"):
        return str(fit.get("title", fit_id))
    return f"the same in {counted}" if fit.get("title") == primary.get("title") else f"{fit.get('title', fit_id)}, {counted}"


def conventions_listing(rows: Sequence[Mapping[str, Any]]) -> Listing:
    """The exponent under each way of counting parameters."""
    cells = []
    for i, row in enumerate(rows):
        source = f"/conventions/{i}"
        name = CONVENTIONS.get(row.get("convention", ""), str(row.get("convention")))
        alpha = (
            number(row["alpha"], f"{source}/alpha")
            if isinstance(row.get("alpha"), Mapping)
            else span_cell(row, ("alpha", "low", "high"), source)
        )
        slope = (
            number(row["slope"], f"{source}/slope")
            if isinstance(row.get("slope"), Mapping)
            else span_cell(row, ("slope", "slope_low", "slope_high"), source)
        )
        cells.append([Cell(name, f"{source}/convention"), alpha, slope])
    note = "At these sizes the way of counting moves the exponent; a comparison with another study must use its convention."
    return Listing(
        "conventions", "The same fit under each way of counting parameters", ["N counted as", "exponent α", "slope"], cells, note
    )


def sweep_listing(sweep: Mapping[str, Any], source: str) -> Listing:
    """Levels of a sweep with the marginal gain of each step and its verdict."""
    rows = []
    levels = sweep.get("levels") or []
    for i, level in enumerate(levels[:MOST_LEVELS]):
        here = f"{source}/levels/{i}"
        million, size = level.get("gain_per_million"), level["params_non_embedding"]
        rows.append([
            Cell(plain(level.get("value")), f"{here}/value", numeric=True),
            Cell(short_count(float(size)), f"{here}/params_non_embedding", plain(size), True),
            span_cell(level, ("mean", "low", "high"), here),
            span_cell(level, ("gain", "gain_low", "gain_high"), here),
            number(million, f"{here}/gain_per_million"),
            Cell(content.visible(str(level.get("verdict") or "–")), f"{here}/verdict"),
            Cell(plain(level.get("ms_per_step"), 3), f"{here}/ms_per_step", numeric=True),
        ])  # fmt: skip
    columns = [str(sweep["name"]), "parameters", "loss (nats)", "gain of this step (nats)", "gain per million", "verdict", "ms per step"]
    more = f" {len(levels) - MOST_LEVELS} more levels are in fits.json." if len(levels) > MOST_LEVELS else ""
    note = f"Spread {plain(value_of(sweep.get('spread')), 3)} nats: {sweep.get('verdict') or 'no verdict'}.{more}"
    return Listing(f"sweep_{slug(sweep['name'])}", f"The {sweep['name']} sweep", columns, rows, note)


def contrasts_listing(contrasts: Sequence[Mapping[str, Any]]) -> Listing:
    """Contrasts at matched size: difference in loss, what it is worth in parameters, verdict."""
    rows = []
    for i, c in enumerate(contrasts):
        here = f"/structure/contrasts/{i}"
        worth = ratio_cell(c, ("parameter_equivalent", "pe_low", "pe_high"), here)
        verdict = Cell(content.visible(str(c.get("verdict") or "–")), f"{here}/verdict")
        rows.append([Cell(contrast_label(str(c["name"])), f"{here}/name"), span_cell(c, ("delta", "low", "high"), here), worth, verdict])
    columns = ["contrast", "difference (nats)", "parameter-equivalent", "verdict"]
    return Listing(
        "contrasts",
        "Contrasts at matched size",
        columns,
        rows,
        "Differences of loss at equal size; below 0 is better. The parameter-equivalent is the factor on the number of parameters that "
        "would change the loss as much: at 0.85 a shape acts as if it had 15 % fewer.",
    )


def shares_listing(shares: Sequence[Mapping[str, Any]]) -> Listing:
    """Shares of the variance of loss, sequential and Shapley."""
    rows = []
    for i, share in enumerate(shares):
        here = f"/structure/shares/{i}"
        name = Cell(str(share["factor"]), f"{here}/factor")
        percent = [value_of(share.get(key)) for key in ("sequential", "shapley", "low", "high")]
        told = [f"{100 * v:.1f}" if v is not None else "–" for v in percent]
        shapley = told[1] if percent[2] is None or percent[3] is None else f"{told[1]} [{told[2]}, {told[3]}]"
        rows.append([name, Cell(told[0], f"{here}/sequential", numeric=True), Cell(shapley, f"{here}/shapley", numeric=True)])
    note = (
        "Sequential: what each factor adds in this order. Shapley: what it adds on average over all orders, which is fairer where factors "
        "go together. Lack of fit: differences of configurations that no factor explains."
    )
    return Listing("shares", "Shares of the variance of loss", ["factor", "sequential (%)", "Shapley (%)"], rows, note)


def refusals_listing(refusals: Sequence[Mapping[str, Any]]) -> Listing:
    """What was asked for and why there is no number."""
    rows = []
    for i, r in enumerate(refusals):
        why = Cell(content.visible(str(r.get("reason", ""))), f"/refusals/{i}/reason", str(r.get("code", "")))
        rows.append([Cell(subject_words(content.visible(str(r.get("subject", "")))), f"/refusals/{i}/subject"), why])
    return Listing("refusals", "", ["asked for", "why there is no number"], rows)


def subject_words(subject: str) -> str:
    """Places in fits.json as words: 'fits.joint.parameters.E, fits.joint.parameters.alpha' -> 'E, alpha of the joint fit'."""
    owners: dict[str, list[str]] = {}
    for part in subject.split(", "):
        match = re.fullmatch(r"fits\.(.+?)\.(?:parameters\.)?(\w+)", part)
        name, owner = (match.group(2), fit_words(match.group(1))) if match else (SUBJECTS.get(part, part), "")
        owners.setdefault(owner, []).append(re.sub(r"^structure\.claims\.", "", name).replace("_", " ").replace("alpha", "α"))
    return "; ".join(", ".join(names) + (f" of {owner}" if owner else "") for owner, names in owners.items())


LEVERS = ("n_layer", "n_embd", "n_head", "params", "n_tokens")
SUBJECTS = {
    "timing.fit": "law of time per step",
    "timing.heads_slowdown": "slow-down of heads",
    "structure.shares": "shares of variance",
    "diagnostics.lack_of_fit": "test of the fit",
    "over_length": "what levers buy over training length",
    **{f"levers.{lever}.gain_per_doubling": f"what a doubling of {lever.removeprefix('n_')} buys" for lever in LEVERS},
}
"""Names of refused parts that do not explain themselves."""


def fit_words(fit_id: str) -> str:
    """'joint@params_total' -> 'the joint fit in total parameters'; 'sweep:depth' -> 'the depth fit'."""
    kind, _, column = fit_id.partition("@")
    name = {"joint": "the joint fit", "joint:all": "the fit of all configurations"}.get(kind, f"the {kind.removeprefix('sweep:')} fit")
    name = f"the fit at {int(kind.removeprefix(AT_LENGTH)):,} tokens" if kind.startswith(AT_LENGTH) else name
    return f"{name} in {CONVENTIONS.get(column, column)}" if column else name


def selection_listing(found: Sequence[Mapping[str, Any]]) -> Listing:
    """Laws by how well they describe the study for the number of parameters that they spend."""
    rows = []
    for i, row in enumerate(found):
        here = f"/selection/{i}"
        numbers = [Cell(_fixed(row.get(k), 1), f"{here}/{k}", numeric=True) for k in ("aicc", "delta_aicc")]
        weight = value_of(row.get("weight"))
        shown = "–" if weight is None else f"{100 * weight:.1f}" if weight >= 0.001 else "under 0.1"
        spent = Cell(plain(row.get("k")), f"{here}/k", numeric=True)
        status = Cell(str(row.get("status") or "–").lower().replace("_", " "), f"{here}/status")
        equation = Cell(pretty(content.visible(str(row.get("equation")))), f"{here}/equation")
        rows.append(
            [Cell(str(row.get("law")), f"{here}/law"), equation, spent, *numbers, Cell(shown, f"{here}/weight", numeric=True), status]
        )
    columns = ["law", "equation", "parameters spent", "AICc", "above the best", "weight (%)", "status"]
    note = "AICc: misfit plus a charge for every parameter spent; smaller is better. Weight: share of the support among these laws. "
    note += "The report's own fit has a floor whatever ranks first: text has an entropy, so no size can bring its loss to zero."
    return Listing("selection", "Laws ranked by AICc", columns, rows, note)


def returns_listing(returns: Mapping[str, Any]) -> Listing:
    """What a doubling of the parameters buys at the small end, at the large end, and next."""
    titles = {"smallest": "first doubling in the data", "largest": "last doubling in the data", "next": "next doubling, beyond the data"}
    rows = []
    for key, title in titles.items():
        found = part_of(returns, key)
        if found:
            here = f"/returns/{key}"
            span = Cell(f"{short_count(found['from'])} to {short_count(found['to'])}", f"{here}/from", numeric=True)
            rows.append([Cell(title, here), span, span_cell(found, ("gain", "low", "high"), here)])
    note = str(returns.get("below_noise_reason") or "")
    below = value_of(returns.get("below_noise_from"))
    if below is not None:
        note = f"From {short_count(below)} parameters on, a doubling gains less than the noise floor."
    return Listing("returns", "Diminishing returns of a doubling", ["", "parameters", "gain (nats)"], rows, sentence(note))


def held_out_listing(found: Sequence[Mapping[str, Any]]) -> Listing:
    """Each size predicted from the smaller ones only, with its signed error."""
    rows = []
    for i, row in enumerate(found):
        here = f"/diagnostics/leave_largest_out/{i}"
        size = value_of(row.get("size", row.get("params_non_embedding")))
        losses = [Cell(_fixed(row.get(k), 3), f"{here}/{k}", numeric=True) for k in ("predicted", "observed")]
        error = Cell(_fixed(row.get("error_percent"), 1), f"{here}/error_percent", numeric=True)
        first = Cell(short_count(size) if size else "–", f"{here}/size", numeric=True)
        rows.append([first, Cell(plain(row.get("from_sizes")), f"{here}/from_sizes", numeric=True), *losses, error])
    columns = ["size", "from so many smaller sizes", "predicted (nats)", "observed (nats)", "error (%)"]
    return Listing("held_out", "Each size predicted from the smaller ones", columns, rows)


def _fixed(cell: Any, places: int) -> str:
    value = value_of(cell)
    return "–" if value is None else f"{value:.{places}f}".replace("-", "\u2212")


def timing_listing(found: Sequence[Mapping[str, Any]], limit: int = 40) -> Listing:
    """Time per step and memory of each configuration, from trials that had their device to themselves where there are any."""
    rows = []
    for i, row in enumerate(found[:limit]):
        here = f"/timing/rows/{i}"
        memory = value_of(row.get("peak_memory_bytes"))
        cells = [Cell(plain(value_of(row.get(k)), 3), f"{here}/{k}", numeric=True) for k in ("ms_per_step", "tokens_per_s")]
        megabytes = Cell(plain(memory / 2**20, 3) if memory else "–", f"{here}/peak_memory_bytes", numeric=True)
        rows.append(
            [Cell(shape_name(row), here), *cells, megabytes, Cell("alone" if row.get("exclusive") else "shared", f"{here}/exclusive")]
        )
    note = f"{len(found) - limit} more rows are in fits.json." if len(found) > limit else ""
    return Listing("timing", "Time per step", ["shape", "ms per step", "characters per s", "peak memory (MiB)", "device"], rows, note)


def forecasts_listing(found: Sequence[Mapping[str, Any]]) -> Listing:
    """Each forecast with its interval, and its outcome where the configuration has run since."""
    rows = []
    for i, row in enumerate(found):
        here, shape, outcome = f"/forecasts/{i}", row.get("configuration") or {}, row.get("outcome") or {}
        size = value_of(shape.get("params_non_embedding"))
        told = "not run yet" if not outcome else "inside" if outcome.get("covered") else "outside"
        rows.append([
            Cell(shape_name(shape), f"{here}/configuration", f"made {row.get('made_at', '')} by law {row.get('law', '')}"),
            Cell(short_count(size) if size else "–", f"{here}/configuration/params_non_embedding", numeric=True),
            span_cell(row, ("point", "low", "high"), here),
            Cell(_fixed(outcome.get("loss"), 3), f"{here}/outcome", numeric=True),
            Cell(_fixed(outcome.get("error_percent"), 1), f"{here}/outcome", numeric=True),
            Cell(told if outcome.get("counted", True) else f"{told} (not counted)", f"{here}/outcome", str(outcome.get("note", ""))),
            Cell("inside" if row.get("inside_data") else "outside", f"{here}/inside_data"),
        ])  # fmt: skip
    columns = [
        "configuration",
        "parameters",
        "forecast (nats)",
        "outcome (nats)",
        "error (%)",
        "outcome in the interval",
        "sizes of the data",
    ]
    return Listing("forecasts", "Forecasts and outcomes", columns, rows)


WORDS = {
    "nats": "Unit of loss, here per character: 0.69 nats is a factor of two in the probability that a model gives to the next character.",
    "parameters": "Numbers that training sets. Non-embedding ones leave out the tables of characters and positions.",
    "configuration": "One shape with one recipe, trained once for each seed. A seed sets the first weights and the order of the text.",
    "95 % interval": "A range made so that in 95 of 100 such studies it would hold the true value.",
    "noise floor": "The smallest difference of two configurations that their scatter between seeds would not make by chance (5 %).",
    "p": "How often noise alone would show a difference as large; below 0.05 it is called larger than noise. Adjusted "
    "(Holm): of many comparisons some fall below by luck, so each must be the rarer the more there are.",
    "parameter-equivalent": "By what factor the parameters would have to change for the same effect on loss.",
    "slope d ln L / d ln N": "Percent by which loss changes for one percent more parameters, in the middle of the data.",
    "exponent α, floor E": "In L = E + A / N^α: how fast loss falls toward E, which no size would pass at this length of training.",
    "entropy of the text": "Loss of a reader who knows how the text was made; no honest model can go below it.",
}


def words_listing() -> Listing:
    """What the words of the report mean."""
    return Listing("words", "", ["word", "meaning"], [[Cell(word), Cell(meaning)] for word, meaning in WORDS.items()])
