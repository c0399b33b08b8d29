"""The order and the words of the report: the first screen, then one folded section for each thing that a reader may ask.

Reads a tree of fits.json and the rows beside it; writes nothing. A section that has nothing is not there.

    for section in sections(evidence): print(section.title)
"""

from collections.abc import Iterator

from analysis.estimate import Fits, part_of, reason_of, value_of
from analysis.figures.loss import HEAD_MARKERS, law_of, panels
from analysis.figures.study import study_figure_names
from analysis.figures.sweeps import slugs
from analysis.findings.searches import COSTS
from analysis.report import tables
from analysis.report.answer import scored
from analysis.report.document import Cell, Picture, Section, facts_listing, listing
from analysis.report.texts import side_by_side, texts_listing
from analysis.table.evidence import Evidence
from analysis.wording import fixed, in_epochs, plain, several, spanned, visible


def sections(evidence: Evidence) -> list[Section]:
    """The first screen, then everything in the order in which a reader asks: what is drawn of pictures, what has rows of tables."""
    fits = evidence.fits
    drawn = study_figure_names(fits, evidence.trials, evidence.curves)
    found = [
        first_screen(evidence),
        sweeps_section(fits),
        equal_sizes_section(fits),
        length_section(fits),
        rates_section(evidence),
        forecasts_section(fits),
        speed_section(fits),
        overfitting_section(fits),
        texts_section(evidence),
        refusals_section(fits),
        provenance_section(evidence),
    ]
    shown = [part.having(drawn) for part in found]
    return [part for part in shown if part.id == "answer" or part.has_something()]


# ---- the first screen ----


def question(evidence: Evidence) -> tuple[str, str]:
    """Name and question of the study."""
    fits = evidence.fits
    return visible(fits.get("study") or evidence.results.name), visible(fits.get("question") or "What do more parameters buy?")


def first_screen(evidence: Evidence) -> Section:
    """The sentences that answer the study's question, loss against parameters, and the levers."""
    fits, trials = evidence.fits, evidence.trials
    answer = [Cell(visible(text), f"/answer/{i}") for i, text in enumerate(fits.get("answer") or [])]
    lengths = panels(trials)
    lawful = any(law_of(fits, n) for n in lengths)
    lines = "the law fitted in depth and width, dashed beyond its points" if lawful else "models of one depth joined"
    heads = "; markers: heads" if 1 < len({t["n_head"] for t in trials}) <= len(HEAD_MARKERS) else ""
    panel = " One panel per training length." if len(lengths) > 1 else ""
    caption = f"Lines: {lines}. Open markers: configurations; dots: seeds{heads}.{panel}"
    depths = several(len({t["n_layer"] for t in trials}), "depth")
    said = answer[0].text if answer else ""
    alt = f"Loss against parameters on logarithmic axes, {depths}, {several(len(trials), 'trial')}. {said}"
    lead = Picture("loss", caption, alt, full=len(lengths) > 2)
    return Section("answer", question(evidence)[1], answer, [lead], [tables.levers_listing(fits)])


# ---- sections ----


def _named(fits: Fits, part: str) -> Iterator[tuple[Fits, str, str, str]]:
    """Each sweep or search with its place, its name as readers see it, and its part of file names."""
    files = slugs(fits)
    for i, block in enumerate(fits.get(part) or []):
        yield block, f"/{part}/{i}", visible(block["name"]), files[str(block["name"])]


def sweeps_section(fits: Fits) -> Section:
    """Each sweep: loss and the gain of each step."""
    pictures, listings = [], []
    for sweep, source, name, file in _named(fits, "sweeps"):
        if sweep["name"] == "other" or sweep.get("shapes"):
            continue
        caption = f"Loss in the sweep {name}. Small dots: seeds; open markers: means with 95 % intervals."
        pictures.append(Picture(f"sweep_{file}", caption, f"Loss in the sweep {name}", True))
        listings += (
            tables.axis_listings(fits, source, name, file) if sweep.get("axis") else [tables.sweep_listing(fits, source, name, file)]
        )
    for block, source, name, file in _named(fits, "fronts"):
        columns = [tables.SHAPE, (COSTS[block["against"]], "cost"), ("loss", "loss"), tables.RATE, ("", "verdict", visible)]
        listings.append(listing(fits, f"{source}/rows", f"front_{file}", f"Search {name}", columns, limit=80))
    return Section("sweeps", "Sweeps", (), pictures, listings)


