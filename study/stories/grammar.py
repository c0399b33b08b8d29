"""A grammar with a memory: it makes texts and knows the exact probability of each.

A grammar is a set of rules, each a choice among templates, and of tables, each a choice among entities (words with attributes).
A template is literal text with slots:

    {+rule}           expand another rule
    {hero=name}       draw an entity from the table `name` and remember it as `hero`
    {beast=animal|place}   the same from the table that belongs to the remembered `place`
    {=mood}           draw and forget
    {hero} {hero.his} the remembered entity's text, or one of its attributes: these are determined, they cost no probability

A text's probability is the sum over its derivations of the product of their choices; where every text has one derivation, the entropy
of the texts is that of the choices. No file is read or written here.
"""

import math
import random
import re
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

Entity = Mapping[str, str]  # attribute name to text; "" is the word itself
Facts = dict[str, Entity]
Option = TypeVar("Option")
START = "story"
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Table(Generic[Option]):
    """A distribution over options: entities with different texts, or the templates of a rule. `weights` need not sum to one."""

    options: tuple[Option, ...]
    weights: tuple[float, ...]

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the probabilities; the last is exactly one."""
        total = sum(self.weights)
        return [*(part / total for part in list(accumulate(self.weights))[:-1]), 1.0]

    @cached_property
    def log_p(self) -> list[float]:
        """Natural logarithm of each option's probability."""
        total = sum(self.weights)
        return [math.log(weight / total) for weight in self.weights]


@dataclass(frozen=True)
class Draw:
    """Slot {variable=table} or {variable=table|given}."""

    variable: str
    table: str
    given: str = ""


@dataclass(frozen=True)
class Ref:
    """Slot {variable} or {variable.attribute}."""

    variable: str
    attribute: str = ""


@dataclass(frozen=True)
class Expand:
    """Slot {+rule}."""

    rule: str


Part = str | Draw | Ref | Expand
Template = tuple[Part, ...]


class Sample(NamedTuple):
    """A text and the natural logarithm of the probability of the choices that made it."""

    text: str
    log_p: float


def parse_template(text: str) -> tuple[Part, ...]:
    """Turn a template's text into parts."""
    pieces = _SLOT.split(text)  # literal, slot, literal, ...
    return tuple(_slot(piece) if i % 2 else piece for i, piece in enumerate(pieces) if piece)


def _slot(text: str) -> Part:
    if text.startswith("+"):
        return Expand(text[1:])
    if "=" in text:
        variable, _, table = text.partition("=")
        table, _, given = table.partition("|")
        return Draw(variable, table, given)
    variable, _, attribute = text.partition(".")
    return Ref(variable, attribute)


@dataclass(frozen=True)
class Grammar:
    """Rules, of which a text begins with START, and tables; one that depends on a remembered entity is named `table|that entity's text`."""

    rules: Mapping[str, Table[Template]]
    tables: Mapping[str, Table[Entity]]

    def table_of(self, draw: Draw, facts: Facts) -> Table[Entity]:
        """The table that a draw asks, given what is remembered."""
        return self.tables[f"{draw.table}|{facts[draw.given]['']}" if draw.given else draw.table]


def sample(grammar: Grammar, rng: random.Random) -> Sample:
    """Make one text. `random.Random.random` is stable across Python versions and machines, so equal seeds give equal texts."""
    out: list[str] = []
    log_p: list[float] = []
    facts: Facts = {}

    def choose(table: Table[Option]) -> Option:
        i = bisect(table.cumulative, rng.random())
        log_p.append(table.log_p[i])
        return table.options[i]

    todo: list[Part] = [Expand(START)]
    while todo:
        part = todo.pop()
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Ref):
            out.append(facts[part.variable][part.attribute])
        elif isinstance(part, Expand):
            todo.extend(choose(grammar.rules[part.rule])[::-1])
        else:
            entity = choose(grammar.table_of(part, facts))
            out.append(entity[""])
            if part.variable:
                facts[part.variable] = entity
    return Sample("".join(out), math.fsum(log_p))
