"""The story corpus: exact probabilities that brute force confirms, their floor, determinism, and no story on both sides.

Texts are taken apart again by trying all choices; of a grammar small enough to list, all texts are made.
"""

import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from study.stories import generator as stories
from study.stories.grammar import START, Draw, Expand, Facts, Grammar, Part, Sample, Table, Template, parse_template, sample
from study.stories.words import world, zipf_table

FIRST_STORIES_SHA256 = "68a47ab513ca9bc5af18c89c7ad895f4cc0a62ccc189731edd0a819bac379e71"


class Derivation(NamedTuple):
    """One way to make a text: the rules and tables that were asked, the logarithm of its probability, what is remembered."""

    text: str
    asked: tuple[str, ...]
    log_p: float
    facts: Facts


def derivations(grammar: Grammar, text: str | None = None) -> Iterator[Derivation]:
    """Every way to make `text`; without one, every derivation of a grammar without recursion."""
    stack: list[tuple[Derivation, Template]] = [(Derivation("", (), 0.0, {}), (Expand(START),))]
    while stack:
        (made, asked, log_p, facts), todo = stack.pop()
        if not todo:
            if text in (None, made):
                yield Derivation(made, asked, log_p, facts)
            continue
        for name, word, more, parts, then in steps(grammar, todo[0], facts):
            if text is None or text.startswith(word, len(made)):
                stack.append((Derivation(made + word, asked + name, log_p + more, then), (*parts, *todo[1:])))


def steps(grammar: Grammar, part: Part, facts: Facts) -> Iterator[tuple[tuple[str, ...], str, float, Template, Facts]]:
    """What a part may become: what it asks, the word that it adds, log-probability of that, the parts that follow, what is known then."""
    if isinstance(part, Expand):
        rule = grammar.rules[part.rule]
        for template, log_p in zip(rule.options, rule.log_p, strict=True):
            yield (part.rule,), "", log_p, template, facts
    elif isinstance(part, Draw):
        table = grammar.table_of(part, facts)
        for entity, log_p in zip(table.options, table.log_p, strict=True):
            yield (part.table,), entity[""], log_p, (), facts | {part.variable: entity} if part.variable else facts
    else:
        yield (), part if isinstance(part, str) else facts[part.variable][part.attribute], 0.0, (), facts


def log_probability(text: str) -> float:
    """Natural logarithm of the probability of a story."""
    return math.log(math.fsum(math.exp(found.log_p) for found in derivations(stories.story_grammar(), text)))


# ---- a grammar that can be listed whole ----


def rule(*templates: str, weights: tuple[float, ...] | None = None) -> Table[Template]:
    return Table(tuple(map(parse_template, templates)), weights or (1.0,) * len(templates))


TINY = Grammar(
    {
        "story": rule("{+who} {+end}", "Hello. {+who}", weights=(2.0, 1.0)),
        "who": rule("The {pet=pet} said {pet.sound}.", "A {pet=pet} has {+size} {home=home|pet}, and {pet.he} likes the {home}."),
        "size": rule("a", "a big", weights=(0.9, 0.1)),
        "end": rule("The end.", "{pet.sound}!", weights=(1.0, 4.0)),
    },
    {
        "pet": Table(({"": "cat", "sound": "meow", "he": "she"}, {"": "dog", "sound": "woof", "he": "he"}), (2.0, 1.0)),
        "home|cat": Table(({"": "box"}, {"": "lap"}), (3.0, 1.0)),
        "home|dog": Table(({"": "box"},), (1.0,)),
    },
)
EVERYTHING = [(made, math.exp(made.log_p)) for made in derivations(TINY)]


def test_probabilities_of_all_texts_sum_to_one() -> None:
    assert len({made.text for made, _ in EVERYTHING}) == len(EVERYTHING) == 24  # 3 forms x (2 + 2 x (2 + 1))
    assert math.fsum(p for _, p in EVERYTHING) == pytest.approx(1.0, abs=1e-12)