def equal_sizes_section(fits: Fits) -> Section:
    """Shapes of equal size, and the law in depth and width."""
    pictures, listings = [], tables.equal_sizes_listings(fits)
    for sweep, source, name, file in _named(fits, "sweeps"):
        if sweep.get("shapes"):
            lines = "one line per size, through the mean of each depth and width; dots: configurations with 95 % intervals."
            pictures.append(Picture(f"sweep_{file}", f"Sweep {name}: {lines}", f"Loss against width over depth in the sweep {name}", True))
            listings.append(tables.shapes_listing(fits, source, name, file))
    return Section("equal", "Equal sizes", (), pictures, listings)


def length_section(fits: Fits) -> Section:
    """What text and length do: levers of every length, learning curves."""
    levers = "What a doubling of each lever buys at the centre of the study, by training length, with 95 % bands."
    curves = "Validation loss during training, from small models (light) to large ones."
    pictures = [
        Picture("levers", levers, "Nats gained per doubling of each lever against training tokens"),
        Picture("learning_curves", curves, "Learning curves of all trials"),
    ]
    several_lengths = len({row["n_tokens"] for row in fits.get("levers") or [] if row["n_tokens"]}) > 1
    courses = "Of shapes that ran every length; the rest is in fits.json under over_length."
    listings = [
        *([tables.levers_listing(fits, everything=True)] if several_lengths else []),
        listing(fits, "/over_length/courses", "over_length", "When a lever begins to pay", tables.COURSE, courses),
        tables.twice_listing(fits),
        listing(fits, "/over_length/best_shapes", "best_shapes", "The best shape of each size at each length", tables.BEST_SHAPE),
    ]
    optimal, prose = part_of(fits, "compute_optimal"), []
    if optimal and value_of(optimal) is not None:
        prose = [Cell(f"The size that is best for a compute C grows as C to the power {spanned(optimal)}.", "/compute_optimal")]
    return Section("length", "Text and length", prose, pictures, listings)


def rates_section(evidence: Evidence) -> Section:
    """Learning rates: tuned, transferred or fixed, and the loss at each."""
    fits, place = evidence.fits, "/learning_rates"
    caption = "Loss against peak learning rate, one line per shape, from small models (light) to large ones."
    note = "The bracket's ends are the nearest rates whose loss is worse by more than the noise; open: none was tried."
    listings = [
        listing(fits, f"{place}/rows", "rate_optima", "Best learning rate of each shape", tables.OPTIMUM, note),
        listing(fits, f"{place}/slopes", "rate_slopes", "Slopes of ln loss with and without tuning", tables.SLOPE),
    ]
    return Section("rates", "Learning rates", (), [Picture("learning_rates", caption, "Loss against learning rate")], listings)


def forecasts_section(fits: Fits) -> Section:
    """Laws of size, their backtests, and forecasts put on record before their configuration ran."""
    laws, title = tables.fits_listing(fits), "Each size forecast from the smaller ones, by size alone"
    residuals = "Residuals of the configuration means from the law of size alone, with 95 % intervals."
    said = scored(fits.get("forecasts") or [])
    pictures = [
        *([Picture("residuals", residuals, "Residuals of the fit in percent of the loss")] if laws.rows else []),
        Picture("forecasts", "Bars: forecasts with 95 % intervals, made before the runs; dots: outcomes.", said),
    ]
    listings = [
        laws,
        listing(fits, "/diagnostics/leave_largest_out", "held_out", title, tables.HELD_OUT),
        listing(fits, "/forecast_law/backtest/rows", "backtest", "The forecasting law on sizes that it had not seen"),
        listing(fits, "/forecasts", "forecasts", "Forecasts on record and their outcomes", tables.FORECAST),
    ]
    return Section("forecasts", "Laws and forecasts", [Cell(said, "/forecasts")] if fits.get("forecasts") else [], pictures, listings)


