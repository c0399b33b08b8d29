"""The order and the words of the report: which section says what, with which figures, from which places of `fits.json`.

Reads an `Evidence`; writes nothing. Prose that holds a number is a sentence of `fits.json` itself or is built here from its cells.

    for section in sections(evidence): print(section.title)
"""

from collections.abc import Mapping
from typing import Any

from analysis.estimate import is_refused, part_of, reason_of, value_of
from analysis.figures.loss_and_sweeps import slug, sweep_levels
from analysis.figures.style import CONVENTIONS
from analysis.report import document as content
from analysis.report.axes_listing import axis_listings, shapes_listing
from analysis.report.document import Cell, Listing, Picture, Section, escape_pointer, plain, pretty, sentence, several
from analysis.report.front_section import front_section
from analysis.report.search_sections import rates_section
from analysis.report.story_section import stories_section
from analysis.report.tables import (
    contrasts_listing,
    conventions_listing,
    fits_listing,
    forecasts_listing,
    held_out_listing,
    refusals_listing,
    returns_listing,
    selection_listing,
    shares_listing,
    sweep_listing,
    timing_listing,
    words_listing,
)
from analysis.table.evidence import Evidence

Fits = Mapping[str, Any]


def sections(evidence: Evidence) -> list[Section]:
    """Every section after the answer, in reading order; a section says so where the study gives it nothing."""
    fits = evidence.fits
    return [
        loss_section(fits, bool(evidence.curves)),
        sweeps_section(fits),
        shape_section(fits),
        rates_section(evidence),
        *front_section(fits),
        forecasts_section(fits),
        speed_section(evidence),
        overfitting_section(evidence),
        stories_section(evidence),
        refusals_section(fits),
        exclusions_section(evidence),
        card_section(fits),
        provenance_section(fits),
        Section("words", "Words used here", listings=[words_listing()]),
    ]


def answer(fits: Fits) -> list[Cell]:
    """The sentences that answer the study's question."""
    return [Cell(content.visible(str(text)), f"/answer/{i}") for i, text in enumerate(fits.get("answer") or [])]


def lead_picture(fits: Fits) -> Picture:
    """The figure of the first screen: loss against parameters."""
    fit_id = str(fits.get("primary_fit"))
    fit = part_of(fits.get("fits"), fit_id)
    floor = value_of((fits.get("data") or {}).get("floor"))
    shown = {(level.get("n_layer"), level.get("n_embd"), level.get("n_head")) for _, level in sweep_levels(fits)}
    others = (fits.get("counts") or {}).get("configurations", 0) > len(shown)
    seeds = f"Dots: seeds{' (gray: of configurations in no sweep)' if others else ''}; open markers: means of configurations. "
    foot = f" The entropy of the text, {floor:.3f} nats per character, is a floor that no honest model can beat." if floor else ""
    if fit is None:
        caption = f"{seeds}No law is drawn: there is no usable fit.{foot}"
    else:
        caption = f"{seeds}The fit is solid inside the data and dashed outside, with its 95 % band. {fit_caption(fit)}{foot}"
    sizes = (fits.get("counts") or {}).get("sizes")
    alt = f"Loss against parameters on logarithmic axes for {plain(sizes)} model sizes. {' '.join(c.text for c in answer(fits)[:1])}"
    return Picture("loss", caption, alt)


def fit_caption(fit: Mapping[str, Any]) -> str:
    """Law, convention, points, seeds and status of a fit, as figure captions state them."""
    counted = CONVENTIONS.get(fit.get("convention", ""), fit.get("convention"))
    means = (
        f"{plain(fit.get('n_configurations'))} configurations of {plain(fit.get('n_sizes'))} sizes, {several(fit.get('n_seeds'), 'seed')}"
    )
    law = f"Law {fit.get('law')}: {pretty(str(fit.get('equation', '')))}"
    return f"{law}, N counted as {counted}; {means}. {sentence(fit.get('status_text'))}".strip()


# ---- sections ----


