"""The HTML report: curves as inline SVG, images as inline PNG, and the template that holds them.

The page is one file: no scripts, no fonts, styles or pictures from elsewhere. Everything that comes
from a run (names, configuration, warnings) passes through jinja2's escaping, or matplotlib's.
"""

import base64
import io
import json
import re
import warnings
from importlib import resources
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from ard_jax.io.files import to_plain
from ard_jax.reporting import report, report_autoattack

_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#e11d48", "#a855f7", "#ca8a04", "#0891b2", "#ec4899")
_INK = "#010203"  # stands for the page's text colour, light or dark, until the SVG is inlined
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and set in the page's font
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=_COLOURS),
    "lines.linewidth": 1.5,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "axes.grid": True,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
}
_SPLIT_LINES = {"train": ":", "validation": "-", "test": "--"}
_MOST_OTHER_CURVES = 12
_TILE = 96  # pixels, at least, of the longer side of a shown image

Line = tuple[str, tuple[np.ndarray, np.ndarray], dict]  # label, (x, y), style


def _svg(figure: Figure, name: str) -> Markup:
    """Renders a figure as an SVG element to inline; `name` keeps its ids apart from the others'."""
    text = io.StringIO()
    with warnings.catch_warnings():  # glyphs that matplotlib lacks: the browser has them
        warnings.simplefilter("ignore")
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    return Markup(svg.replace(_INK, "currentColor"))  # matplotlib escaped its texts


def _plot(
    name: str, lines: list[Line], *, xlabel="step", percent=False, marks=(), chance=None
) -> Markup:
    """One set of axes with `lines` of (label, (x, y), style); y in percent if asked for.

    Args:
      name: prefix of the ids in the SVG.
      lines: a line of one point gets a marker. Positive values over more than two decades get a
        logarithmic axis unless they are percentages.
      xlabel: title of the x axis.
      percent: y are fractions, shown from 0 to 100 %.
      marks: (x, text) pairs shown as vertical lines.
      chance: fraction shown as a dotted line.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.3, 3.1), layout="constrained")
        axes = figure.subplots()
        for label, (x, y), style in lines:
            marker = {"marker": "o", "markersize": 4} if np.isfinite(y).sum() < 12 else {}
            axes.plot(x, 100 * y if percent else y, label="\u200b" + label, **marker, **style)
        for x, text in marks:
            axes.axvline(x, color="#808080", linewidth=1, linestyle=(0, (4, 3)))
            place = axes.get_xaxis_transform()
            axes.text(x, 1.0, " " + text, transform=place, va="bottom", fontsize=7.5)
        if percent:
            axes.set_ylim(-2, 102)
            axes.set_ylabel("accuracy in %")
        if percent and chance:
            axes.axhline(100 * chance, color="#808080", linewidth=1, linestyle=":")
        values = np.concatenate([y[np.isfinite(y)] for _, (_, y), _ in lines] or [[]])
        if not percent and values.size and values.min() > 0 and values.max() > 100 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(xlabel)
        if len(lines) > 1 or percent:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        return _svg(figure, name)


def _marks(evaluation: dict, metrics: list[dict]) -> list[tuple[float, str]]:
    """Steps worth seeing in every curve: the best checkpoint, and phases that started."""
    marks = []
    for record in metrics:
        event, step = str(record.get("event", "")), report.number(record.get("step"))
        if record.get("kind") == "event" and event.endswith("_started") and step is not None:
            marks.append((step, event.removesuffix("_started")))
    for name, net in (evaluation.get("nets") or {}).items():
        if "best" in str(name) and net.get("role") == "student" and report.number(net.get("step")):
            marks.append((report.number(net["step"]), "best"))
            break
    return marks


def _accuracy_lines(evaluation: dict, metrics: list[dict]) -> dict[str, list[Line]]:
    """Net -> accuracy lines over steps; the student's start with those of its training batches."""
    train = report.series([record for record in metrics if record.get("kind") == "train"])
    evals: dict[tuple[str, str], list[dict]] = {}
    for record in metrics:
        if record.get("kind") == "eval":
            key = (str(record.get("net", "student")), str(record.get("split", "")))
            evals.setdefault(key, []).append(record)
    lines: dict[str, list[Line]] = {}
    for name, points in train.items():
        if "accuracy" in name:
            label = f"train: {'robust' if 'robust' in name else 'clean'}"
            label = label if name in ("accuracy", "robust_accuracy") else f"train: {name}"
            style = {"linestyle": ":", "color": _COLOURS[1 if "robust" in name else 0]}
            lines.setdefault("student", []).append((label, points, style))
    for (net, split), records in evals.items():
        for index, (name, points) in enumerate(report.series(records).items()):
            seen = points[1][np.isfinite(points[1])]
            if seen.size and not 0 <= seen.min() <= seen.max() <= 1:
                continue  # not a fraction
            style = {"color": _COLOURS[index % 8], "linestyle": _SPLIT_LINES.get(split, "-")}
            label = name if name == "clean" else report.attack_label(evaluation, name)
            lines.setdefault(net, []).append((f"{split}: {label}".lstrip(": "), points, style))
    return lines


