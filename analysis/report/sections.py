"""The order and the words of the report: the first screen, then one folded section for each thing that a reader may ask.

Reads a tree of fits.json and the rows beside it; writes nothing. A section that has nothing is not there.

    for section in sections(evidence): print(section.title)
"""

from analysis.estimate import Fits, is_refused, part_of, reason_of, value_of
from analysis.figures.laws import levers_over_length
from analysis.figures.loss import HEAD_MARKERS, law_of, panels
from analysis.figures.study import tried_rates
from analysis.figures.sweeps import slugs
from analysis.findings.searches import COSTS
from analysis.report import document, tables
from analysis.report.answer import scored
from analysis.report.document import Cell, Listing, Picture, Section
from analysis.report.texts import side_by_side, texts_listing
from analysis.table.evidence import Evidence
from analysis.wording import fixed, in_epochs, plain, several, spanned, visible


def sections(evidence: Evidence) -> list[Section]:
    """Everything after the first screen, in the order in which a reader asks."""
    fits = evidence.fits
    found = [
        sweeps_section(fits),
        equal_sizes_section(fits),
        length_section(evidence),
        rates_section(evidence),
        forecasts_section(fits),
        speed_section(evidence),
        overfitting_section(evidence),
        texts_section(evidence),
        refusals_section(fits),
        provenance_section(evidence),
    ]
    return [section for section in found if section.has_something()]


def tables_of(evidence: Evidence) -> list[Listing]:
    """Every table of the report that has rows, that of the first screen first."""
    found = [tables.levers_listing(evidence.fits), *(table for section in sections(evidence) for table in section.listings)]
    return [table for table in found if table.rows]


# ---- the first screen ----


def answer(fits: Fits) -> list[Cell]:
    """The sentences that answer the study's question."""
    return [Cell(visible(text), f"/answer/{i}") for i, text in enumerate(fits.get("answer") or [])]


def question(evidence: Evidence) -> tuple[str, str]:
    """Name and question of the study."""
    fits = evidence.fits
    return visible(fits.get("study") or evidence.results.name), visible(fits.get("question") or "What do more parameters buy?")


def lead_picture(evidence: Evidence) -> Picture:
    """The figure of the first screen: loss against parameters."""
    trials = evidence.trials
    lengths = panels(trials)
    lawful = any(law_of(evidence.fits, n) for n in lengths)
    lines = "the law fitted in depth and width, dashed beyond its points" if lawful else "models of one depth joined"
    heads = "; markers: heads" if 1 < len({t["n_head"] for t in trials}) <= len(HEAD_MARKERS) else ""
    panel = " One panel per training length." if len(lengths) > 1 else ""
    caption = f"Lines: {lines}. Open markers: configurations; dots: seeds{heads}.{panel}"
    depths, seeds = len({t["n_layer"] for t in trials}), len(trials)
    said = visible((evidence.fits.get("answer") or [""])[0])
    alt = f"Loss against parameters on logarithmic axes, {several(depths, 'depth')}, {several(seeds, 'trial')}. {said}"
    return Picture("loss", caption, alt, full=len(lengths) > 2)


# ---- sections ----


def sweeps_section(fits: Fits) -> Section:
    """Each sweep: loss and the gain of each step."""
    pictures, listings, files = [], [], slugs(fits)
    for i, sweep in enumerate(fits.get("sweeps") or []):
        name, file, source = visible(sweep["name"]), files[str(sweep["name"])], f"/sweeps/{i}"
        if sweep["name"] == "other" or sweep.get("shapes"):
            continue
        caption = f"Loss in the sweep {name}. Small dots: seeds; open markers: means with 95 % intervals."
        pictures.append(Picture(f"sweep_{file}", caption, f"Loss in the sweep {name}", True))
        listings += tables.axis_listings(sweep, source, file) if sweep.get("axis") else [tables.sweep_listing(sweep, source, file)]
    fronts = fits.get("fronts") or []
    for i, block in enumerate(fronts):
        listings.append(tables.front_listing(block, f"/fronts/{i}", COSTS[block["against"]], files[str(block["name"])]))
    return Section("sweeps", "Sweeps", (), pictures, listings)


