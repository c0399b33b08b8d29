"""Reports of a complete, a tiny and a broken study: honest, traceable, self-contained, and safe against what a model may write."""

import base64
import csv
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb

from analysis.findings import conclude as conclusions
from analysis.findings.fit_summary import Options
from analysis.report import build as report
from analysis.report import document as content
from analysis.report import exports, sections
from analysis.report import html as page
from analysis.report import tables as listings
from analysis.report import text_formats as markdown
from analysis.table import evidence
from analysis.table import load as table
from study import records
from tests.conftest import write_synthetic

HOSTILE = (
    '<script>alert("x")</script></script> **bold** [link](https://evil.example) \x1b[31mred\x1b[0m \x00 ``` {{7*7}} '
    "\u202e\u2028 =1+1 <img src=x onerror=alert(1)>"
)
"""What a model, a file or a person might hand us: HTML, Markdown, ANSI, a null byte, a template, bidi and line separators, a formula."""


class Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, text, and the content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data


def build(results: Path, run_notebook: bool = False) -> tuple[dict[str, Any], Path]:
    """Conclude and report as `python -m analysis` does; returns fits.json as written and the path of the page."""
    fits = conclusions.conclude(table.load(results), Options(n_bootstrap=50))
    conclusions.write(results / "report" / "fits.json", fits)
    path = report.build(results, fits, run_notebook=run_notebook)
    return json.loads((path.parent / "fits.json").read_text()), path


