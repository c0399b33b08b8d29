"""The order and the words of the report: which section says what, with which figures, from which places of `fits.json`.

Reads an `Evidence`; writes nothing. Prose that holds a number is a sentence of `fits.json` itself or is built here from its cells.

    for section in sections(evidence): print(section.title)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis import content
from analysis.cells import is_refused, reason_of, value_of
from analysis.content import Cell, Listing, Picture, Section, escape_pointer, number, plain, span_cell
from analysis.evidence import Evidence
from analysis.figures import slug
from analysis.style import CONVENTIONS, short_count
from analysis.tales import stories_section

Fits = Mapping[str, Any]


def sections(evidence: Evidence) -> list[Section]:
    """Every section after the answer, in reading order; a section says so where the study gives it nothing."""
    fits = evidence.fits
    return [
        loss_section(fits, bool(evidence.curves)),
        sweeps_section(fits),
        shape_section(fits),
        rates_section(evidence),
        forecasts_section(fits),
        speed_section(evidence),
        overfitting_section(evidence),
        stories_section(evidence),
        refusals_section(fits),
        exclusions_section(evidence),
        card_section(fits),
        provenance_section(fits),
    ]


def answer(fits: Fits) -> list[Cell]:
    """The sentences that answer the study's question."""
    return [Cell(content.visible(str(text)), f"/answer/{i}") for i, text in enumerate(fits.get("answer") or [])]


def lead_picture(fits: Fits) -> Picture:
    """The figure of the first screen: loss against parameters."""
    fit_id = str(fits.get("primary_fit"))
    fit = (fits.get("fits") or {}).get(fit_id)
    floor = value_of((fits.get("data") or {}).get("floor"))
    seeds = "Dots: seeds; open markers: means of configurations. "
    foot = f" The entropy of the text, {floor:.3f} nats per character, is a floor that no honest model can beat." if floor else ""
    if is_refused(fit):
        caption = f"{seeds}No law is drawn: {reason_of(fit) or 'there is no usable fit'}.{foot}"
    else:
        caption = f"{fit_caption(fit)} {seeds}The fit is solid inside the data and dashed outside, with its 95 % band.{foot}"
    sizes = (fits.get("counts") or {}).get("sizes")
    alt = f"Loss against parameters on logarithmic axes for {plain(sizes)} model sizes. {' '.join(c.text for c in answer(fits)[:1])}"
    return Picture("loss", caption, alt)


def fit_caption(fit: Mapping[str, Any]) -> str:
    """Law, convention, points, seeds and status of a fit, as figure captions state them."""
    counted = CONVENTIONS.get(fit.get("convention", ""), fit.get("convention"))
    means = f"{plain(fit.get('n_configurations'))} configurations of {plain(fit.get('n_sizes'))} sizes, {plain(fit.get('n_seeds'))} seeds"
    return f"Law {fit.get('law')}: {pretty(str(fit.get('equation', '')))}, N counted as {counted}; {means}. {fit.get('status_text') or ''}".strip()


def pretty(equation: str) -> str:
    """An equation in plain letters with the signs that readers expect."""
    for plain_name, sign in (("alpha", "α"), ("beta", "β"), ("gamma", "γ"), ("^-", "^−"), ("*", "·")):
        equation = equation.replace(plain_name, sign)
    return equation


# ---- sections ----


