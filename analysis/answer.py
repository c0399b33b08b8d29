"""The answer in three sentences: what parameters buy, what depth and width do at a given size, what heads do.

Plain English for a student, each sentence with its number, interval and verdict, or with the reason why there is none. Everything is read
from the tree of fits.json, so that the sentences and the report cannot differ.

    tree["answer"] = answer.sentences(tree)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.refusals import is_refused
from analysis.structure import acts_like, count, in_words, interval_text, nats_text, than_word
from analysis.sweeps import NAMES

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
        return f"{count(counts['usable'], 'usable trial')} of one size{where}: the study does not say what more parameters buy."
    slope, gain = fit["slope"], fit["slope"]["gain_per_doubling"]
    verb, worth = ("lowers", gain["value"]) if gain["value"] >= 0 else ("raises", -gain["value"])
    ends = _ends(gain) if gain["value"] >= 0 else ""
    text = f"Doubling the parameters {verb} validation loss by {worth:.3f} nats{ends} around {size_text(slope['at'])} parameters"
    return f"{text}, {_gain_verdict(slope, tree['noise'])}{_diminishing(tree)}."


def _gain_verdict(slope: Mapping[str, Any], noise: Mapping[str, Any]) -> str:
    gain = slope["gain_per_doubling"]
    if gain["low"] is None or gain["high"] is None:
        return f"without an interval ({slope['method'].removeprefix('none: ')})"
    if gain["low"] <= 0 <= gain["high"]:
        return "but its interval includes zero, so the sign is not settled"
    if is_refused(noise):
        return "clear of the scatter around the curve (the noise between seeds was not measured)"
    side = "above" if gain["low"] > noise["detectable"] else "not clearly above"
    return f"{side} the noise floor of {noise['detectable']:.3f} nats"


def _diminishing(tree: Tree) -> str:
    """The doubling at either end of the data, and the size at which the next one sinks below the noise floor."""
    returns = tree["returns"]
    if is_refused(returns):
        return ""
    low, high = returns["smallest"], returns["largest"]
    change = "returns diminish" if _falls(low, high) else "returns change"
    text = f"; {change} from {low['gain']:.3f} nats{_ends(low)} for the first doubling in the data "
    text += f"to {high['gain']:.3f}{_ends(high)} for the last"
    ends = returns["below_noise_from"]
    if ends:
        where = "inside the data" if ends["inside_data"] else "beyond the data"
        text += f", and from about {size_text(ends['size'])} parameters on ({where}) the next doubling gains less than the noise floor"
    return text


def _falls(low: Mapping[str, Any], high: Mapping[str, Any]) -> bool:
    return bool(high["gain"] < low["gain"])


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
            f"At equal size {_effect(row)}, but how much of that is noise cannot be said: depth and width cannot be separated here, "
            "because every model was trained with one seed."
        )
    clear = [row for row in decided if row["p"] <= 0.05]
    row = max(clear or decided, key=lambda r: abs(r["delta"]))
    if not clear:
        return f"At equal size depth against width makes no difference larger than noise in {_times(decided)}: at most, {_effect(row)}."
    return (
        f"At equal size depth against width matters in {len(clear)} of {_times(decided)}: most of all, {_effect(row)}, {row['verdict']}, "
        f"{_against_doubling(row, tree)}."
    )


def _times(rows: Sequence[Any]) -> str:
    return count(len(rows), "comparison")


def _effect(row: Mapping[str, Any]) -> str:
    """8 layers of width 64 acts like ... than the width sweep at its size."""
    label, _, than = str(row["name"]).partition(" vs ")
    other = f"the {than.removesuffix(' curve')} sweep at its size" if than.endswith(" curve") else in_words(than)
    block = dict(row)
    ratio = row["parameter_equivalent"]
    return f"{in_words(label)} {acts_like(ratio)}{interval_text(block)} {than_word(ratio)} {other} ({nats_text(block)})"


def _against_doubling(row: Mapping[str, Any], tree: Tree) -> str:
    """The effect beside what a doubling of parameters buys."""
    gain = tree["fits"][tree["primary_fit"]]["slope"]["gain_per_doubling"]["value"]
    if gain <= 0:
        return "while doubling the parameters buys nothing"
    return f"against {gain:.3f} nats for a doubling of the parameters"


def _cannot_separate(tree: Tree) -> str:
    varied = [s for s in tree["sweeps"] if s["factor"] in ("n_layer", "n_embd") and len(s["levels"]) > 1]
    if not varied:
        return "Depth and width cannot be separated here, because neither was varied by itself."
    found = "; ".join(_raw(sweep) for sweep in varied)
    why = "each changes the size with it and no models of equal size differ in shape"
    if len(varied) == 1:
        why = f"only {NAMES[varied[0]['factor']]} varies and it changes the size with it"
    return f"Depth and width cannot be separated here, because {why} ({found}); add shapes of equal size."


def _raw(sweep: Mapping[str, Any]) -> str:
    """Raw spread of a sweep, which mixes size with shape."""
    low, high = sweep["levels"][0], sweep["levels"][-1]
    change = high["mean"] - low["mean"]
    return f"from {sweep['word']} {low['value']} to {high['value']} loss changes by {change:+.3f} nats, {sweep['verdict']}"


# ---- heads ----


def heads(tree: Tree) -> str:
    """Effect of heads at equal size on loss and on time per step."""
    sweep = next((s for s in tree["sweeps"] if s["factor"] == "n_head" and len(s["levels"]) > 1), None)
    if sweep is None:
        return "The number of heads was not varied by itself, so nothing is said about heads."
    few, many = sweep["levels"][0], sweep["levels"][-1]
    structure = tree["structure"]
    rows = [] if is_refused(structure) else [r for r in structure["contrasts"] if r["kind"] == "heads"]
    text = f"Going from {few['value']} to {many['value']} heads at the same size changes loss by "
    if rows:
        row = dict(rows[0])
        text += f"{nats_text(row)} ({row['verdict']}), as if it had {_worth(row)}"
    else:
        text += f"{many['mean'] - few['mean']:+.4f} nats ({sweep['verdict']})"
    return f"{text}, and {_slowdown(tree)}."


def _worth(row: Mapping[str, Any]) -> str:
    return acts_like(row["parameter_equivalent"]).removeprefix("acts like one with ").replace("as many", "no more and no fewer")


def _slowdown(tree: Tree) -> str:
    found = tree["timing"]["heads_slowdown"]
    if is_refused(found):
        return f"its cost in time is not reported: {found['refused']['reason']}"
    interval = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"a step takes {found['ratio']:.2f} times as long{interval}"


# ---- words ----


def size_text(n: float) -> str:
    """128 thousand, 4.7 million: three significant digits for people."""
    for unit, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if n >= unit:
            return f"{n / unit:.3g} {word}"
    return f"{n:.3g}"


def _ends(cell: Mapping[str, Any]) -> str:
    if cell.get("low") is None or cell.get("high") is None:
        return ""
    return f" [{cell['low']:.3f}, {cell['high']:.3f}]"
