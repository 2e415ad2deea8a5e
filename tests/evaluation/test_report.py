import json
import re
import sys
from html.parser import HTMLParser

import pytest

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation import report
from spec2seq.evaluation.plots import Line, line_plot

SPREAD = {"median": 1.5, "low": 1.25, "high": 1.75}
VOID = {"meta", "br", "link", "img", "hr"}


def row(method, identical=1.0):
    return {
        "engine": "spec2seq", "method": method, "parameters": {}, "seconds": SPREAD, "ms_per_token": 3.0,
        "tokens_per_verifier_call": 2.5, "bleu": 20.0, "chrf": 50.0, "identical_to_greedy": identical,
        "speedup": SPREAD, "speedup_by_line": SPREAD, "bleu_signature": "<b>sig</b>", "chrf_signature": "sig",
    }  # fmt: skip


@pytest.fixture()
def results():
    return {
        "manifest": {"cpu": "<script>alert(1)</script>", "gpu": None, "versions": {"a": "1"}},
        "data": {"file": "x<y.tsv", "lines": 12, "timed_lines": 8, "rounds": 3},
        "rows": [row("greedy"), row("assisted"), row("bild", 0.5), row("lookup")],
        "latency": {
            "bins": [[3, 5, 4], [6, 9, 4]],
            "mean_tokens": [4.0, 7.0],
            "milliseconds": {name: [10.0, 20.0] for name in ("greedy", "assisted (lossless)", "<i>", "lookup")},
        },
        "acceptance": {"assisted (lossless)": {"drafted_at": [100, 50, 3], "accepted_at": [80, 30, 0]}},
        "sentences": [{
            "source": "<img src=x onerror=alert(1)> & more", "reference": "</section>", "new_tokens": 3,
            "verifier_calls": 2, "tokens": [{"text": "Ja<b>", "by": "d"}, {"text": " so", "by": "v"}],
        }],
    }  # fmt: skip


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


def test_page_is_well_formed_self_contained_and_escaped(results):
    page = report.render(results)
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(checker.tags)
    for name, value in checker.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;sig" in page
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_every_plot_is_also_a_table_and_described(results):
    page = report.render(results)
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 2
    assert all('role="img" aria-label="' in figure and "<table" in figure for figure in figures)
    assert "80 of 100 (80%)" in page and "0 of 3 (0%)" in page


def test_writers_differ_by_more_than_colour(results):
    page = report.render(results)
    assert '<span class="d">Ja&lt;b&gt;</span><span class="v"> so</span>' in page
    assert re.search(r"\.d \{[^}]*text-decoration: underline", page)
    assert re.search(r"\.v \{[^}]*font-weight: 700", page)


def test_dark_and_print_have_their_own_colours(results):
    page = report.render(results)
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    svg = re.search(r"<svg.*?</svg>", page, flags=re.DOTALL)[0]
    assert "currentColor" in svg and "var(--series-1)" in svg and "var(--series-4)" in svg
    assert not re.findall(r"#0102[0-9a-f]{2}", svg)


def test_series_differ_by_marker_and_line_style():
    lines = [Line(str(number), [1, 2], [number, number + 1], number) for number in range(4)]
    svg = line_plot(lines, "x", "y", 'a "quoted" <plot>', "key")
    assert svg.count("stroke-dasharray") >= 3
    assert 'aria-label="a &quot;quoted&quot; &lt;plot&gt;"' in svg
    assert len(set(re.findall(r'xlink:href="#(key-m[0-9a-f]+)"', svg))) >= 4  # a marker shape each


def test_report_is_made_again_from_the_json_alone_and_is_the_same(results, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    report.main([str(path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.render(results)


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(Spec2SeqError, match="no such file"):
        report.write_report(tmp_path / "results.json", tmp_path / "report.html")
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(Spec2SeqError, match="not readable as JSON"):
        report.write_report(tmp_path / "results.json", tmp_path / "report.html")
    with pytest.raises(Spec2SeqError, match="not the results of a demo"):
        report.render({"rows": []})
    assert not (tmp_path / "report.html").exists()


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Spec2SeqError, match=r"matplotlib.*spec2seq\[eval\]"):
        line_plot([], "x", "y", "d", "key")
