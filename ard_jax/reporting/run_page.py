"""What a run ends with: a table for the terminal, Markdown, CSV and a page, out of its record.

The page is one file: no scripts, fonts, styles or pictures from elsewhere. Everything that comes from a
run (names, configuration, warnings) passes through jinja2's escaping, or matplotlib's. What was not measured
is left out: a report of half a run is worth having.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from ard_jax.io.files import to_plain
from ard_jax.reporting import curves, outcomes, plots, tables, teacher_tables
from ard_jax.reporting.plots import Line
from ard_jax.reporting.record import (
    Accuracy,
    AttackResult,
    AutoAttackRecord,
    Evaluation,
    NetworkResult,
    label,
    number,
    selection_note,
)
from ard_jax.reporting.tables import Table, percent, percent_cell

REPORT_FILE = "report.html"
CSV_COLUMNS = (
    "net role model step attack label accuracy ci95_low ci95_high weighted nrr worst_class".split()
)
_MANY_CLASSES = 20  # more are folded away
_BALANCE = {
    "weighted": "Weighted robust accuracy: (clean + robust) / 2, in %",
    "nrr": "NRR, the harmonic mean: 2 · clean · robust / (clean + robust), in %",
    "worst_class": "Accuracy of the worst class, in %",
}


def result_table(evaluation: Evaluation) -> Table:
    """The main table, one row for each network; a further number is a line in `columns`."""
    names, main = evaluation.attack_names(), evaluation.main_attack()

    def under(name: str) -> tuple[str, Callable[[NetworkResult], Any]]:
        return label(evaluation, name), lambda net: _accuracy_cell(net.robust(name))

    columns = [
        ("clean", lambda net: percent_cell(net.clean, net.clean_ci95)),
        *map(under, names),
        (
            _worst_title(evaluation),
            lambda net: percent_cell((net.worst_case or Accuracy()).accuracy),
        ),
        (f"weighted {label(evaluation, main)}", lambda net: percent_cell(net.weighted(main))),
    ]
    columns = columns if names else columns[:1]
    rows = [[title, *(cell(net) for _, cell in columns)] for title, net in evaluation.nets.items()]
    return Table(["net", *(title for title, _ in columns)], rows, "Accuracy in %")


def _worst_title(evaluation: Evaluation) -> str:
    """The column's title, with the number of images where it is one of the first and the same in all rows."""
    counts = {net.worst_case.num_examples for net in evaluation.nets.values() if net.worst_case}
    (count,) = counts if len(counts) == 1 else (None,)
    return f"worst case, first {count}" if count else "worst case"


def _accuracy_cell(result: AttackResult) -> Any:
    return percent_cell(result.accuracy, result.ci95)


def teacher_lines(evaluation: Evaluation) -> list[str]:
    """One line per teacher: its source, its model, and its accuracies in percent."""
    lines = []
    for role, teacher in evaluation.teachers.items():
        accuracy = ", ".join(
            f"{label(evaluation, name)} {percent(value)} %"
            for name, value in teacher.accuracy.items()
        )
        model = f" ({teacher.model})" if teacher.model else ""
        source = teacher.source or "source unknown"
        lines.append(f"{role}{model}: {source}; {accuracy or 'not measured in this run'}")
    return lines


def suites(evaluation: Evaluation) -> dict[str, dict[str, AutoAttackRecord]]:
    """Name of AutoAttack or its like -> network -> record."""
    found: dict[str, dict[str, AutoAttackRecord]] = {}
    for title, net in evaluation.nets.items():
        for name, record in net.autoattack.items():
            found.setdefault(name, {})[title] = record
    return found


