import copy
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation.browser import find_browser, look_at

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation import report
from spec2seq.evaluation.document import Sentence, Table, Text, as_html, as_markdown
from spec2seq.evaluation.plots import Axes, Line, bar_plot, line_plot
from spec2seq.evaluation.tables import BEGIN, END, method_label, readme_table, replace_between_markers

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs" / "results" / "bench"
VOID = {"meta", "br", "link", "img", "hr"}
FIGURES = (
    "Speed and quality", "Time for a line against its length", "How many drafted tokens stand", "Where the time goes",
    "Throughput against the batch size", "What a verifier pass costs",
    *(f"Cost of a token against the {what}, {dtype}" for dtype in ("float32", "int8")
      for what in ("length of the source", "batch size")),
)  # fmt: skip


@pytest.fixture(scope="module")
def blocks(results, studied):
    return report.report_blocks(results, studied)


@pytest.fixture(scope="module")
def page(blocks):
    return as_html("spec2seq bench", blocks)


class Checker(HTMLParser):
    """Fails where elements do not close in order; collects tags and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def test_page_is_well_formed_and_self_contained(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(checker.tags)
    for name, value in checker.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_every_string_is_escaped():
    bad = '<script>alert(1)</script> & "more"'
    blocks = [Text(bad), Table([bad, "b"], [[bad, bad]]), Sentence(bad, bad, [(bad, "d")], bad)]
    assert "<script" not in as_html(bad, blocks) and "&lt;script&gt;" in as_html(bad, blocks)
    assert as_markdown([Table(["a", "b"], [["x|y", 1]])]).splitlines()[2] == "| x\\|y | 1 |"
    assert "<code>a &lt; b</code>" in as_html("t", [Text("`a < b`")])


def test_every_figure_is_a_described_plot_and_a_table_in_both_forms(page, blocks):
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == len(FIGURES)
    assert all('role="img" aria-label="' in figure and "<table" in figure for figure in figures)
    text = as_markdown(blocks)
    assert all(f"<h2>{title}</h2>" in page and f"## {title}\n\n|" in text for title in FIGURES)
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


def test_the_report_says_what_was_not_measured_and_how_it_was_made(blocks):
    text = as_markdown(blocks)
    assert "not measured: " in text and "`the command`" not in text and "the command" in text
    assert "greedy, again" in text and "num_assistant_tokens 3" in text
    assert re.search(r"measured again under another name: float32 [\d.]+× .*, int8 [\d.]+×", text)
    assert "times that. Weights" in text and re.search(r"most tokens for each pass of the verifier is \w+ \(loss", text)
    phases = text.split("## Where the time goes")[1].split("##")[0]
    assert re.search(r"\| greedy \| int8 \| \d+% \|", phases) and "." not in phases.split("Of one pass")[0]


def test_without_costs_of_a_pass_the_rest_is_there(results):
    """As of a GPU."""
    text = as_markdown(report.report_blocks(results | {"pass_costs": None}))
    assert "What a verifier pass costs" not in text and "Where the time goes" in text


def test_rows_of_ctranslate2_with_mkl_say_so(results):
    rows = [row | {"environment": {"CT2_USE_MKL": "1"}} if row["engine"] == "ctranslate2" else row
            for row in results["rows"]]  # fmt: skip
    for text in (readme_table(results | {"rows": rows}), as_markdown(report.report_blocks(results | {"rows": rows}))):
        assert "| CTranslate2 | greedy | int8 | 1, with MKL |" in text and "told to multiply with it" in text
    assert "MKL" not in readme_table(results)


def test_quality_is_shown_by_the_score_that_there_is(results):
    rows = [{**row, "bleu": None, "chrf": None, "rougeLsum": 12.0} for row in results["rows"]]
    assert "| ROUGE-Lsum |" in readme_table(results | {"rows": rows})


def test_a_beam_row_is_named_by_its_beams():
    row = {
        "engine": "spec2seq",
        "method": "beam",
        "again": False,
        "parameters": {"num_beams": 2, "length_penalty": 2.0},
    }
    assert method_label(row) == "beam 2, length_penalty 2.0"
    assert method_label(row | {"parameters": {}}) == "beam 5"


def test_writers_differ_by_more_than_colour(page):
    blocks = [Sentence("s", "r", [("Ja", "d"), (" so", "v"), ("*", "v")], "n")]
    assert '<span class="d">Ja</span><span class="v"> so</span>' in as_html("t", blocks)
    assert "Ja **so**\\*" in as_markdown(blocks)
    assert re.search(r"\.d \{[^}]*text-decoration: underline", page)
    assert re.search(r"\.v \{[^}]*font-weight: 700", page)


def test_dark_and_print_have_their_own_colours(page):
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert "currentColor" in svg and "var(--series-" in svg
        assert not re.findall(r"#0102[0-9a-f]{2}", svg)


def test_series_differ_by_marker_and_line_style_and_bars_by_hatching():
    lines = [Line(str(number), [1, 2], [number, number + 1], number) for number in range(4)]
    svg = line_plot(lines, Axes("x", "y"), 'a "quoted" <plot>', "key")
    assert svg.count("stroke-dasharray") >= 3
    assert 'aria-label="a &quot;quoted&quot; &lt;plot&gt;"' in svg
    assert len(set(re.findall(r'xlink:href="#(key-m[0-9a-f]+)"', svg))) >= 4  # a marker shape each
    bars = bar_plot(["a"], {name: [1.0] for name in "xyz"}, Axes("x", ""), "d", "bars")
    assert len(set(re.findall(r"url\(#(bars-h[0-9a-f]+)\)", bars))) == 2  # the first is plain


def test_files_are_written_from_the_json_alone(results, studied, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page, text = report.write_report(tmp_path)
    assert (page.name, text.name) == ("report.html", "report.md")
    assert "Length and batch size" not in text.read_text(encoding="utf-8")
    (tmp_path / "study.json").write_text(json.dumps(studied), encoding="utf-8")
    report.write_report(tmp_path)
    assert "## Length and batch size" in text.read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(Spec2SeqError, match="no such file"):
        report.write_report(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(Spec2SeqError, match="not the results of a bench: KeyError 'data'"):
        report.write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(Spec2SeqError, match="not readable as JSON"):
        report.write_report(tmp_path)


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Spec2SeqError, match=r"matplotlib.*spec2seq\[eval\]"):
        line_plot([], Axes("x", "y"), "d", "k")


def test_readme_is_written_between_its_markers(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        report.write_readme(tmp_path, readme)
        assert readme.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{readme_table(results)}\n{END}\nafter\n"
    assert readme_table(results) == readme_table(copy.deepcopy(results))
    assert "`the command`" in readme_table(results) and "greedy, again" not in readme_table(results)


@pytest.mark.parametrize("text", ["no markers", f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_missing_markers_are_named(text):
    with pytest.raises(Spec2SeqError, match="bench:begin"):
        replace_between_markers(text, "table")


def test_committed_readme_and_report_agree_with_the_committed_json():
    results, study = report.read_results(COMMITTED)
    assert (COMMITTED / "report.md").read_text(encoding="utf-8") == as_markdown(report.report_blocks(results, study)), (
        "docs/results/bench: report.md and the JSON disagree; run spec2seq report docs/results/bench"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replace_between_markers(readme, readme_table(results)) == readme, (
        "README and docs/results/bench disagree; run spec2seq report docs/results/bench --readme README.md"
    )


def test_in_a_browser_every_plot_is_visible_and_all_can_be_reached(page, tmp_path):
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on the path; $SPEC2SEQ_BROWSER names one")
    found, console = look_at(page, [1000, 360], browser, tmp_path)
    assert not console
    for frame in found:
        assert frame["page"] <= frame["width"], "the page scrolls sideways"
        assert len(frame["plots"]) == len(FIGURES)
        for width, height, visibility in frame["plots"] + frame["tables"]:
            assert width > 50 and height > 20 and visibility == "visible"
        assert frame["focused"] == frame["stops"] >= 2 * len(FIGURES)