def loss_section(fits: Fits, curves: bool) -> Section:
    """Fits, residuals, the answer under each way of counting parameters, and the test on the largest size."""
    pictures, fit = [], part_of(fits.get("fits"), str(fits.get("primary_fit")))
    if fit:
        pictures.append(
            Picture("residuals", f"Residuals of the configuration means. {fit_caption(fit)}", "Residuals of the fit in percent of the loss")
        )
    if curves:
        pictures.append(
            Picture(
                "learning_curves",
                "Validation loss during training, from small models (light) to large ones.",
                "Learning curves of all trials",
            )
        )
    noise, lack = fits.get("noise"), part_of(fits.get("diagnostics"), "lack_of_fit")
    prose = [Cell(noise_sentence(noise), "/noise")] if noise and not is_refused(noise) else []
    if lack and lack.get("sentence"):
        prose.append(Cell(str(lack["sentence"]), "/diagnostics/lack_of_fit/sentence"))
    listings = [fits_listing(fits)] if fits.get("fits") else []
    if isinstance(fits.get("conventions"), list) and fits["conventions"]:
        listings.append(conventions_listing(fits["conventions"]))
    if part_of(fits, "returns"):
        listings.append(returns_listing(fits["returns"]))
    held_out = (fits.get("diagnostics") or {}).get("leave_largest_out")
    if isinstance(held_out, list) and held_out:
        listings.append(held_out_listing(held_out))
    places = (("/noise", noise), ("/diagnostics/leave_largest_out", held_out))
    refused = [Cell(sentence(reason_of(part)), place) for place, part in places if reason_of(part)]
    return Section("loss", "Loss against parameters", prose, pictures, listings, refused)


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """What two runs of one configuration differ by, and so what difference can be seen."""
    seed = content.spanned(value_of(noise.get("seed_sd")), value_of(noise.get("low")), value_of(noise.get("high")))
    return (
        f"Two runs that differ only in their seed scatter with a standard deviation of {seed} nats "
        f"({plain(noise.get('df'))} degrees of freedom). "
        f"A difference of two configuration means is called larger than noise from {plain(noise.get('detectable'), 2)} nats."
    )


def sweeps_section(fits: Fits) -> Section:
    """Each one-factor sweep: what it found, loss and speed, and the gain of each further step."""
    found = fits.get("sweeps") or []
    prose = [Cell(content.visible(str(s["sentence"])), f"/sweeps/{i}/sentence") for i, s in enumerate(found) if s.get("sentence")]
    pictures = []
    for s in found:
        name, word = s["name"], str(s["name"])
        seeds = "Small dots: seeds; open markers: means with 95 % intervals."
        if s.get("shapes"):
            seeds = "One line per size, through the mean of each depth and width; dots: configurations (heads differ) with 95 % intervals."
        pictures.append(
            Picture(f"sweep_{slug(name)}", f"Loss in the {word} sweep. {seeds}", f"Loss in the {word} sweep. {s.get('sentence', '')}", True)
        )
        pictures.append(
            Picture(
                f"speed_{slug(name)}",
                f"Time per step in the {word} sweep; open markers: timed on a shared device.",
                f"Time per step in the {word} sweep",
                True,
            )
        )
    listings = []
    for i, s in enumerate(found):
        if s["name"] != "other":
            listings += _sweep_listings(s, f"/sweeps/{i}")
    return Section("sweeps", "Sweeps", prose or [Cell("The study holds no one-factor sweep.", "/sweeps")], pictures, listings)


def _sweep_listings(sweep: Mapping[str, Any], source: str) -> list[Listing]:
    if sweep.get("axis"):
        return axis_listings(sweep, source)
    return [shapes_listing(sweep, source) if sweep.get("shapes") else sweep_listing(sweep, source)]


