"""Effects in words: equal to the numbers, and plain about what is not determined."""

from typing import Any

import pytest

from analysis import sentences as answer
from analysis import wording


def block(ratio: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"parameter_equivalent": ratio, "pe_low": low, "pe_high": high}


@pytest.mark.parametrize(
    ("ratio", "low", "high", "text"),
    [
        (0.85, 0.80, 0.91, "with 15 % fewer parameters (9 % to 20 % fewer)"),
        (1.38, 1.11, 1.71, "with 38 % more parameters (11 % to 71 % more)"),
        (0.9, 0.8, 1.1, "with 10 % fewer parameters (20 % fewer to 10 % more)"),
        (1.002, 0.9, 1.2, "with as many parameters (10 % fewer to 20 % more)"),
        (23.7, 2.4, 19_000.0, "with 24 times as many parameters (at least 2.4 times as many, open above)"),
        (0.9, None, None, "with 10 % fewer parameters"),
        (1.4, 1e-9, 1e12, "with a number of parameters that the data do not determine"),
    ],
)
def test_a_parameter_equivalent_is_said_as_a_reader_would_say_it(ratio: float, low: float | None, high: float | None, text: str) -> None:
    assert wording.effect_text(block(ratio, low, high), "one of the width sweep") == f"acts like one of the width sweep {text}"


def test_a_comparison_that_names_heads_is_joined_by_and() -> None:
    assert wording.effect_text(block(0.9, None, None), "one with 1 head") == "acts like one with 1 head and 10 % fewer parameters"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.018, 0.086, " (0.018 to 0.086)"),
        (-0.0001, 0.138, " (0.000 to 0.138)"),
        (None, 0.164, " (at most 0.164, open below)"),
        (0.02, None, " (at least 0.020, open above)"),
        (None, None, ""),
    ],
)
def test_an_interval_in_words_names_its_open_end(low: float | None, high: float | None, text: str) -> None:
    assert wording.reach_text(low, high) == text


def test_a_change_of_loss_has_its_interval_in_the_direction_of_its_verb() -> None:
    assert wording.change_text(-0.0516, -0.0856, -0.0176) == "lowers loss by 0.052 nats (0.018 to 0.086)"
    assert wording.change_text(0.02, -0.01, 0.05) == "raises loss by 0.020 nats (-0.010 to 0.050)"
    assert wording.signed(-0.0002) == "0.000"


def study(gain: dict[str, Any], method: str = "profile") -> dict[str, Any]:
    """As much of fits.json as the first sentence reads."""
    slope = {"at": 1e5, "gain_per_doubling": gain, "method": method}
    refused = {"refused": {"code": "too_few_sizes", "reason": "too few"}}
    return {
        "counts": {"usable": 9},
        "fits": {"joint": {"slope": slope}},
        "primary_fit": "joint",
        "noise": {"detectable": 0.01},
        "returns": refused,
    }


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.02, 0.06, "lowers validation loss by 0.040 nats (95 % interval 0.020 to 0.060), above the noise floor of 0.010."),
        (0.005, 0.075, "(95 % interval 0.005 to 0.075), not clearly above the noise floor of 0.010."),
        (-0.01, 0.09, "(95 % interval -0.010 to 0.090), so not even the sign is settled."),
        (None, 0.164, "(95 % interval at most 0.164, open below), so not even the sign is settled."),
        (None, None, "by 0.040 nats, without an interval (2 points)."),
    ],
)
def test_the_first_sentence_says_how_sure_it_is(low: float | None, high: float | None, text: str) -> None:
    assert answer.parameters(study({"value": 0.04, "low": low, "high": high}, "none: 2 points")).endswith(text)


def test_a_loss_that_rises_with_size_is_said_to_rise() -> None:
    sentence = answer.parameters(study({"value": -0.03, "low": -0.05, "high": -0.01}))
    assert "raises validation loss by 0.030 nats (95 % interval 0.010 to 0.050)" in sentence


def test_contrasts_are_labeled_for_readers() -> None:
    assert wording.contrast_label("4x32h16 vs 1x64h1") == "4 \u00d7 32, 16 heads vs 1 \u00d7 64, 1 head"
    assert wording.contrast_label("16 vs 1 heads") == "16 vs 1 heads"
