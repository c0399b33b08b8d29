"""Reports of a complete, a tiny and a broken study: short, traceable, self-contained, and safe against what a model may write."""

import csv
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.colors import to_rgb

from analysis.__main__ import analyze, main
from analysis.report import document as content
from analysis.report import exports, sections, terminal
from analysis.report import html as page
from analysis.report import tables as listings
from analysis.report import text_formats as markdown
from analysis.table import evidence
from study import records
from tests.conftest import write_synthetic

HOSTILE = (
    '<script>alert("x")</script></script> **bold** [link](https://evil.example) \x1b[31mred\x1b[0m \x00 ``` {{7*7}} $x^{$ '
    "\u202e\u2028 =1+1 <img src=x onerror=alert(1)>"
)
"""What a model, a file or a person might hand us: HTML, Markdown, ANSI, a null byte, a template, mathematics, bidi and line separators."""


class Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, all text, and the text that is not folded away."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = self.open_text = ""
        self._open, self._folded = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        self._open = tag
        self._folded |= tag == "details"

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        self._folded &= tag != "details"

    def handle_data(self, data: str) -> None:
        if self._open not in ("style", "title"):
            self.text += data
            self.open_text += "" if self._folded and self._open != "h2" else data


def build(results: Path) -> tuple[dict[str, Any], Path]:
    """Conclude and report as `python -m analysis` does; returns fits.json as written and the path of the page."""
    analyze(results)
    folder = results / "report"
    return json.loads((folder / "fits.json").read_text()), folder / "report.html"