def loss_section(fits: Fits, curves: bool) -> Section:
    """Fits, residuals, the answer under each way of counting parameters, and the test on the largest size."""
    pictures = []
    if fit := (fits.get("fits") or {}).get(str(fits.get("primary_fit"))):
        pictures.append(
            Picture("residuals", f"Residuals of the configuration means. {fit_caption(fit)}", "Residuals of the fit in percent of the loss")
        )
    if curves:
        pictures.append(
            Picture(
                "learning_curves",
                "Validation loss during training; from small models (light) to large ones.",
                "Learning curves of all trials",
            )
        )
    listings = [fits_listing(fits)] if fits.get("fits") else []
    rows = fits.get("conventions") or []
    if rows and not is_refused(rows):
        listings.append(conventions_listing(rows))
    diagnostics = fits.get("diagnostics") or {}
    titles = {"leave_largest_out": "Predicting the largest size from the others", "lack_of_fit": "Lack of fit against seed noise"}
    for key, title in titles.items():
        found = diagnostics.get(key)
        if isinstance(found, list) and found:
            listings.append(content.records_listing(key, title, found, f"/diagnostics/{key}"))
        elif isinstance(found, Mapping) and not is_refused(found):
            listings.append(content.facts_listing(key, title, found, f"/diagnostics/{key}"))
    noise = fits.get("noise")
    prose = [Cell(noise_sentence(noise), "/noise")] if noise else []
    disagreements = [f for f in (fits.get("fits") or {}).values() if isinstance(f, Mapping) and f.get("disagreement")]
    prose += [Cell(f"{f['title']}: {f['disagreement']}", "/fits") for f in disagreements]
    return Section("loss", "Loss against parameters", prose, pictures, listings)


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """What two runs of one configuration differ by, and so what difference can be seen."""
    if is_refused(noise):
        return reason_of(noise)
    seed = content.spanned(value_of(noise.get("seed_sd")), value_of(noise.get("low")), value_of(noise.get("high")))
    return (
        f"Two runs that differ only in their seed scatter with a standard deviation of {seed} nats ({plain(noise.get('df'))} degrees of freedom). "
        f"A difference of two configuration means is called larger than noise from {plain(noise.get('detectable'), 2)} nats."
    )


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
        named = Cell(str(fit.get("title", fit_id)), source, pretty(str(fit.get("equation", ""))))
        quality = Cell(plain(fit.get("r2")), f"{source}/r2", numeric=True)
        status = Cell(str(fit.get("status", "")).lower().replace("_", " "), f"{source}/status", str(fit.get("status_text", "")))
        rows.append([named, *cells, slope, points, quality, status])
    columns = ["fit", "exponent α", "E (nats)", "slope d ln L / d ln N", "points × seeds", "R²", "status"]
    note = "95 % intervals in brackets; the slope is at the geometric mean of the sizes. E: the loss that this law would reach without end."
    return Listing("fits", "Fits", columns, rows, note)


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
        slope = number(row.get("slope"), f"{source}/slope") if row.get("slope") is not None else Cell("–")
        cells.append([Cell(name, f"{source}/convention"), alpha, slope])
    note = "At these sizes the way of counting moves the exponent; a comparison with another study must use its convention."
    return Listing(
        "conventions", "The same fit under each way of counting parameters", ["N counted as", "exponent α", "slope"], cells, note
    )


def sweeps_section(fits: Fits) -> Section:
    """Each one-factor sweep: what it found, loss and speed, and the gain of each further step."""
    found = fits.get("sweeps") or []
    prose = [Cell(content.visible(str(s["sentence"])), f"/sweeps/{i}/sentence") for i, s in enumerate(found) if s.get("sentence")]
    pictures = []
    for s in found:
        name, word = s["name"], str(s["name"])
        seeds = "Small dots: seeds; open markers: means with 95 % intervals."
        pictures.append(
            Picture(f"sweep_{slug(name)}", f"Loss in the {word} sweep. {seeds}", f"Loss in the {word} sweep. {s.get('sentence', '')}", True)
        )
        pictures.append(
            Picture(f"speed_{slug(name)}", "Time per step; open: timed on a shared device.", f"Time per step in the {word} sweep", True)
        )
    listings = [sweep_listing(s, f"/sweeps/{i}") for i, s in enumerate(found)]
    return Section("sweeps", "Sweeps", prose or [Cell("The study holds no one-factor sweep.", "/sweeps")], pictures, listings)


def sweep_listing(sweep: Mapping[str, Any], source: str) -> Listing:
    """Levels of a sweep with the marginal gain of each step and its verdict."""
    rows = []
    for i, level in enumerate(sweep.get("levels") or []):
        here = f"{source}/levels/{i}"
        million = level.get("gain_per_million")
        rows.append([
            Cell(plain(level.get("value")), f"{here}/value", numeric=True),
            Cell(short_count(float(level["params_non_embedding"])), f"{here}/params_non_embedding", plain(level["params_non_embedding"]), True),
            span_cell(level, ("mean", "low", "high"), here),
            span_cell(level, ("gain", "gain_low", "gain_high"), here),
            number(million, f"{here}/gain_per_million"),
            Cell(content.visible(str(level.get("verdict") or "–")), f"{here}/verdict"),
            Cell(plain(level.get("ms_per_step"), 3), f"{here}/ms_per_step", numeric=True),
        ])  # fmt: skip
    columns = [str(sweep["name"]), "parameters", "loss (nats)", "gain of this step (nats)", "gain per million", "verdict", "ms per step"]
    return Listing(
        f"sweep_{slug(sweep['name'])}",
        f"The {sweep['name']} sweep",
        columns,
        rows,
        f"Spread {plain(value_of(sweep.get('spread')), 3)} nats: {sweep.get('verdict') or 'no verdict'}.",
    )


