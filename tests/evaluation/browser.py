"""What a headless browser makes of a page, without a driver: another page shows it in frames and looks at it."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PROBE = """<!DOCTYPE html><meta charset="utf-8">{frames}<pre id="found"></pre><script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, size = element => {{
      const box = element.getBoundingClientRect();
      return [box.width, box.height, getComputedStyle(element).visibility];
    }};
    const stops = [...page.querySelectorAll(".plot, .scroll")];
    return {{
      width: frame.clientWidth, page: page.documentElement.scrollWidth,
      plots: [...page.querySelectorAll("svg")].map(size), tables: [...page.querySelectorAll("table")].map(size),
      stops: stops.length,
      focused: stops.filter(stop => (stop.focus(), stop.tabIndex === 0 && page.activeElement === stop)).length,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def find_browser() -> str | None:
    """$SPEC2SEQ_BROWSER, or a Chromium on the path."""
    return os.environ.get("SPEC2SEQ_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


def look_at(page: str, widths: list[int], browser: str, folder: Path) -> tuple[list[dict], list[str]]:
    """What the probe found at each width in pixels, and what the console said."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for width in widths
    )
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(frames=frames), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,2000",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]
