"""Measures of generated text against hand-worked examples and published definitions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.table import evidence
from analysis.text import diversity as text
from analysis.text import findings as text_study
from study import records
from study.data import corpus as data
from study.spec import DataConfig
from study.stories import generator as stories
from tests.conftest import synthetic_row


def test_type_token_ratio_and_mattr_equal_hand_worked_examples() -> None:
    words = text.words_of("The cat saw the dog. The dog ran.")
    assert words == ["the", "cat", "saw", "the", "dog", "the", "dog", "ran"]
    assert text.type_token_ratio(words) == 5 / 8
    # Windows of 3: {the cat saw} 3, {cat saw the} 3, {saw the dog} 3, {the dog the} 2, {dog the dog} 2, {the dog ran} 3.
    assert text.mattr(words, window=3) == pytest.approx(16 / 6 / 3)
    assert text.mattr(words[:2], window=3) == 1.0


def test_distinct_pairs_equal_a_hand_worked_example() -> None:
    assert text.distinct_2(["a", "b", "a", "b"]) == 2 / 3  # ab ba ab


def test_words_keep_apostrophes_and_drop_digits() -> None:
    assert text.words_of("Don't stop, café-owner 42!") == ["don't", "stop", "café", "owner"]


@pytest.mark.parametrize(
    ("words", "looping"),
    [
        ("he ran and ran and ran and ran", True),
        ("no no no no no no", True),
        ("no no no he said", False),
        ("a b c d e a b c d e a b c d e", True),
    ],
)
def test_loops_are_three_repetitions_over_at_least_six_words(words: str, looping: bool) -> None:
    assert text.loops(words.split()) is looping


def test_common_length_is_held_by_nine_texts_in_ten() -> None:
    texts = [["w"] * n for n in (5, 40, 41, 42, 43, 44, 45, 46, 47, 48)]
    assert text.common_length(texts) == 40
    assert text.common_length([["w"] * 10] * 5) == 0


# ---- scores of samples ----


def test_half_words_at_the_ends_of_a_sample_are_dropped() -> None:
    sample = {"prompt": "The lit", "text": "tle dog ran.<|endoftext|>A cat sa"}
    assert text_study.words_of_sample(sample) == ["dog", "ran", "a", "cat"]


# ---- intervals ----


def test_bootstrap_over_prompts_covers_the_true_mean() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(300):
        effects = rng.normal(0.5, 0.1, 30)
        found = text_study.bootstrap_mean([float(rng.normal(e, 0.05, 4).mean()) for e in effects], rng)
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.88 <= covered / 300 <= 0.98  # percentile intervals of 30 prompts are a little short of 95 %


def test_equal_seeds_give_equal_intervals() -> None:
    first, again = (text_study.bootstrap_mean(range(8), np.random.default_rng(5)) for _ in range(2))
    assert first == again


def test_spearman_interval_covers_and_refuses() -> None:
    rng, covered = np.random.default_rng(4), 0
    rho = 6 / np.pi * np.arcsin(0.6 / 2)  # rank correlation of a bivariate normal with correlation .6
    for _ in range(400):
        x = rng.normal(size=20)
        found = text_study.spearman(x, 0.6 * x + 0.8 * rng.normal(size=20))
        covered += found["low"] <= rho <= found["high"]
    assert 0.92 <= covered / 400 <= 0.98
    assert text_study.spearman([1, 2, 3, 4], [1, 2, 3, 4])["refused"]["code"] == "too_few_configurations"
    assert text_study.spearman([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])["refused"]["code"] == "constant"


# ---- a whole study ----


def test_words_that_the_training_text_lacks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_STUDY_CACHE", str(tmp_path / "cache"))
    config = {"name": "stories", "train_chars": 60_000, "seed": 3}
    results, corpus = tmp_path / "results", data.prepare(DataConfig(**config))
    recited = corpus.tokenizer.decode(corpus.train[:8_000].tolist()).split(text_study.END)[:6]
    fresh = stories.build(2_000, seed=99, val_chars=8_000).val[:6]
    rng = np.random.default_rng(0)
    rows = [synthetic_row((2, width, 4), 0, rng) for width in (32, 64)]
    for row, told in zip(rows, (fresh, recited), strict=True):
        common = {"trial_id": row["trial_id"], "step": 10, "index": 0, "temperature": 0.7}
        samples = [{**common, "prompt": s[:10], "text": s[10:600], "n_tokens": 590} for s in told]
        records.write(results / "trials" / f"{row['trial_id']}.parquet", "trials", [row])
        records.write(results / "samples" / f"{row['trial_id']}.parquet", "samples", samples)
    (results / "study.json").write_text(json.dumps({"study": {"data": config}, "data_sha256": corpus.sha256}))
    found = text_study.conclude(evidence.load(results, {"data": {"name": "stories"}}))["measures"]
    assert found["unseen_words"]["largest"]["value"] == 0.0
    assert 0 < found["unseen_words"]["smallest"]["value"] < 0.2
    assert 0 < found["unseen_words"]["held_out"] < 0.2
    assert found["type_token_ratio"]["held_out"] > 0.4


def test_without_training_text_the_measures_that_need_it_are_refused_and_without_samples_all_are(synthetic_results: Path) -> None:
    known = evidence.load(synthetic_results, {"data": {"name": "text"}})
    found = text_study.conclude(known)
    assert found["measures"]["unseen_words"]["refused"]["reason"] == "study.json does not name the training data"
    assert found["measures"]["type_token_ratio"]["spearman"]["n"] == 10
    assert set(found["measures"]["mattr"]["by_temperature"]) == {"0.5", "0.8"}
    json.dumps(found, allow_nan=False)
    assert text_study.conclude(replace(known, samples=[]))["refused"]["code"] == "no_samples"
