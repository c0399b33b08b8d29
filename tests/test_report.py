"""Reports of a complete, a tiny and a broken study: short, traceable, self-contained, and safe against what a model may write."""

import csv
import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from functools import cached_property
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

    def attributes(self, name: str) -> list[str]:
        """An attribute of every element that has it."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]


class Report:
    """What `python -m analysis` makes of a results folder."""

    def __init__(self, results: Path) -> None:
        analyze(results)
        self.results, self.folder = results, results / "report"
        self.fits: dict[str, Any] = json.loads(self.read("fits.json"))
        self.html, self.markdown = self.read("report.html"), self.read("report.md")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    @cached_property
    def page(self) -> Page:
        return Page(self.html)

    @cached_property
    def parts(self) -> list[content.Section]:
        return sections.sections(evidence.load(self.results))


@pytest.fixture(scope="module")
def complete(synthetic_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return Report(shutil.copytree(synthetic_results, tmp_path_factory.mktemp("complete") / "synthetic"))


# ---- complete ----


def test_the_report_has_its_files_and_its_sections_folded_in_order(complete: Report) -> None:
    names = {"fits.json", "answer.json", "report.html", "report.md", "report.ipynb", "figures", "tables"}
    assert {p.name for p in complete.folder.iterdir()} == names
    folded = [a for tag, a in complete.page.elements if tag == "details"]
    assert " ".join(a["id"] for a in folded) == "sweeps equal length forecasts speed overfitting texts refusals provenance"
    assert not [a for a in folded if "open" in a]
    assert re.findall(r"^## (.+)$", complete.markdown, flags=re.M) == [part.title for part in complete.parts[1:]]
    figures = Counter(p.suffix for p in (complete.folder / "figures").iterdir())
    assert len(set(figures.values())) == 1
    assert set(figures) == {".svg", ".pdf", ".png", ".csv"}


def test_the_first_screen_is_question_three_sentences_one_figure_and_the_levers(complete: Report) -> None:
    assert len(complete.fits["answer"]) == 3
    words = " ".join(complete.page.open_text.split())
    start = words.index(complete.fits["question"])
    for sentence in complete.fits["answer"]:
        assert " ".join(str(page.typeset(sentence).striptags()).split()) in words[start : start + 3_000]
    assert len(words.split()) <= 600
    before = [tag for tag, _ in itertools.takewhile(lambda e: e[0] != "details", complete.page.elements)]
    assert (before.count("svg"), before.count("table")) == (1, 1)


def test_terminal_and_markdown_say_the_same_first_screen(complete: Report) -> None:
    said = " ".join(terminal.text(complete.fits).split())
    for sentence in complete.fits["answer"]:
        assert " ".join(sentence.split()) in said
        assert markdown.escape(sentence) in complete.markdown
    for row in listings.levers_listing(complete.fits).rows:
        assert all(word in said for cell in row[:2] for word in cell.text.split())
        assert "| " + " | ".join(markdown.escape(cell.text) for cell in row) + " |" in complete.markdown


def test_the_answer_for_programs_holds_what_the_page_says(complete: Report, capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(complete.read("answer.json"))
    assert made["sentences"] == complete.fits["answer"]
    assert [row["factor"] for row in made["levers"]] == [row["factor"] for row in complete.fits["levers"]]
    assert main([str(complete.results), "--json", "--bootstrap", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["levers"] == made["levers"]


def test_every_number_of_a_table_names_a_place_in_fits_json(complete: Report) -> None:
    sources = complete.page.attributes("data-source")
    assert len(sources) > 150
    for source in sources:
        content.at(complete.fits, source)  # raises KeyError where there is no such place
    numbers = [c for part in complete.parts for table in part.listings for row in table.rows for c in row if c.numeric]
    assert not [cell for cell in numbers if cell.text != "–" and not cell.source]


def test_a_shown_number_equals_its_place_in_fits_json(complete: Report) -> None:
    slope = complete.fits["fits"][complete.fits["primary_fit"]]["slope"]
    (shown,) = re.findall(r'data-source="/fits/joint/slope"[^>]*>([^<]+)<', complete.html)
    value, low, high = (-float(number) for number in re.findall(r"[\d.]+", shown))
    assert (value, low, high) == pytest.approx((slope["value"], slope["low"], slope["high"]), abs=0.002)


def test_the_page_is_self_contained_and_runs_no_script(complete: Report) -> None:
    assert not re.findall(r"https?:|@import|url\((?!#)", complete.html)
    for tag, attributes in complete.page.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert len(complete.html.encode()) < 3_000_000
    policy = next(a["content"] for tag, a in complete.page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "script" not in {tag for tag, _ in complete.page.elements}


def test_every_figure_has_alternative_text_a_caption_and_ids_of_its_own(complete: Report) -> None:
    pictures = [a for tag, a in complete.page.elements if tag == "svg"]
    drawn = list((complete.folder / "figures").glob("*.svg"))
    assert len(pictures) == len(drawn) == complete.page.text.count("Figure ")
    assert all(a.get("role") == "img" and len(a.get("aria-label", "")) > 15 for a in pictures)
    ids = Counter(complete.page.attributes("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    assert {href.removeprefix("#") for href in complete.page.attributes("href")} <= ids.keys()


def test_headings_do_not_skip_a_level_and_tables_have_headers(complete: Report) -> None:
    levels = [int(tag[1]) for tag, _ in complete.page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for tag, a in complete.page.elements if tag == "th")


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
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", css, flags=re.S)[theme]))
    for name in ("ink", "muted", "accent", *[n for n in colors if n.endswith("-text")]):
        assert _contrast(colors[name], colors["paper"]) >= 4.5, name
        assert _contrast(colors[name], colors["wash"]) >= 4.5 or name.endswith("-text"), name
    for name in ("blue", "vermillion", "green"):
        assert _contrast(colors[name], colors["paper"]) >= 3, name
    assert {f"shade-{i}" for i in range(7)} <= set(colors)


def test_every_color_of_the_figures_follows_the_theme(complete: Report) -> None:
    inside = "".join(re.findall(r"<figure.*?</figure>", complete.html, flags=re.S))
    assert set(re.findall(r"#[0-9a-f]{6}\b", inside)) == set()
    used, css = set(re.findall(r"var\((--[\w-]+)\)", inside)), (page.TEMPLATES / "report.css").read_text()
    assert {"--ink", "--paper", "--blue", "--green"} <= used
    assert [name for name in used if css.count(f"{name}: ") < 2] == []


def test_equal_inputs_give_equal_bytes(complete: Report) -> None:
    drawn = {p.stem: p.read_text() for p in (complete.folder / "figures").glob("*.svg")}
    assert page.render("synthetic", complete.parts, drawn) == complete.html
    assert markdown.render(complete.parts, "synthetic") == complete.markdown


def test_markdown_tables_are_whole_and_figures_exist(complete: Report) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", complete.markdown, flags=re.M)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    pictures = re.findall(r"!\[(?:[^\]\\]|\\.)+\]\(figures/([\w-]+\.svg)\)", complete.markdown)
    assert sorted(pictures) == sorted(p.name for p in (complete.folder / "figures").glob("*.svg"))


def test_tables_for_a_paper_hold_what_the_page_shows(complete: Report) -> None:
    rows = list(csv.reader(complete.read("tables/sweep_heads.csv").splitlines()))
    assert rows[0][:3] == ["heads", "parameters", "loss (nats)"]
    assert [row[0] for row in rows[1:]] == ["1", "2", "4", "8"]
    latex = complete.read("tables/levers.tex")
    assert latex.startswith(r"\begin{tabular}{l")
    assert latex.count(r"\\") == latex.count("\n") - 5
    papers = [path for path in (complete.folder / "tables").glob("*.tex") if path.stem != "provenance"]
    assert all(path.read_text(encoding="utf-8").isascii() for path in papers)


def test_latex_and_csv_escape_what_would_act() -> None:
    number = content.Cell("\u22121.0", numeric=True)
    latex = exports.as_latex(content.Listing("x", "", ["a", "b"], [[content.Cell(r"50 % & \input{x} _^2 #1 $"), number]]))
    assert r"50 \% \& \textbackslash input\{x\} \_$^{2}$ \#1 \$ & $-$1.0 \\" in latex
    assert exports.as_csv(content.Listing("x", "", ["a", "b"], [[content.Cell("=1+1"), number]])) == "a,b\n'=1+1,\u22121.0\n"


# ---- tiny and broken ----


def test_a_tiny_study_says_what_it_cannot_say_each_reason_once(tmp_path: Path) -> None:
    write_synthetic(tmp_path, seeds=1, sweeps=("width",))
    tiny = Report(tmp_path)
    assert tiny.fits["refusals"]
    for refusal in tiny.fits["refusals"]:
        assert refusal["reason"][:60].replace(" %", "\u00a0%").replace("`", "") in tiny.page.text
    rows = listings.refusals_listing(tiny.fits["refusals"]).rows
    assert len({row[1].text for row in rows}) == len(rows)
    assert [row[0].text for row in rows if "_" in row[0].text or "." in row[0].text] == []


def rewrite(results: Path, row: dict[str, Any], **facts: Any) -> None:
    """Store a row of `trials` with other facts."""
    row = {**row, **facts}
    records.write(results / "trials" / f"{row['trial_id']}.parquet", "trials", [row])


def restate(results: Path, **facts: Any) -> None:
    """Change facts of study.json."""
    path = results / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_broken_study_names_what_is_broken_and_reports_the_rest(tmp_path: Path) -> None:
    rows = write_synthetic(tmp_path, seeds=2, sweeps=("width",), compacted=False)
    rewrite(tmp_path, rows[0], trial_id="failed", status="FAILED", val_loss=None, reason=f"ValueError: {HOSTILE}")
    rewrite(tmp_path, rows[1], trial_id="diverged", status="DIVERGED", val_loss=None, reason="non-finite loss at step 412")
    restate(tmp_path, trial_ids=[row["trial_id"] for row in rows] + ["failed", "diverged"])
    whole = tmp_path / "trials" / f"{rows[2]['trial_id']}.parquet"
    whole.write_bytes(whole.read_bytes()[:200])
    (tmp_path / "curves" / f"{rows[3]['trial_id']}.parquet").write_bytes(b"not parquet")
    broken = Report(tmp_path)
    said = ("non-finite loss at step 412", f"trials/{whole.name} cannot be read as Parquet", 'ValueError: <script>alert("x")</script>')
    assert [words for words in said if words not in broken.page.text] == []
    assert "script" not in {tag for tag, _ in broken.page.elements}
    assert {e["status"] for e in broken.fits["exclusions"]} >= {"FAILED", "DIVERGED"}


def test_a_study_in_which_nothing_completed_still_has_a_report(tmp_path: Path) -> None:
    for row in write_synthetic(tmp_path, seeds=1, sweeps=("heads",), compacted=False):
        rewrite(tmp_path, row, status="FAILED", val_loss=None, reason="MemoryError")
    stale = tmp_path / "report" / "figures" / "sweep_old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier report")
    none = Report(tmp_path)
    assert not stale.exists()
    assert none.fits["noise"]["refused"]["code"] == "no_completed_trials"
    assert len(none.fits["exclusions"]) == none.fits["counts"]["failed"] == 4
    assert "MemoryError" in none.page.open_text


def test_a_report_that_cannot_be_built_leaves_no_old_one_that_looks_current(complete: Report, tmp_path: Path) -> None:
    results = shutil.copytree(complete.results, tmp_path / "results")
    shutil.rmtree(results / "trials")
    (results / "trials.parquet").write_bytes(b"not parquet")
    assert main([str(results)]) == 1
    assert {p.name for p in (results / "report").iterdir()} <= {"figures", "tables"}


def test_the_conclusions_are_the_same_file_with_and_without_the_report(complete: Report, tmp_path: Path) -> None:
    analyze(complete.results, tmp_path, report=False)
    assert json.loads((tmp_path / "fits.json").read_text()) == complete.fits


# ---- untrusted text ----

ACTING = set("\x00\x1b\u202e\u2028")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Results whose names, question, prompt and stories are hostile, drawn under a person's own matplotlib settings."""
    results = tmp_path_factory.mktemp("hostile") / "results"
    for row in write_synthetic(results, seeds=1, sweeps=("heads",), compacted=False):
        texts = {"prompt": HOSTILE, "text": HOSTILE * 3, "index": 0, "temperature": 0.5, "step": 1, "n_tokens": 9}
        sample = {"trial_id": row["trial_id"], **texts}
        records.write(results / "samples" / f"{row['trial_id']}.parquet", "samples", [sample])
        rewrite(results, row, sweeps=[HOSTILE, f"{HOSTILE} too"])  # names whose readable parts are equal
    restate(results, name=HOSTILE, question=HOSTILE)
    with mpl.rc_context({"text.usetex": True, "axes.grid": True}):
        return Report(results)


