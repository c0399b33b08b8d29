"""Texts of a grammar taken apart again by trying all choices: what the sampled probabilities are held to."""

import math
from collections.abc import Iterator

from study.stories.grammar import Choice, Derivation, Draw, Expand, Facts, Grammar, Part

Step = tuple[str, tuple[Choice, ...], Facts]
"""What a part adds to the text, the choices made so far, what is remembered then."""


def derivations(grammar: Grammar, text: str | None = None) -> Iterator[Derivation]:
    """Every way to make `text`; without one, every derivation of a grammar without recursion."""
    stack: list[tuple[str, tuple[Part, ...], tuple[Choice, ...], Facts]] = [("", (Expand(grammar.start),), (), {})]
    while stack:
        made, todo, choices, facts = stack.pop()
        if not todo:
            if text in (None, made):
                yield Derivation(made, choices, facts)
            continue
        part, rest = todo[0], todo[1:]
        if isinstance(part, Expand):
            rule = grammar.rules[part.rule]
            chosen = [(*choices, Choice(part.rule, i, log_p)) for i, log_p in enumerate(rule.table.log_p)]
            stack += [(made, (*template, *rest), own, facts) for template, own in zip(rule.templates, chosen, strict=True)]
        else:
            steps = _drawn(grammar, part, choices, facts) if isinstance(part, Draw) else [(_word(part, facts), choices, facts)]
            stack += [(made + word, rest, own, then) for word, own, then in steps if text is None or text.startswith(word, len(made))]


def _word(part: Part, facts: Facts) -> str:
    assert not isinstance(part, Draw | Expand)
    return part if isinstance(part, str) else facts[part.variable][part.attribute]


def _drawn(grammar: Grammar, part: Draw, choices: tuple[Choice, ...], facts: Facts) -> Iterator[Step]:
    table = grammar.table_of(part, facts)
    for i, entity in enumerate(table.entities):
        then = {**facts, part.variable: entity} if part.variable else facts
        yield entity[""], (*choices, Choice(part.table, i, table.log_p[i])), then


def log_probability(grammar: Grammar, text: str) -> float:
    """Natural logarithm of the probability of a text; -inf where the grammar cannot make it."""
    p = math.fsum(math.exp(found.log_p) for found in derivations(grammar, text))
    return math.log(p) if p else -math.inf
