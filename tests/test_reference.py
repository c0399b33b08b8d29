"""docs/reference.md is what the code says now, and leaves out no flag and no preset."""

import pytest

from docs import reference
from study import run
from study.command import _flag_names
from study.study_file import preset_names
from tests.running import ROOT


def test_the_reference_is_current_and_holds_every_flag() -> None:
    """`make reference` writes it anew."""
    page = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert page == reference.page()
    flags = {name for name in _flag_names() if not name.startswith("no-") and name not in ("model", "train", "data")}
    assert [name for name in sorted(flags) if f"`{name}`" not in page and f"`--{name.replace('_', '-')}`" not in page] == []
    assert not [line for line in page.splitlines() if line.startswith("|") and line.endswith("|  |")]


def test_presets_are_listed_with_question_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(line.endswith("?") and ("minute" in line or "hour" in line or "GPU" in line) for line in lines)
