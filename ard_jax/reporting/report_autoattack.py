"""AutoAttack and noise in the reports: rows of the tables, lines for a terminal, parts of the page.

Takes the evaluation record like `report`; what is missing is left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# Attacks whose accuracy may be called AutoAttack's.
COMPLETE = ("autoattack", "autoattack_plus")


def sections(evaluation: dict) -> list[dict[str, Any]]:
    """One section for each suite that some network has: its records by network.

    Returns:
      Dicts with "name", "label", "nets" (network -> record), "stages" (attack names, in order),
      "upper_bound" and "num_examples".
    """
    found: dict[str, dict[str, Any]] = {}
    for title, net in (evaluation.get("nets") or {}).items():
        for name, record in (net.get("autoattack") or {}).items():
            one = found.setdefault(name, {"name": name, "nets": {}, "stages": []})
            one["nets"][title] = record
            names = [stage["attack"] for stage in record.get("stages") or []]
            one["stages"] += [stage for stage in names if stage not in one["stages"]]
            one["label"] = record.get("label", name)
            one["upper_bound"] = bool(record.get("upper_bound", True)) or one.get(
                "upper_bound", False
            )
            one["num_examples"] = record.get("num_examples")
    return list(found.values())


def is_complete(evaluation: dict) -> bool:
    """Whether a network has a number that may be called AutoAttack's."""
    bounds = {section["name"] for section in sections(evaluation) if section["upper_bound"]}
    nets = (evaluation.get("nets") or {}).values()
    shown = {name for net in nets for name in net.get("attacks") or {}}
    return any(name in shown and name not in bounds for name in COMPLETE)


def csv_results(net: dict) -> dict[str, dict[str, Any]]:
    """Further rows of the CSV of one network: name -> result, after every stage and under noise."""
    rows: dict[str, dict[str, Any]] = {}
    for name, record in (net.get("autoattack") or {}).items():
        for stage in record.get("stages") or []:
            rows[f"{name} after {stage['attack']}"] = stage
    for kind, accuracy in (net.get("noise") or {}).items():
        rows[f"{kind} noise"] = {"accuracy": accuracy}
    return rows


def text_lines(evaluation: dict) -> list[str]:
    """Accuracy after every attack, a line for each network; [] without AutoAttack."""
    lines = []
    for section in sections(evaluation):
        if section["stages"] == ["square"]:
            continue  # one attack: its column says it all
        images = section["num_examples"]
        lines += ["", f"{section['label']}, accuracy in % after each attack ({images} images)"]
        for title, record in section["nets"].items():
            parts = [f"clean {100 * record['clean']:.2f}"]
            parts += [f"{s['attack']} {100 * s['accuracy']:.2f}" for s in record["stages"]]
            lines.append(f"  {title}: " + ", ".join(parts))
    return lines


def context(evaluation: dict, plot: Callable[..., Any]) -> dict[str, Any]:
    """What the page's template takes: `autoattack`, `suites`, `noises` and `square_curve`.

    Args:
      evaluation: the record.
      plot: `run_page._plot`.
    """
    found = sections(evaluation)
    lines = []
    for section in found:
        for title, record in section["nets"].items():
            curve = record.get("curve") or {}
            queries, accuracy = curve.get("queries") or [], curve.get("accuracy") or []
            if queries and len(queries) == len(accuracy):
                style = {"linestyle": ("-", "--", "-.", ":")[len(lines) // 8 % 4]}
                label = title if len(found) < 3 else f"{title} ({queries[-1]})"
                points = (np.array(queries, float), np.array(accuracy, float))
                lines.append((label, points, style))
    chart = plot("square", lines, xlabel="queries", percent=True) if lines else None
    nets = evaluation.get("nets") or {}
    noise = {title: net["noise"] for title, net in nets.items() if net.get("noise")}
    return {
        "autoattack": is_complete(evaluation),
        "suites": found,
        "noises": noise,
        "noise_kinds": list(dict.fromkeys(kind for one in noise.values() for kind in one)),
        "square_curve": chart,
    }