def _curves(evaluation: dict, metrics: list[dict]) -> list[tuple[str, Markup]]:
    """All training curves as (title, SVG)."""
    marks = _marks(evaluation, metrics)
    classes = report.number((evaluation.get("dataset") or {}).get("num_classes"))
    train = report.series([record for record in metrics if record.get("kind") == "train"])
    groups: dict[str, list[Line]] = {"Loss terms": [], "Learning rates": []}
    others = {}
    for name, points in train.items():
        if name.startswith("loss"):
            groups["Loss terms"].append((name, points, {}))
        elif name == "lr" or name.startswith("lr_"):
            groups["Learning rates"].append((name, points, {}))
        elif "accuracy" not in name:
            others[name.replace("_", " ")] = [(name, points, {})]
    accuracies = _accuracy_lines(evaluation, metrics)
    plots = [("Loss terms", groups["Loss terms"], {})]
    options = {"chance": 1 / classes if classes else None, "percent": True}
    plots += [(f"Accuracy: {net}", lines, options) for net, lines in accuracies.items()]
    plots.append(("Learning rates", groups["Learning rates"], {}))
    plots += [(name, lines, {}) for name, lines in list(others.items())[:_MOST_OTHER_CURVES]]
    return [
        (title, _plot(f"c{index}", lines, marks=marks, **kwargs))
        for index, (title, lines, kwargs) in enumerate(plots)
        if lines
    ]