def test_hostile_text_is_shown_as_text_in_the_page(hostile: Report) -> None:
    assert not {"img", "script"} & {tag for tag, _ in hostile.page.elements}
    for text in ('<script>alert("x")</script>', "{{7*7}}", "$x^{$", "\u241b[31mred"):  # the escape sign as a picture
        assert text in hostile.page.text.replace("\u2423", " ")
    assert not ACTING & set(hostile.html)


def test_hostile_text_is_shown_as_text_in_markdown_and_on_the_terminal(hostile: Report) -> None:
    outside = re.sub(r"^(`{4,})text\n.*?^\1$", "", hostile.markdown, flags=re.M | re.S)
    assert "````text\n<script>" in hostile.markdown  # in a fence that is longer than any run of backticks inside
    assert not [markup for markup in ("<script>", "**bold**", "[link](") if markup in outside]
    assert not ACTING & set(hostile.markdown + terminal.text(hostile.fits))


def test_sweeps_whose_names_look_alike_have_figures_and_tables_of_their_own(hostile: Report) -> None:
    for files in ("figures/sweep_*.svg", "tables/sweep_*.csv"):
        assert len(list(hostile.folder.glob(files))) == 2, files


# ---- parts ----


def test_a_refusal_is_named_with_its_reason() -> None:
    cell = content.number({"refused": {"code": "c", "reason": "too few sizes"}, "bound": {"upper": 0.74}}, "/x")
    assert (cell.text, cell.note) == ("refused", "too few sizes")


def test_pointers_reach_names_with_slashes() -> None:
    assert content.at({"a/b": [{"c~d": 1}]}, "/" + content.escape_pointer("a/b") + "/0/" + content.escape_pointer("c~d")) == 1
    with pytest.raises(KeyError, match="/a/9 is not in fits"):
        content.at({"a": [1]}, "/a/9")


# ---- in a browser ----

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(complete: Report, tmp_path: Path, width: int) -> None:
    """As a headless browser without network leaves the document."""
    probe = "<script>document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth</script>"
    copy = tmp_path / "probe.html"  # without the policy, which would rightly forbid the probe
    copy.write_text(re.sub(r"<meta http-equiv[^>]*>", "", complete.html).replace("</body>", f"{probe}</body>"), encoding="utf-8")
    flags = f"--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *flags.split(), f"--window-size={width},900", "--dump-dom", copy.as_uri()]
    seen = Page(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert seen.attributes("data-wide") == ["0"]
