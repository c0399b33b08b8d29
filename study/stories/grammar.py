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

Entity = Mapping[str, str]  # attribute name to text; "" is the word itself
Facts = dict[str, Entity]
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Table:
    """A distribution over entities with different texts. `weights` need not sum to one."""

    entities: tuple[Entity, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len({entity[""] for entity in self.entities}) == len(self.weights) == len(self.entities):
            raise ValueError("a table needs as many weights as entities, and entities with different texts.")

    @cached_property
    def cumulative(self) -> list[float]:
        """Running sums of the probabilities; the last is exactly one."""
        total = sum(self.weights)
        return [*(part / total for part in list(accumulate(self.weights))[:-1]), 1.0]

    @cached_property
    def log_p(self) -> list[float]:
        """Natural logarithm of each entity's probability."""
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


@dataclass(frozen=True)
class Rule:
    """A choice among templates."""

    templates: tuple[tuple[Part, ...], ...]
    weights: tuple[float, ...]

    @cached_property
    def table(self) -> Table:
        """The choice as a table whose entities' texts are the templates' numbers."""
        return Table(tuple({"": str(i)} for i in range(len(self.templates))), self.weights)


@dataclass(frozen=True)
class Choice:
    """One random choice: the rule or table that was asked, which option it gave, the natural logarithm of its probability."""

    asked: str
    option: int
    log_p: float


@dataclass(frozen=True)
class Derivation:
    """One way to make a text: its choices in order and what was remembered at the end."""

    text: str
    choices: tuple[Choice, ...]
    facts: Facts

    @property
    def log_p(self) -> float:
        """Natural logarithm of the derivation's probability."""
        return math.fsum(choice.log_p for choice in self.choices)


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
    """Rules and tables. Tables that depend on a remembered entity are keyed by table name, then by that entity's text."""

    start: str
    rules: Mapping[str, Rule]
    tables: Mapping[str, Table]
    given_tables: Mapping[str, Mapping[str, Table]]

    def table_of(self, draw: Draw, facts: Facts) -> Table:
        """The table that a draw asks, given what is remembered."""
        return self.given_tables[draw.table][facts[draw.given][""]] if draw.given else self.tables[draw.table]


def sample(grammar: Grammar, rng: random.Random) -> Derivation:
    """Make one text. `random.Random.random` is stable across Python versions and machines, so equal seeds give equal texts."""
    out: list[str] = []
    choices: list[Choice] = []
    facts: Facts = {}
    todo: list[Part] = [Expand(grammar.start)]
    while todo:
        part = todo.pop()
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Ref):
            out.append(facts[part.variable][part.attribute])
        elif isinstance(part, Expand):
            rule = grammar.rules[part.rule]
            i = bisect(rule.table.cumulative, rng.random())
            choices.append(Choice(part.rule, i, rule.table.log_p[i]))
            todo.extend(reversed(rule.templates[i]))
        else:
            table = grammar.table_of(part, facts)
            i = bisect(table.cumulative, rng.random())
            choices.append(Choice(part.table, i, table.log_p[i]))
            out.append(table.entities[i][""])
            if part.variable:
                facts[part.variable] = table.entities[i]
    return Derivation("".join(out), tuple(choices), facts)