def summary_table(evaluation: Evaluation, width: int = 120) -> str:
    """Returns the plain-text table that ends a run: networks as rows, accuracies in percent.

    Args:
      evaluation: what was measured.
      width: characters after which the columns are folded into a second block.
    """
    dataset = evaluation.dataset
    about = [dataset.name, dataset.split]
    about += [f"{dataset.num_examples} images"] if dataset.num_examples is not None else []
    if evaluation.eps is not None:
        about.append(f"{evaluation.norm} eps {tables.eps_text(evaluation.eps)}")
    about = ", ".join(part for part in about if part)
    head = f"{evaluation.name or 'evaluation'}: accuracy in %"
    lines = [f"{head} ({about})" if about else head, ""]
    lines += tables.text(result_table(evaluation), width)
    for by_net in suites(evaluation).values():
        first, *_ = by_net.values()
        if len(first.stages) < 2:
            continue  # one attack: its column says it all
        lines += [
            "",
            f"{first.label}, accuracy in % after each attack ({first.num_examples} images)",
        ]
        for title, record in by_net.items():
            parts = [f"{stage.attack} {percent(stage.accuracy)}" for stage in record.stages]
            lines.append(f"  {title}: {', '.join([f'clean {percent(record.clean)}', *parts])}")
    note, teachers = selection_note(evaluation), teacher_lines(evaluation)
    lines += ["", note] if note else []
    lines += ["", "Teachers", *("  " + line for line in teachers)] if teachers else []
    for title, quality in teacher_tables.qualities(evaluation).items():
        judged = teacher_tables.lines(title, quality, sources=False)
        lines += [f"  {line}" if i == 0 else f"    {line}" for i, line in enumerate(judged)]
    lines += ["", *evaluation.notes] if evaluation.notes else []
    warnings = evaluation.warnings
    lines += ["", "Warnings", *("  ! " + text for text in warnings)] if warnings else []
    return "\n".join(lines)


def csv_text(evaluation: Evaluation) -> str:
    """One row for each network and attack, with `CSV_COLUMNS`; fractions in [0, 1], missing ones empty.

    "clean", "worst_case", the stages of AutoAttack and noise count as attacks here.
    """
    rows = []
    for title, net in evaluation.nets.items():
        for attack, result in _csv_results(net).items():
            low, high = getattr(result, "ci95", None) or (None, None)
            row = {"net": title, "attack": attack, "label": label(evaluation, attack)}
            row |= {"role": net.role, "model": net.model, "step": net.step}
            row |= {"accuracy": result.accuracy, "ci95_low": low, "ci95_high": high}
            row |= {n: getattr(result, n, None) for n in ("weighted", "nrr", "worst_class")}
            rows.append(row)
    return tables.csv_text(CSV_COLUMNS, rows)


def _csv_results(net: NetworkResult) -> dict[str, Any]:
    found: dict[str, Any] = {"clean": AttackResult(
        accuracy=net.clean, ci95=net.clean_ci95, worst_class=net.worst_class_clean
    )}  # fmt: skip
    found |= net.attacks
    found |= {"worst_case": net.worst_case} if net.worst_case else {}
    for name, record in net.autoattack.items():
        found |= {f"{name} after {stage.attack}": stage for stage in record.stages}
    return found | {f"{kind} noise": Accuracy(accuracy=a) for kind, a in net.noise.items()}


