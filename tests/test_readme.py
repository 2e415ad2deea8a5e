"""README's example runs as it stands, and its commands exist."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from spec2seq.options import as_markdown

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / "models/ende/config.json").is_file(), reason="the bundled model is not here")
def test_the_example_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 10
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    texts, calls = printed.getvalue().strip().splitlines()
    assert len(eval(texts)) == 1 and float(calls) >= 1


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    named = set(re.findall(r"`?make ([a-z-]+)", README))
    assert {"demo", "test"} <= named <= set(targets)


def test_the_guides_table_of_options_is_the_code_s():
    guide = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    assert as_markdown() == guide.split("<!-- options:begin -->\n")[1].split("<!-- options:end -->")[0]


def test_every_link_leads_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
