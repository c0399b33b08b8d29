"""The story checker: silent on sound stories, and naming what was broken in others."""

import itertools

import pytest

from study.stories import generator as stories
from study.stories.coherence import check


@pytest.fixture(scope="module")
def some() -> list[stories.Derivation]:
    return list(itertools.islice(stories.generate(11, "check"), 120))


def broken(some: list[stories.Derivation], old: str, new: str) -> str:
    """The first story with the words `old`, with all of them replaced."""
    return next(story.text.replace(old, new) for story in some if old in story.text)


def test_a_generated_story_is_accepted_with_nothing_to_say(some: list[stories.Derivation]) -> None:
    for story in some:
        verdict = check(story.text)
        assert (verdict.accepted, verdict.reasons, dict(verdict.wrong), verdict.resolved) == (True, (), {}, True), story.text
        assert verdict.grammatical_share == 1.0
        assert verdict.right["word"] >= 5


def test_a_hero_with_a_new_name_is_noticed(some: list[stories.Derivation]) -> None:
    story = next(s for s in some if s.text.count(s.facts["hero"][""]) > 2)
    name = story.facts["hero"][""]
    first = story.text.index(name) + len(name)
    verdict = check(story.text[:first] + story.text[first:].replace(name, "Zelda"))
    assert not verdict.accepted
    assert f"the hero changes from {name} to Zelda" in verdict.reasons
    assert verdict.share("hero") < 1


def test_a_wrong_pronoun_is_noticed(some: list[stories.Derivation]) -> None:
    story = next(s for s in some if s.facts["hero"]["kind"] == "boy" and " he " in s.text)
    verdict = check(story.text.replace(" he ", " she "))
    assert verdict.wrong["pronoun"] >= 1
    assert any("not 'she'" in reason for reason in verdict.reasons)


def test_an_object_that_turns_into_another_is_noticed(some: list[stories.Derivation]) -> None:
    story = next(s for s in some if s.text.count(f"the {s.facts['object']['']}") > 1)
    verdict = check(story.text.replace(f"the {story.facts['object']['']}", "the locket"))
    assert verdict.wrong["object"] >= 1
    assert any(reason.endswith("to locket") for reason in verdict.reasons)


def test_a_false_fact_of_the_world_is_noticed(some: list[stories.Derivation]) -> None:
    story = next(s for s in some if f"It was made of {s.facts['object']['material']}," in s.text)
    false = "wood" if story.facts["object"]["material"] != "wood" else "glass"
    verdict = check(story.text.replace(f"It was made of {story.facts['object']['material']},", f"It was made of {false},"))
    assert verdict.wrong == {"association": 1}
    assert f"not '{false}'" in verdict.reasons[0]


def test_an_unresolved_problem_is_noticed(some: list[stories.Derivation]) -> None:
    story = next(s for s in some if "But then the" in s.text and "They looked for" in s.text)
    start = story.text.index("They looked for")
    verdict = check(story.text[:start])
    assert verdict.resolved is False
    assert "the problem (lost) is never resolved" in verdict.reasons


def test_a_sentence_of_another_world_is_counted_and_the_rest_still_read(some: list[stories.Derivation]) -> None:
    story = some[0].text
    sound = check(story)
    verdict = check(story.replace("\n", " Colorless ideas sleep.\n", 1))
    assert (verdict.n_sentences, verdict.n_grammatical) == (sound.n_sentences + 1, sound.n_sentences)
    assert verdict.reasons == ("not a sentence of this world: 'Colorless ideas sleep.'",)


def test_sound_sentences_in_a_wrong_order_are_not_accepted(some: list[stories.Derivation]) -> None:
    verdict = check(some[0].text + " And " + some[0].facts["hero"][""] + " lived happily ever after. The end.")
    assert not verdict.accepted
    assert len(verdict.reasons) == 1


@pytest.mark.parametrize("text", ["", "   ", "asdf qwer", '"', "Once upon a time, there was a"])
def test_any_text_gets_a_verdict(text: str) -> None:
    verdict = check(text)
    assert not verdict.accepted
    assert verdict.reasons
    assert verdict.resolved is None


def test_the_point_of_a_title_ends_no_sentence() -> None:
    verdict = check("Mr. Fox ran up. Mrs. Owl sat.")
    assert (verdict.n_sentences, verdict.n_grammatical) == (2, 0)
    assert "not a sentence of this world: 'Mr. Fox ran up.'" in verdict.reasons