@pytest.fixture(scope="module")
def complete(synthetic_results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    results = tmp_path_factory.mktemp("complete") / "synthetic"
    shutil.copytree(synthetic_results, results)
    return build(results)


@pytest.fixture(scope="module")
def complete_page(complete: tuple[dict[str, Any], Path]) -> Page:
    return Page(complete[1].read_text(encoding="utf-8"))


# ---- complete ----


def test_the_report_has_its_files_and_its_sections_folded_in_order(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    folder = complete[1].parent
    names = {"fits.json", "answer.json", "report.html", "report.md", "report.ipynb", "figures", "tables"}
    assert {p.name for p in folder.iterdir()} == names
    folded = [a for tag, a in complete_page.elements if tag == "details"]
    ids = "sweeps equal length forecasts speed overfitting texts refusals provenance"
    assert " ".join(a["id"] for a in folded) == ids
    assert not [a for a in folded if "open" in a]
    figures = Counter(p.suffix for p in (folder / "figures").iterdir())
    assert len(set(figures.values())) == 1
    assert set(figures) == {".svg", ".pdf", ".png", ".csv"}


def test_the_first_screen_is_question_three_sentences_one_figure_and_the_levers(
    complete: tuple[dict[str, Any], Path], complete_page: Page
) -> None:
    fits = complete[0]
    assert len(fits["answer"]) == 3
    words = " ".join(complete_page.open_text.split())
    start = words.index(fits["question"])
    for sentence in fits["answer"]:
        assert " ".join(str(page.typeset(sentence).striptags()).split()) in words[start : start + 3_000]
    assert len(words.split()) <= 600
    before = list(itertools.takewhile(lambda e: e[0] != "details", complete_page.elements))
    assert [tag for tag, _ in before].count("svg") == 1
    assert [tag for tag, _ in before].count("table") == 1


def test_terminal_and_markdown_say_the_same_first_screen(complete: tuple[dict[str, Any], Path]) -> None:
    fits, path = complete
    said = " ".join(terminal.text(fits).split())
    written = path.with_name("report.md").read_text(encoding="utf-8")
    for sentence in fits["answer"]:
        assert " ".join(sentence.split()) in said
        assert markdown.escape(sentence) in written
    for row in listings.levers_listing(fits).rows:
        assert "  ".join(cell.text for cell in row[:2]).split() == [w for w in " ".join(cell.text for cell in row[:2]).split() if w in said]
        assert "| " + " | ".join(markdown.escape(cell.text) for cell in row) + " |" in written


def test_the_answer_for_programs_holds_what_the_page_says(
    complete: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.loads(complete[1].with_name("answer.json").read_text(encoding="utf-8"))
    assert made["sentences"] == complete[0]["answer"]
    assert [row["factor"] for row in made["levers"]] == [row["factor"] for row in complete[0]["levers"]]
    assert main([str(complete[1].parents[1]), "--json", "--bootstrap", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["levers"] == made["levers"]


def test_every_number_of_a_table_names_a_place_in_fits_json(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    sources = [a["data-source"] for _, a in complete_page.elements if "data-source" in a]
    assert len(sources) > 150
    for source in sources:
        content.at(complete[0], source)  # raises KeyError where there is no such place
    parts = sections.sections(evidence.load(complete[1].parents[1]))
    numbers = [c for part in parts for table in part.listings for row in table.rows for c in row if c.numeric]
    assert not [cell for cell in numbers if cell.text != "–" and not cell.source]


def test_a_shown_number_equals_its_place_in_fits_json(complete: tuple[dict[str, Any], Path]) -> None:
    fits = complete[0]
    slope = fits["fits"][fits["primary_fit"]]["slope"]
    html = complete[1].read_text(encoding="utf-8")
    shown = re.search(r'data-source="/fits/joint/slope"[^>]*>([^<]+)<', html)
    assert shown is not None
    value, low, high = (-float(number) for number in re.findall(r"[\d.]+", shown.group(1)))
    assert (value, low, high) == pytest.approx((slope["value"], slope["low"], slope["high"]), abs=0.002)


def test_the_page_is_self_contained_and_runs_no_script(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    html = complete[1].read_text(encoding="utf-8")
    assert "http:" not in html
    assert "https:" not in html
    for tag, attributes in complete_page.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert re.findall(r"@import|url\((?!#)", html) == []
    assert len(html.encode()) < 3_000_000
    policy = next(a["content"] for tag, a in complete_page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "script" not in {tag for tag, _ in complete_page.elements}


def test_every_figure_has_alternative_text_a_caption_and_ids_of_its_own(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    pictures = [a for tag, a in complete_page.elements if tag == "svg"]
    drawn = list((complete[1].parent / "figures").glob("*.svg"))
    assert len(pictures) == len(drawn) == complete_page.text.count("Figure ")
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 15 for a in pictures)
    ids = Counter(a["id"] for _, a in complete_page.elements if "id" in a)
    assert [name for name, count in ids.items() if count > 1] == []
    known = {f"#{name}" for name in ids}
    assert [a["href"] for _, a in complete_page.elements if a.get("href", "#answer") not in known] == []


def test_headings_do_not_skip_a_level_and_tables_have_headers(complete_page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in complete_page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for tag, a in complete_page.elements if tag == "th")


def _contrast(a: str, b: str) -> float:
    """Contrast ratio of two colors (WCAG 2.2)."""

    def luminance(color: str) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_marks_have_contrast_in_both_themes(theme: int) -> None:
    css = (page.TEMPLATES / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, flags=re.S)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    for name in ("ink", "muted", "accent", *[n for n in colors if n.endswith("-text")]):
        assert _contrast(colors[name], colors["paper"]) >= 4.5, name
        assert _contrast(colors[name], colors["wash"]) >= 4.5 or name.endswith("-text"), name
    for name in ("blue", "vermillion", "green"):
        assert _contrast(colors[name], colors["paper"]) >= 3, name
    assert {f"shade-{i}" for i in range(7)} <= set(colors)


def test_every_color_of_the_figures_follows_the_theme(complete: tuple[dict[str, Any], Path]) -> None:
    html = complete[1].read_text(encoding="utf-8")
    inside = "".join(re.findall(r"<figure.*?</figure>", html, flags=re.S))
    assert set(re.findall(r"#[0-9a-f]{6}\b", inside)) == set()
    used, css = set(re.findall(r"var\((--[\w-]+)\)", inside)), (page.TEMPLATES / "report.css").read_text()
    assert {"--ink", "--paper", "--blue", "--green"} <= used
    assert [name for name in used if css.count(f"{name}: ") < 2] == []


def test_equal_inputs_give_equal_bytes(complete: tuple[dict[str, Any], Path]) -> None:
    parts = sections.sections(evidence.load(complete[1].parent.parent))
    drawn = {p.stem: p.read_text() for p in sorted((complete[1].parent / "figures").glob("*.svg"))}
    assert page.render("synthetic", parts, drawn) == complete[1].read_text(encoding="utf-8")
    assert markdown.render(parts, "synthetic") == (complete[1].parent / "report.md").read_text(encoding="utf-8")


def test_markdown_tables_are_whole_and_figures_exist(complete: tuple[dict[str, Any], Path]) -> None:
    folder, text = complete[1].parent, (complete[1].parent / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    pictures = re.findall(r"!\[(?:[^\]\\]|\\.)+\]\((figures/[\w-]+\.svg)\)", text)
    assert len(pictures) == len(list((folder / "figures").glob("*.svg")))
    assert all((folder / name).exists() for name in pictures)


def test_tables_for_a_paper_hold_what_the_page_shows(complete: tuple[dict[str, Any], Path]) -> None:
    folder = complete[1].parent / "tables"
    rows = list(csv.reader((folder / "sweep_heads.csv").open(encoding="utf-8")))
    assert rows[0][:3] == ["heads", "parameters", "loss (nats)"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "4", "8"]
    latex = (folder / "levers.tex").read_text(encoding="utf-8")
    assert latex.startswith(r"\begin{tabular}{l")
    assert latex.count(r"\\") == latex.count("\n") - 5
    assert all(path.read_text(encoding="utf-8").isascii() for path in folder.glob("*.tex") if path.stem != "provenance")


def test_latex_and_csv_escape_what_would_act() -> None:
    cells = [content.Cell(r"50 % & \input{x} _^2 #1 $"), content.Cell("\u22121.0", numeric=True)]
    latex = exports.as_latex(content.Listing("x", "", ["a", "b"], [cells]))
    assert r"50 \% \& \textbackslash input\{x\} \_$^{2}$ \#1 \$ & $-$1.0 \\" in latex
    listing = content.Listing("x", "", ["a", "b"], [[content.Cell("=1+1"), content.Cell("\u22121.0", numeric=True)]])
    assert exports.as_csv(listing) == "a,b\n'=1+1,\u22121.0\n"


# ---- tiny and broken ----


def test_a_tiny_study_says_what_it_cannot_say_each_reason_once(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "tiny", seeds=1, sweeps=("width",))
    fits, path = build(tmp_path / "tiny")
    text = Page(path.read_text(encoding="utf-8")).text
    assert fits["refusals"]
    for refusal in fits["refusals"]:
        assert text.count(refusal["reason"][:60].replace(" %", "\u00a0%").replace("`", "")) >= 1
    rows = listings.refusals_listing(fits["refusals"]).rows
    assert len({row[1].text for row in rows}) == len(rows)
    assert [row[0].text for row in rows if "_" in row[0].text or "." in row[0].text] == []


def test_a_broken_study_names_what_is_broken_and_reports_the_rest(tmp_path: Path) -> None:
    results = tmp_path / "broken"
    rows = write_synthetic(results, seeds=2, sweeps=("width",), compacted=False)
    failed = {**rows[0], "trial_id": "failed", "status": "FAILED", "val_loss": None, "reason": f"ValueError: {HOSTILE}"}
    diverged = {**rows[1], "trial_id": "diverged", "status": "DIVERGED", "val_loss": None, "reason": "non-finite loss at step 412"}
    for row in (failed, diverged):
        records.write(results / "trials" / f"{row['trial_id']}.parquet", "trials", [row])
    facts = json.loads((results / "study.json").read_text())
    facts["trial_ids"] += ["failed", "diverged"]
    (results / "study.json").write_text(json.dumps(facts))
    whole = results / "trials" / f"{rows[2]['trial_id']}.parquet"
    whole.write_bytes(whole.read_bytes()[:200])
    (results / "curves" / f"{rows[3]['trial_id']}.parquet").write_bytes(b"not parquet")
    fits, path = build(results)
    seen = Page(path.read_text(encoding="utf-8"))
    assert "non-finite loss at step 412" in seen.text
    assert f"trials/{whole.name} cannot be read as Parquet" in seen.text
    assert 'ValueError: <script>alert("x")</script>' in seen.text
    assert "script" not in {tag for tag, _ in seen.elements}
    assert {e["status"] for e in fits["exclusions"]} >= {"FAILED", "DIVERGED"}


def test_a_study_in_which_nothing_completed_still_has_a_report(tmp_path: Path) -> None:
    rows = write_synthetic(tmp_path / "none", seeds=1, sweeps=("heads",), compacted=False)
    for row in rows:
        gone = {**row, "status": "FAILED", "val_loss": None, "reason": "MemoryError"}
        records.write(tmp_path / "none" / "trials" / f"{row['trial_id']}.parquet", "trials", [gone])
    stale = tmp_path / "none" / "report" / "figures" / "sweep_old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier report")
    fits, path = build(tmp_path / "none")
    assert not stale.exists()
    assert fits["noise"]["refused"]["code"] == "no_completed_trials"
    assert len(fits["exclusions"]) == fits["counts"]["failed"] == 4
    assert "MemoryError" in Page(path.read_text(encoding="utf-8")).open_text


def test_a_report_that_cannot_be_built_leaves_no_old_one_that_looks_current(complete: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(complete[1].parents[1], results)
    shutil.rmtree(results / "trials")
    (results / "trials.parquet").write_bytes(b"not parquet")
    assert main([str(results)]) == 1
    left = {p.name for p in (results / "report").iterdir()}
    assert not left & {"fits.json", "answer.json", "report.html", "report.md", "report.ipynb"}


def test_the_conclusions_are_the_same_file_with_and_without_the_report(complete: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    analyze(complete[1].parents[1], tmp_path, report=False)
    assert json.loads((tmp_path / "fits.json").read_text()) == complete[0]


# ---- untrusted text ----


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results whose names, question, prompt and stories are hostile, drawn under a person's own matplotlib settings."""
    results = tmp_path_factory.mktemp("hostile") / "results"
    rows = write_synthetic(results, seeds=1, sweeps=("heads",), compacted=False)
    for row in rows:
        texts = {"prompt": HOSTILE, "text": HOSTILE * 3, "index": 0, "temperature": 0.5, "step": 1, "n_tokens": 9}
        sample = {"trial_id": row["trial_id"], **texts}
        records.write(results / "samples" / f"{row['trial_id']}.parquet", "samples", [sample])
        row["sweeps"] = [HOSTILE, f"{HOSTILE} too"]  # names whose readable parts are equal
        records.write(results / "trials" / f"{row['trial_id']}.parquet", "trials", [row])
    facts = json.loads((results / "study.json").read_text())
    (results / "study.json").write_text(json.dumps({**facts, "name": HOSTILE, "question": HOSTILE}))
    with mpl.rc_context({"text.usetex": True, "axes.grid": True}):
        return build(results)[1]


def test_hostile_text_is_shown_as_text_in_the_page(hostile: Path) -> None:
    html = hostile.read_text(encoding="utf-8")
    seen = Page(html)
    assert not {"img", "script"} & {tag for tag, _ in seen.elements}
    assert '<script>alert("x")</script>' in seen.text
    assert "{{7*7}}" in seen.text
    assert "$x^{$" in seen.text.replace("\u2423", " ")
    assert "\u241b[31mred" in seen.text  # the escape sign as a picture
    assert not set("\x00\x1b\u202e\u2028") & set(html)


def test_hostile_text_is_shown_as_text_in_markdown_and_on_the_terminal(hostile: Path) -> None:
    text = (hostile.parent / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{4,})text\n.*?^\1$", "", text, flags=re.M | re.S)
    assert "````text\n<script>" in text  # in a fence that is longer than any run of backticks inside
    for markup in ("<script>", "**bold**", "[link]("):
        assert markup not in outside
    assert not set("\x00\x1b\u202e\u2028") & set(text)
    assert not set("\x00\x1b\u202e\u2028") & set(terminal.text(json.loads((hostile.parent / "fits.json").read_text())))


def test_sweeps_whose_names_look_alike_have_figures_and_tables_of_their_own(hostile: Path) -> None:
    for kind, suffix in (("figures", ".svg"), ("tables", ".csv")):
        own = {p.name for p in (hostile.parent / kind).glob(f"sweep_*{suffix}")}
        assert len(own) == 2, own


# ---- parts ----


def test_a_refusal_is_named_with_its_reason() -> None:
    cell = content.number({"refused": {"code": "c", "reason": "too few sizes"}, "bound": {"upper": 0.74}}, "/x")
    assert (cell.text, cell.note) == ("refused", "too few sizes")


def test_pointers_reach_names_with_slashes() -> None:
    assert content.at({"a/b": [{"c~d": 1}]}, "/" + content.escape_pointer("a/b") + "/0/" + content.escape_pointer("c~d")) == 1
    with pytest.raises(KeyError, match="/a/9 is not in fits"):
        content.at({"a": [1]}, "/a/9")


def test_sections_are_the_same_in_every_rendering(complete: tuple[dict[str, Any], Path]) -> None:
    study = evidence.load(complete[1].parent.parent)
    titles = [s.title for s in sections.sections(study)[1:]]
    assert re.findall(r"^## (.+)$", (complete[1].parent / "report.md").read_text(encoding="utf-8"), flags=re.M) == titles


# ---- in a browser ----

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")


def _browse(page_path: Path, width: int, profile: Path) -> str:
    """The document as a headless browser leaves it, without network."""
    flags = f"--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --user-data-dir={profile}"
    command = [BROWSER, *flags.split(), f"--window-size={width},900", "--dump-dom", page_path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(complete: tuple[dict[str, Any], Path], tmp_path: Path, width: int) -> None:
    html = complete[1].read_text(encoding="utf-8")
    probe = "<script>document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth</script>"
    copy = tmp_path / "probe.html"  # without the policy, which would rightly forbid the probe
    copy.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", f"{probe}</body>"), encoding="utf-8")
    seen = Page(_browse(copy, width, tmp_path / "profile"))
    assert next(a["data-wide"] for tag, a in seen.elements if tag == "body") == "0"