def _over(
    name: str, alt: str, found: list[tuple[str, Any, Any]], xlabel: str, **options: Any
) -> Markup | None:
    """Accuracies (label, x, y) over something else than steps; None without any."""
    lines = []
    for text, x, y in found:
        pairs = [pair for pair in zip(x, y, strict=False) if None not in pair]
        style = {"linestyle": ("-", "--", "-.", ":")[len(lines) // 8 % 4]}
        if pairs:
            xs, ys = np.array(pairs, float).T
            lines.append(Line(text, xs, ys, style))
    return plots.lines(name, alt, lines, xlabel=xlabel, percent=True, **options) if lines else None


def _eps_curve(evaluation: Evaluation) -> Markup | None:
    """Accuracy against eps, one line for each network that has a sweep."""
    nets, eps = evaluation.nets.items(), evaluation.eps
    found = [(title, n.eps_sweep.eps, n.eps_sweep.accuracy) for title, n in nets if n.eps_sweep]
    marks = [] if eps is None else [(eps, f"eps {tables.eps_text(eps)}")]
    options = {"marks": marks, "chance": curves.chance(evaluation)}
    return _over("eps", "Accuracy", found, "eps", **options)


def _square_curve(evaluation: Evaluation) -> Markup | None:
    """Accuracy against queries, one line for each network and number of queries."""
    known = suites(evaluation)
    found = [
        (title if len(known) < 3 else f"{title} ({r.curve.queries[-1]})", r.curve.queries, r.curve.accuracy)
        for by_net in known.values()
        for title, r in by_net.items()
        if r.curve and r.curve.queries
    ]  # fmt: skip
    return _over("square", "Accuracy", found, "queries")


def image_rows(images: dict, class_names: tuple[str, ...]) -> tuple[list[dict], float]:
    """Prepares the grid of examples: pictures, class names, confidences, and right or wrong for each.

    The difference is amplified so that the largest change of all the examples reaches black or
    white, and zero is mid-grey.

    Returns:
      The rows, and the factor by which differences are amplified (1.0 when there is no change).

    Raises:
      ValueError: a part is missing, or the parts differ in length or shape.
    """
    parts = ("clean", "adversarial", "labels", "predicted_clean", "predicted_adversarial")
    if missing := [name for name in parts if name not in images]:
        raise ValueError(f"images lacks {missing}; it needs {list(parts)}")
    clean, adversarial = (np.asarray(images[name], np.float32) for name in parts[:2])
    integers = [np.asarray(images[name]).reshape(-1) for name in parts[2:]]
    if clean.ndim != 4 or clean.shape != adversarial.shape:
        raise ValueError(
            f"images: clean {clean.shape} and adversarial {adversarial.shape} must both be [n, H, W, C]"
        )
    if any(len(values) != len(clean) for values in integers):
        lengths = dict(zip(parts[2:], map(len, integers), strict=True))
        raise ValueError(f"images: {len(clean)} images, but {lengths}")

    def name(index: int) -> str:
        if index == -1:
            return "not finite"
        return class_names[index] if 0 <= index < len(class_names) else str(index)

    difference = np.nan_to_num(adversarial - clean)
    largest = float(np.abs(difference).max(initial=0.0))
    factor = 0.5 / largest if largest else 1.0
    rows, unknown = [], np.full(len(clean), np.nan)
    for index in range(len(clean)):
        right, before, after = (int(values[index]) for values in integers)
        shown = clean[index], 0.5 + factor * difference[index], adversarial[index]
        row = dict(
            zip(("clean", "difference", "adversarial"), map(plots.picture, shown), strict=True)
        )
        row |= {
            "size": plots.picture_size(clean[index]),
            "label": name(right),
            "predicted_clean": name(before),
            "predicted_adversarial": name(after),
        }
        for part in ("clean", "adversarial"):
            confidence = np.asarray(images.get(f"confidence_{part}", unknown), float)[index]
            row[f"confidence_{part}"] = percent(confidence, 1) if np.isfinite(confidence) else ""
        rows.append(row | {"clean_right": before == right, "adversarial_right": after == right})
    return rows, factor


def _suite_tables(evaluation: Evaluation) -> list[tuple[Table, AutoAttackRecord]]:
    """AutoAttack and its like attack by attack: a table, and a record with the label and the images."""
    found = []
    for by_net in suites(evaluation).values():
        stages = list(dict.fromkeys(s.attack for r in by_net.values() for s in r.stages))
        if len(stages) < 2:
            continue
        rows = []
        for title, record in by_net.items():
            cells, left = {}, record.clean
            for stage in record.stages:
                left, broken = stage.accuracy, record.broken_by.get(stage.attack)
                cell = percent_cell(left, stage.ci95)
                if broken is not None:
                    share = percent(broken / (record.num_examples or 1), 1)
                    cell = dataclasses.replace(cell, small=f"broke {share} % ({broken})")
                cells[stage.attack] = cell
            lost = None if record.clean is None or left is None else record.clean - left
            after = [cells.get(stage, "-") for stage in stages]
            seconds = tables.value_text(record.seconds)
            rows.append([title, percent_cell(record.clean), *after, percent(lost), seconds])
        some = next((r for r in by_net.values() if r.upper_bound), next(iter(by_net.values())))
        titles = ["net", "clean", *stages, "lost in all", "seconds"]
        found.append((Table(titles, rows, f"{some.label}, attack by attack"), some))
    return found


def _balance_tables(evaluation: Evaluation) -> list[Table]:
    """Weighted robust accuracy, NRR and the worst class under each attack."""
    names, found = evaluation.attack_names(), []
    for field, heading in _BALANCE.items():
        last, rows = "clean" if field == "worst_class" else _worst_title(evaluation), []
        for title, net in evaluation.nets.items():
            values = [getattr(net.robust(name), field) for name in names]
            worst = getattr(net.worst_case or Accuracy(), field, net.worst_class_clean)
            rows.append([title, *map(percent_cell, [*values, worst])])
        titles = ["net", *(label(evaluation, name) for name in names), last]
        found.append(Table(titles, rows, heading))
    return found


def _class_table(evaluation: Evaluation) -> Table | None:
    """Accuracy of every class, clean and under the main attack; None where no network has any."""
    main, names = evaluation.main_attack(), evaluation.dataset.class_names
    columns: dict[str, tuple[float | None, ...]] = {}
    for title, net in evaluation.nets.items():
        columns[f"{title}, clean"] = net.per_class_clean
        columns[f"{title}, {label(evaluation, main)}"] = net.robust(main).per_class
    columns = {title: values for title, values in columns.items() if values}
    rows = []
    for c in range(max(map(len, columns.values()), default=0)):
        values = [v[c] if c < len(v) else None for v in columns.values()]
        name = names[c] if c < len(names) else str(c)
        rows.append([name, *(percent_cell(value, bar=True) for value in values)])
    return Table(["class", *columns], rows, "Accuracy of each class, in %") if rows else None


def _noise_table(evaluation: Evaluation) -> Table | None:
    nets = {title: net for title, net in evaluation.nets.items() if net.noise}
    kinds = list(dict.fromkeys(kind for net in nets.values() for kind in net.noise))
    main, rows = evaluation.main_attack(), []
    for title, net in nets.items():
        values = [net.clean, *map(net.noise.get, kinds), net.robust(main).accuracy]
        rows.append([title, *map(percent_cell, values)])
    titles = ["net", "clean", *kinds, label(evaluation, main)]
    return Table(titles, rows, "Accuracy under noise, in %") if rows else None


def _attack_table(evaluation: Evaluation) -> Table:
    """A column for each attack and a row for each parameter; what all have the same is in the note.

    Transferred attacks are left out: their parameters are those of the attack itself.
    """
    names = [n for n in evaluation.attack_names() if not n.startswith(outcomes.TRANSFER)]
    known = [evaluation.attacks[n].parameters if n in evaluation.attacks else {} for n in names]

    def shown(name: str, value: Any) -> str:
        as_eps = name in ("eps", "step_size") and number(value) is not None
        return tables.eps_text(value) if as_eps else tables.value_text(value)

    rows, same = [], []
    for key in dict.fromkeys(key for one in known for key in one):
        values = [shown(key, one[key]) for one in known if key in one]
        if len(values) > 1 and len(set(values)) == 1:
            same.append(f"{key.replace('_', ' ')} {values[0]}")
        else:
            rows.append([key.replace("_", " "), *(shown(key, one.get(key)) for one in known)])
    titles = ["parameter", *(label(evaluation, name) for name in names)]
    note = f"The same in all that have it: {'; '.join(same)}." if same else ""
    return Table(titles, rows, "Attack parameters", note, left=tuple(range(1, len(titles))))


def _net_table(evaluation: Evaluation) -> Table:
    rows = [
        [title, net.role or "-", net.model or "-", "-" if net.num_params is None else f"{net.num_params:,}",
         tables.value_text(net.step), tables.value_text(net.epoch)]
        for title, net in evaluation.nets.items()
    ]  # fmt: skip
    titles = ["net", "role", "model", "parameters", "step", "epoch"]
    return Table(titles, rows, "Networks", left=(1, 2))


def _teachers(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """Role -> where the teacher came from and what it is worth, in words."""
    found = {}
    for role, teacher in evaluation.teachers.items():
        accuracy = (f"{label(evaluation, n)} {percent(v)}" for n, v in teacher.accuracy.items())
        about = {"Model": teacher.model, "Source": teacher.source or "unknown"}
        about |= {"Identity": teacher.identity, "Accuracy in %": ", ".join(accuracy)}
        about["Accuracy in %"] = about["Accuracy in %"] or "not measured in this run"
        found[role] = {key: value for key, value in about.items() if value}
    return found


def _times(evaluation: Evaluation) -> dict[str, str]:
    timing = evaluation.timing
    if timing is None:
        return {}
    found = {
        "Training": timing.train_seconds,
        "One epoch": timing.seconds_per_epoch,
        "Compilation": timing.compile_seconds,
    }
    texts = {key: tables.duration_text(value) for key, value in found.items() if value is not None}
    if timing.images_per_second is not None:
        texts["Speed"] = f"{timing.images_per_second:,.4g} images/s"
    if cache := timing.compilation_cache:
        texts["Compilation cache"] = ", ".join(f"{count} {name}" for name, count in cache.items())
    for name, by_net in suites(evaluation).items():
        seconds = [r.seconds for r in by_net.values() if r.seconds is not None]
        if seconds:
            texts[label(evaluation, name)] = tables.duration_text(sum(seconds))
    return texts


def render(
    evaluation: Evaluation,
    metrics: list[dict],
    images: dict | None = None,
    arrays: outcomes.Arrays | None = None,
    teacher_metrics: Mapping[str, list[dict]] | None = None,
) -> str:
    """Returns the page.

    Args:
      evaluation: what was measured.
      metrics: the records of metrics.jsonl (`metric_writer.read_metrics`); may be empty.
      images: None, or "clean" and "adversarial" (float [n, H, W, C] in [0, 1]), "labels",
        "predicted_clean" and "predicted_adversarial" (int [n]); optionally "confidence_clean" and
        "confidence_adversarial" (float [n], of the predicted class) and "caption" (text).
      arrays: what became of each image, as evaluation_flags.npz holds it; None for unknown.
      teacher_metrics: role -> records of the training that made this teacher.

    Raises:
      ValueError: the arrays of `images` do not fit each other.
    """
    rows, factor = image_rows(images, evaluation.dataset.class_names) if images else ([], 1.0)
    sweeps = [net.eps_sweep for net in evaluation.nets.values() if net.eps_sweep]
    config = to_plain(evaluation.config)
    main, classes = evaluation.main_attack(), _class_table(evaluation)
    return tables.page(
        "report.html",
        record=evaluation,
        attacks=evaluation.attack_names(),
        main=main,
        main_label=label(evaluation, main),
        results=result_table(evaluation),
        complete=any(net.complete() for net in evaluation.nets.values()),
        suites=_suite_tables(evaluation),
        square_curve=_square_curve(evaluation),
        noise=_noise_table(evaluation),
        eps_curve=_eps_curve(evaluation),
        sweep_attack=label(evaluation, sweeps[0].attack) if sweeps else "",
        balance=_balance_tables(evaluation),
        classes=classes,
        many_classes=classes and len(classes.rows) > _MANY_CLASSES,
        examples=rows,
        factor=factor,
        caption=(images or {}).get("caption", ""),
        broken=outcomes.broken_table(evaluation, arrays or {}),
        confusions=outcomes.confusions(evaluation, arrays or {}),
        curves=curves.figures(evaluation, metrics, teacher_metrics),
        teachers=_teachers(evaluation),
        quality=teacher_tables.table(judged := teacher_tables.qualities(evaluation)),
        quality_note=teacher_tables.NOTE,
        judgements=[teacher_tables.lines(title, one) for title, one in judged.items()],
        parameters=_attack_table(evaluation),
        nets=_net_table(evaluation),
        selection=selection_note(evaluation),
        times=_times(evaluation),
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )
