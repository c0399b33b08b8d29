"""How effects are said in words: shapes, parameter-equivalents, differences of loss, probabilities. Pure functions of numbers.

effect_text(block, "one with 1 head")   # "acts like one with 1 head and 38 % more parameters (11 % to 71 % more)"
"""

import re
from collections.abc import Mapping
from typing import Any

WIDEST = 30.0
"""A parameter-equivalent beyond this factor, either way, says only that the sizes of the study do not reach so far."""
SAME = 0.005
"""Parameter-equivalents this near to 1 are "as many"."""


def count(n: Any, noun: str) -> str:
    """1 head, 8 heads."""
    return f"{n} {noun}{'' if str(n) == '1' else 's'}"


def in_words(label: str) -> str:
    """12x256 -> "a model of 12 layers and width 256"; 2x64h8 -> "a model of 2 layers and width 64 with 8 heads"."""
    depth, _, rest = label.partition("x")
    width, _, heads = rest.partition("h")
    return f"a model of {count(depth, 'layer')} and width {width}" + (f" with {count(heads, 'head')}" if heads else "")


def contrast_label(name: str) -> str:
    """The name of a contrast for tables and axes: "1x64h8 vs width curve" -> "1 × 64, 8 heads vs width curve"."""
    return re.sub(r"(?<=\d)x(\d+)(?:h(\d+))?", lambda m: f" \u00d7 {m[1]}" + (f", {count(m[2], 'head')}" if m[2] else ""), name)


def p_text(p: float) -> str:
    """p = 0.012, p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


# ---- parameter-equivalents ----


def effect_text(block: Mapping[str, Any], other: str) -> str:
    """What a shape acts like: `other` with more or fewer parameters, with the interval, or that this is not determined."""
    low, high = block["pe_low"], block["pe_high"]
    start = f"acts like {other} {'and' if ' with ' in other else 'with'}"
    unbounded = low is not None and high is not None and low < 1 / WIDEST and high > WIDEST
    if unbounded or block["parameter_equivalent"] is None:
        return f"{start} a number of parameters that the data do not determine"
    return f"{start} {parameters_text(block['parameter_equivalent'])} parameters{equivalent_interval(low, high)}"


def parameters_text(ratio: float | None) -> str:
    """0.85 -> "15 % fewer", 1.4 -> "40 % more", 24 -> "24 times as many"; None -> "an unknown number of"."""
    if ratio is None:
        return "an unknown number of"
    if abs(ratio - 1) < SAME:
        return "as many"
    if ratio < 1 / WIDEST:
        return f"less than 1/{WIDEST:.0f} of the"
    if ratio < 1:
        return f"{100 * (1 - ratio):.0f} % fewer"
    if ratio < 2:
        return f"{100 * (ratio - 1):.0f} % more"
    return f"more than {WIDEST:.0f} times as many" if ratio > WIDEST else f"{ratio:.2g} times as many"


def equivalent_interval(low: float | None, high: float | None) -> str:
    """An interval of ratios in the words of `parameters_text`: " (6 % to 17 % fewer)", " (5 % fewer to 12 % more)", or nothing."""
    if low is None or high is None:
        return ""
    if high <= 1 - SAME and low >= 1 / WIDEST:
        return f" ({100 * (1 - high):.0f} % to {100 * (1 - low):.0f} % fewer)"
    if low >= 1 + SAME and high < 2:
        return f" ({100 * (low - 1):.0f} % to {100 * (high - 1):.0f} % more)"
    if low < 1 / WIDEST:
        return f" (at most {parameters_text(high)}, open below)"
    if high > WIDEST:
        return f" (at least {parameters_text(low)}, open above)"
    return f" ({parameters_text(low)} to {parameters_text(high)})"


# ---- losses ----


def nats_text(block: Mapping[str, Any]) -> str:
    """The difference of loss with its interval: "+0.0154 nats [+0.0080, +0.0228]"."""
    ends = "" if block["low"] is None else f" [{block['low']:+.4f}, {block['high']:+.4f}]"
    return f"{block['delta']:+.4f} nats{ends}"


def signed(value: float) -> str:
    """Three decimals with a sign: "+0.027", "-0.151"; a zero has none."""
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text


def change_text(change: float, low: float | None, high: float | None) -> str:
    """A change of loss as a verb: "lowers loss by 0.052 nats (0.018 to 0.086)"; the interval is in the verb's direction."""
    verb, sign = ("lowers", -1.0) if change < 0 else ("raises", 1.0)
    ends = "" if low is None or high is None else reach_text(min(sign * low, sign * high), max(sign * low, sign * high))
    return f"{verb} loss by {abs(change):.3f} nats{ends}"


def reach_text(low: float | None, high: float | None, level: str = "") -> str:
    """An interval in words, open ends named: " (0.018 to 0.086)", " (at most 0.164)"; nothing where there is none.

    Args:
        level: words before the ends, such as "95 % interval ".
    """
    if low is None and high is None:
        return ""
    if low is None:
        return f" ({level}at most {_plain(high)}, open below)"
    if high is None:
        return f" ({level}at least {_plain(low)}, open above)"
    return f" ({level}{_plain(low)} to {_plain(high)})"


def _plain(value: float | None) -> str:
    """Three decimals, and no zero with a minus sign."""
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text