def shape_section(fits: Fits) -> Section:
    """Size or shape: variance shares and contrasts at matched size, in parameter-equivalents."""
    found = fits.get("structure")
    if is_refused(found):
        return Section(
            "shape", "Size or shape?", refused=[Cell(reason_of(found) or "This study cannot separate size from shape.", "/structure")]
        )
    pictures, listings = [], []
    shares, contrasts = found.get("shares"), found.get("contrasts")
    refused = [
        Cell(reason_of(part), f"/structure/{key}") for key, part in (("shares", shares), ("contrasts", contrasts)) if reason_of(part)
    ]
    if shares and not is_refused(shares):
        bars = "Bars: Shapley shares of the variance of loss with 95 % intervals; ticks: shares in sequential order."
        pictures.append(
            Picture(
                "shares",
                bars,
                "Shares of the variance of loss: " + ", ".join(f"{s['factor']} {plain(s.get('shapley'), 2)}" for s in shares),
            )
        )
        rows = [
            [Cell(str(s["factor"]), f"/structure/shares/{i}/factor"), number(s.get("sequential"), f"/structure/shares/{i}/sequential"), span_cell(s, ("shapley", "low", "high"), f"/structure/shares/{i}")]
            for i, s in enumerate(shares)
        ]  # fmt: skip
        listings.append(Listing("shares", "Shares of the variance of loss", ["factor", "sequential", "Shapley"], rows))
    if contrasts and not is_refused(contrasts):
        words = "A configuration at 0.85 acts like a model with 15 % fewer parameters than it has; filled: larger than noise."
        pictures.append(Picture("contrasts", words, "Structural effects as parameter-equivalents with 95 % intervals"))
        listings.append(contrasts_listing(contrasts))
    prose = [
        Cell(content.visible(str(c["sentence"])), f"/structure/contrasts/{i}/sentence")
        for i, c in enumerate(contrasts or [])
        if isinstance(c, Mapping) and c.get("sentence")
    ]
    return Section("shape", "Size or shape?", prose[:6], pictures, listings, refused)


def contrasts_listing(contrasts: Sequence[Mapping[str, Any]]) -> Listing:
    """Contrasts at matched size: difference in loss, what it is worth in parameters, verdict."""
    rows = []
    for i, c in enumerate(contrasts):
        here = f"/structure/contrasts/{i}"
        worth = span_cell(c, ("parameter_equivalent", "pe_low", "pe_high"), here)
        verdict = Cell(content.visible(str(c.get("verdict") or "–")), f"{here}/verdict")
        rows.append([Cell(str(c["name"]), f"{here}/name"), span_cell(c, ("delta", "low", "high"), here), worth, verdict])
    columns = ["contrast", "difference (nats)", "parameter-equivalent", "verdict"]
    return Listing(
        "contrasts",
        "Contrasts at matched size",
        columns,
        rows,
        "Differences are from the fitted curve at the same parameter count; below 0 is better.",
    )


def rates_section(evidence: Evidence) -> Section:
    """Learning rates: tuned, transferred or fixed, and the loss at each."""
    found, title = evidence.fits.get("learning_rates"), "Learning rates"
    several = len({t.get("lr") for t in evidence.trials} - {None}) > 1
    pictures = (
        [Picture("learning_rates", "Loss against peak learning rate, one line per shape.", "Loss against learning rate")] if several else []
    )
    if is_refused(found):
        return Section(
            "rates",
            title,
            pictures=pictures,
            refused=[Cell(reason_of(found) or "Nothing was concluded about learning rates.", "/learning_rates")],
        )
    return Section("rates", title, pictures=pictures, listings=[content.facts_listing("learning_rates", title, found, "/learning_rates")])


def forecasts_section(fits: Fits) -> Section:
    """Forecasts made before a trial ran, and how they fared."""
    rows = fits.get("forecasts")
    if is_refused(rows) or not rows:
        return Section(
            "forecasts",
            "Forecasts",
            [Cell(reason_of(rows) or "No forecast was made for a configuration that had not been run.", "/forecasts")],
        )
    pictures = (
        [Picture("forecasts", "Forecast with interval (bar) and outcome (dot).", "Forecasts against outcomes")]
        if any(r.get("observed") or r.get("outcome") for r in rows)
        else []
    )
    return Section(
        "forecasts",
        "Forecasts",
        pictures=pictures,
        listings=[content.records_listing("forecasts", "Forecasts and outcomes", rows, "/forecasts")],
    )


