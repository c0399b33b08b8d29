"""The answer in three sentences, in words of the trade: what to train next, which shape wins at equal size, how far to trust it.

Reads the tree of fits.json alone; writes nothing (`python -m analysis` does). The schema of answer.json is small and stable:

    {schema_version, study, question, sentences, best, levers, law, trust, next}
    a lever: {factor: n_layer | n_embd | n_head | params | n_tokens, n_tokens, at: centre | largest,
              gain_per_doubling: {value, low, high, unit} or {refused: {code, reason}}, verdict, source: contrast | law}

    answer(tree)["sentences"]
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.estimate import Fits, is_refused, part_of, reason_of
from analysis.wording import FACTORS, change, in_epochs, in_words, interval, line, plain, sentence, several, short_shape, text_length

SCHEMA_VERSION = "1"
MINUS = "\u2212"
MOST_STEPS = 4
"""Steps of a sweep that a sentence names: the last ones."""
ALONG = {"n_embd": "width", "n_layer": "layers", "n_head": "heads"}
RULES = {
    "one": "one learning rate for all sizes",
    "by_size": "one learning-rate rule for all shapes",
    "mup": "one learning rate under muP",
    "completep": "one learning rate under CompleteP",
    "searched": "learning rates searched",
}


LEVER = ("factor", "n_tokens", "at", "gain_per_doubling", "verdict", "source")


def answer(tree: Fits) -> dict[str, Any]:
    """Everything that answer.json holds."""
    levers = [{key: row.get(key) for key in LEVER} | {"gain_per_doubling": _gain(row)} for row in tree.get("levers") or []]
    return {
        "schema_version": SCHEMA_VERSION,
        **{key: tree.get(key) for key in ("study", "question")},
        "sentences": sentences(tree),
        "best": tree.get("best"),
        "levers": levers,
        "law": _shape(tree).get("law") or tree.get("shape"),
        **{key: tree.get(key) for key in ("trust", "next")},
    }


def _gain(row: Fits) -> Any:
    gain = row["gain_per_doubling"]
    return gain if is_refused(gain) else {key: gain.get(key) for key in ("value", "low", "high", "unit")}


def _shape(tree: Fits) -> Fits:
    """What is known of shape: law, verdict, comparison at equal size."""
    return part_of(tree, "shape") or {}


def sentences(tree: Fits) -> list[str]:
    """Three sentences: recommendation, equal size, trust with the next command."""
    if not (tree.get("counts") or {}).get("usable"):
        return _nothing(tree)
    return [recommendation(tree), at_equal_size(tree), trust(tree)]


def _nothing(tree: Fits) -> list[str]:
    counts, exclusions = tree.get("counts") or {}, tree.get("exclusions") or []
    kinds = ("completed", "failed", "diverged", "stopped", "interrupted", "stale")
    fates = ", ".join(f"{counts[k]} {k}" for k in kinds if counts.get(k)) or "none finished"
    why = line(exclusions[0]["reason"]) if exclusions else "no reason recorded"
    return [
        f"None of the {plain(counts.get('trials'))} trials can be used ({fates}), so nothing can be recommended.",
        sentence(f"the first reason is: {why}"),
        "Run the same command again: what is done is kept, and what is missing is trained.",
    ]


# ---- 1: where the next parameters go ----


def recommendation(tree: Fits) -> str:
    """Where to put the next parameters, with the measured numbers, and the best model."""
    rows = _levers(tree)
    parts = [_measured(rows[name]) for name in ("n_embd", "n_layer") if name in rows]
    parts += [] if parts or "params" not in rows else [_measured(rows["params"])]
    text = rows.get("n_tokens")
    if text:
        until = f" to {text_length(text['n_tokens'])}" if text["n_tokens"] else ""
        parts.append(f"twice the text{until}: {change(text['gain_per_doubling'])}")
    told = f"{_advice(tree, rows)}{': ' if parts else ''}{'; '.join(parts)}"
    if best := part_of(tree, "best"):
        heads = f" with {in_words(best['n_head'], 'head')}" if best.get("n_head") else ""
        told += f"; best so far {short_shape(best)}{heads}: {interval(best, 'val_loss')} nats"
    return sentence(told)


def _known(tree: Fits) -> list[Fits]:
    return [row for row in tree.get("levers") or [] if not is_refused(row["gain_per_doubling"])]


def length_of(tree: Fits) -> int | None:
    """The training length that the answer speaks of: that of the shape block, else the longest with a lever."""
    known = [row["n_tokens"] for row in _known(tree) if row["n_tokens"]]
    own = _shape(tree).get("n_tokens")
    return own if own in known else max(known, default=None)


def _levers(tree: Fits) -> dict[str, Fits]:
    """Factor -> its measured lever of that length, at the centre, which comes first, where there is one."""
    n_tokens = length_of(tree)
    return {str(row["factor"]): row for row in reversed(_known(tree)) if row["n_tokens"] == n_tokens}


def direction(tree: Fits) -> str:
    """wide, deep, size_only, optimum or "": from the law, else the comparison at equal size, else the levers; never against one of them."""
    shape, rows = _shape(tree), _levers(tree)
    if shape.get("verdict") not in (None, "not_told"):
        return str(shape["verdict"])
    pays = [name for name in ("n_embd", "n_layer") if name in rows and rows[name]["verdict"] == "gain"]
    led = ("wide" if pays[0] == "n_embd" else "deep") if len(pays) == 1 and {"n_embd", "n_layer"} <= rows.keys() else ""
    won = _won(shape)
    return led if not won else won if led in ("", won) else ""


def _won(shape: Fits) -> str:
    """Whether the wide or the deep model won clearly at equal size, or ""."""
    equal = part_of(shape, "equal_size")
    if not equal or equal["difference"]["verdict"] != "gain":
        return ""
    winner, loser = (float(equal[end]["n_embd"]) / float(equal[end]["n_layer"]) for end in ("winner", "loser"))
    return "wide" if winner > loser else "deep"


def _advice(tree: Fits, rows: Mapping[str, Fits]) -> str:
    """The first words: what to do with the next parameters."""
    told, n_tokens = direction(tree), length_of(tree)
    at = f"at {text_length(n_tokens)} " if n_tokens else ""
    pays = {name: rows[name]["verdict"] == "gain" for name in ("n_embd", "n_layer") if name in rows}
    if told in ("wide", "deep"):
        first, second, other = ("wider", "deeper", "n_layer") if told == "wide" else ("deeper", "wider", "n_embd")
        return f"{at}go {first}{' rather than' if pays.get(other) else ', not'} {second}"
    if told == "size_only":
        return f"{at}take whichever shape is fastest: size counts and shape does not"
    optimum = part_of(_shape(tree).get("law"), "optimum")
    if told == "optimum" and optimum:
        return f"{at}grow both and keep width over depth near {interval(optimum)}"
    known = [name for name, paid in pays.items() if paid]
    if len(known) == 2:
        return f"{at}both width and depth pay, and which is worth more per parameter is unclear"
    if known:
        other = {"n_embd": "depth", "n_layer": "width"}[known[0]]
        tail = f"what {other} does is unclear" if len(pays) == 2 else f"{other} was not varied by itself"
        return f"{at}{ALONG[known[0]].replace('layers', 'depth')} pays; {tail}"
    others = [
        word for name, word in (("params", "more parameters"), ("n_tokens", "more text")) if rows.get(name, {}).get("verdict") == "gain"
    ]
    if others and not pays:
        return f"{at}{' and '.join(others)} {'pays' if others == ['more text'] else 'pay'}"
    return f"{at}nothing that was varied buys more than can be told from noise"


def _measured(row: Fits) -> str:
    """'width 16 to 32: −0.27, 32 to 64: −0.20 nats [−0.22, −0.18]', or the law's doubling where no pair says it."""
    name = FACTORS.get(str(row["factor"]), str(row["factor"]))
    steps = [(f"{plain(int(s['from']))} to {plain(int(s['to']))}", s["gain"]) for s in (row.get("steps") or [])[-MOST_STEPS:]]
    unless_told = {"gain": "", "loss": ", no gain yet"}.get(str(row["verdict"]), ", unclear")
    if row["source"] == "law" or not steps:
        how = " by the law" if row["source"] == "law" else ""
        return f"twice the {name}{how}: {change(row['gain_per_doubling'])}{unless_told}"
    walk = [f"{step}: {change(gain, '', ends=False)}" for step, gain in steps[:-1]]
    last, gain = steps[-1]
    return f"{ALONG.get(str(row['factor']), name)} {', '.join([*walk, f'{last}: {change(gain)}'])}{unless_told}"


