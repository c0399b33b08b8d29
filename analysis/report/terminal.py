"""The printed summary of a study's conclusions: plain text in blocks, every number from the tree of fits.json.

print(summary.text(conclusions))
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import is_refused
from analysis.wording import count

WIDTH = 120
Tree = Mapping[str, Any]


def text(tree: Tree) -> str:
    """All blocks that have something to say, separated by blank lines."""
    blocks = [_header(tree), _answer(tree), _noise(tree), _fit(tree), _sweeps(tree), _structure(tree), _checks(tree), _refusals(tree)]
    blocks += [_forecasts(tree), _excluded(tree)]
    return "\n\n".join(block for block in blocks if block)


def _block(title: str, lines: Sequence[str]) -> str:
    """A title and its lines, each wrapped with a hanging indent."""
    if not lines:
        return ""
    wrapped = [textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return "\n".join([title, *wrapped])


def _header(tree: Tree) -> str:
    counts = tree["counts"]
    fates = [f"{counts[k]} {k}" for k in ("completed", "stopped", "diverged", "failed", "interrupted", "stale") if counts[k]]
    lines = [
        tree["question"],
        f"{counts['trials']} trials ({', '.join(fates)}); {counts['usable']} used: {counts['configurations']} configurations, "
        f"{counts['seeds']} seeds, {counts['sizes']} sizes",
    ]
    return _block(f"Study {tree['study']}", lines)


def _answer(tree: Tree) -> str:
    return _block("Answer", [f"{i}. {sentence}" for i, sentence in enumerate(tree["answer"], 1)])


def _noise(tree: Tree) -> str:
    noise = tree["noise"]
    if is_refused(noise):
        return _block("Noise", [f"refused: {noise['refused']['reason']}"])
    paired = ", after what a seed does to all configurations alike" if noise["paired"] else ""
    return _block(
        "Noise",
        [
            f"seed sd {noise['seed_sd']:.4f} [{noise['low']:.4f}, {noise['high']:.4f}] nats ({noise['df']} degrees of freedom); "
            f"in comparisons {noise['difference_sd']:.4f}{paired}",
            f"two configurations of {noise['n_seeds']} seeds differ by more than noise from {noise['detectable']:.4f} nats on",
        ],
    )


def _fit(tree: Tree) -> str:
    fit = tree["fits"].get(tree["primary_fit"] or "")
    if fit is None:
        return ""
    slope = fit["slope"]
    lines = [
        f"{fit['title']}: {fit['law']}, {fit['equation']} ({fit['source']}), N = {fit['convention']}",
        f"{fit['n_configurations']} configurations, {fit['n_rows']} trials, {fit['n_sizes']} sizes over {fit['decades']:.2f} decades; "
        f"R2 {_number(fit['r2'])}, residual sd {_percent(fit['residual_sd'])} of loss",
        f"slope dlnL/dlnN {_cell(slope)} at N = {slope['at']:,.0f}",
    ]
    lines += [f"{name} {_cell(cell)}" for name, cell in fit["parameters"].items() if not is_refused(cell)]
    refused = [name for name, cell in fit["parameters"].items() if is_refused(cell)]
    if refused:
        lines.append(f"{', '.join(refused)} refused: {fit['parameters'][refused[0]]['refused']['reason']}")
    lines.append(
        f"{fit['status']}: scaled gradient {fit['gradient_norm']:.0e}, {fit['starts_agreeing']} of {fit['n_starts']} starts agree, "
        f"condition {_number(fit['condition'])}, {100 * fit['inlier_fraction']:.0f} % inliers"
    )
    if fit["disagreement"]:
        lines.append(fit["disagreement"])
    counted = [f"{row['convention'].removeprefix('params_')} {_number(row['slope'])}" for row in tree["conventions"]]
    return _block("Loss against parameters", [*lines, f"slope by how N is counted: {', '.join(counted)}"])


def _sweeps(tree: Tree) -> str:
    lines = []
    for sweep in tree["sweeps"]:
        lines.append(f"{sweep['name']}: {sweep['sentence']}")
        slope = sweep.get("slope")
        if slope:
            lines.append(f"  slope dlnL/dlnN {_cell(slope)}")
        end = sweep.get("unit_below_noise_from")
        if end:
            lines.append(
                f"  from {_level(end['value'], sweep['word'])} on, one more gains less than the noise floor of {end['noise']:.3f} nats"
            )
    return _block("Sweeps", lines)


def _structure(tree: Tree) -> str:
    structure = tree["structure"]
    if is_refused(structure):
        return _block("Size or shape", [f"refused: {structure['refused']['reason']}"])
    lines = [row["sentence"] for row in structure["contrasts"]]
    return _block("Size or shape", lines)


def _checks(tree: Tree) -> str:
    found = tree["diagnostics"]
    if is_refused(found):
        return ""
    lines = []
    if not is_refused(found["lack_of_fit"]):
        lines.append(found["lack_of_fit"]["sentence"])
    out = found["leave_largest_out"]
    if out:
        lines.append("each size forecast from the smaller ones: " + ", ".join(f"{row['error_percent']:+.1f} %" for row in out))
    lines += [f"{row['verdict']}" for row in found["trends"] if row["p"] < 0.05]
    if not is_refused(tree["overfitting"]):
        lines.append(tree["overfitting"]["sentence"])
    slowdown = tree["timing"]["heads_slowdown"]
    if not is_refused(slowdown):
        lines.append(slowdown["sentence"])
    return _block("Checks", lines)


def _refusals(tree: Tree) -> str:
    return _block("Refused", [f"{row['code']}: {row['reason']}" for row in tree["refusals"]])


def _forecasts(tree: Tree) -> str:
    lines = []
    for row in tree["forecasts"]:
        shape = row["configuration"]
        line = f"{shape['n_layer']}x{shape['n_embd']}h{shape['n_head']}: forecast {row['point']:.4f} "
        line += f"[{_number(row['low'])}, {_number(row['high'])}]"
        if row["outcome"]:
            inside = "inside" if row["outcome"]["covered"] else "outside"
            line += f", came out {row['outcome']['loss']:.4f} ({row['outcome']['error_percent']:+.2f} %, {inside} the interval)"
        lines.append(line)
    return _block("Forecasts", lines)


def _excluded(tree: Tree) -> str:
    kinds = Counter(row["reason"] for row in tree["exclusions"])
    lines = [f"{n} left out: {reason}" for reason, n in kinds.most_common(8)]
    if len(kinds) > 8:
        lines.append(f"... and {len(kinds) - 8} more reasons in fits.json")
    return _block("Left out", [*lines, *tree["problems"]])


# ---- numbers ----


def _level(value: float, word: str) -> str:
    """1 layer, 4 heads, width 64."""
    return count(f"{value:,}", word.removesuffix("s")) if word in ("layers", "heads") else f"{word} {value:,}"


def _number(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["low"] is None and cell["high"] is None:
        return f"{_number(cell['value'])} (no interval)"
    return f"{_number(cell['value'])} [{_number(cell['low'])}, {_number(cell['high'])}]"
