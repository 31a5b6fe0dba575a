"""The accuracies of a model card: each with the attack that measured it, and what it may be called."""

from collections.abc import Mapping
from typing import Any

from ard_jax.reporting import report, report_autoattack

_NOT_MEASURED = (
    "Clean and robust accuracy were **not measured** with ard_jax: do not rely on its robustness. Measure "
    "with `python -m ard_jax.main --mode=evaluate --checkpoint=RUN --attacks=pgd_sat,autoattack` and "
    "export again."
)


def safe(value: Any) -> str:
    """Text on one line that Markdown shows as it is: no HTML, no table or code delimiters."""
    text = " ".join(str(value).split())
    for character, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(character, shown)
    return text


def table(titles: list[str], rows: list[list[str]], numeric: bool = True) -> str:
    """A Markdown table; cells are escaped already. numeric: all columns but the first to the right."""
    rule = [" --- "] + [" ---: " if numeric else " --- "] * (len(titles) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in [titles, *rows]]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]]) + "\n"


def title_of(
    evaluation: Mapping[str, Any] | None, net: str = "", meta: Mapping[str, Any] | None = None
) -> str:
    """Title of the exported network in a record of evaluation.json, see `model_card.write`; "" for none."""
    nets = (evaluation or {}).get("nets") or {}
    wanted = [net] if net else ["imported network", "student (best)", *nets]
    title = next((title for title in wanted if title in nets), "")
    steps = (nets.get(title, {}).get("step"), (meta or {}).get("step"))
    return "" if None not in steps and steps[0] != steps[1] else title


def section(evaluation: Mapping[str, Any] | None, title: str, meta: Mapping[str, Any]) -> str:
    """The section "Accuracy".

    Args:
      evaluation: the record of evaluation.json, or None.
      title: of the exported network in it.
      meta: the checkpoint's meta.
    """
    text = "## Accuracy\n\n"
    if meta.get("origin"):
        text += _published(meta["origin"])
    if not evaluation or not title:
        other = "The evaluation at hand is not of this network.\n" if evaluation else ""
        return text + other + _NOT_MEASURED + "\n" + _selection_scores(meta)
    net = evaluation["nets"][title]
    data = evaluation.get("dataset") or {}
    others = _compared(evaluation, title)
    text += f"In % of {data.get('num_examples', '?')} images, {safe(data.get('name', '?'))} "
    text += f"{safe(data.get('split', ''))} split, of {safe(title)}; 95 % Wilson interval of the draw of "
    text += (
        "test images. Adversarial images are made on this very network (white box) unless said.\n\n"
    )
    heads = ["attack", "accuracy", "95 % interval", *map(safe, others)]
    heads += ["norm, eps", "images", "attack's budget", "what the number is"]
    rows = [_clean_row(evaluation, net, others)]
    rows += [_row(evaluation, net, name, others) for name in net.get("attacks") or {}]
    text += table(heads, rows) + "\n" + _headline(evaluation, net)
    note = report.selection_note(dict(evaluation))
    return text + (f"\n{note}\n" if note else "")


def _compared(evaluation, title) -> list[str]:
    """The other students: the last checkpoint beside the best, and averages."""
    nets = evaluation["nets"].items()
    return [name for name, net in nets if name != title and net.get("role") == "student"]


def _clean_row(evaluation, net, others) -> list[str]:
    count = (evaluation.get("dataset") or {}).get("num_examples", "?")
    values = [report.percent(evaluation["nets"][name].get("clean")) for name in others]
    first = ["none (clean)", report.percent(net.get("clean")), _interval(net.get("clean_ci95"))]
    return [*first, *values, "-", str(count), "-", "clean accuracy"]


def _row(evaluation, net, name, others) -> list[str]:
    spec, result = (evaluation.get("attacks") or {}).get(name) or {}, net["attacks"][name]
    suite = (net.get("autoattack") or {}).get(name) or {}
    whole = (evaluation.get("dataset") or {}).get("num_examples", "?")
    values = [
        report.percent((evaluation["nets"][n].get("attacks") or {}).get(name, {}).get("accuracy"))
        for n in others
    ]
    eps = spec.get("eps", evaluation.get("eps"))
    return [
        safe(report.attack_label(dict(evaluation), name)),
        report.percent(result.get("accuracy")),
        _interval(result.get("ci95")),
        *values,
        f"{safe(spec.get('norm', evaluation.get('norm', '?')))} {report.eps_text(eps)}",
        str(suite.get("num_examples") or whole),
        _budget(spec),
        _meaning(name, suite),
    ]


