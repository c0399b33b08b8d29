"""Numbers, names and strange text as readers see them, and the three sentences: plain, true of their numbers, never against each other."""

from typing import Any

import pytest

from analysis import wording
from analysis.report import answer


def estimate(value: float, low: float | None = None, high: float | None = None, verdict: str = "gain") -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "unit": "nats per doubling", "n": 3, "method": "contrast", "verdict": verdict}


def lever(factor: str, gain: dict[str, Any], source: str = "contrast", **more: Any) -> dict[str, Any]:
    steps = [{"from": 16, "to": 32, "gain": gain}] if source == "contrast" else []
    row = {"factor": factor, "n_tokens": 768_000, "at": "centre", "gain_per_doubling": gain, "steps": steps, "source": source}
    return row | {"verdict": gain["verdict"]} | more


def shape(n_layer: int, n_embd: int) -> dict[str, Any]:
    return {"config_id": f"{n_layer}x{n_embd}", "n_layer": n_layer, "n_embd": n_embd, "n_head": 4}


def tree(verdict: str = "not_told", levers: Any = (), difference: Any = None, **more: Any) -> dict[str, Any]:
    """As much of fits.json as the answer reads."""
    equal: dict[str, Any] = {"refused": {"code": "sizes_not_matched", "reason": "no two shapes of nearly equal size were trained"}}
    if difference:
        equal = {"winner": shape(2, 96), "loser": shape(4, 64), "n_tokens": 768_000, "difference": difference, "noise_ratio": 6.2}
    known = {"n_tokens": 768_000, "verdict": verdict, "law": {"n_configurations": 9}, "equal_size": equal, "by_length": []}
    trust = {"seeds": 3, "lr_rule": "by_size", "epochs": 0.19, "falls_fast": True, "outliers": [], "misfit": 0.023}
    trust |= {"still_falling": estimate(0.2, 0.19, 0.21)}
    base = {"counts": {"usable": 27, "trials": 27}, "levers": list(levers), "shape": known, "trust": trust}
    return base | {"best": None, "next": {"command": "python -m study.run horizon", "why": "longer", "seconds": 600}} | more


WIDER = [lever("n_embd", estimate(0.2, 0.18, 0.22)), lever("n_layer", estimate(-0.04, -0.07, -0.01, "loss"))]
BOTH = [WIDER[0], lever("n_layer", estimate(0.1, 0.08, 0.12), "law")]


@pytest.mark.parametrize(
    ("verdict", "levers", "said"),
    [
        ("wide", WIDER, "go wider, not deeper: width 16 to 32: −0.20 nats [−0.22, −0.18]"),
        ("wide", WIDER, "layers 16 to 32: +0.04 nats [+0.01, +0.07], no gain yet."),
        ("wide", BOTH, "go wider rather than deeper: width"),  # where depth pays too nobody is told not to go deeper
        ("wide", BOTH, "twice the depth by the law: −0.10 nats [−0.12, −0.08]"),
        ("deep", [], "go deeper, not wider"),
        ("size_only", WIDER, "take whichever shape is fastest"),
        ("not_told", WIDER, "go wider, not deeper"),
        ("not_told", [WIDER[0]], "width pays; depth was not varied by itself"),
        ("not_told", [WIDER[0], lever("n_layer", estimate(0.1, 0.05, 0.15))], "both width and depth pay"),
        ("not_told", [lever("n_embd", estimate(0.01, -0.01, 0.03, "not_told"))], "nothing that was varied buys more than can be told"),
        ("not_told", [], "nothing that was varied buys more than can be told"),
    ],
)
def test_the_advice_follows_the_law_then_the_levers(verdict: str, levers: Any, said: str) -> None:
    told = answer.recommendation(tree(verdict, levers))
    assert told.startswith("At 768k tokens ") == bool(levers)
    assert said in told.replace("Go", "go").replace("Nothing", "nothing")


def test_levers_and_a_pair_that_disagree_give_no_direction() -> None:
    deep_wins = tree("not_told", WIDER, estimate(0.1, 0.08, 0.12))
    deep_wins["shape"]["equal_size"] |= {"winner": shape(8, 32), "loser": shape(2, 64)}
    assert answer.direction(deep_wins) == ""
    assert "go " not in answer.recommendation(deep_wins)


