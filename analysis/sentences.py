"""The answer in a few sentences: what parameters buy, what text or context buy where they were varied, what shape does at a given size.

Plain English for a student, each sentence with its number, interval and verdict, or with the reason why there is none. Everything is read
from the tree of fits.json, so that the sentences and the report cannot differ.

    tree["answer"] = answer.sentences(tree)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import is_refused
from analysis.findings.one_factor import NAMES
from analysis.findings.size_law import AT_LENGTH
from analysis.wording import change_text, count, effect_text, in_words, p_text, parameters_text, reach_text, signed

Tree = Mapping[str, Any]
UNSEEN = 0.0005
"""Nats: a smaller gain is printed as 0.000, which is no gain to speak of in either direction."""


def sentences(tree: Tree) -> list[str]:
    """Three sentences, and one more for each field of the recipe that was varied."""
    if not tree["counts"]["usable"]:
        return _nothing(tree["counts"], tree["exclusions"])
    axes = [str(sweep["sentence"]) for sweep in tree["sweeps"] if sweep.get("axis")]
    shape = [depth_and_width(tree), heads(tree)]
    # A study of text or context that varied no shape by itself is not asked about shapes.
    return [parameters(tree), *axes, *(shape if not axes or _varied(tree) else [])]


def _varied(tree: Tree) -> list[Any]:
    """Sweeps of depth, width or heads alone."""
    return [s for s in tree["sweeps"] if s["factor"] in NAMES and len(s["levels"]) > 1]


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
    counts, (fit, among) = tree["counts"], _fit_with_interval(tree)
    if fit is None:
        only = tree["sweeps"][0]["levels"][0] if tree["sweeps"] else None
        where = f" ({only['params_non_embedding']:,} non-embedding parameters, mean loss {only['mean']:.3f} nats)" if only else ""
        return f"{count(counts['usable'], 'usable trial')} of one size{where}: the study does not say what more parameters buy."
    slope, gain = fit["slope"], fit["slope"]["gain_per_doubling"]
    verb, sign = ("lowers", 1.0) if gain["value"] >= 0 else ("raises", -1.0)
    low, high = (gain["low"], gain["high"]) if sign > 0 else (_negated(gain["high"]), _negated(gain["low"]))
    what = f"{verb} validation loss by {abs(gain['value']):.3f} nats{reach_text(low, high, '95 % interval ')}"
    if abs(gain["value"]) < UNSEEN:
        what = f"changes validation loss by less than 0.001 nats{reach_text(gain['low'], gain['high'], '95 % interval of what it saves ')}"
    seen = _seen_in_sweeps(tree)
    if seen:
        verdict = _gain_verdict(slope, tree["noise"])
        return f"{seen}; over all sizes a doubling of the parameters {what.replace('validation loss', 'it')}, {verdict}{_falling(tree)}."
    return f"Doubling the parameters{among} {what}, {_gain_verdict(slope, tree['noise'])}{'' if among else _diminishing(tree)}."


def _fit_with_interval(tree: Tree) -> tuple[Any, str]:
    """The joint fit; where branches of shared runs leave it without intervals, that of the longest runs, and which these are."""
    fits = tree["fits"]
    joint = fits.get(tree["primary_fit"] or "")
    lengths = {int(name.removeprefix(AT_LENGTH)): fit for name, fit in fits.items() if name.startswith(AT_LENGTH)}
    if joint is None or not lengths or joint["slope"]["low"] is not None:
        return joint, ""
    longest = max(lengths)
    return lengths[longest], f" of models trained on {longest:,} tokens"


def _seen_in_sweeps(tree: Tree) -> str:
    """What each sweep of width or depth did from end to end: observed means with the interval of their difference, no curve in between."""
    varied = [s for s in tree.get("sweeps", []) if s["factor"] in ("n_embd", "n_layer") and len(s["levels"]) > 1]
    if is_refused(tree["noise"]) or len(varied) < 2:  # one sweep is its own curve
        return ""
    parts = [_end_to_end(sweep, tree["noise"]["detectable"]) for sweep in sorted(varied, key=_change)]
    if parts[0].endswith("within noise"):
        parts[0] = parts[0].replace("it stays", "loss stays")
    return f"From {', from '.join(parts)}"


def _change(sweep: Mapping[str, Any]) -> float:
    return float(sweep["levels"][-1]["mean"] - sweep["levels"][0]["mean"])


def _end_to_end(sweep: Mapping[str, Any], margin: float) -> str:
    first, last, change = sweep["levels"][0]["value"], sweep["levels"][-1]["value"], _change(sweep)
    ends = f"{first} to {last} layers" if sweep["factor"] == "n_layer" else f"width {first} to {last}"
    if abs(change) <= margin:
        return f"{ends} it stays within noise"
    reach = f"{abs(change) - margin:.3f} to {abs(change) + margin:.3f}"
    return f"{ends} loss {'falls' if change < 0 else 'rises'} by {abs(change):.3f} nats ({reach})"


def _falling(tree: Tree) -> str:
    """The gain of the doubling at either end of the data."""
    returns = tree["returns"]
    if is_refused(returns) or max(abs(returns[end]["gain"]) for end in ("smallest", "largest")) < UNSEEN:
        return ""
    return f", going from {returns['smallest']['gain']:.3f} to {returns['largest']['gain']:.3f} across the data"


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def _gain_verdict(slope: Mapping[str, Any], noise: Mapping[str, Any]) -> str:
    gain = slope["gain_per_doubling"]
    if gain["low"] is None and gain["high"] is None:
        return f"without an interval ({slope['method'].removeprefix('none: ')})"
    if gain["low"] is None or gain["high"] is None or gain["low"] <= 0 <= gain["high"]:
        return "so not even the sign is settled"
    if is_refused(noise):
        return "clear of the scatter around the curve (the noise between seeds was not measured)"
    side = "above" if gain["low"] > noise["detectable"] else "not clearly above"
    return f"{side} the noise floor of {noise['detectable']:.3f}"


def _diminishing(tree: Tree) -> str:
    """The doubling at either end of the data, and whether either is clear of zero."""
    returns = tree["returns"]
    if is_refused(returns):
        return ""
    low, high = returns["smallest"], returns["largest"]
    change = "falls" if high["gain"] < low["gain"] else "changes"
    text = f"; the gain {change} from {low['gain']:.3f} nats for the first doubling in the data to {high['gain']:.3f} for the last"
    unclear = [name for name, cell in (("first", low), ("last", high)) if cell["low"] is None or cell["low"] <= 0]
    return text + {0: "", 1: f", the {unclear[0]} not clear of zero" if unclear else "", 2: ", neither clear of zero"}[len(unclear)]


# ---- depth and width at a given size ----


def depth_and_width(tree: Tree) -> str:
    """Shape effects at equal size as parameter-equivalents, or why they cannot be separated."""
    structure = tree["structure"]
    if is_refused(structure):
        return f"Depth and width cannot be separated here: {structure['refused']['reason']}."
    rows = [row for row in structure["contrasts"] if row["kind"] in ("curve", "matched") and not _heads_only(row)]
    if not rows:
        return _cannot_separate(tree)
    decided = [row for row in rows if row["p"] is not None]
    if not decided:
        row = max(rows, key=lambda r: abs(r["delta"]))
        return f"At equal size {_effect(row)}, but with one seed this cannot be told from noise: depth and width cannot be separated here."
    clear = [row for row in decided if row["p_adjusted"] <= 0.05]
    row = max(clear or decided, key=lambda r: abs(r["delta"]))
    if not clear:
        return f"At equal size depth against width makes no difference larger than noise in {_times(decided)}: at most, {_effect(row)}."
    most = f"{_effect(row)} ({p_text(row['p_adjusted'])})"
    return f"At equal size depth against width matters in {len(clear)} of {_times(decided)}: most of all, {most}."


def _times(rows: Sequence[Any]) -> str:
    return count(len(rows), "comparison")


def _effect(row: Mapping[str, Any]) -> str:
    """A model of 8 layers and width 64 acts like one of the width sweep with 12 % fewer parameters, 0.015 nats worse."""
    label, _, than = str(row["name"]).partition(" vs ")
    other = f"one of the {than.removesuffix(' curve')} sweep" if than.endswith(" curve") else in_words(than)
    worse = f"{abs(row['delta']):.3f} nats {'worse' if row['delta'] > 0 else 'better'}"
    return f"{in_words(label)} {effect_text(row, other)}, {worse}"


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
    return f"from {sweep['word']} {low['value']} to {high['value']} loss changes by {signed(change)} nats, {sweep['verdict']}"


# ---- heads ----


def heads(tree: Tree) -> str:
    """Effect of heads at equal size on loss and on time per step."""
    sweep = next((s for s in tree["sweeps"] if s["factor"] == "n_head" and len(s["levels"]) > 1), None)
    if sweep is None:
        return _heads_of_equal_shapes(tree)
    few, many = sweep["levels"][0], sweep["levels"][-1]
    structure = tree["structure"]
    rows = [] if is_refused(structure) else [r for r in structure["contrasts"] if r["kind"] == "heads"]
    start = f"Going from {few['value']} to {many['value']} heads at equal size"
    text = f"{start} {_heads_effect(rows[0]) if rows else _raw_effect(few, many, sweep['verdict'])}{_slowdown(tree)}."
    return f"{text} {_heads_of_equal_shapes(tree)}" if _heads_alone(tree) else text


def _heads_of_equal_shapes(tree: Tree) -> str:
    """What contrasts between models of one depth and width and different heads say, where no sweep varies the heads."""
    rows = _heads_alone(tree)
    if not rows:
        return "The number of heads was not varied by itself, so nothing is said about heads."
    clear = sum(row["p_adjusted"] <= 0.05 for row in rows)
    most = max(abs(row["delta"]) for row in rows)
    return (
        f"Other heads at equal depth and width differ by more than noise in {clear} of {_times(rows)}, by {most:.3f} nats at most; their "
        "cost in time was not compared."
    )


def _heads_alone(tree: Tree) -> list[Any]:
    """Contrasts of a sweep of equal sizes between models of one depth and width."""
    structure = tree["structure"]
    rows = [] if is_refused(structure) else [r for r in structure["contrasts"] if r["kind"] == "matched" and r["p"] is not None]
    return [row for row in rows if _heads_only(row)]


def _heads_only(row: Mapping[str, Any]) -> bool:
    """Whether the two models of a contrast, named LAYERSxWIDTHhHEADS, have one depth and one width."""
    return len({label.partition("h")[0] for label in str(row["name"]).split(" vs ")}) == 1


def _heads_effect(row: Mapping[str, Any]) -> str:
    if str(row["verdict"]).startswith("within noise"):
        return f"changes loss by {signed(row['delta'])} nats ({signed(row['low'])} to {signed(row['high'])}), within noise"
    worth = f"as {parameters_text(row['parameter_equivalent'])} parameters would"
    return f"{change_text(row['delta'], row['low'], row['high'])}, {worth} ({row['verdict']})"


def _raw_effect(few: Mapping[str, Any], many: Mapping[str, Any], verdict: str) -> str:
    return f"changes loss by {signed(many['mean'] - few['mean'])} nats ({verdict})"


def _slowdown(tree: Tree) -> str:
    found = tree["timing"]["heads_slowdown"]
    if is_refused(found):
        shared = found["refused"]["code"] == "timing_not_exclusive"
        return "; its cost in time is unknown" + (", because the trials shared their device" if shared else "")
    interval = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"; a step takes {found['ratio']:.2f} times as long{interval}"