def _interval(bounds: Any) -> str:
    if not bounds:
        return "-"
    return f"{report.percent(bounds[0], 1)} to {report.percent(bounds[1], 1)}"


def _budget(spec: Mapping[str, Any]) -> str:
    if spec.get("attacks"):
        return safe(", ".join(spec["attacks"]))
    if not spec.get("steps"):
        return "-"
    restarts = f", {spec['restarts']} restarts" if spec.get("restarts", 1) > 1 else ""
    plural = "" if spec["steps"] == 1 else "s"
    return f"{spec['steps']} step{plural} of {report.eps_text(spec.get('step_size'))}{restarts}"


def _meaning(name: str, suite: Mapping[str, Any]) -> str:
    if name in report_autoattack.COMPLETE and suite and not suite.get("upper_bound", True):
        return f"**AutoAttack**, version {safe(suite.get('version', '?'))}"
    if name.startswith("transfer_"):
        return "upper bound; black box by transfer"
    if name.startswith("square"):
        return "upper bound; black box by queries"
    return "upper bound"


def complete(net: Mapping[str, Any]) -> str:
    """Name of the attack whose accuracy may be called AutoAttack's; "" without one."""
    suites = net.get("autoattack") or {}
    for name in report_autoattack.COMPLETE:
        if name in (net.get("attacks") or {}) and not suites.get(name, {}).get("upper_bound", True):
            return name
    return ""


def _headline(evaluation, net) -> str:
    name = complete(net)
    if not name:
        worst = report.percent((net.get("worst_case") or {}).get("accuracy"))
        return (
            f"**No number of AutoAttack.** Robust to all attacks above at once: {worst} %, an upper bound; "
            "AutoAttack is usually lower, and its number is the one to compare with others.\n"
        )
    accuracy, spec = net["attacks"][name]["accuracy"], evaluation["attacks"][name]
    images = net["autoattack"][name].get("num_examples", "?")
    return (
        f"To publish: clean {report.percent(net.get('clean'))} %, {safe(spec.get('label', name))} "
        f"{report.percent(accuracy)} %, {safe(spec.get('norm', '?'))} eps "
        f"{report.eps_text(spec.get('eps'))}, on {images} test images. The other rows are for comparison "
        "with older tables.\n"
    )


def _published(origin: Mapping[str, Any]) -> str:
    """What the publisher says and what the import measured."""
    text, published, test = "", origin.get("published") or {}, origin.get("test") or {}
    if published.get("clean") is not None or published.get("robust") is not None:
        parts = []
        if published.get("clean") is not None:
            parts.append(f"clean {published['clean']} %")
        if published.get("robust") is not None:
            parts.append(f"robust {published['robust']} % ({safe(published.get('attack') or '?')})")
        source = safe(published.get("numbers_from") or "its source")
        text += f"Published, not measured here: {', '.join(parts)}; from {source}.\n\n"
    if test.get("clean") is not None:
        text += (
            f"Measured when it was imported: clean {report.percent(test['clean'])} % on "
            f"{test.get('images', '?')} test images of {safe(test.get('data', '?'))}.\n\n"
        )
    return text


def _selection_scores(meta: Mapping[str, Any]) -> str:
    """The scores that chose the checkpoint, where nothing better is known."""
    scores = ((meta.get("best") or {}).get("scores") or {}).get("student") or {}
    if not scores:
        return ""
    split = (meta.get("config") or {}).get("select_on", "selection")
    found = ", ".join(f"{safe(name)} {report.percent(value)} %" for name, value in scores.items())
    return (
        f"\nOf the best checkpoint only what chose it is known: {found} on the {safe(split)} split. "
        "A choice makes its own number optimistic.\n"
    )


def limits(evaluation: Mapping[str, Any] | None, title: str) -> list[str]:
    """Lines for the section "Limits": the weakest class and the evaluation's warnings."""
    if not evaluation or not title:
        return []
    net, lines = evaluation["nets"][title], []
    name = complete(net) or report.main_attack(dict(evaluation))
    robust = (net.get("attacks") or {}).get(name, {}).get("worst_class")
    if net.get("worst_class_clean") is not None and robust is not None:
        lines.append(
            f"- Its weakest class: {report.percent(net['worst_class_clean'])} % clean, "
            f"{report.percent(robust)} % under {safe(report.attack_label(dict(evaluation), name))}."
        )
    told = [str(text) for text in evaluation.get("warnings") or []]
    return lines + [f"- Warning of the evaluation: {safe(text)}" for text in told if title in text]
