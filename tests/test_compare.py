"""Two studies side by side: a planted difference is found, none is not invented, and what differs is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.compare import page as compare_page
from analysis.compare import paired_differences as compare
from analysis.report import document as content
from analysis.table.load import Table, load
from study import records
from tests.conftest import SWEEPS, synthetic_row
from tests.test_report import Page


def study(results: Path, name: str, shift: float, shapes: list[tuple[int, int, int]], rng: np.random.Generator, **facts: object) -> Table:
    """A study of three seeds whose losses lie `shift` nats from the synthetic law."""
    rows = [synthetic_row(shape, seed, rng) | facts for shape in shapes for seed in range(3)]
    for row in rows:
        row["val_loss"] += shift
    records.write(results / name / "trials.parquet", "trials", rows)
    return load(results / name)


SHAPES = SWEEPS["depth"] + SWEEPS["width"][2:] + SWEEPS["heads"][:2]


def test_a_planted_difference_is_found_and_none_is_not_invented(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = study(tmp_path, "base", 0.0, SHAPES, rng)
    found = compare.compare(base, study(tmp_path, "better", -0.03, SHAPES, rng))
    assert found["overall"]["low"] < -0.03 < found["overall"]["high"] < 0
    assert "is lower than" in compare_page.sentence(found | {"caution": ""})
    same = compare.compare(base, study(tmp_path, "same", 0.0, SHAPES, rng))
    assert same["overall"]["low"] < 0 < same["overall"]["high"]
    assert "not distinguishable from" in compare_page.sentence(same | {"caution": ""})


def test_only_equal_shapes_and_seeds_are_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    found = compare.compare(
        study(tmp_path, "a", 0, SHAPES[:3], rng), study(tmp_path, "b", 0, SHAPES[1:6], rng, lr=1e-2, data_sha256="other")
    )
    assert [(r["n_layer"], r["n_embd"], r["n_pairs"]) for r in found["pairs"]] == [(2, 64, 3), (4, 64, 3)]
    assert found["overall"]["n"] == 6
    assert found["unpaired"] == [1, 3]
    assert {row["column"] for row in found["recipe"]} == {"lr", "data_sha256"}
    assert not found["same_text"]


def test_the_page_of_a_comparison_is_whole_and_traceable(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("first", "second"):
        study(tmp_path, name, 0.0, SHAPES, rng)
    path = compare_page.build(tmp_path / "first", tmp_path / "second", ({}, {}))
    seen, found = Page(path.read_text(encoding="utf-8")), json.loads((path.parent / "comparison.json").read_text())
    assert found["studies"] == ["synthetic (first)", "synthetic (second)"]
    for source in (a["data-source"] for _, a in seen.elements if "data-source" in a):
        content.at(found, source)
    assert [a["id"] for tag, a in seen.elements if tag in ("section", "details")] == ["answer", "pairs", "laws", "recipe"]
    assert sum(tag == "svg" for tag, _ in seen.elements) == 2
    assert "comparison.json" in seen.text
    assert found["sentence"].split(",")[0] in (path.parent / "comparison.md").read_text(encoding="utf-8").replace("\\", "")


def test_other_tokens_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    """Nats per token of longer tokens are more; here their bits per byte are fewer, by a tenth."""
    for name, scale, bits in (("char", 1.0, 2.0), ("bpe:512", 2.2, 1.8)):
        rng = np.random.default_rng(5)
        rows = [synthetic_row(shape, seed, rng) | {"tokenizer": name, "data_sha256": name} for shape in SHAPES for seed in range(3)]
        rows = [row | {"val_bpb": bits * row["val_loss"], "val_loss": scale * row["val_loss"]} for row in rows]
        records.write(tmp_path / name / "trials.parquet", "trials", rows)
    page = compare_page.build(tmp_path / "char", tmp_path / "bpe:512", ({}, {}))
    found = json.loads((page.parent / "comparison.json").read_text())
    assert [row["second"] / row["first"] for row in found["pairs"]] == pytest.approx([0.9] * len(SHAPES))
    assert "is lower than" in found["sentence"]
    assert "bits per byte on average over" in found["sentence"]
    assert "(bpe:512) (bits per byte)" in (page.parent / "comparison.md").read_text()


def test_studies_without_a_common_shape_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    found = compare.compare(study(tmp_path, "a", 0, SHAPES[:1], rng), study(tmp_path, "b", 0, SHAPES[1:2], rng))
    assert "no shape of equal length in common" in compare_page.sentence(found | {"caution": ""})
    assert found["overall"]["refused"]["code"] == "sizes_not_matched"


@pytest.mark.parametrize(("shift", "code", "word"), [(-0.03, 0, "better"), (0.0, 3, "within noise"), (0.03, 4, "worse")])
def test_the_exit_code_keeps_or_drops_a_change(
    tmp_path: Path, shift: float, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(6)
    study(tmp_path, "base", 0.0, SHAPES, rng)
    study(tmp_path, "change", shift, SHAPES, rng)
    assert main([str(tmp_path / "change"), "--against", str(tmp_path / "base")]) == code
    assert capsys.readouterr().out.startswith(word)
    assert not (tmp_path / "change" / "report").exists()


def test_what_cannot_be_told_has_an_exit_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(7)
    study(tmp_path, "base", 0.0, SHAPES, rng)
    study(tmp_path, "other", 0.0, SHAPES, rng, data_sha256="other")
    assert main([str(tmp_path / "other"), "--against", str(tmp_path / "base")]) == 5
    assert "different texts" in capsys.readouterr().out


def test_two_studies_are_compared_without_building_their_reports(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    for name in ("first", "second"):
        study(tmp_path, name, 0.0, SHAPES, rng)
    assert main([str(tmp_path / "first"), str(tmp_path / "second"), "--bootstrap", "0"]) == 0
    assert not (tmp_path / "first" / "report").exists()
    assert {p.name for p in (tmp_path / "second" / "report").glob("*.html")} == {"comparison.html"}