@pytest.fixture(scope="module")
def complete(synthetic_results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    results = tmp_path_factory.mktemp("complete") / "synthetic"
    shutil.copytree(synthetic_results, results)
    return build(results)


@pytest.fixture(scope="module")
def complete_page(complete: tuple[dict[str, Any], Path]) -> Page:
    return Page(complete[1].read_text(encoding="utf-8"))


# ---- complete ----


def test_the_report_has_its_files_and_its_sections_in_order(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    folder = complete[1].parent
    assert {"fits.json", "report.html", "report.md", "report.ipynb", "figures", "tables"} <= {p.name for p in folder.iterdir()}
    ids = [a["id"] for tag, a in complete_page.elements if tag == "section"]
    expected = "answer loss sweeps shape rates forecasts speed overfitting stories refusals exclusions card provenance words explore"
    assert ids == expected.split()
    figures = Counter(p.suffix for p in (folder / "figures").iterdir())
    assert len(set(figures.values())) == 1
    assert set(figures) == {".svg", ".pdf", ".png", ".csv"}


def test_question_and_answer_come_first(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    fits = complete[0]
    assert len(fits["answer"]) == 3
    words = " ".join(complete_page.text.split())
    start = words.index(fits["question"])
    for sentence in fits["answer"]:
        shown = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", sentence).replace(" %", "\u00a0%")
        shown = re.sub(r"\bp ([<=]) (?=0)", "p\u00a0\\1\u00a0", shown)
        assert " ".join(shown.split()) in words[start : start + 3_000]


def test_every_number_of_a_table_names_a_place_in_fits_json(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    sources = [a["data-source"] for _, a in complete_page.elements if "data-source" in a]
    assert len(sources) > 150
    for source in sources:
        content.at(complete[0], source)  # raises KeyError where there is no such place


def test_a_shown_number_equals_its_place_in_fits_json(complete: tuple[dict[str, Any], Path]) -> None:
    fits = complete[0]
    alpha = fits["fits"][fits["primary_fit"]]["parameters"]["alpha"]
    html = complete[1].read_text(encoding="utf-8")
    shown = re.search(r'data-source="/fits/joint/parameters/alpha"[^>]*>([^<]+)<', html)
    assert shown is not None
    value, low, high = map(float, re.findall(r"[\d.]+", shown.group(1)))
    assert (value, low, high) == pytest.approx((alpha["value"], alpha["low"], alpha["high"]), abs=0.006)


def test_the_page_is_self_contained(complete: tuple[dict[str, Any], Path], complete_page: Page) -> None:
    html = complete[1].read_text(encoding="utf-8")
    assert "http:" not in html
    assert "https:" not in html
    for tag, attributes in complete_page.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert re.findall(r"@import|url\((?!#)", html) == []
    assert len(html.encode()) < 3_000_000


def test_only_the_projects_own_script_may_run(complete_page: Page) -> None:
    policy = next(a["content"] for tag, a in complete_page.elements if a.get("http-equiv") == "Content-Security-Policy")
    data, own = complete_page.scripts
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(json.loads(data)["trials"]["rows"]) == 30
    assert not [a for _, a in complete_page.elements for name in a if name.startswith("on")]


def test_every_figure_has_alternative_text_a_caption_and_ids_of_its_own(complete_page: Page) -> None:
    pictures = [a for tag, a in complete_page.elements if tag == "svg" and "aria-hidden" not in a]
    assert len(pictures) == 12
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 15 for a in pictures)
    assert complete_page.text.count("Figure ") == 12
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
    assert {"--ink", "--paper", "--blue", "--green-text"} <= used
    assert [name for name in used if css.count(f"{name}: ") < 2] == []


def test_equal_inputs_give_equal_bytes(complete: tuple[dict[str, Any], Path]) -> None:
    study = evidence.load(complete[1].parent.parent)
    drawn = {p.stem: p.read_text() for p in sorted((complete[1].parent / "figures").glob("*.svg"))}
    assert page.render(study, drawn) == complete[1].read_text(encoding="utf-8")
    assert markdown.render(study, list(drawn)) == (complete[1].parent / "report.md").read_text(encoding="utf-8")


def test_markdown_tables_are_whole_and_figures_exist(complete: tuple[dict[str, Any], Path]) -> None:
    folder, text = complete[1].parent, (complete[1].parent / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    pictures = re.findall(r"!\[(?:[^\]\\]|\\.)+\]\((figures/[\w-]+\.svg)\)", text)
    assert len(pictures) == 12
    assert all((folder / name).exists() for name in pictures)


def test_tables_for_a_paper_hold_what_the_page_shows(complete: tuple[dict[str, Any], Path]) -> None:
    folder = complete[1].parent / "tables"
    rows = list(csv.reader((folder / "sweep_heads.csv").open(encoding="utf-8")))
    assert rows[0][:3] == ["heads", "parameters", "loss (nats)"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "4", "8"]
    latex = (folder / "fits.tex").read_text(encoding="utf-8")
    assert latex.startswith(r"\begin{tabular}{lrrrrrl}")
    assert latex.count(r"\\") == latex.count("\n") - 5
    assert latex.isascii()


def test_latex_and_csv_escape_what_would_act() -> None:
    assert exports.latex(r"50 % & \input{x} _^2 #1 $") == r"50 \% \& \textbackslash{}input\{x\} \_$^{2}$ \#1 \$"
    listing = content.Listing("x", "", ["a", "b"], [[content.Cell("=1+1"), content.Cell("\u22121.0", numeric=True)]])
    assert exports.as_csv(listing) == "a,b\n'=1+1,\u22121.0\n"


# ---- tiny and broken ----


def test_a_tiny_study_says_what_it_cannot_say(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "tiny", seeds=1, sweeps=("width",))
    fits, path = build(tmp_path / "tiny")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "refused" in text
    assert fits["refusals"]
    for refusal in fits["refusals"]:
        assert refusal["reason"][:40].replace(" %", "\u00a0%") in text
    assert "The width sweep" in text
    assert "no seeds" in text or "one seed" in text or "seed" in " ".join(r["reason"] for r in fits["refusals"])


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
    assert str(tmp_path) not in seen.text.replace(f"Results {results}", "")
    assert 'ValueError: <script>alert("x")</script>' in seen.text
    assert len(seen.scripts) == 2
    assert {e["status"] for e in fits["exclusions"]} >= {"FAILED", "DIVERGED"}


def test_a_study_in_which_nothing_completed_still_has_a_report(tmp_path: Path) -> None:
    rows = write_synthetic(tmp_path / "none", seeds=1, sweeps=("heads",), compacted=False)
    for row in rows:
        gone = {**row, "status": "FAILED", "val_loss": None, "reason": "MemoryError"}
        records.write(tmp_path / "none" / "trials" / f"{row['trial_id']}.parquet", "trials", [gone])
    stale = tmp_path / "none" / "report" / "figures" / "sweep_old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier report")
    _, path = build(tmp_path / "none")
    assert not stale.exists()
    seen = Page(path.read_text(encoding="utf-8"))
    assert "MemoryError" in seen.text
    assert "explore" not in [a.get("id") for _, a in seen.elements]


# ---- untrusted text ----


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results whose question, prompt and stories are hostile."""
    results = tmp_path_factory.mktemp("hostile") / "results"
    rows = write_synthetic(results, seeds=1, sweeps=("heads",), compacted=False)
    for row in rows:
        sample = {
            "trial_id": row["trial_id"],
            "step": 1,
            "prompt": HOSTILE,
            "index": 0,
            "temperature": 0.5,
            "text": HOSTILE * 3,
            "n_tokens": 9,
        }
        records.write(results / "samples" / f"{row['trial_id']}.parquet", "samples", [sample])
    facts = json.loads((results / "study.json").read_text())
    (results / "study.json").write_text(json.dumps({**facts, "name": HOSTILE, "question": HOSTILE}))
    return build(results)[1]


def test_hostile_text_is_shown_as_text_in_the_page(hostile: Path) -> None:
    html = hostile.read_text(encoding="utf-8")
    seen = Page(html)
    assert len(seen.scripts) == 2
    assert "img" not in {tag for tag, _ in seen.elements}
    assert '<script>alert("x")</script>' in seen.text
    assert "{{7*7}}" in seen.text
    assert "\u241b[31mred" in seen.text  # the escape sign as a picture
    assert not set("\x00\x1b\u202e\u2028") & set(html)
    told = json.loads(seen.scripts[0])["stories"]
    assert all('<script>alert("x")</script>' in text for stories in told.values() for _, _, text in stories)


def test_hostile_text_is_shown_as_text_in_markdown(hostile: Path) -> None:
    text = (hostile.parent / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(`{4,})text\n.*?^\1$", "", text, flags=re.M | re.S)
    assert "````text\n<script>" in text  # in a fence that is longer than any run of backticks inside
    assert "<script>" not in outside
    assert "**bold**" not in outside
    assert "[link](" not in outside
    assert not set("\x00\x1b\u202e\u2028") & set(text)


def test_control_characters_become_visible() -> None:
    assert content.visible("a\x00b\x1b[0m\tc\r\nd\x7f\u200b") == "a\u2400b\u241b[0m    c\nd\u2421<U+200B>"
    assert content.visible("na\u00efve \u2014 caf\u00e9 \U0001f600") == "na\u00efve \u2014 caf\u00e9 \U0001f600"


# ---- numbers ----


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.3412, 0.2913, 0.4087, "0.341 [0.291, 0.409]"),
        (-0.14512, -0.1521, -0.1390, "\u22120.1451 [\u22120.1521, \u22120.1390]"),
        (1234.5, 1200.0, 1270.0, "1234 [1200, 1270]"),
        (0.5, None, None, "0.5"),
        (0.0, 0.0, 0.0, "0"),
        (-0.0717, -0.127, -0.0002, "\u22120.072 [\u22120.127, 0.000]"),
        (0.0, -0.119, float("inf"), "0 [at least \u22120.119]"),
        (-0.02, float("-inf"), 0.164, "\u22120.02 [at most 0.164]"),
        (-0.02, float("-inf"), float("inf"), "\u22120.02 [not determined]"),
        (None, None, None, "\u2013"),
    ],
)
def test_intervals_are_shown_with_the_digits_that_they_support(value: Any, low: Any, high: Any, text: str) -> None:
    assert content.spanned(value, low, high) == text


def test_plain_values_read_well() -> None:
    shown = [content.plain(v) for v in (None, True, 98_560, 98_560.4, 0.00001722, float("nan"), 2.0, [1, 2])]
    assert shown == ["\u2013", "yes", "98,560", "98,560", "1.722 \u00d7 10^\u22125", "\u2013", "2", "1, 2"]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.65, 1.372, 1.984, "1.65 [1.37, 1.98]"),
        (23.7, 1e-6, 4e8, "not determined"),
        (23.7, 2.41, 4e8, "24 [2.4, over 30]"),
        (0.9, None, None, "0.9"),
    ],
)
def test_a_parameter_equivalent_without_meaning_is_not_a_number(value: float, low: Any, high: Any, text: str) -> None:
    row = {"parameter_equivalent": value, "pe_low": low, "pe_high": high}
    assert content.ratio_cell(row, ("parameter_equivalent", "pe_low", "pe_high"), "/x").text == text


def test_facts_are_written_for_people() -> None:
    facts = {
        "machine": {"memory_bytes": 25_276_514_304},
        "started_at": "2026-11-22T14:27:52.925862+00:00",
        "cost": {"flops": 15_560_000_000_000},
    }
    rows = content.facts_listing("run", "", facts, "/provenance").rows
    told = {row[0].text: row[1].text for row in rows}
    assert told == {
        "machine / memory": "23.5 GiB",
        "started at": "2026-11-22 14:27:52 UTC",
        "cost / FLOP of all trials together": "1.556 \u00d7 10^13",
    }


def test_what_was_refused_is_named_in_words(complete: tuple[dict[str, Any], Path]) -> None:
    assert listings.subject_words("fits.joint@params_total.parameters.E, fits.sweep:depth.parameters.alpha, timing.fit") == (
        "E of the joint fit in total parameters; \u03b1 of the depth fit; law of time per step"
    )
    named = [row[0].text for row in listings.refusals_listing(complete[0]["refusals"]).rows]
    assert named
    assert [name for name in named if "." in name or "@" in name or "_" in name] == []


def test_every_word_that_needs_one_has_a_meaning(complete_page: Page) -> None:
    for word in ("nats", "noise floor", "parameter-equivalent", "95 % interval", "configuration"):
        assert word in listings.WORDS
    assert "#words" in [a.get("href") for _, a in complete_page.elements]
    assert all(
        meaning in " ".join(complete_page.text.replace("\u00a0", " ").split()) for meaning in listings.WORDS.values() if "^" not in meaning
    )


def test_a_refusal_is_named_with_its_reason_and_bound() -> None:
    cell = content.number({"refused": {"code": "c", "reason": "too few sizes"}, "bound": 0.74}, "/x")
    assert (cell.text, cell.note) == ("refused (at most 0.74)", "too few sizes")


def test_pointers_reach_names_with_slashes() -> None:
    assert content.at({"a/b": [{"c~d": 1}]}, "/" + content.escape_pointer("a/b") + "/0/" + content.escape_pointer("c~d")) == 1
    with pytest.raises(KeyError, match="/a/9 is not in fits"):
        content.at({"a": [1]}, "/a/9")


def test_fits_json_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; write it with: python -m analysis"):
        evidence.load(tmp_path)


def test_sections_are_the_same_in_every_rendering(complete: tuple[dict[str, Any], Path]) -> None:
    study = evidence.load(complete[1].parent.parent)
    titles = [s.title for s in sections.sections(study)]
    assert re.findall(r"^## (.+)$", (complete[1].parent / "report.md").read_text(encoding="utf-8"), flags=re.M) == titles


# ---- in a browser ----

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")


def _browse(page_path: Path, width: int, profile: Path) -> str:
    """The document as a headless browser leaves it, without network."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ]
    command = [BROWSER, *flags, f"--window-size={width},900", "--dump-dom", page_path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
def test_the_explorer_draws_every_trial_offline(complete: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    seen = Page(_browse(complete[1], 1280, tmp_path))
    points = [a for tag, a in seen.elements if tag == "circle" and a.get("class", "").startswith("point")]
    assert len(points) == 30
    assert [a["class"] for a in points].count("point on") == 1
    assert "Learning curve of this trial" in [a.get("aria-label") for _, a in seen.elements]


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
