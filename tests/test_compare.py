"""Two studies side by side: a planted difference is found, none is not invented, and what differs is named."""

import json
from pathlib import Path
from typing import Any

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

SHAPES = SWEEPS["depth"] + SWEEPS["width"][2:] + SWEEPS["heads"][:2]


def study(results: Path, name: str, shift: float = 0.0, shapes: list[tuple[int, int, int]] = SHAPES, **facts: Any) -> Table:
    """A study of three seeds whose losses lie `shift` nats from the synthetic law."""
    rng = np.random.default_rng(list(name.encode()))
    rows = [synthetic_row(shape, seed, rng) | facts for shape in shapes for seed in range(3)]
    records.write(results / name / "trials.parquet", "trials", [row | {"val_loss": row["val_loss"] + shift} for row in rows])
    return load(results / name)


@pytest.mark.parametrize(("shift", "said"), [(-0.03, "is lower than"), (0.0, "not distinguishable from")])
def test_a_planted_difference_is_found_and_none_is_not_invented(tmp_path: Path, shift: float, said: str) -> None:
    found = compare.compare(study(tmp_path, "base"), study(tmp_path, "change", shift))
    assert found["overall"]["low"] < shift < found["overall"]["high"]
    assert (found["overall"]["high"] < 0) == (shift < 0)
    assert said in compare_page.sentence(found | {"caution": ""})


def test_only_equal_shapes_and_seeds_are_paired(tmp_path: Path) -> None:
    other = study(tmp_path, "b", shapes=SHAPES[1:6], lr=1e-2, data_sha256="other")
    found = compare.compare(study(tmp_path, "a", shapes=SHAPES[:3]), other)
    assert [(r["n_layer"], r["n_embd"], r["n_pairs"]) for r in found["pairs"]] == [(2, 64, 3), (4, 64, 3)]
    assert found["overall"]["n"] == 6
    assert found["unpaired"] == [1, 3]
    assert {row["column"] for row in found["recipe"]} == {"lr", "data_sha256"}
    assert not found["same_text"]


def test_the_page_of_a_comparison_is_whole_and_traceable(tmp_path: Path) -> None:
    """Two folders on the command line; their own reports are not built."""
    for name in ("first", "second"):
        study(tmp_path, name)
    assert main([str(tmp_path / "first"), str(tmp_path / "second"), "--bootstrap", "0"]) == 0
    folder = tmp_path / "second" / "report"
    assert [p.name for p in tmp_path.rglob("*.html")] == ["comparison.html"]
    seen, found = Page((folder / "comparison.html").read_text(encoding="utf-8")), json.loads((folder / "comparison.json").read_text())
    assert found["studies"] == ["synthetic (first)", "synthetic (second)"]
    for source in seen.attributes("data-source"):
        content.at(found, source)
    assert [a["id"] for tag, a in seen.elements if tag in ("section", "details")] == ["answer", "pairs", "laws", "recipe"]
    assert sum(tag == "svg" for tag, _ in seen.elements) == 2
    assert "comparison.json" in seen.text
    assert found["sentence"].split(",")[0] in (folder / "comparison.md").read_text(encoding="utf-8").replace("\\", "")


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
    found = compare.compare(study(tmp_path, "a", shapes=SHAPES[:1]), study(tmp_path, "b", shapes=SHAPES[1:2]))
    assert "no shape of equal length in common" in compare_page.sentence(found | {"caution": ""})
    assert found["overall"]["refused"]["code"] == "sizes_not_matched"


@pytest.mark.parametrize(
    ("shift", "text", "code", "said"),
    [
        (-0.03, "synthetic", 0, "better"),
        (0.0, "synthetic", 3, "within noise"),
        (0.03, "synthetic", 4, "worse"),
        (0.0, "other", 5, "cannot be told: the studies were scored on different texts"),
    ],
)
def test_the_exit_code_keeps_or_drops_a_change(
    tmp_path: Path, shift: float, text: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path, "base")
    study(tmp_path, "change", shift, data_sha256=text)
    assert main([str(tmp_path / "change"), "--against", str(tmp_path / "base")]) == code
    assert capsys.readouterr().out.startswith(said)
    assert not (tmp_path / "change" / "report").exists()
