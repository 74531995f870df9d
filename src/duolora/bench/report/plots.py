"""The report's plots, as SVG that takes the page's own colour for text, so that one plot serves light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

Interval = tuple[float, float, float]
_INK = "#010203"
"""A colour that nothing else has; it becomes the page's."""
PALETTE = ("#3b82c4", "#e0702f", "#3f9a5b", "#c9485b", "#8a68c4", "#a0785a", "#d067a8", "#7d8a2e", "#2b9fb0", "#b5891f")
_STYLE: Any = {
    "figure.facecolor": "none", "axes.facecolor": "none",
    "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif", "text.color": _INK, "axes.edgecolor": _INK,
    "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A row of a table in a scatter: its number in the table's first column, and its two coordinates."""

    number: int
    x: Interval
    y: Interval
    competes: bool = True
    """Whether it may be part of the frontier; floors and ceilings may not."""


def colour(number: int) -> str:
    """The colour of the row with this number, in all plots."""
    return PALETTE[(number - 1) % len(PALETTE)]


def _generated(figure: Figure, name: str) -> str:
    """The figure as an SVG element; `name` keeps its identifiers apart from those of others on the page."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue().decode("utf-8")
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([^\");]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    return text.replace("<svg ", '<svg role="img" ', 1)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both coordinates, from left to right."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.competes), key=lambda p: (-p.x[0], -p.y[0])):
        if not best or point.y[0] > best[-1].y[0]:
            best.append(point)
    return best[::-1]


def scatter(points: Sequence[Point], x: str, y: str, name: str, time: bool = False) -> str:
    """Points with their intervals and numbers; the frontier between them, or time along a logarithmic x axis."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.6), dpi=72, layout="constrained")
        axis = figure.add_subplot()
        for p in points:
            face = colour(p.number) if p.competes else "none"
            axis.errorbar(
                p.x[0], p.y[0], _spread(p.y), None if time else _spread(p.x), fmt="o", ms=7, mfc=face,
                mec=colour(p.number), ecolor=colour(p.number), elinewidth=1, alpha=0.85,
            )  # fmt: skip
        if time:
            axis.set_xscale("log")
            low, high = (end(p.x[0] for p in points) for end in (min, max))
            axis.set_xlim(low / 1.3, high * 1.3)
            few = high < 5 * low  # a decade's own ticks would be one or none, and its minor ones lie on one another
            axis.xaxis.set_major_locator(MaxNLocator(4) if few else LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            edge = frontier(points)
            axis.plot([p.x[0] for p in edge], [p.y[0] for p in edge], "--", color=_INK, lw=1, alpha=0.6, zorder=0)
            axis.set_xlim(-0.05, 1.05)
        axis.set_ylim(-0.05, 1.05)
        axis.set(xlabel=x, ylabel=y)
        axis.grid(alpha=0.2, color=_INK)
        _numbered(figure, axis, points)
        return _generated(figure, name)


def _spread(value: Interval) -> list[list[float]]:
    mean, low, high = value
    return [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]


def _numbered(figure: Figure, axis: Axes, points: Sequence[Point]) -> None:
    """The rows' numbers beside their points, those that lie on one another together, none on top of another."""
    figure.draw_without_rendering()  # lays out the axes, so that places on the screen are known
    places: dict[tuple[float, float], list[int]] = {}
    figure.set_layout_engine("none")  # and they stay, whatever the numbers need
    for p in points:
        x, y = axis.transData.transform((p.x[0], p.y[0]))
        near = next((q for q in places if max(abs(q[0] - x), abs(q[1] - y)) < 6), (x, y))
        places.setdefault(near, []).append(p.number)
    taken: list[tuple[float, float, float]] = []
    edge = axis.get_window_extent().x1
    for (x, y), numbers in sorted(places.items()):
        text = spans(numbers)
        wide = 5.2 * len(text)
        left, height = min(x + 4, edge - wide), y + 5
        while any(left < end and begin < left + wide and abs(height - at) < 10 for begin, end, at in taken):
            height += 10
        taken.append((left, left + wide, height))
        far = height > y + 5
        axis.annotate(
            text, (x, y), (left - x, height - y), "figure pixels", "offset points", fontsize=9,
            arrowprops={"arrowstyle": "-", "color": _INK, "lw": 0.5, "alpha": 0.5} if far else None,
        )  # fmt: skip


def spans(numbers: Sequence[int]) -> str:
    """Numbers with runs shortened: 1, 2, 3, 7 is "1–3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}{'–' if len(p) > 2 else ', '}{p[-1]}" for p in parts)


def bars(ranks: Mapping[str, Mapping[str, float]], y: str, name: str) -> str:
    """Bars by block, content next to style: {"content": {block: rank}, "style": …}."""
    with matplotlib.rc_context(_STYLE):
        blocks = list(dict.fromkeys(block for found in ranks.values() for block in found))
        figure = Figure(figsize=(4.4, 3), layout="constrained")
        axis = figure.add_subplot()
        for k, (part, found) in enumerate(ranks.items()):
            places = [i + (k - 0.5) * 0.38 for i in range(len(blocks))]
            axis.bar(places, [found.get(block, 0.0) for block in blocks], 0.36, color=PALETTE[k], label=part)
        short = [block.replace("_blocks.", " ").replace("_block", "") for block in blocks]
        axis.set_xticks(range(len(blocks)), short)
        axis.set(ylabel=y)
        axis.grid(axis="y", alpha=0.2, color=_INK)
        figure.legend(ncols=len(ranks), fontsize=9, frameon=False, loc="outside lower center")
        return _generated(figure, name)


def curves(found: Mapping[str, Mapping[str, Sequence[float]]], what: str, name: str) -> str:
    """Weight-scaling curves: one line for each group of blocks, α along x."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.6), layout="constrained")
        axis = figure.add_subplot()
        for k, (group, curve) in enumerate(found.items()):
            wide = 2.5 if group.startswith("level") else 1.2
            axis.plot(curve["alpha"], curve[what], "o-", ms=4, lw=wide, color=colour(k + 1), label=group)
        axis.set(xlabel="α", ylabel=f"{what} recognised", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.2, color=_INK)
        figure.legend(ncols=3, fontsize=8, frameon=False, loc="outside lower center")
        return _generated(figure, name)
