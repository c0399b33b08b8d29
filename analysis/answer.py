"""The answer in three sentences: what parameters buy, what depth and width do at a given size, what heads do.

Plain English for a student, each sentence with its number, interval and verdict, or with the reason why there is none. Everything is read
from the tree of fits.json, so that the sentences and the report cannot differ.

    tree["answer"] = answer.sentences(tree)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.refusals import is_refused
from analysis.structure import percent

Tree = Mapping[str, Any]


def sentences(tree: Tree) -> list[str]:
    """Three sentences."""
    if not tree["counts"]["usable"]:
        return _nothing(tree["counts"], tree["exclusions"])
    return [parameters(tree), depth_and_width(tree), heads(tree)]


def _nothing(counts: Mapping[str, int], exclusions: Sequence[Mapping[str, Any]]) -> list[str]:
    fates = [f"{counts[k]} {k}" for k in ("completed", "failed", "diverged", "stopped", "interrupted", "stale") if counts[k]]
    first = str(exclusions[0]["reason"]) if exclusions else "no reason recorded"
    return [
        f"None of the {counts['trials']} trials can be used ({', '.join(fates) or 'none finished'}), so nothing is known about parameters; "
        f"the first reason is: {first}.",
        "Nothing can be said about depth and width before trials complete.",
        "Nothing can be said about heads before trials complete.",
    ]


# ---- what parameters buy ----


def parameters(tree: Tree) -> str:
    """Gain per doubling with interval and verdict, and how it diminishes."""
    counts, fit = tree["counts"], tree["fits"].get(tree["primary_fit"] or "")
    if fit is None:
        only = tree["sweeps"][0]["levels"][0] if tree["sweeps"] else None
        where = f" ({only['params_non_embedding']:,} non-embedding parameters, mean loss {only['mean']:.3f} nats)" if only else ""
        return f"All {counts['usable']} completed trials have one size{where}, so the study does not say what more parameters buy."
    slope, gain = fit["slope"], fit["slope"]["gain_per_doubling"]
    worth, interval = _nats(gain["value"]), _ends(gain)
    verdict = _slope_verdict(gain, tree["noise"])
    base = (
        f"Doubling the parameters lowers validation loss by {worth}{interval} around {size_text(slope['at'])} parameters ({verdict}; "
        f"{fit['n_configurations']} configurations, {_seeds(fit['n_seeds'])}, sizes {_range(fit)})"
    )
    if gain["value"] <= 0:
        base = base.replace("lowers validation loss by", "changes validation loss by -", 1) if gain["value"] < 0 else base
    return base + _diminishing(tree, fit) + "."


def _slope_verdict(gain: Mapping[str, Any], noise: Mapping[str, Any]) -> str:
    if gain["low"] is None or gain["high"] is None:
        return "no interval: too few sizes to measure how far configurations scatter"
    if gain["low"] <= 0 <= gain["high"]:
        return "its interval includes zero"
    if is_refused(noise):
        return "clear of zero against the scatter around the curve; noise between seeds not measured"
    above = gain["value"] > noise["detectable"]
    return f"{'above' if above else 'below'} the noise floor of {noise['detectable']:.3f}"


def _diminishing(tree: Tree, fit: Mapping[str, Any]) -> str:
    """The doubling at either end of the data, and the last step against the noise floor."""
    returns = tree.get("returns")
    if not returns or is_refused(returns):
        return ""
    low, high = returns["smallest"], returns["largest"]
    text = f"; the first doubling of the data gains {_nats(low['gain'])}{_ends(low)}, the last {_nats(high['gain'])}{_ends(high)}"
    ends = returns.get("below_noise_from")
    if ends:
        text += f", and beyond about {size_text(ends['size'])} parameters the next doubling is expected to fall below the noise floor"
    return text


# ---- depth and width at a given size ----


def depth_and_width(tree: Tree) -> str:
    """Shape effects at equal size as parameter-equivalents, or why they cannot be separated."""
    structure = tree["structure"]
    if is_refused(structure):
        return f"Depth and width cannot be separated here: {structure['refused']['reason']}."
    rows = [row for row in structure["contrasts"] if row["kind"] in ("curve", "matched")]
    if not rows:
        return _cannot_separate(tree)
    decided = [row for row in rows if row["p"] is not None]
    if not decided:
        row = max(rows, key=lambda r: abs(r["delta"]))
        return (
            f"At equal size {_effect(row)}, but depth and width cannot be separated here, "
            "because one seed leaves the noise between runs unmeasured."
        )
    clear = [row for row in decided if row["p"] <= 0.05]
    widest = max(decided, key=lambda r: abs(r["delta"]))
    if not clear:
        return (
            f"At equal size no depth or width differs from the others by more than noise ({len(decided)} compared): "
            f"at most {_effect(widest)} ({widest['verdict']})."
        )
    row = max(clear, key=lambda r: abs(r["delta"]))
    return (
        f"At equal size shape matters in {len(clear)} of {len(decided)} comparisons: most of all {_effect(row)} ({row['verdict']}), "
        f"which is {_against_doubling(row, tree)}."
    )


def _effect(row: Mapping[str, Any]) -> str:
    label, _, than = str(row["name"]).partition(" vs ")
    than = f"the {than} " if "curve" in than else f"{than} "
    interval = "" if row["pe_low"] is None else f" [{100 * (row['pe_low'] - 1):+.0f} %, {100 * (row['pe_high'] - 1):+.0f} %]"
    ends = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return (
        f"{label} acts like a model with {percent(row['parameter_equivalent'])} parameters{interval} than {than}"
        f"({row['delta']:+.3f}{ends} nats)"
    )


def _against_doubling(row: Mapping[str, Any], tree: Tree) -> str:
    """The effect beside what a doubling of parameters buys."""
    gain = tree["fits"][tree["primary_fit"]]["slope"]["gain_per_doubling"]["value"]
    share = abs(row["delta"]) / gain if gain > 0 else float("inf")
    return f"{share:.0%} of what a doubling of the parameters buys".replace("%", " %")


def _cannot_separate(tree: Tree) -> str:
    varied = [s for s in tree["sweeps"] if s["factor"] in ("n_layer", "n_embd") and len(s["levels"]) > 1]
    if not varied:
        return "Depth and width cannot be separated here, because neither was varied by itself."
    names = " and ".join(str(s["name"]) for s in varied)
    sizes = "; ".join(f"{s['name']}: {s['sentence'].rstrip('.')}" for s in varied)
    why = "each changes the size with it and no configurations of equal size differ in shape"
    if len(varied) == 1:
        why = f"only {names} varies and it changes the size with it"
    return f"Depth and width cannot be separated here, because {why} ({sizes}); add shapes of equal size."


# ---- heads ----


def heads(tree: Tree) -> str:
    """Effect of heads at equal size on loss and on time per step."""
    sweep = next((s for s in tree["sweeps"] if s["factor"] == "n_head" and len(s["levels"]) > 1), None)
    if sweep is None:
        return "The number of heads was not varied by itself, so nothing is said about heads."
    few, many = sweep["levels"][0], sweep["levels"][-1]
    structure = tree["structure"]
    rows = [] if is_refused(structure) else [r for r in structure["contrasts"] if r["kind"] == "heads"]
    change = many["mean"] - few["mean"]
    text = f"Going from {few['value']} to {many['value']} heads at the same size changes loss by {change:+.4f}"
    if rows:
        row = rows[0]
        text += "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
        text += f" nats ({_heads_verdict(row, sweep)}; worth {percent(row['parameter_equivalent'])} parameters)"
    else:
        text += f" nats ({sweep['verdict']})"
    return f"{text}, and {_slowdown(tree)}."


def _heads_verdict(row: Mapping[str, Any], sweep: Mapping[str, Any]) -> str:
    inner = "" if sweep["p"] is None else f"; all {len(sweep['levels'])} levels together {sweep['verdict']}"
    return f"{row['verdict']}{inner}"


def _slowdown(tree: Tree) -> str:
    found = tree["timing"]["heads_slowdown"]
    if is_refused(found):
        return f"its cost in time is not reported: {found['refused']['reason']}"
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"a step with {found['to']} heads takes {found['ratio']:.2f}{interval} times as long as with {found['from']}"


# ---- words ----


def size_text(n: float) -> str:
    """128 thousand, 4.7 million: three significant digits for people."""
    for unit, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if n >= unit:
            return f"{n / unit:.3g} {word}"
    return f"{n:.3g}"


def _nats(value: float) -> str:
    return f"{value:.3f} nats"


def _ends(cell: Mapping[str, Any]) -> str:
    if cell.get("low") is None or cell.get("high") is None:
        return ""
    return f" [{cell['low']:.3f}, {cell['high']:.3f}]"


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _range(fit: Mapping[str, Any]) -> str:
    sizes = [row["x"] for row in fit["residuals"]]
    return f"{size_text(min(sizes))} to {size_text(max(sizes))}"
