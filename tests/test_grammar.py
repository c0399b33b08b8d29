"""The grammar engine against brute force: probabilities of grammars small enough to list whole."""

import math
import random
from collections import Counter

import pytest

from study.stories.grammar import Grammar, Rule, Table, parse_template, sample
from tests.derivations import derivations


def rule(*templates: str, weights: tuple[float, ...] | None = None) -> Rule:
    return Rule(tuple(map(parse_template, templates)), weights or (1.0,) * len(templates))


def tiny_grammar() -> Grammar:
    cat, dog = {"": "cat", "sound": "meow", "he": "she"}, {"": "dog", "sound": "woof", "he": "he"}
    homes = {"cat": Table(({"": "box"}, {"": "lap"}), (3.0, 1.0)), "dog": Table(({"": "box"},), (1.0,))}
    rules = {
        "story": rule("{+who} {+end}", "Hello. {+who}", weights=(2.0, 1.0)),
        "who": rule("The {pet=pet} said {pet.sound}.", "A {pet=pet} has {+size} {home=home|pet}, and {pet.he} likes the {home}."),
        "size": rule("a", "a big", weights=(0.9, 0.1)),
        "end": rule("The end.", "{pet.sound}!", weights=(1.0, 4.0)),
    }
    return Grammar("story", rules, {"pet": Table((cat, dog), (2.0, 1.0))}, {"home": homes})


def test_probabilities_of_all_texts_sum_to_one() -> None:
    everything = list(derivations(tiny_grammar()))
    assert len({d.text for d in everything}) == len(everything) == 24  # 3 forms x (2 + 2 x (2 + 1))
    assert math.fsum(math.exp(d.log_p) for d in everything) == pytest.approx(1.0, abs=1e-12)


def test_sampled_texts_come_as_often_as_their_probability_says() -> None:
    rng, n = random.Random(0), 20_000
    counts = Counter(sample(tiny_grammar(), rng).text for _ in range(n))
    for made in derivations(tiny_grammar()):
        p = math.exp(made.log_p)
        assert abs(counts[made.text] / n - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_a_table_with_two_equal_words_is_refused() -> None:
    with pytest.raises(ValueError, match="different texts"):
        Table(({"": "cat"}, {"": "cat"}), (1.0, 1.0))