def _eps_curve(evaluation: dict) -> Markup | None:
    """Accuracy against eps, one line for each net that has a sweep."""
    lines = []
    for name, net in (evaluation.get("nets") or {}).items():
        sweep = net.get("eps_sweep") or {}
        pairs = zip(sweep.get("eps") or [], sweep.get("accuracy") or [], strict=False)
        points = [(report.number(x), report.number(y)) for x, y in pairs]
        points = [(x, y) for x, y in points if x is not None and y is not None]
        if points:
            style = {"linestyle": ("-", "--", "-.", ":")[len(lines) // 8 % 4]}
            lines.append((str(name), tuple(np.array(points).T), style))
    eps = report.number(evaluation.get("eps"))
    classes = report.number((evaluation.get("dataset") or {}).get("num_classes"))
    marks = [] if eps is None else [(eps, f"eps {report.eps_text(eps)}")]
    chance = 1 / classes if classes else None
    if not lines:
        return None
    return _plot("eps", lines, xlabel="eps", percent=True, marks=marks, chance=chance)


def _png(image: np.ndarray) -> str:
    """[H, W, C] in [0, 1] -> data URI, magnified by a whole number without smoothing."""
    if image.shape[-1] != 3:
        image = image.mean(axis=-1)
    levels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    scale = max(1, -(-_TILE // max(levels.shape[:2])))
    levels = levels.repeat(scale, axis=0).repeat(scale, axis=1)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_rows(images: dict, class_names: list[str]) -> tuple[list[dict], float]:
    """Prepares the grid of examples: data URIs, class names and right or wrong for each.

    The difference is amplified so that the largest change of all the examples reaches black or
    white, and zero is mid-grey.

    Returns:
      The rows, and the factor by which differences are amplified (1.0 when there is no change).

    Raises:
      ValueError: a part is missing, or the parts differ in length or shape.
    """
    parts = ("clean", "adversarial", "labels", "predicted_clean", "predicted_adversarial")
    missing = [name for name in parts if name not in images]
    if missing:
        raise ValueError(f"images lacks {missing}; it needs {list(parts)}")
    clean, adversarial = (np.asarray(images[name], np.float32) for name in parts[:2])
    integers = [np.asarray(images[name]).reshape(-1) for name in parts[2:]]
    if clean.ndim != 4 or clean.shape != adversarial.shape:
        raise ValueError(
            f"images: clean {clean.shape} and adversarial {adversarial.shape} must both be "
            "[n, H, W, C]"
        )
    if any(len(values) != len(clean) for values in integers):
        lengths = dict(zip(parts[2:], map(len, integers), strict=True))
        raise ValueError(f"images: {len(clean)} images, but {lengths}")

    def name(index: int) -> str:
        return str(class_names[index]) if 0 <= index < len(class_names) else str(index)

    difference = np.nan_to_num(adversarial - clean)
    largest = float(np.abs(difference).max(initial=0.0))
    factor = 0.5 / largest if largest else 1.0
    rows = []
    for index in range(len(clean)):
        label, before, after = (int(values[index]) for values in integers)
        rows.append(
            {
                "clean": _png(clean[index]),
                "difference": _png(0.5 + factor * difference[index]),
                "adversarial": _png(adversarial[index]),
                "label": name(label),
                "predicted_clean": name(before),
                "predicted_adversarial": name(after),
                "clean_right": before == label,
                "adversarial_right": after == label,
            }
        )
    return rows, factor


def _cell(value: Any) -> str:
    """A parameter as text: numbers short, lists joined, everything else as it is."""
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    return str(value)


def render(evaluation: dict, metrics: list[dict], images: dict | None = None) -> str:
    """Returns the whole page as text; arguments and errors as in `report.write_report`."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        pct=lambda value, digits=2: report.percent(value, digits, "\u2013"),
        eps=report.eps_text,
        cell=_cell,
        number=report.number,
    )
    nets = evaluation.get("nets") or {}
    attacks = report.attack_names(evaluation)
    parameters = {name: (evaluation.get("attacks") or {}).get(name) or {} for name in attacks}
    main = report.main_attack(evaluation)
    class_names = list((evaluation.get("dataset") or {}).get("class_names") or [])
    rows, factor = image_rows(images, class_names) if images else ([], 1.0)
    config = evaluation.get("config")
    template = resources.files("ard_jax.reporting").joinpath("templates/report.html")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        record=evaluation,
        nets=nets,
        attacks=attacks,
        labels={name: report.attack_label(evaluation, name) for name in attacks},
        parameters=parameters,
        parameter_names=list(dict.fromkeys(key for one in parameters.values() for key in one)),
        main=main,
        weighted={name: report.weighted(net, main) for name, net in nets.items()},
        class_names=class_names,
        config=json.dumps(to_plain(config), indent=2, ensure_ascii=False) if config else "",
        selection=report.selection_note(evaluation),
        curves=_curves(evaluation, metrics),
        eps_curve=_eps_curve(evaluation),
        examples=rows,
        factor=factor,
        caption=(images or {}).get("caption", ""),
        **report_autoattack.context(evaluation, _plot),
    )