@pytest.mark.parametrize(
    ("verdict", "difference", "said"),
    [
        ("not_told", estimate(0.19, 0.16, 0.22), "2x96 beats 4x64 by 0.19 [0.16, 0.22] nats, six times the noise"),
        (
            "not_told",
            estimate(0.01, -0.02, 0.04, "within_noise"),
            "2x96 and 4x64 do not differ by more than noise (−0.01 nats [−0.04, +0.02])",
        ),
        ("not_told", estimate(0.1, verdict="not_told"), "2x96 and 4x64 differ by 0.10 nats, which one seed cannot tell from noise"),
        ("not_told", None, "nothing was compared: no two shapes of nearly equal size were trained"),
        ("deep", estimate(0.19, 0.16, 0.22), "over all 9 configurations deep beats wide at equal size, which this pair goes against."),
    ],
)
def test_at_equal_size_the_winner_is_named_or_why_there_is_none(verdict: str, difference: Any, said: str) -> None:
    assert said in answer.at_equal_size(tree(verdict, WIDER, difference))


def test_trust_is_told_by_seeds_rate_epochs_fall_misfit_and_the_next_command() -> None:
    assert answer.trust(tree()) == (
        "Three seeds, one learning-rate rule for all shapes, 0.19 epochs; every curve still falls by 0.20 [0.19, 0.21] nats per doubling "
        "of text; the law misses by 2.3 %; longer training may change the ranking: "
        "`python -m study.run horizon`, 10 min."
    )


def test_a_study_without_a_usable_trial_says_why_and_what_to_do() -> None:
    nothing = {"counts": {"usable": 0, "trials": 2, "failed": 2}, "exclusions": [{"reason": "RuntimeError: \x1b[31mboom"}]}
    first, second, third = answer.sentences(nothing)
    assert "None of the 2 trials can be used (2 failed)" in first
    assert second == "The first reason is: RuntimeError: \u241b[31mboom."
    assert third.startswith("Run the same command again")


def test_the_answer_for_programs_has_its_schema() -> None:
    made = answer.answer(tree("wide", WIDER, estimate(0.19, 0.16, 0.22), study="x", question="Why?"))
    assert set(made) == {"schema_version", "study", "question", "sentences", "best", "levers", "law", "trust", "next"}
    assert set(made["levers"][0]) == {"factor", "n_tokens", "at", "gain_per_doubling", "verdict", "source"}
    assert set(made["levers"][0]["gain_per_doubling"]) == {"value", "low", "high", "unit"}


# ---- numbers and names ----


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.3412, 0.2913, 0.4087, "0.341 [0.291, 0.409]"),
        (-0.14512, -0.1521, -0.1390, "−0.1451 [−0.1521, −0.1390]"),
        (1234.5, 1200.0, 1270.0, "1234 [1200, 1270]"),
        (0.5, None, None, "0.5"),
        (0.0, 0.0, 0.0, "0"),
        (-0.0717, -0.127, -0.0002, "−0.072 [−0.127, 0.000]"),
        (0.0, -0.119, float("inf"), "0 [at least −0.119]"),
        (-0.02, float("-inf"), 0.164, "−0.02 [at most 0.164]"),
        (-0.02, float("-inf"), float("inf"), "−0.02 [not determined]"),
        (None, None, None, "\u2013"),
    ],
)
def test_intervals_are_shown_with_the_digits_that_they_support(value: Any, low: Any, high: Any, text: str) -> None:
    assert wording.spanned({"value": value, "low": low, "high": high}) == text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        *zip(
            map(wording.plain, (None, True, 98_560, 98_560.4, float("nan"), 2.0)), ("–", "yes", "98,560", "98,560", "–", "2"), strict=True
        ),
        (wording.plain(0.00001722), "1.722 × 10^−5"),
        (wording.plain([1, 2]), "1, 2"),
        *zip(map(wording.short_count, (950, 98_560, 1_234_567, 2e9)), ("950", "98.6k", "1.23M", "2G"), strict=True),
        *zip(map(wording.in_epochs, (0.19, 1.0, 1.004, 16)), ("0.19 epochs", "1 epoch", "1 epoch", "16 epochs"), strict=True),
        (wording.change(estimate(0.17, 0.14, 0.19)), "−0.17 nats [−0.19, −0.14]"),  # the change of loss that a gain is
        (wording.change(estimate(-0.0002, -0.01, 0.01)), "0.00 nats [−0.01, +0.01]"),
        (wording.change(estimate(0.1)), "−0.10 nats"),
        (wording.equation("L = E + A * N^-alpha", {"params_non_embedding": 98_560.0}), "L = E + A · (N/98.6k)^−α"),
    ],
)
def test_numbers_gains_and_equations_read_well(shown: str, text: str) -> None:
    assert shown == text


def test_control_characters_become_visible() -> None:
    assert wording.visible("a\x00b\x1b[0m\tc\r\nd\x7f\u200b") == "a\u2400b\u241b[0m    c\nd\u2421<U+200B>"
    assert wording.visible("na\u00efve \u2014 caf\u00e9 \U0001f600") == "na\u00efve \u2014 caf\u00e9 \U0001f600"
    assert wording.line("a\nb\x1b") == "a b\u241b"
