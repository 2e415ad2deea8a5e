"""Plots as inline SVG without scripts, fonts or files: text stays text, colours follow the page's style sheet."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from spec2seq.errors import missing_extra

# Colours that matplotlib writes and that become colours of the page, so that light, dark and print differ.
INK = "#010203"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


@dataclass(frozen=True)
class Line:
    """One series of a plot. `style` is a number: the same one looks the same in every plot. `joined` draws the line
    between its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    joined: bool = True


def line_plot(
    lines: Sequence[Line], x_label: str, y_label: str, description: str, key: str, top: float | None = None,
    from_zero: bool = True,
) -> str:  # fmt: skip
    """An `<svg>` element. Series differ by colour, marker and line style; `key` keeps the ids of a page's plots
    apart, `top` is the end of the upright axis, which begins at 0 and has whole numbers below it unless `from_zero` is
    False. Raises Spec2SeqError if matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise missing_extra("matplotlib", "eval") from None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 11}):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            kind = line.style % len(SERIES)
            axes.plot(
                line.x, line.y, label=line.name, color=SERIES[kind], marker=MARKERS[kind],
                linestyle=DASHES[kind] if line.joined else "none",
                linewidth=1.8, markersize=6,
            )  # fmt: skip
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        if from_zero:
            axes.set_ylim(0, top)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=INK, alpha=0.15)
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.legend(frameon=False, labelcolor=INK)
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(text.getvalue(), description, key)


def _for_page(svg: str, description: str, key: str) -> str:
    """The bare element: no document type, page colours, its own ids, as wide as its place, named for readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    for number, colour in enumerate(SERIES, 1):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{_escaped(description)}">{rest.rstrip()}'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