def speed_section(evidence: Evidence) -> Section:
    """Speed and memory against depth, width and heads."""
    timing = evidence.fits.get("timing") or {}
    slower = timing.get("heads_slowdown")
    prose, refused, listings, pictures = [], [], [], []
    if value_of(slower) is not None:
        prose.append(
            Cell(f"From the fewest to the most heads a step takes {number(slower, '').text} times as long.", "/timing/heads_slowdown")
        )
    for key in ("heads_slowdown", "fit"):
        if reason_of(timing.get(key)):
            refused.append(Cell(reason_of(timing[key]), f"/timing/{key}"))
    if isinstance(timing.get("fit"), Mapping) and not is_refused(timing["fit"]):
        listings.append(content.facts_listing("timing_fit", "Timing law", timing["fit"], "/timing/fit"))
    if timing.get("rows"):
        listings.append(content.records_listing("timing", "Time per step", timing["rows"], "/timing/rows"))
    if any(t.get("peak_memory_bytes") for t in evidence.trials):
        pictures.append(
            Picture("memory", "Peak memory of the device or, on a CPU, of the whole process.", "Peak memory against parameters", True)
        )
    return Section("speed", "Speed and memory", prose, pictures, listings, refused)


def overfitting_section(evidence: Evidence) -> Section:
    """The gap between training and validation loss, and how often the text was seen."""
    found = evidence.fits.get("overfitting")
    pictures = []
    if any(t.get("train_loss") is not None for t in evidence.trials):
        caption = "Validation less training loss at the end of each trial, on fixed windows of both."
        pictures.append(Picture("gap", caption, "Gap between validation and training loss against parameters"))
    if is_refused(found):
        return Section(
            "overfitting",
            "Overfitting",
            pictures=pictures,
            refused=[Cell(reason_of(found) or "Training loss was not recorded.", "/overfitting")],
        )
    return Section(
        "overfitting", "Overfitting", [Cell(content.visible(str(found.get("sentence") or "")), "/overfitting/sentence")], pictures
    )


# ---- what a reader needs in order to judge ----


def refusals_section(fits: Fits) -> Section:
    """What the data do not determine, and why."""
    rows = [
        [Cell(str(r.get("subject", "")), f"/refusals/{i}/subject"), Cell(content.visible(str(r.get("reason", ""))), f"/refusals/{i}/reason", str(r.get("code", "")))]
        for i, r in enumerate(fits.get("refusals") or [])
    ]  # fmt: skip
    if not rows:
        return Section("refusals", "What was refused, and why", [Cell("Nothing was refused.", "/refusals")])
    return Section(
        "refusals", "What was refused, and why", listings=[Listing("refusals", "", ["asked for", "why there is no number"], rows)]
    )


def exclusions_section(evidence: Evidence) -> Section:
    """Trials that no fit used, each with its reason, and files that could not be read."""
    found = evidence.fits.get("exclusions") or []
    listings = [content.records_listing("exclusions", "", found, "/exclusions")] if found else []
    counts = evidence.fits.get("counts") or {}
    words = ", ".join(f"{plain(counts[k])} {k}" for k in counts if k not in ("trials", "configurations", "seeds", "sizes") and counts[k])
    prose = [Cell(f"{plain(counts.get('trials'))} trials: {words or 'none completed'}.", "/counts")]
    problems = [Cell(content.visible(p)) for p in evidence.problems]
    return Section("exclusions", "Trials left out", prose, listings=listings, refused=problems)


def card_section(fits: Fits) -> Section:
    """The fit card: what was fitted, how things are counted, optimizer and objective."""
    return Section("card", "Fit card", listings=[content.facts_listing("card", "", fits.get("card") or {}, "/card")])


def provenance_section(fits: Fits) -> Section:
    """Versions, commit, machine, data, cost."""
    data = content.facts_listing("data", "Data", fits.get("data") or {}, "/data")
    return Section(
        "provenance",
        "Provenance and cost",
        listings=[data, content.facts_listing("provenance", "Run", fits.get("provenance") or {}, "/provenance")],
    )