# ---- 2: which shape wins ----


def at_equal_size(tree: Fits) -> str:
    """Which shape wins at equal size, by how much, what that is worth; or which study would tell. Without shapes: how to split compute."""
    shape = _shape(tree)
    equal = part_of(shape, "equal_size")
    compute_optimal = part_of(tree, "compute_optimal")
    if equal is None and compute_optimal and (part_of(tree, "best") or {}).get("n_layer") is None:
        return sentence(f"for the least loss at a given compute, parameters grow as compute to the power {interval(compute_optimal)}")
    if equal is None:
        return sentence(
            f"at equal size nothing was compared: {reason_of(shape.get('equal_size')) or 'no shapes of equal size were trained'}"
        )
    winner, loser, found, law = short_shape(equal["winner"]), short_shape(equal["loser"]), equal["difference"], _law_says(shape)
    where = f"at nearly equal size, {text_length(equal['n_tokens'])}"
    if found["verdict"] == "within_noise":
        return sentence(f"{where}, {winner} and {loser} do not differ by more than noise ({change(found)}){law}")
    if found["verdict"] != "gain":
        size = change(found).lstrip(MINUS + "+")
        return sentence(f"{where}, {winner} and {loser} differ by {size}, which one seed cannot tell from noise{law}")
    ratio, worth = equal.get("noise_ratio") or 0.0, part_of(equal, "worth_in_parameters")
    times = f", {in_words(round(ratio))} times the noise" if ratio >= 1.5 else ""
    value = f", worth {interval(worth)} times the parameters" if worth else ""
    return sentence(f"{where}, {winner} beats {loser} by {interval(found)} nats{times}{value}{law}")


