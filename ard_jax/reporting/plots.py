"""Figures of the pages: lines and scatter plots as SVG, images as PNG."""

import base64
import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any, cast

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#e11d48", "#a855f7", "#ca8a04", "#0891b2", "#ec4899")
_INK = "#010203"  # stands for the page's text colour, light or dark, until the SVG is inlined
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and set in the page's font
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_TILE = 96  # pixels, at least, of the longer side of a shown image
_MARKERS = "osD^vPX"
# Places of a label around its point, in points: the first one that covers nothing is taken.
_PLACES = [
    (dx * r, dy * r)
    for r in (1, 2, 3.5)
    for dx, dy in ((7, 5), (7, -5), (-7, 5), (-7, -5), (0, 9), (0, -9), (9, 0), (-9, 0))
]


@contextlib.contextmanager
def _style(salt: str, **changes: Any) -> Iterator[None]:
    """The look of all figures; the same salt and data give the same file."""
    with (
        matplotlib.rc_context(cast(Any, _STYLE | changes | {"svg.hashsalt": salt})),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # glyphs that matplotlib lacks: the browser has them
        yield


def _svg(figure: Figure, **options: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, **options)
    return text.getvalue()


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve: y over x, and matplotlib's style for it."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: dict[str, Any] = dataclasses.field(default_factory=dict)


def lines(
    name: str,
    curves: list[Line],
    *,
    xlabel: str = "step",
    percent: bool = False,
    marks: list[tuple[float, str]] | None = None,
    chance: float | None = None,
) -> Markup:
    """One set of axes as an SVG element to inline.

    Args:
      name: prefix of the ids in the SVG, which keeps them apart from other figures'.
      curves: one of few points gets markers. Positive values over more than two decades get a
        logarithmic axis unless they are percentages.
      xlabel: title of the x axis.
      percent: y are fractions, shown from 0 to 100 %.
      marks: (x, text) pairs shown as vertical lines.
      chance: fraction shown as a dotted line.
    """
    inked = {"grid.color": "#808080"} | dict.fromkeys(_INKED, _INK)
    with _style(name, **inked):
        figure = Figure(figsize=(4.3, 3.1), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            marker = {"marker": "o", "markersize": 4} if np.isfinite(curve.y).sum() < 12 else {}
            y = 100 * curve.y if percent else curve.y
            axes.plot(curve.x, y, label="\u200b" + curve.label, **marker, **curve.style)
        for x, text in marks or ():
            axes.axvline(x, color="#808080", linewidth=1, linestyle=(0, (4, 3)))
            place = axes.get_xaxis_transform()
            axes.text(x, 1.0, " " + text, transform=place, va="bottom", fontsize=7.5)
        if percent:
            axes.set_ylim(-2, 102)
            axes.set_ylabel("accuracy in %")
        if percent and chance:
            axes.axhline(100 * chance, color="#808080", linewidth=1, linestyle=":")
        values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves] or [[]])
        if not percent and values.size and values.min() > 0 and values.max() > 100 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(xlabel)
        if len(curves) > 1 or percent:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        svg = _svg(figure, transparent=True)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    return Markup(svg.replace(_INK, "currentColor"))  # matplotlib escaped its texts


def picture(image: np.ndarray) -> str:
    """[H, W, C] in [0, 1] -> data URI of a PNG, magnified by a whole number without smoothing."""
    if image.shape[-1] != 3:
        image = image.mean(axis=-1)
    levels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    scale = max(1, -(-_TILE // max(levels.shape[:2])))
    file = io.BytesIO()
    levels = levels.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(levels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a scatter plot, with standard deviations; star: drawn apart from the others."""

    label: str
    x: float
    y: float
    x_sd: float = 0.0
    y_sd: float = 0.0
    star: bool = False


def scatter(points: list[Point], title: str, xlabel: str, ylabel: str) -> Figure:
    """Labelled points with error bars, in percent.

    Where some lie far below the best of those without a star, a second panel shows the others larger.
    """
    plain = [point for point in points if not point.star]
    colours, styles = cast(Any, matplotlib.colormaps["tab10"]).colors, {}
    for point in points:
        styles[point.label] = {"marker": "*", "markersize": 12, "color": "#555555"}
    for index, point in enumerate(plain):
        row, colour = divmod(index, len(colours))
        look = {"marker": _MARKERS[row % len(_MARKERS)], "markersize": 6, "color": colours[colour]}
        styles[point.label] = look
    floor = max((point.y for point in plain), default=0) / 2
    near = [point for point in points if point.y >= floor]
    panels = [points, near] if 2 < len(near) < len(points) else [points]
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for p in panel:
            axes.errorbar(p.x, p.y, xerr=p.x_sd or None, yerr=p.y_sd or None, linestyle="", capsize=2,
                          elinewidth=1, **styles[p.label])  # fmt: skip
        # Around the means: an error bar may leave the picture, and no accuracy is over 100.
        axes.set(xlim=_limits([p.x for p in panel]), ylim=_limits([p.y for p in panel]))
        axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.suptitle(title, fontsize=9)
    if len(panels) == 2:
        (left, right), (bottom, top) = all_axes[1].get_xlim(), all_axes[1].get_ylim()
        frame = {"fill": False, "color": "#808080", "linestyle": ":"}
        all_axes[0].add_patch(Rectangle((left, bottom), right - left, top - bottom, **frame))
        all_axes[1].set_title("the dotted frame", fontsize=8)
        _place_labels(all_axes[0], points, [p for p in points if p not in near], styles)
    _place_labels(all_axes[-1], panels[-1], panels[-1], styles)
    return figure


def scatter_files(*arguments: Any) -> tuple[str, bytes]:
    """`scatter` as (SVG, PNG)."""
    with _style("comparison"):
        figure, png = scatter(*arguments), io.BytesIO()
        svg = _svg(figure)
        figure.savefig(png, format="png", dpi=160)
    return svg, png.getvalue()


def _limits(values: list[float]) -> tuple[float, float]:
    """The range of percentages with room around it, within -4 and 104; all of it without values."""
    values = values or [0.0, 100.0]
    room = max(0.15 * (max(values) - min(values)), 2.0)
    return max(min(values) - room, -4.0), min(max(values) + room, 104.0)


def _place_labels(
    axes: Any, shown: list[Point], named: list[Point], styles: dict[str, Any]
) -> None:
    """Writes the names of `named` beside their points, away from all `shown` and from each other."""
    axes.figure.draw_without_rendering()  # the layout decides where the points are
    renderer, taken = axes.figure.canvas.get_renderer(), []
    to_pixels, box_of = axes.transData.transform, Bbox.from_extents
    for p in shown:
        x, y = to_pixels((p.x, p.y))
        dx, dy = to_pixels((p.x + p.x_sd, p.y + p.y_sd)) - (x, y)
        taken.append(box_of(x - 6, y - 6, x + 6, y + 6))
        taken += [box_of(x - dx, y - 1, x + dx, y + 1), box_of(x - 1, y - dy, x + 1, y + dy)]
    for p in named:
        colour = styles[p.label]["color"]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 3}
        text = axes.annotate(p.label, (p.x, p.y), _PLACES[0], arrowprops=line,
                             textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
        costs = []
        for place in _PLACES:
            box = _put(text, place, renderer)
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1)
            costs.append(sum(box.overlaps(other) for other in taken) + outside)
        taken.append(_put(text, _PLACES[costs.index(min(costs))], renderer))


def _put(text: Any, place: tuple[float, float], renderer: Any) -> Any:
    """Moves a label; returns where its words are, in pixels, without the line to the point."""
    dx, dy = place
    text.xyann = place
    text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)
