"""Numbers and names as readers see them, and text from outside as text: the only formatter of page, terminal and figures.

spanned({"value": 0.341, "low": 0.291, "high": 0.409})   # '0.341 [0.291, 0.409]'
change({"value": 0.17, "low": 0.14, "high": 0.19})       # '−0.17 nats [−0.19, −0.14]'
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.estimate import value_of

CONVENTIONS = {
    "params_non_embedding": "non-embedding parameters",
    "params_total": "total parameters",
    "params_blocks": "parameters of the blocks",
}
"""Ways to count N."""
FACTORS = {"n_layer": "depth", "n_embd": "width", "n_head": "heads", "params": "parameters", "n_tokens": "text"}
"""Levers by their name in fits.json."""
VERDICTS = {
    "gain": "pays", "loss": "costs", "within_noise": "within noise", "differ": "differ", "not_told": "unclear", "refused": "not measured",
}  # fmt: skip
"""A lever's verdict in words of the trade; "within noise" is said of differences of configurations only."""
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


# ---- text from outside ----


def visible(text: Any) -> str:
    """Text in which nothing acts: control characters become their pictures (ESC is shown as one sign), bidi overrides their code.

    Line feeds stay; carriage returns before them are dropped. HTML and Markdown are not touched: their renderers escape them.
    """
    return "".join(_shown(c) for c in str(text).replace("\r\n", "\n"))


def line(text: Any) -> str:
    """`visible` on one line, for a terminal."""
    return " ".join(visible(text).split())


def _shown(character: str) -> str:
    if character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    if character == "\t":
        return "    "
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"<U+{code:04X}>"


# ---- numbers ----


def short_count(value: float, _: object = None) -> str:
    """1234567 -> '1.23M': three significant digits and a suffix."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def decimals_for(low: float, high: float, digits: int = 1, fewest: int = 2, most: int = 4) -> int:
    """Decimals that show half the width of an interval with so many significant digits."""
    return int(np.clip(digits - 1 - np.floor(np.log10((high - low) / 2)), fewest, most)) if high > low else 4


def fixed(value: float, places: int, sign: str = "") -> str:
    """A fixed number of decimals, a real minus sign, and no zero with a sign.

    Args:
        sign: "+" to show that of positive numbers too.
    """
    text = f"{value:{sign}.{places}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "\u2212")


def plain(value: Any, digits: int = 4) -> str:
    """A value without an interval: four significant digits, whole numbers with separators, an en dash for nothing."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**12:
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    if not isinstance(value, int | float):
        return visible(value)
    value = float(value)
    if 1000 <= abs(value) < 1e12:
        return f"{float(f'{value:.{max(digits, 4)}g}'):,.0f}".replace("-", "\u2212")
    text = re.sub(r"e([+-])0*(\d+)", lambda m: f" \u00d7 10^{m.group(1).strip('+')}{m.group(2)}", f"{value:.{digits}g}")
    return text.replace("-", "\u2212")


def spanned(block: Mapping[str, Any], name: str = "value") -> str:
    """'0.34 [0.29, 0.41]': value, low and high with as many decimals as the interval supports; an open end is named."""
    value, low, high = value_of(block.get(name)), block.get("low"), block.get("high")
    if value is None or low == high:
        return plain(value)
    if low is None or high is None or not np.isfinite([low, high]).all():
        above, below = (end is not None and bool(np.isfinite(end)) for end in (low, high))
        end = f"at least {plain(low, 3)}" if above else f"at most {plain(high, 3)}" if below else "not determined"
        return f"{plain(value, 3)} [{end}]"
    places = decimals_for(low, high, 2, 0, 5)
    return f"{fixed(value, places)} [{fixed(low, places)}, {fixed(high, places)}]"


def change(gain: Mapping[str, Any], unit: str = " nats", ends: bool = True) -> str:
    """A gain as the change of loss that it is: a gain of 0.17 is '−0.17 nats [−0.19, −0.14]', without its ends '−0.17 nats'."""
    value, low, high = (value_of(gain.get(key)) for key in ("value", "low", "high"))
    assert value is not None
    if low is None or high is None:
        return f"{fixed(-value, 2 if abs(value) >= 0.095 else 3, '+')}{unit}"
    places = decimals_for(low, high)
    between = f" [{fixed(-high, places, '+')}, {fixed(-low, places, '+')}]" if ends else ""
    return f"{fixed(-value, places, '+')}{unit}{between}"


def interval(block: Mapping[str, Any], name: str = "value") -> str:
    """'1.234 nats [1.21, 1.26]' in the digits of a sentence."""
    value, low, high = (value_of(block.get(key)) for key in (name, "low", "high"))
    if value is None or low is None or high is None:
        return plain(value, 3)
    places = decimals_for(low, high)
    return f"{fixed(value, places)} [{fixed(low, places)}, {fixed(high, places)}]"


# ---- names ----


def at_most(items: list[Any], most: int) -> list[Any]:
    """The first, the last, and evenly between: what a reader can look at of many."""
    return items if len(items) <= most else [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def several(count: Any, noun: str, number: str = "") -> str:
    """'1 seed', '3 seeds'; the number may be written otherwise."""
    number = number or plain(count)
    return f"{number} {noun}{'' if number in ('1', 'one') else 's'}"


def in_words(count: int, noun: str = "") -> str:
    """'three seeds'; beyond twelve in digits."""
    number = _NUMBERS[count] if 0 <= count < len(_NUMBERS) else f"{count:,}"
    return several(count, noun, number) if noun else number


def in_epochs(epochs: float) -> str:
    """'0.19 epochs', '1 epoch'."""
    return several(epochs, "epoch", plain(epochs, 2))


def text_length(n_tokens: float | None) -> str:
    """'768k tokens'; a token is a character where the text is read in characters."""
    return f"{short_count(float(n_tokens))} tokens" if n_tokens else "unknown length"


def short_shape(row: Mapping[str, Any]) -> str:
    """'2x96', as the trade writes it; a model whose shape is not known by its size."""
    if row.get("n_layer") is None or row.get("n_embd") is None:
        return f"{short_count(float(row['params_non_embedding']))} parameters"
    return f"{row['n_layer']}x{row['n_embd']}"


def shape_name(row: Mapping[str, Any]) -> str:
    """'6 × 256, 8 heads', on one line."""
    return f"{plain(row.get('n_layer'))} × {plain(row.get('n_embd'))}, {several(row.get('n_head'), 'head')}".replace(" ", "\u00a0")


def sentence(text: Any) -> str:
    """Words as a sentence: a capital at the start, a full stop at the end."""
    words = str(text or "").strip()
    return words and words[0].upper() + words[1:] + ("" if words[-1] in ".!?" else ".")


def equation(text: str, reference: Mapping[str, Any] | None = None) -> str:
    """An equation that can be used as it is printed: Greek letters, and each variable over the reference at which amplitudes hold."""
    for name, value in (reference or {}).items():
        letter = {"params_non_embedding": "N", "params_total": "N", "params_blocks": "N", "n_tokens": "D"}.get(name, name)
        text = re.sub(rf"\b{letter}(?=\^)", f"({letter}/{short_count(float(value))})", text)
    for name, sign in (("alpha", "α"), ("beta", "β"), ("gamma", "γ"), ("kappa", "κ"), ("^-", "^−"), ("*", "·")):
        text = text.replace(name, sign)
    return text