def speed_section(fits: Fits) -> Section:
    """Speed and memory; times only of trials that had their device to themselves."""
    timing, prose = fits.get("timing") or {}, []
    rows = listing(fits, "/timing/rows", "timing", "Time per step", tables.TIMING, keep=lambda row: bool(row.get("exclusive")), limit=40)
    pictures = [
        Picture(f"speed_{file}", f"Time per step in the sweep {name}.", f"Time per step, {name}", True)
        for _, _, name, file in _named(fits, "sweeps")
    ]
    pictures.append(
        Picture("memory", "Peak memory of the device or, on a CPU, of the whole process.", "Peak memory against parameters", True)
    )
    if slower := part_of(timing, "heads_slowdown"):
        ends = "" if slower.get("low") is None else f" [{fixed(slower['low'], 2)}, {fixed(slower['high'], 2)}]"
        words = f"With the most heads of the sweep a step takes {fixed(slower['ratio'], 2)}{ends} times as long as with the fewest."
        prose.append(Cell(words, "/timing/heads_slowdown"))
    law = part_of(timing, "fit") if rows.rows else None
    shown = {key: law[key] for key in ("equation", "parameters", "reference", "median_relative_error") if key in law} if law else {}
    listings = [rows, facts_listing("timing_fit", "Law of time per step (ms)", shown, "/timing/fit")]
    return Section("speed", "Speed and memory" if rows.rows else "Memory", prose, pictures, listings)


def overfitting_section(fits: Fits) -> Section:
    """The gap between training and validation loss, and how often the text was seen."""
    found, prose = part_of(fits, "overfitting"), []
    caption = "Validation less training loss at the end of each trial, on fixed windows of both."
    if found and value_of(found.get("gap")) is not None:
        seen = f" after {in_epochs(found['epochs'])}" if value_of(found.get("epochs")) else ""
        words = f"Validation loss less training loss is {spanned(found, 'gap')} nats on average{seen}."
        prose.append(Cell(words, "/overfitting/gap"))
    picture = Picture("gap", caption, "Gap between validation and training loss against parameters")
    return Section("overfitting", "Overfitting", prose, [picture])


def texts_section(evidence: Evidence) -> Section:
    """Measures of the generated texts, and one prompt continued by every model."""
    prompt, texts = side_by_side(evidence)
    told = (evidence.fits.get("data") or {}).get("name") in ("stories", "tinystories")
    return Section("texts", "Stories" if told else "Generated text", (), (), [texts_listing(evidence.fits)], prompt, texts)


# ---- what a reader needs in order to judge ----


def refusals_section(fits: Fits) -> Section:
    """What the data do not determine, each reason once."""
    return Section("refusals", "What the data do not say", listings=[tables.refusals_listing(fits.get("refusals") or [])])


def provenance_section(evidence: Evidence) -> Section:
    """Seeds' noise, trials that were left out, data, versions, machine, cost."""
    fits, prose = evidence.fits, []
    noise, counts = fits.get("noise"), fits.get("counts") or {}
    if known := part_of(fits, "noise"):
        words = f"Runs that differ only in their seed scatter with a standard deviation of {spanned(known, 'seed_sd')} nats; "
        words += f"two configurations differ by more than noise from {plain(known.get('detectable'), 2)} nats on."
        prose.append(Cell(words, "/noise"))
    fates = ", ".join(f"{plain(v)} {k}" for k, v in counts.items() if v and k not in ("trials", "configurations", "seeds", "sizes"))
    prose.append(Cell(f"{several(counts.get('trials'), 'trial')}: {fates or 'none completed'}.", "/counts"))
    prose += [Cell(visible(str(p).replace(f"{evidence.results}/", "")) + ".") for p in evidence.problems]
    prose += [Cell(visible(reason) + ".", "/noise") for reason in [reason_of(noise)] if reason]
    titles = {"data": "Data", "provenance": "Run and cost", "card": "How things are counted and fitted"}
    facts = [facts_listing(key, title, fits.get(key) or {}, f"/{key}") for key, title in titles.items()]
    return Section("provenance", "Data and provenance", prose, (), [listing(fits, "/exclusions", "exclusions", "Trials left out"), *facts])
