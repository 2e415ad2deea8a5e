"""Plots as inline SVG without scripts, fonts or files: text stays text, colours follow the page's style sheet."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spec2seq.errors import missing_extra

# Colours that matplotlib writes and that become colours of the page, so that light, dark and print differ.
INK = "#010203"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")


@dataclass(frozen=True)
class Line:
    """One series of a plot. `style` is a number: the same one looks the same in every plot. `joined` draws the line
    between its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    joined: bool = True


@dataclass(frozen=True)
class Axes:
    """What the axes are. `top` is the end of the upright one, which begins at 0, with whole numbers below it, unless
    `from_zero` is False; `log_x` doubles from tick to tick."""

    x: str
    y: str
    top: float | None = None
    log_x: bool = False
    from_zero: bool = True


def line_plot(lines: Sequence[Line], axes: Axes, description: str, key: str) -> str:
    """An `<svg>` element. Series differ by colour, marker and line style; `key` keeps the ids of a page's plots
    apart. Raises Spec2SeqError if matplotlib is not installed."""

    def draw(plot: Any) -> None:
        for line in lines:
            # Three cycles of different lengths: no two of the first 210 series look the same.
            n = line.style
            plot.plot(
                line.x, line.y, label=line.name, color=SERIES[n % len(SERIES)], marker=MARKERS[n % len(MARKERS)],
                linestyle=DASHES[n % len(DASHES)] if line.joined else "", linewidth=1.8, markersize=6,
            )  # fmt: skip
        if not axes.from_zero:
            return
        plot.set_ylim(0, axes.top)
        if axes.log_x:
            _doubling(plot, sorted({x for line in lines for x in line.x}))
        else:
            from matplotlib.ticker import MaxNLocator

            plot.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(draw, axes, description, key, legend=bool(lines))


def point_plot(points: Sequence[Line], axes: Axes, description: str, key: str) -> str:
    """As `line_plot`, of single points: each series has a marker and no line, and its points carry the numbers from 1
    on by which the table beside it names them."""

    def draw(plot: Any) -> None:
        number = 0
        for line in points:
            n = line.style
            plot.plot(
                line.x, line.y, label=line.name, color=SERIES[n % 6], marker=MARKERS[n % 7], linestyle="", markersize=8
            )
            for x, y in zip(line.x, line.y, strict=True):
                number += 1
                plot.annotate(str(number), (x, y), xytext=(6, 5), textcoords="offset points", color=INK)
        plot.margins(0.12)

    return _svg(draw, axes, description, key, legend=bool(points))


def bar_plot(bars: Sequence[str], parts: dict[str, Sequence[float]], axes: Axes, description: str, key: str) -> str:
    """As `line_plot`, of bars that lie above one another, each made of the same parts, which differ by colour and
    hatching."""

    def draw(plot: Any) -> None:
        starts = [0.0] * len(bars)
        for n, (name, values) in enumerate(parts.items()):
            plot.barh(range(len(bars)), values, left=starts, label=name, color=SERIES[n % 6], hatch=HATCHES[n % 6],
                      edgecolor=INK, linewidth=0.6)  # fmt: skip
            starts = [start + value for start, value in zip(starts, values, strict=True)]
        plot.set_yticks(range(len(bars)), bars)
        plot.invert_yaxis()

    return _svg(draw, axes, description, key, legend=True)


def _doubling(plot: Any, values: Sequence[float]) -> None:
    plot.set_xscale("log", base=2)
    plot.set_xticks(values, [f"{value:g}" for value in values])
    plot.minorticks_off()


def _svg(draw: Callable[[Any], None], axes: Axes, description: str, key: str, legend: bool) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "eval") from None
    settings = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 11, "hatch.linewidth": 0.6}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        plot = figure.subplots()
        draw(plot)
        plot.set_xlabel(axes.x, color=INK)
        plot.set_ylabel(axes.y, color=INK)
        plot.grid(color=INK, alpha=0.15)
        plot.set_axisbelow(True)
        plot.tick_params(colors=INK)
        plot.spines[["top", "right"]].set_visible(False)
        plot.spines[["left", "bottom"]].set_color(INK)
        if legend:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
        figure.patch.set_visible(False)
        plot.patch.set_visible(False)
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