def equal_sizes_section(fits: Fits) -> Section:
    """Shapes of equal size, and the law in depth and width."""
    pictures, files = [], slugs(fits)
    listings = [tables.pairs_listing(fits), tables.shape_laws_listing(fits)]
    for i, sweep in enumerate(fits.get("sweeps") or []):
        if sweep.get("shapes"):
            name, file = visible(sweep["name"]), files[str(sweep["name"])]
            caption = (
                f"Sweep {name}: one line per size, through the mean of each depth and width; dots: configurations with 95 % intervals."
            )
            pictures.append(Picture(f"sweep_{file}", caption, f"Loss against width over depth in the sweep {name}", True))
            listings.append(tables.shapes_listing(sweep, f"/sweeps/{i}", file))
    return Section("equal", "Equal sizes", (), pictures, listings)


def length_section(evidence: Evidence) -> Section:
    """What text and length do: levers of every length, learning curves."""
    several_lengths = len({row["n_tokens"] for row in evidence.fits.get("levers") or [] if row["n_tokens"]}) > 1
    pictures = []
    if levers_over_length(evidence.fits):
        caption = "What a doubling of each lever buys at the centre of the study, by training length, with 95 % bands."
        pictures.append(Picture("levers", caption, "Nats gained per doubling of each lever against training tokens"))
    if evidence.curves:
        caption = "Validation loss during training, from small models (light) to large ones."
        pictures.append(Picture("learning_curves", caption, "Learning curves of all trials"))
    listings = [tables.levers_listing(evidence.fits, everything=True)] if several_lengths else []
    listings += [tables.courses_listing(evidence.fits), tables.twice_listing(evidence.fits), tables.best_shapes_listing(evidence.fits)]
    optimal = part_of(evidence.fits, "compute_optimal")
    prose = []
    if optimal and value_of(optimal) is not None:
        told = spanned(value_of(optimal), value_of(optimal["low"]), value_of(optimal["high"]))
        prose = [Cell(f"The size that is best for a compute C grows as C to the power {told}.", "/compute_optimal")]
    return Section("length", "Text and length", prose, pictures, listings)


def rates_section(evidence: Evidence) -> Section:
    """Learning rates: tuned, transferred or fixed, and the loss at each."""
    found, pictures, listings = part_of(evidence.fits, "learning_rates") or {}, [], list[Listing]()
    if tried_rates(evidence.trials):
        caption = "Loss against peak learning rate, one line per shape, from small models (light) to large ones."
        pictures.append(Picture("learning_rates", caption, "Loss against learning rate"))
    rows, slopes = found.get("rows") or [], found.get("slopes")
    if rows:
        listings.append(tables.optima_listing(rows))
    if slopes and not is_refused(slopes):
        listings.append(tables.slopes_listing(slopes))
    return Section("rates", "Learning rates", (), pictures, listings)


def forecasts_section(fits: Fits) -> Section:
    """Laws of size, their backtests, and forecasts put on record before their configuration ran."""
    pictures, prose, rows = [], [], fits.get("forecasts")
    laws = tables.fits_listing(fits)
    if laws.rows:
        caption = "Residuals of the configuration means from the law of size alone, with 95 % intervals."
        pictures.append(Picture("residuals", caption, "Residuals of the fit in percent of the loss"))
    listings = [laws, tables.held_out_listing(fits), tables.backtest_listing(fits)]
    if isinstance(rows, list) and rows:
        words = scored(rows)
        prose.append(Cell(words, "/forecasts"))
        pictures.append(Picture("forecasts", "Bars: forecasts with 95 % intervals, made before the runs; dots: outcomes.", words))
        listings.append(tables.forecasts_listing(rows))
    return Section("forecasts", "Laws and forecasts", prose, pictures, listings)