def shape_section(fits: Fits) -> Section:
    """Size or shape: variance shares, contrasts at matched size in parameter-equivalents, and claims that the data allow or not."""
    found, title = part_of(fits, "structure"), "Size or shape?"
    if found is None:
        why = reason_of(fits.get("structure")) or "This study cannot separate size from shape."
        return Section("shape", title, refused=[Cell(sentence(why), "/structure")])
    pictures, listings, prose, refused = [], [], [], []
    shares, contrasts = found.get("shares"), found.get("contrasts")
    refused += [Cell(sentence(reason_of(part)), f"/structure/{key}") for key, part in found.items() if reason_of(part)]
    if isinstance(shares, list) and shares:
        bars = "Bars: how much of the variance of loss goes with each factor (Shapley shares, 95 % intervals); ticks: in sequential order."
        alt = "Shares of the variance of loss: " + ", ".join(f"{s['factor']} {plain(s.get('shapley'), 2)}" for s in shares)
        pictures.append(Picture("shares", bars, alt))
        listings.append(shares_listing(shares))
    if isinstance(contrasts, list) and contrasts:
        words = "Dots: what each shape acts like; at 0.85 it acts like a model with 15 % fewer parameters. Filled: larger than noise."
        pictures.append(Picture("contrasts", words, "Structural effects as parameter-equivalents with 95 % intervals"))
        listings.append(contrasts_listing(contrasts))
        told = [(i, str(c["sentence"])) for i, c in enumerate(contrasts) if c.get("sentence")]
        prose += [Cell(content.visible(words), f"/structure/contrasts/{i}/sentence") for i, words in told[:6]]
    for i, claim in enumerate(found.get("claims") or [] if isinstance(found.get("claims"), list) else []):
        why = reason_of(claim)
        (refused if why else prose).append(Cell(sentence(why or claim.get("sentence") or claim.get("verdict")), f"/structure/claims/{i}"))
    return Section("shape", title, prose, pictures, listings, refused)


def forecasts_section(fits: Fits) -> Section:
    """Forecasts put on record before their configuration ran, and how they fared."""
    rows = fits.get("forecasts")
    if not isinstance(rows, list) or not rows:
        return Section(
            "forecasts",
            "Forecasts",
            [Cell(sentence(reason_of(rows)) or "No forecast was made for a configuration that had not been run.", "/forecasts")],
        )
    scored = [row["outcome"] for row in rows if row.get("outcome") and row["outcome"].get("counted", True)]
    words = f"{several(len(rows), 'forecast')} on record, {len(scored)} with an outcome"
    words += f", {sum(o['covered'] for o in scored)} of them inside the 95 % interval." if scored else "."
    caption = "Bars: forecasts with 95 % intervals, made before the configuration ran; dots: outcomes (means over seeds)."
    pictures = [Picture("forecasts", caption, words)]
    return Section("forecasts", "Forecasts", [Cell(words, "/forecasts")], pictures, [forecasts_listing(rows)])


def speed_section(evidence: Evidence) -> Section:
    """Speed and memory against depth, width and heads."""
    timing = evidence.fits.get("timing") or {}
    slower, law, rows = part_of(timing, "heads_slowdown"), part_of(timing, "fit"), timing.get("rows")
    listings, pictures = [], []
    prose = [Cell(str(slower["sentence"]), "/timing/heads_slowdown/sentence")] if slower and slower.get("sentence") else []
    refused = [
        Cell(sentence(reason_of(timing[key])), f"/timing/{key}") for key in ("heads_slowdown", "fit", "rows") if reason_of(timing.get(key))
    ]
    if law:
        words = f"Timing law: {pretty(str(law.get('equation', '')))}."
        shown = {key: law[key] for key in ("parameters", "reference", "median_relative_error", "n_configurations") if key in law}
        listings.append(content.facts_listing("timing_fit", "Timing law (ms per step)", shown, "/timing/fit", words))
    if isinstance(rows, list) and rows:
        listings.append(timing_listing(rows))
    if any(t.get("peak_memory_bytes") for t in evidence.trials):
        pictures.append(
            Picture("memory", "Peak memory of the device or, on a CPU, of the whole process.", "Peak memory against parameters", True)
        )
    return Section("speed", "Speed and memory", prose, pictures, listings, refused)


