"""The report that sets two studies side by side.

Reads two results folders; writes `comparison.json`, `comparison.html`, `comparison.md` and figures into a folder.

    path = build(Path("results/a"), Path("results/b"), (fits_a, fits_b))
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.compare.paired_differences import Judgement, Outcome, compare, names, turned
from analysis.estimate import SIZE, Refusal, part_of, value_of
from analysis.figures import style
from analysis.figures.style import BLUE, INK, LOSS, VERMILLION
from analysis.report import html as page
from analysis.report import text_formats as markdown
from analysis.report.document import Cell, Column, Listing, Picture, Section, listing, number
from analysis.table.load import Table, load
from analysis.wording import CONVENTIONS, shape_name, short_count, spanned, visible

OTHER_TEXT = "The studies were scored on different texts, so a difference of loss mixes the text with everything else."
OTHER_TOKENS = (
    "The studies split their text into different tokens: losses are in bits per byte, and equal lengths are equal numbers of tokens, "
    "so the study of longer tokens has read more text and looks back further."
)
SHOWN = 60
"""Rows of the table of pairs; all are in comparison.json."""


def build(first: Path, second: Path, fits: tuple[Mapping[str, Any], Mapping[str, Any]], out: Path | None = None) -> Path:
    """Write the comparison and return the path of `comparison.html`.

    Args:
        fits: the conclusions of each study.
        out: folder to write to; default `<second>/report`.
    """
    studies = (load(first), load(second))
    folder = out or second / "report"
    folder.mkdir(parents=True, exist_ok=True)
    found = compare(*studies, fits)
    in_nats, names = found["unit"] == "nats", [visible(name) for name in found["studies"]]
    found |= {"studies": names, "caution": OTHER_TOKENS if not in_nats else "" if found["same_text"] else OTHER_TEXT}
    found["sentence"] = sentence(found)
    (folder / "comparison.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    drawn = {"both": style.save(style.figure_of(draw_both(studies, fits, in_nats)), folder / "figures", "both")}
    if found["pairs"]:
        drawn["differences"] = style.save(style.figure_of(draw_differences(found)), folder / "figures", "differences")
    caption = f"Every seed of both studies{' and the fit of each' if in_nats else ''}. {found['caution']}"
    lead = Picture("both", caption, f"Loss of both studies. {found['sentence']}")
    first_screen = Section("answer", f"How does {names[1]} differ from {names[0]}?", [Cell(found["sentence"], "/sentence")], [lead])
    parts = [part.having(drawn) for part in (first_screen, *sections(found))]
    path = folder / "comparison.html"
    path.write_text(page.render(" and ".join(names), parts, drawn, "comparison.json", opened=True), encoding="utf-8")
    (folder / "comparison.md").write_text(markdown.render(parts), encoding="utf-8")
    return path


def sentence(found: Mapping[str, Any]) -> str:
    """What the comparison says, in one sentence."""
    a, b = found["studies"]
    overall = found["overall"]
    if not found["pairs"]:
        return f"{a} and {b} have no shape of equal length in common, so no difference can be paired."
    if "refused" in overall:
        return f"{len(found['pairs'])} shapes are in both studies; {overall['refused']['reason']}."
    verdict = {"gain": "lower than", "loss": "higher than"}.get(overall["verdict"], "not distinguishable from")
    where = f"on average over {len(found['pairs'])} shapes, paired by seed"
    return f"The loss of {b} is {verdict} that of {a}: {spanned(overall)} {found['unit']} {where}. {found['caution']}".strip()


def judgement_text(found: Judgement) -> str:
    """One line on a study against its baseline."""
    if isinstance(found.gain, Refusal):
        return f"cannot be told: {found.gain.reason}"
    said = {Outcome.BETTER: "better", Outcome.WORSE: "worse", Outcome.WITHIN_NOISE: "within noise"}[found.outcome]
    numbers = spanned(turned(found.gain).to_dict())
    return f"{said}: the loss changes by {numbers} nats on average over {found.n_shapes} shapes of equal length, paired by seed"


def sections(found: Mapping[str, Any]) -> list[Section]:
    """The sections of a comparison."""
    a, b = found["studies"]
    left = f"{found['unpaired'][0]} shapes are only in {a}, {found['unpaired'][1]} only in {b}."
    caption = f"Differences by size with 95 % intervals; below 0 {b} has the lower loss."
    picture = Picture("differences", caption, "Paired differences against parameters")
    unit, shown = found["unit"], {"pairs": found["pairs"][:SHOWN]}
    pairs: list[Column] = [
        ("shape", "", shape_name),
        ("parameters", "params_non_embedding", short_count),
        (f"{a} ({unit})", "first", lambda loss: f"{loss:.4f}"),
        (f"{b} ({unit})", "second", lambda loss: f"{loss:.4f}"),
        (f"difference ({unit})", ("difference", "low", "high")),
        ("pairs", "n_pairs"),
        ("verdict", "verdict"),
    ]
    laws = [
        [Cell(law["study"], f"/laws/{i}/study"), *(number(law[key], f"/laws/{i}/{key}") for key in ("alpha", "slope", "n"))]
        for i, law in enumerate(found["laws"])
    ]
    heads = ["study", "exponent α", "slope d ln L / d ln N", "configurations"]
    same = [] if found["recipe"] else [Cell("No recorded column differs apart from the shapes.", "/recipe")]
    return [
        Section("pairs", "Paired differences", [Cell(left, "/unpaired")], [picture], [listing(shown, "/pairs", "pairs", "", pairs)]),
        Section("laws", "Laws", listings=[Listing("laws", "", heads, laws)]),
        Section("recipe", "What else differs", same, listings=[listing(found, "/recipe", "recipe", "")]),
    ]


def draw_both(
    studies: tuple[Table, Table], fits: tuple[Mapping[str, Any], Mapping[str, Any]], in_nats: bool = True, ax: Axes | None = None
) -> Axes:
    """Every seed of both studies against parameters, with the fit of each, which is in nats per token."""
    column, label = ("val_loss", LOSS) if in_nats else ("val_bpb", "validation loss (bits per byte)")
    with style.axes(ax) as ax:
        drawn = list[tuple[float, float]]()
        for name, study, own, color, marker in zip(names(*studies), studies, fits, (BLUE, VERMILLION), "os", strict=True):
            name, (x, y) = style.shown(name), study.trials[[SIZE, column]].astype(float).to_numpy().T
            ax.scatter(x, y, s=18, marker=marker, facecolor="none", edgecolor=color, lw=1, label=name)
            fit = part_of(own.get("fits"), str(own.get("primary_fit"))) or {}
            curve = fit.get("curve") or {}
            if in_nats and curve.get("x") and fit.get("convention") == SIZE:
                inside = np.array(curve["inside"], bool)
                ax.plot(np.array(curve["x"])[inside], np.array(curve["y"])[inside], color=color, lw=1.4, label=f"{name}, fit")
            drawn += zip(x, y, strict=True)
        sizes, losses = style.series(drawn)
        style.log_axis(ax, "x", CONVENTIONS[SIZE], sizes, 0.1, counts=True)
        style.log_axis(ax, "y", label, losses, 0.1)
        ax.legend(handles=[h for h in ax.collections if not str(h.get_label()).startswith("_")])
    return ax


def draw_differences(found: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Paired differences of shapes (second less first) against parameters."""
    with style.axes(ax, height=2.6) as ax:
        rows = found["pairs"]
        ax.axhline(0, color=INK, lw=0.8)
        sure = [(r[SIZE], r["low"], r["high"]) for r in rows if value_of(r["low"]) is not None]
        ax.vlines(*style.series(sure, 3), color=BLUE, lw=1.2, label="_interval")
        ax.scatter([r[SIZE] for r in rows], [r["difference"] for r in rows], s=22, color=BLUE, label="difference")
        style.log_axis(ax, "x", CONVENTIONS[SIZE], [float(r[SIZE]) for r in rows], 0.1, counts=True)
        ax.set_ylabel(f"difference ({found['unit']})")
    return ax