def speed_section(evidence: Evidence) -> Section:
    """Speed and memory; times only of trials that had their device to themselves."""
    timing = evidence.fits.get("timing") or {}
    law, slower, pictures, prose = part_of(timing, "fit"), part_of(timing, "heads_slowdown"), [], []
    rows = tables.timing_listing(timing["rows"] if isinstance(timing.get("rows"), list) else [])
    files = slugs(evidence.fits)
    if rows.rows:
        names = [str(sweep["name"]) for sweep in evidence.fits.get("sweeps") or [] if sweep["name"] != "other"]
        pictures = [
            Picture(f"speed_{files[n]}", f"Time per step in the sweep {visible(n)}.", f"Time per step, {visible(n)}", True) for n in names
        ]
    if slower:
        ends = "" if slower.get("low") is None else f" [{fixed(slower['low'], 2)}, {fixed(slower['high'], 2)}]"
        words = f"With the most heads of the sweep a step takes {fixed(slower['ratio'], 2)}{ends} times as long as with the fewest."
        prose.append(Cell(words, "/timing/heads_slowdown"))
    listings = [rows]
    if law and rows.rows:
        shown = {key: law[key] for key in ("equation", "parameters", "reference", "median_relative_error") if key in law}
        listings.append(document.facts_listing("timing_fit", "Law of time per step (ms)", shown, "/timing/fit"))
    if any(t.get("peak_memory_bytes") for t in evidence.trials):
        caption = "Peak memory of the device or, on a CPU, of the whole process."
        pictures.append(Picture("memory", caption, "Peak memory against parameters", True))
    return Section("speed", "Speed and memory" if rows.rows else "Memory", prose, pictures, listings)


def overfitting_section(evidence: Evidence) -> Section:
    """The gap between training and validation loss, and how often the text was seen."""
    found, pictures, prose = part_of(evidence.fits, "overfitting"), [], []
    if any(t.get("train_loss") is not None for t in evidence.trials):
        caption = "Validation less training loss at the end of each trial, on fixed windows of both."
        pictures.append(Picture("gap", caption, "Gap between validation and training loss against parameters"))
    if found and value_of(found.get("gap")) is not None:
        numbers = spanned(found["gap"], value_of(found.get("low")), value_of(found.get("high")))
        seen = f" after {in_epochs(found['epochs'])}" if value_of(found.get("epochs")) else ""
        prose.append(Cell(f"Validation loss less training loss is {numbers} nats on average{seen}.", "/overfitting/gap"))
    return Section("overfitting", "Overfitting", prose, pictures)


def texts_section(evidence: Evidence) -> Section:
    """Measures of the generated texts, and one prompt continued by every model."""
    found = part_of(evidence.fits, "stories")
    prompt, texts = side_by_side(evidence)
    told = (evidence.fits.get("data") or {}).get("name") in ("stories", "tinystories")
    listings = [texts_listing(found)] if found else []
    return Section("texts", "Stories" if told else "Generated text", (), (), listings, prompt, texts)


# ---- what a reader needs in order to judge ----


def refusals_section(fits: Fits) -> Section:
    """What the data do not determine, each reason once."""
    rows = [row for row in fits.get("refusals") or [] if row.get("reason")]
    found = tables.refusals_listing(rows)
    return Section("refusals", "What the data do not say", listings=[found] if found.rows else [])


def provenance_section(evidence: Evidence) -> Section:
    """Seeds' noise, trials that were left out, data, versions, machine, cost."""
    fits, prose = evidence.fits, []
    noise, counts = part_of(fits, "noise"), fits.get("counts") or {}
    if noise:
        seed = spanned(value_of(noise.get("seed_sd")), value_of(noise.get("low")), value_of(noise.get("high")))
        words = f"Runs that differ only in their seed scatter with a standard deviation of {seed} nats; "
        words += f"two configurations differ by more than noise from {plain(noise.get('detectable'), 2)} nats on."
        prose.append(Cell(words, "/noise"))
    fates = ", ".join(f"{plain(v)} {k}" for k, v in counts.items() if v and k not in ("trials", "configurations", "seeds", "sizes"))
    prose.append(Cell(f"{several(counts.get('trials'), 'trial')}: {fates or 'none completed'}.", "/counts"))
    prose += [Cell(visible(str(p).replace(f"{evidence.results}/", "")) + ".") for p in evidence.problems]
    listings = [document.records_listing("exclusions", "Trials left out", fits.get("exclusions") or [], "/exclusions")]
    titles = {"data": "Data", "provenance": "Run and cost", "card": "How things are counted and fitted"}
    listings += [document.facts_listing(key, title, fits.get(key) or {}, f"/{key}") for key, title in titles.items()]
    reasons = {name: reason_of(part) for name, part in (("noise", fits.get("noise")),) if reason_of(part)}
    prose += [Cell(visible(reason) + ".", f"/{name}") for name, reason in reasons.items()]
    return Section("provenance", "Data and provenance", prose, (), [table for table in listings if table.rows])
