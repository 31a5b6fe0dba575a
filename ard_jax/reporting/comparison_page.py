"""The plot of a comparison, clean against robust accuracy, and its page, one file that needs nothing else."""

import base64
import io
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from ard_jax.io.files import write_text_atomic
from ard_jax.reporting import comparison_table, report

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "comparison",  # the same record gives the same file
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
}
_MARKERS = "osD^vPX"
# Places of a label around its point, in points: the first one that covers nothing is taken.
_PLACES = [
    (dx * r, dy * r)
    for r in (1, 2, 3.5)
    for dx, dy in ((7, 5), (7, -5), (-7, 5), (-7, -5), (0, 9), (0, -9), (9, 0), (-9, 0))
]


def points(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the plot shows: best checkpoints and teachers, with mean and sd of x and y, in percent."""
    found = []
    for result in record["results"]:
        clean = result["metrics"].get("clean")
        robust = result["metrics"].get(record["main_attack"])
        if result["checkpoint"] == "last" or clean is None or robust is None:
            continue
        point = {"label": result["row"], "role": result["role"]}
        for axis, value in (("x", clean), ("y", robust)):
            point[axis], point[f"{axis}_sd"] = 100 * value["mean"], 100 * (value["sd"] or 0)
        found.append(point)
    return found


def plot(record: dict[str, Any]) -> Figure:
    """Clean accuracy (x) against accuracy under the main attack (y), error bars of one sd over seeds.

    Where some networks are far less robust than the best student, a second panel shows the others larger.
    """
    shown = points(record)
    students = [point for point in shown if point["role"] == "student"]
    for point in shown:
        point["style"] = {"marker": "*", "markersize": 12, "color": "#555555"}
    colours = matplotlib.colormaps["tab10"].colors
    for index, point in enumerate(students):
        row, colour = divmod(index, len(colours))
        marker = _MARKERS[row % len(_MARKERS)]
        point["style"] = {"marker": marker, "markersize": 6, "color": colours[colour]}
    floor = max((point["y"] for point in students), default=0) / 2
    near = [point for point in shown if point["y"] >= floor]
    panels = [shown, near] if 2 < len(near) < len(shown) else [shown]
    figure = Figure(figsize=(6.4 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for point in panel:
            axes.errorbar(point["x"], point["y"], xerr=point["x_sd"] or None, yerr=point["y_sd"] or None,
                          linestyle="", capsize=2, elinewidth=1, **point["style"])  # fmt: skip
        # Around the means: an error bar may leave the picture, and no accuracy is over 100.
        axes.set_xlim(*_limits([point["x"] for point in panel]))
        axes.set_ylim(*_limits([point["y"] for point in panel]))
        axes.set_xlabel("clean accuracy in %")
        axes.set_ylabel(f"accuracy under {report.attack_label(record, record['main_attack'])} in %")
    n = len(record["seeds"])
    about = "best checkpoints" + (f", mean and sd over {n} seeds" if n > 1 else ", one seed")
    figure.suptitle(f"{record['name']}: {about}; stars: teachers", fontsize=9)
    if len(panels) == 2:
        (left, right), (bottom, top) = all_axes[1].get_xlim(), all_axes[1].get_ylim()
        frame = {"fill": False, "color": "#808080", "linestyle": ":"}
        all_axes[0].add_patch(Rectangle((left, bottom), right - left, top - bottom, **frame))
        all_axes[1].set_title("the dotted frame", fontsize=8)
        _place_labels(figure, all_axes[0], shown, [p for p in shown if p not in near])
    _place_labels(figure, all_axes[-1], panels[-1], panels[-1])
    return figure


def _limits(values: list[float]) -> tuple[float, float]:
    """The range of percentages with room around it, within -4 and 104; all of it without values."""
    values = values or [0.0, 100.0]
    room = max(0.15 * (max(values) - min(values)), 2.0)
    return max(min(values) - room, -4.0), min(max(values) + room, 104.0)


def _place_labels(figure: Figure, axes: Any, shown: list[dict], named: list[dict]) -> None:
    """Writes the names of `named` beside their points, away from all `shown` and from each other."""
    figure.draw_without_rendering()  # the layout decides where the points are
    renderer, taken = figure.canvas.get_renderer(), []
    to_pixels, box_of = axes.transData.transform, matplotlib.transforms.Bbox.from_extents
    for p in shown:
        x, y = to_pixels((p["x"], p["y"]))
        dx, dy = to_pixels((p["x"] + p["x_sd"], p["y"] + p["y_sd"])) - (x, y)
        taken.append(box_of(x - 6, y - 6, x + 6, y + 6))
        taken += [box_of(x - dx, y - 1, x + dx, y + 1), box_of(x - 1, y - dy, x + 1, y + dy)]
    for point in named:
        colour = point["style"]["color"]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 3}
        text = axes.annotate(point["label"], (point["x"], point["y"]), _PLACES[0], arrowprops=line,
                             textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
        costs = []
        for place in _PLACES:
            _put(text, place)
            box = _text_box(text, renderer)
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1)
            costs.append(sum(box.overlaps(other) for other in taken) + outside)
        _put(text, _PLACES[costs.index(min(costs))])
        taken.append(_text_box(text, renderer))


def _text_box(text: Any, renderer: Any) -> Any:
    """Where the words are, in pixels, without the line to the point."""
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _put(text: Any, place: tuple[float, float]) -> None:
    dx, dy = place
    text.xyann = place
    text.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")


def write_plot(record: dict[str, Any], folder: Path) -> None:
    """Writes comparison.svg and comparison.png."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib lacks
        figure, svg = plot(record), io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        write_text_atomic(folder / "comparison.svg", svg.getvalue())
        figure.savefig(folder / "comparison.png", dpi=160)


def render(record: dict[str, Any]) -> str:
    """The page, with the plot in it."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        svg = io.StringIO()
        plot(record).savefig(svg, format="svg", metadata={"Date": None})
    image = base64.b64encode(svg.getvalue().encode()).decode()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("ard_jax.reporting").joinpath("templates/comparison.html")
    settings = record["settings"]
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    own = [key for key in keys if key.startswith("method.") and key != "method.name"]
    rest = [key for key in keys if key not in own]
    same = [k for k in rest if len({repr(one.get(k)) for one in settings.values()}) == 1]
    first = next(iter(settings.values()), {})
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        record=record,
        tables=comparison_table.tables(record),
        caption=comparison_table.caption(record),
        plot=f"data:image/svg+xml;base64,{image}",
        varying=[key for key in rest if key not in same] if len(settings) > 1 else rest,
        options={m: {k.removeprefix("method."): one[k] for k in own if k in one}
                 for m, one in settings.items()},
        protocol=record["protocol"]
        | ({key: first[key] for key in same} if len(settings) > 1 else {}),
    )  # fmt: skip
