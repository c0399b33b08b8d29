"""Judge a generated story: which sentences are of this world, and which facts break between them.

A model's story is seldom derivable to the last letter, so this checker is tolerant: it looks for each sentence of the story grammar where
it may stand, reads the words in its slots, and compares them with what the story said before and with the world. Reads and writes no file.

    verdict = check(text); verdict.accepted, verdict.reasons, verdict.share("association")
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from study.stories.generator import log_probability, story_grammar
from study.stories.grammar import Draw, Entity, Expand, Facts, Part, Ref
from study.stories.words import PRONOUNS

_TABLE_OF = {"hero": "name", "kind": "kind", "place": "place", "object": "object", "animal": "animal", "family": "family"}
_PRONOUN_ATTRIBUTES = frozenset(PRONOUNS["girl"])
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)[.!?]\"?(?=\s|$)")
_WORD = "[A-Za-z][a-z'-]*"
_SLOT_PATTERNS = {"saying": r"([A-Za-z ]+\.)", "song": r"([A-Za-z ]+\.)", "keeper": r"([A-Z][a-z]+\. [A-Z][a-z]+)"}


@dataclass(frozen=True)
class StoryCheck:
    """The verdict on one story.

    `right` and `wrong` count by kind: "hero", "object", "animal", "place" (the same one is named again), "pronoun" (agrees),
    "association" (a fact of the world), "word" (a word the world has, where such a word may stand).
    """

    accepted: bool  # the generator makes this very text
    reasons: tuple[str, ...]  # what broke, in the order of the text; empty exactly when accepted
    n_sentences: int
    n_grammatical: int
    right: Mapping[str, int]
    wrong: Mapping[str, int]
    resolved: bool | None  # the problem was resolved by what resolves such problems; None where no problem was told

    @property
    def grammatical_share(self) -> float:
        """Sentences of this world over all sentences; nan without any."""
        return self.n_grammatical / self.n_sentences if self.n_sentences else math.nan

    def share(self, kind: str) -> float:
        """Right over all mentions of one kind; nan without any."""
        n = self.right.get(kind, 0) + self.wrong.get(kind, 0)
        return self.right.get(kind, 0) / n if n else math.nan


@dataclass(frozen=True)
class _Line:
    """One template that holds sentences: its rule, its pattern, and what each group of the pattern stands for."""

    rule: str
    pattern: re.Pattern[str]
    slots: tuple[Draw | Ref, ...]


@dataclass(frozen=True)
class _Finding:
    """One comparison: its kind, and what is wrong (empty where nothing is)."""

    kind: str
    wrong: str = ""


def check(text: str) -> StoryCheck:
    """Judge one story (without its end-of-text marker)."""
    facts: Facts = {}
    findings: list[_Finding] = []
    at = n_sentences = n_grammatical = 0
    problem, fixes = "", []
    while (at := _skip_space(text, at)) < len(text):
        best = _best_line(text, at, facts)
        if best is None:
            end = _sentence_end(text, at)
            findings.append(_Finding("sentence", f"not a sentence of this world: {text[at:end]!r}"))
            n_sentences += 1
        else:
            line, end, found, facts = best
            findings.extend(found)
            n = max(1, len(_SENTENCE_END.findall(text, at, end)))
            n_sentences, n_grammatical = n_sentences + n, n_grammatical + n
            if line.rule.endswith("_problem"):
                problem = line.rule.removesuffix("_problem")
            elif line.rule.endswith("_fix"):
                fixes.append(line.rule.removesuffix("_fix"))
        at = end
    findings.extend(_judge_plot(problem, fixes))
    return _verdict(text, findings, n_sentences, n_grammatical, problem in fixes if problem else None)


def _verdict(text: str, findings: list[_Finding], n_sentences: int, n_grammatical: int, resolved: bool | None) -> StoryCheck:
    reasons = [finding.wrong for finding in findings if finding.wrong]
    accepted = log_probability(text) > -math.inf
    if accepted:
        reasons = []
    elif not reasons:
        reasons = ["each sentence is of this world, but a story does not put them in this order"]
    right = Counter(finding.kind for finding in findings if not finding.wrong)
    wrong = Counter(finding.kind for finding in findings if finding.wrong)
    return StoryCheck(accepted, tuple(reasons), n_sentences, n_grammatical, dict(right), dict(wrong), resolved)


def _judge_plot(problem: str, fixes: list[str]) -> list[_Finding]:
    if problem and problem not in fixes:
        told = f", only by what resolves {' and '.join(fixes)}" if fixes else ""
        return [_Finding("plot", f"the problem ({problem}) is never resolved{told}")]
    return [_Finding("plot")] if problem else [_Finding("plot", "no problem is told")]


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _sentence_end(text: str, at: int) -> int:
    found = _SENTENCE_END.search(text, at)
    return found.end() if found else len(text)


# ---- one line ----


def _best_line(text: str, at: int, facts: Facts) -> tuple[_Line, int, list[_Finding], Facts] | None:
    """The template that explains the text at `at` with the fewest broken facts; of equals the longest."""
    best = None
    best_score = (math.inf, 0)
    for line in _lines():
        match = line.pattern.match(text, at)
        if match is None:
            continue
        findings, after = _compare(zip(line.slots, match.groups(), strict=True), facts)
        score = (sum(1 for finding in findings if finding.wrong), -match.end())
        if score < best_score:
            best, best_score = (line, match.end(), findings, after), score
    return best


def _compare(slots: Iterable[tuple[Draw | Ref, str]], facts: Facts) -> tuple[list[_Finding], Facts]:
    """Findings about the words of one line, and the facts after it."""
    findings: list[_Finding] = []
    after = dict(facts)
    for slot, word in slots:
        if isinstance(slot, Draw):
            findings.extend(_compare_draw(slot, word, after))
        elif slot.attribute:
            findings.extend(_compare_attribute(slot, word, after))
        elif slot.variable in after:
            findings.append(_same(slot.variable, after[slot.variable], word))
        else:
            after[slot.variable] = _known(_TABLE_OF[slot.variable], word) or {"": word}
    return findings, after


def _compare_draw(slot: Draw, word: str, facts: Facts) -> list[_Finding]:
    """A new word: known to the world? If it names the hero, the object, the animal again: the same? Does it fit what it depends on?"""
    entity = _known(slot.table, word)
    findings = [_Finding("word", "" if entity else f"the world has no {slot.table} {word!r}")]
    if slot.variable in facts and slot.variable != "family":
        findings.append(_same(slot.variable, facts[slot.variable], word))
    if slot.given == "kind" and entity and facts["kind"][""] != entity["kind"]:
        findings.append(_Finding("pronoun", f"{word} is called a {facts['kind']['']}, but is a {entity['kind']}"))
    elif slot.given == "place" and entity and facts.get("place", {}).get("") in story_grammar().given_tables["animal"]:
        there = word in story_grammar().given_tables["animal"][facts["place"][""]].by_text
        findings.append(_Finding("association", "" if there else f"no {word} is ever met at {facts['place']['']}"))
    if slot.variable:
        facts[slot.variable] = entity or {"": word}
    return findings


def _same(variable: str, entity: Entity, word: str) -> _Finding:
    return _Finding(variable, "" if word == entity[""] else f"the {variable} changes from {entity['']} to {word}")


def _compare_attribute(slot: Ref, word: str, facts: Facts) -> list[_Finding]:
    """A determined word: a pronoun, or a fact of the world about something that was named before."""
    entity = facts.get(slot.variable, {})
    if slot.attribute not in entity:
        return []
    kind = "pronoun" if slot.attribute in _PRONOUN_ATTRIBUTES else "association"
    expected = entity[slot.attribute]
    wrong = f"{slot.variable} {entity['']}: {slot.attribute} is {expected!r}, not {word!r}"
    return [_Finding(kind, "" if word == expected else wrong)]


def _known(table: str, word: str) -> Entity | None:
    found = story_grammar().tables[table]
    return found.entities[found.by_text[word]] if word in found.by_text else None


# ---- patterns ----


@lru_cache(maxsize=1)
def _lines() -> tuple[_Line, ...]:
    """Every template with words of its own, as a pattern; rules inside such templates are written out."""
    grammar = story_grammar()
    spoken = [(name, template) for name, rule in grammar.rules.items() for template in rule.templates if _has_words(template)]
    inner = {part.rule for _, template in spoken for part in template if isinstance(part, Expand)}
    return tuple(_line(name, template) for name, template in spoken if name not in inner)


def _has_words(template: tuple[Part, ...]) -> bool:
    return any(isinstance(part, str) and part.strip() for part in template)


def _line(rule: str, template: tuple[Part, ...]) -> _Line:
    slots: list[Draw | Ref] = []
    pattern = "".join(_pattern_of(part, slots) for part in template)
    return _Line(rule, re.compile(pattern.removeprefix(r"\ ").removesuffix(r"\ ") + r"(?=\s|$)"), tuple(slots))


def _pattern_of(part: Part, slots: list[Draw | Ref]) -> str:
    if isinstance(part, str):
        return re.escape(part)
    if isinstance(part, Expand):
        return "(?:" + "|".join("".join(_pattern_of(p, slots) for p in t) for t in story_grammar().rules[part.rule].templates) + ")"
    slots.append(part)
    if isinstance(part, Ref):
        return _SLOT_PATTERNS.get(part.attribute, f"({_WORD}(?: {_WORD}){{0,3}}?)")
    texts = story_grammar().tables[part.table].by_text
    if all(text.lower().startswith(("a ", "an ")) for text in texts):
        return f"([Aa]n? {_WORD})"
    n_words = max(text.count(" ") for text in texts)
    return f"({_WORD}(?: {_WORD}){{0,{n_words}}}?)"