def test_sampled_texts_come_as_often_as_their_probability_says() -> None:
    rng, n = random.Random(0), 20_000
    counts = Counter(sample(TINY, rng).text for _ in range(n))
    for made, p in EVERYTHING:
        assert abs(counts[made.text] / n - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_the_floor_is_the_entropy_per_token() -> None:
    """Weighing every text by its probability, the estimator must give entropy / expected tokens exactly."""
    entropy = sum(-p * made.log_p for made, p in EVERYTHING)
    copies = [made for made, p in EVERYTHING for _ in range(round(p * 360_000))]
    floor, se = stories.entropy_per_token([Sample(made.text, made.log_p) for made in copies])
    assert floor == pytest.approx(entropy / sum(p * (len(made.text) + 1) for made, p in EVERYTHING), rel=1e-4)
    assert 0 < se < floor / 100


def test_a_table_with_two_equal_words_is_refused() -> None:
    with pytest.raises(ValueError, match="different texts"):
        zipf_table([{"": "cat"}, {"": "cat"}])


# ---- stories ----


@pytest.fixture(scope="module")
def some() -> list[Sample]:
    return list(itertools.islice(stories.generate(7, "test"), 150))


def test_a_story_has_exactly_one_derivation_in_which_its_facts_stand_and_its_problem_is_resolved(some: list[Sample]) -> None:
    for story in some:
        (found,) = derivations(stories.story_grammar(), story.text)
        assert story.log_p == pytest.approx(found.log_p, abs=1e-9)
        assert found.facts["hero"][""] in story.text
        assert found.facts["object"][""] in story.text
        assert {f"{name.removesuffix('_problem')}_fix" for name in found.asked if name.endswith("_problem")} <= set(found.asked)


def test_the_stored_floor_is_the_parsed_probability_of_the_validation_stories() -> None:
    made = stories.build(20_000, seed=3, val_chars=20_000)
    assert made.floor == pytest.approx(-sum(map(log_probability, made.val)) / sum(len(story) + 1 for story in made.val), rel=1e-9)
    assert 0.15 < made.floor < 0.5
    assert 0 < made.floor_se < 0.03


def test_the_floor_of_small_validation_texts_agrees_with_that_of_a_large_one() -> None:
    large = stories.build(1000, seed=0, val_chars=400_000)
    small = stories.build(1000, seed=1, val_chars=100_000)
    assert abs(large.floor - small.floor) < 4 * math.hypot(large.floor_se, small.floor_se)


def test_equal_seeds_give_equal_stories_in_every_process() -> None:
    text = "".join(story.text for story in itertools.islice(stories.generate(0, "train"), 100))
    # A change here means other data for the same seed: raise stories.VERSION in the same commit.
    assert (stories.VERSION, hashlib.sha256(text.encode()).hexdigest()) == (1, FIRST_STORIES_SHA256)


def test_a_training_story_that_is_also_in_validation_is_passed_over(some: list[Sample]) -> None:
    texts = [story.text for story in stories._take(iter(some), 20_000, {some[0].text, some[5].text})]
    assert texts == [story.text for i, story in enumerate(some) if i not in (0, 5)][: len(texts)]


def test_validation_depends_on_the_seed_and_not_on_the_amount_of_training_text() -> None:
    made = stories.build(1000, 0, 50_000)
    assert made.val == stories.build(50_000, 0, 50_000).val
    assert not set(made.val) & {*made.train, *stories.build(1000, 1, 50_000).val}


def test_stories_have_the_promised_length_and_alphabet() -> None:
    made = stories.build(400_000, seed=0, val_chars=1000)
    lengths = sorted(map(len, made.train))
    assert lengths[len(lengths) // 20] >= 400
    assert lengths[-len(lengths) // 20] <= 900
    assert 55 <= len(set("".join(made.train))) <= 75


def test_the_world_holds_thousands_of_facts_with_falling_frequencies() -> None:
    facts = sum(len(entity) - 1 for kind in ("girl", "boy", "place", "object", "animal") for entity in world()[kind])
    assert facts > 5000
    words = {word for story in stories.build(1_000_000, 0, 1000).train for word in story.replace('"', " ").split()}
    assert len(words) > 3000
    names = stories.story_grammar().tables["name"].log_p
    assert names == sorted(names, reverse=True)
    assert names[0] - names[-1] > 4
