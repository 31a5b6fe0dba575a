"""Figures of the pages: lines and scatter plots as SVG, images as PNG."""

import base64
import contextlib
import dataclasses
import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any, cast

import matplotlib
import matplotlib.colors
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

# Each at least 3:1 against the light and the dark page.
COLOURS = ("#3b82f6", "#ea580c", "#059669", "#e11d48", "#a855f7", "#a16207", "#0891b2", "#ec4899")
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
_INK_ON_PAGE = {"grid.color": "#808080"} | dict.fromkeys(_INKED, _INK)
_READABLE = 20  # classes at most whose matrix has its numbers written in
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


def _inline(name: str, alt: str, svg: str) -> Markup:
    """A drawn SVG as an element of a page, in the page's text colour.

    Args:
      name: prefix of the ids, which keeps them apart from other figures'.
      alt: what it shows, for those who do not see it.
      svg: from `_svg`, drawn with `_INK_ON_PAGE`.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    about = Markup('<svg role="img" aria-label="{}"').format(alt)
    return about + Markup(svg.replace(_INK, "currentColor").removeprefix("<svg"))  # all escaped


def lines(
    name: str,
    alt: str,
    curves: list[Line],
    *,
    xlabel: str = "step",
    percent: bool = False,
    marks: list[tuple[float, str]] | None = None,
    chance: float | None = None,
) -> Markup:
    """One set of axes as an SVG element to inline.

    Args:
      name: see `_inline`.
      alt: likewise; the names of the curves are added.
      curves: one of few points gets markers. Positive values over more than two decades get a
        logarithmic axis unless they are percentages.
      xlabel: title of the x axis.
      percent: y are fractions, shown from 0 to 100 %.
      marks: (x, text) pairs shown as vertical lines.
      chance: fraction shown as a dotted line.
    """
    with _style(name, **_INK_ON_PAGE):
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
    shown = ", ".join(curve.label for curve in curves)
    return _inline(name, f"{alt} over {xlabel}: {shown}", svg)


def matrix(name: str, alt: str, shares: np.ndarray, classes: list[str]) -> Markup:
    """A confusion matrix as an SVG element to inline.

    Args:
      name: see `_inline`.
      alt: likewise.
      shares: [K,K] float in [0, 1], of the images of class i (row) taken for class j (column). Written
        in percent where there are few classes.
      classes: K names.
    """
    count, few = len(classes), len(classes) <= _READABLE
    with _style(name, **_INK_ON_PAGE, **{"axes.grid": False}):
        figure = Figure(figsize=(4.3, 4.1), layout="constrained")
        axes = figure.subplots()
        tint = np.zeros((count, count, 4))
        tint[..., :3], tint[..., 3] = matplotlib.colors.to_rgb(COLOURS[0]), 0.6 * shares
        axes.imshow(tint, interpolation="none")
        for i, j in np.argwhere(np.round(100 * shares)) if few else ():
            text, size = f"{100 * shares[i, j]:.0f}", 8 if count <= 12 else 5
            axes.text(j, i, text, ha="center", va="center", fontsize=size, in_layout=False)
        ticks = range(0, count, 1 if few else 10)
        names = [textwrap.shorten(classes[c], 14, placeholder="…") for c in ticks]
        rotation = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(ticks, names, fontsize=7.5, rotation=rotation)
        axes.set_yticks(ticks, names, fontsize=7.5)
        axes.set(xlabel="taken for", ylabel="class")
        return _inline(name, alt, _svg(figure, transparent=True))


def picture(image: np.ndarray) -> str:
    """[H, W, C] in [0, 1] -> data URI of a PNG, magnified by a whole number without smoothing."""
    if image.shape[-1] != 3:
        image = image.mean(axis=-1)
    levels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    scale = _magnification(image)
    file = io.BytesIO()
    levels = levels.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(levels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _magnification(image: np.ndarray) -> int:
    return max(1, -(-_TILE // max(image.shape[:2])))


def picture_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height in pixels of `picture`."""
    height, width = image.shape[:2]
    return width * _magnification(image), height * _magnification(image)


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a scatter plot, with standard deviations; star: drawn apart from the others."""

    label: str
    x: float
    y: float
    x_sd: float = 0.0
    y_sd: float = 0.0
    star: bool = False


def scatter(
    points: list[Point], title: str, xlabel: str, ylabel: str, narrow: bool = False
) -> Figure:
    """Labelled points with error bars, in percent.

    Where some lie far below the best of those without a star, a second panel shows the others larger.

    Args:
      points: what is shown.
      title: over the panels.
      xlabel: of each panel.
      ylabel: likewise.
      narrow: no title, and the panels below each other, for a page.
    """
    plain, styles = [point for point in points if not point.star], {}
    for point in points:
        styles[point.label] = {"marker": "*", "markersize": 12, "color": _INK}
    for index, point in enumerate(plain):
        row, colour = divmod(index, len(COLOURS))
        look = {"marker": _MARKERS[row % len(_MARKERS)], "markersize": 6, "color": COLOURS[colour]}
        styles[point.label] = look
    floor = max((point.y for point in plain), default=0) / 2
    near = [point for point in points if point.y >= floor]
    panels = [points, near] if 2 < len(near) < len(points) else [points]
    shape = (len(panels), 1) if narrow else (1, len(panels))
    size = (4.6, 3.9) if narrow else (6.4, 4.8)
    figure = Figure((size[0] * shape[1], size[1] * shape[0]), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(*shape, squeeze=False).reshape(-1)
    for axes, panel in zip(all_axes, panels, strict=True):
        for p in panel:
            axes.errorbar(p.x, p.y, xerr=p.x_sd or None, yerr=p.y_sd or None, linestyle="", capsize=2,
                          elinewidth=1, **styles[p.label])  # fmt: skip
        # Around the means: an error bar may leave the picture, and no accuracy is over 100.
        axes.set(xlim=_limits([p.x for p in panel]), ylim=_limits([p.y for p in panel]))
        axes.set(xlabel=xlabel, ylabel=ylabel)
    if not narrow:
        figure.suptitle(title, fontsize=9)
    if len(panels) == 2:
        (left, right), (bottom, top) = all_axes[1].get_xlim(), all_axes[1].get_ylim()
        frame = {"fill": False, "color": "#808080", "linestyle": ":"}
        all_axes[0].add_patch(Rectangle((left, bottom), right - left, top - bottom, **frame))
        all_axes[1].set_title("the dotted frame", fontsize=8)
        _place_labels(all_axes[0], points, [p for p in points if p not in near], styles)
    _place_labels(all_axes[-1], panels[-1], panels[-1], styles)
    figure.set_layout_engine("none")  # it stays as it is; each file would lay it out again
    return figure


def scatter_files(alt: str, *arguments: Any) -> tuple[str, bytes, Markup]:
    """`scatter` as (SVG, PNG, SVG element to inline with the text `alt`)."""
    with _style("comparison", **_INK_ON_PAGE):
        figure, png = scatter(*arguments), io.BytesIO()
        svg = _svg(figure).replace(_INK, "#000000")
        figure.savefig(png, format="png", dpi=160)
        narrow = _svg(scatter(*arguments, narrow=True), transparent=True)
        return svg, png.getvalue(), _inline("plot", alt, narrow)


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
                             textcoords="offset points", fontsize=8, color=_INK)  # fmt: skip
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