def overfitting_section(evidence: Evidence) -> Section:
    """The gap between training and validation loss, and how often the text was seen."""
    found, pictures = part_of(evidence.fits, "overfitting"), []
    if any(t.get("train_loss") is not None for t in evidence.trials):
        caption = "Validation less training loss at the end of each trial, on fixed windows of both."
        pictures.append(Picture("gap", caption, "Gap between validation and training loss against parameters"))
    if found is None:
        why = reason_of(evidence.fits.get("overfitting")) or "Training loss was not recorded."
        return Section("overfitting", "Overfitting", pictures=pictures, refused=[Cell(sentence(why), "/overfitting")])
    return Section(
        "overfitting", "Overfitting", [Cell(content.visible(str(found.get("sentence") or "")), "/overfitting/sentence")], pictures
    )


# ---- what a reader needs in order to judge ----


def refusals_section(fits: Fits) -> Section:
    """What the data do not determine, and why."""
    rows = fits.get("refusals") or []
    if not rows:
        return Section("refusals", "What was refused, and why", [Cell("Nothing was refused.", "/refusals")])
    words = "A number is refused where these data do not determine it: it would look like knowledge and be none."
    return Section("refusals", "What was refused, and why", [Cell(words)], listings=[refusals_listing(rows)])


def exclusions_section(evidence: Evidence) -> Section:
    """Trials that no fit used, each with its reason, and files that could not be read."""
    found = evidence.fits.get("exclusions") or []
    listings = [content.records_listing("exclusions", "", found, "/exclusions")] if found else []
    counts = evidence.fits.get("counts") or {}
    words = ", ".join(f"{plain(counts[k])} {k}" for k in counts if k not in ("trials", "configurations", "seeds", "sizes") and counts[k])
    prose = [Cell(f"{several(counts.get('trials'), 'trial')}: {words or 'none completed'}.", "/counts")]
    if counts.get("trials") and counts.get("usable") == counts["trials"]:
        prose = [Cell(f"None: {several(counts['trials'], 'trial')} completed and every one is used.", "/counts")]
    prose += [Cell(content.visible(problem.replace(f"{evidence.results}/", "")) + ".") for problem in evidence.problems]
    return Section("exclusions", "Trials left out", prose, listings=listings)


def card_section(fits: Fits) -> Section:
    """The fit card: what was fitted, how things are counted, optimizer, objective; and what the fit is sensitive to."""
    fit, prose = part_of(fits.get("fits"), str(fits.get("primary_fit"))), []
    if fit and fit.get("disagreement"):
        prose.append(Cell(sentence(fit["disagreement"]), f"/fits/{escape_pointer(fits['primary_fit'])}/disagreement"))
    listings = [content.facts_listing("card", "", fits.get("card") or {}, "/card")]
    titles = {"drop_size": "Without one size", "delta_sensitivity": "With another objective", "trends": "Trends of the residuals"}
    for key, title in titles.items():
        rows = (fits.get("diagnostics") or {}).get(key)
        if isinstance(rows, list) and rows:
            listings.append(content.records_listing(key, title, [_told(row) for row in rows], f"/diagnostics/{key}"))
    if isinstance(fits.get("selection"), list) and fits["selection"]:
        listings.append(selection_listing(fits["selection"]))
    return Section("card", "Fit card and checks", prose, listings=listings)


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a check with its column and status in words."""
    words = {key: str(row[key]).lower().replace("_", " ") for key in ("status",) if key in row}
    return {**row, **words, **({"column": CONVENTIONS.get(row["column"], row["column"].replace("_", " "))} if "column" in row else {})}


def provenance_section(fits: Fits) -> Section:
    """Versions, commit, machine, data, cost."""
    data = content.facts_listing("data", "Data", fits.get("data") or {}, "/data")
    return Section(
        "provenance",
        "Provenance and cost",
        listings=[data, content.facts_listing("provenance", "Run", fits.get("provenance") or {}, "/provenance")],
    )