def _law_says(shape: Fits) -> str:
    """What the law says of all shapes, where it says something, and whether the pair at equal size goes against it."""
    law, verdict = part_of(shape, "law") or {}, str(shape.get("verdict"))
    said = {"wide": "wide beats deep", "deep": "deep beats wide", "size_only": "shape does not matter"}.get(verdict)
    against = ", which this pair goes against" if _won(shape) not in ("", verdict) else ""
    return f"; over all {plain(law.get('n_configurations'))} configurations {said} at equal size{against}" if said else ""


# ---- 3: how far to trust it ----


def trust(tree: Fits) -> str:
    """Seeds, learning-rate rule, epochs, how steeply losses still fall, what lies far off, the law's misfit, and the next command."""
    told = part_of(tree, "trust") or {}
    asked = (part_of(tree, "next") or {}).get("why")
    parts = [
        in_words(int(told["seeds"]), "seed") if told.get("seeds") else "",
        RULES.get(str(told.get("lr_rule")), ""),
        in_epochs(told["epochs"]) if told.get("epochs") else "",
    ]
    steep = ""
    if falling := part_of(told, "still_falling"):
        how = "loss still falls" if falling.get("method") == "lengths" else "every curve still falls"
        ranking = ": longer training may change the ranking" if told.get("falls_fast") and asked != "longer" else ""
        steep = f"{how} by {interval(falling)} nats per doubling of text{ranking}"
    misfit = f"the law misses by {plain(100 * told['misfit'], 2)} %" if told.get("misfit") else ""
    return sentence(_joined("; ", _joined(", ", *parts), steep, _twice(tree), misfit, _outliers(tree, told), _next(tree)))


def _joined(mark: str, *clauses: str) -> str:
    return mark.join(clause for clause in clauses if clause)


def _twice(tree: Fits) -> str:
    """What the best model is forecast to reach on twice its text, where a law of length forecast its lengths before."""
    best = part_of(tree, "best") or {}
    rows = (part_of(tree, "length_law") or {}).get("twice") or []
    own = next((row for row in rows if row["config_id"] == best.get("config_id") and row["forecast"]["low"] is not None), None)
    return f"on twice its text {short_shape(own)} would reach {interval(own['forecast'])}" if own else ""


def _outliers(tree: Fits, told: Fits) -> str:
    rows = told.get("outliers") or []
    if not rows:
        return ""
    row, shapes = rows[0], {level.get("config_id"): level for sweep in tree.get("sweeps") or [] for level in sweep.get("levels") or []}
    shape = shapes.get(row["config_id"])
    name = short_shape(shape) if shape else "one configuration"
    what = f"seed {row['seed']} of {name}" if row.get("seed") is not None else name
    more = f", and {in_words(len(rows) - 1)} more" if len(rows) > 1 else ""
    return f"{what} lies {abs(100 * row['deviation']):.0f} % {'above' if row['deviation'] > 0 else 'below'} what all others predict{more}"


def scored(forecasts: Sequence[Fits]) -> str:
    """How many forecasts are on record, have an outcome, and were right."""
    known = [row["outcome"] for row in forecasts if row.get("outcome") and row["outcome"].get("counted", True)]
    hit = sum(bool(outcome["covered"]) for outcome in known)
    return f"{several(len(forecasts), 'forecast')} on record, {len(known)} with an outcome, {hit} of them inside the 95 % interval."


NEXT = {
    "seeds": "more seeds would tell noise from effect",
    "equal_size": "shapes of equal size would tell shape from size",
    "longer": "longer training may change the ranking",
    "next_size": "the next size would show whether this holds",
}
"""Why a step is the next one."""


def _next(tree: Fits) -> str:
    """Why, the command where there is one, and its minutes where they are known."""
    block = part_of(tree, "next") or {}
    why = NEXT.get(str(block.get("why")), "")
    if not block.get("command"):
        return why
    cost = f", {plain(block['seconds'] / 60, 2)} min" if block.get("seconds") else ""
    return f"{why or 'next'}: `{line(block['command'])}`{cost}"
