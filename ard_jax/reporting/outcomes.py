"""What became of each image: who was taken for whom, and which attack broke which share.

Out of the arrays of evaluation_flags.npz, see `evaluation.full.save`: "labels" [N], and for each network and
attack "<network>/<attack>/predicted" int and "/correct" bool, [N] or [M] of the first M < N images.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from ard_jax.reporting import plots
from ard_jax.reporting.record import Evaluation, label
from ard_jax.reporting.tables import Cell, Table, percent, percent_cell

Arrays = Mapping[str, np.ndarray]
_MOST_CONFUSIONS = 10  # rows of the table of one network
TRANSFER = "transfer_"  # begins the names of attacks that were made on another network


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int [K,K] of images of class i (row) that were taken for class j (column).

    Args:
      labels: int [N].
      predicted: int [M], of the first M <= N images; what is no class (-1) counts nowhere.
      num_classes: K.
    """
    labels = labels[: len(predicted)]
    known = (0 <= predicted) & (predicted < num_classes)
    flat = labels[known] * num_classes + predicted[known]
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Confusions:
    """A network's matrices, (title, SVG), and its most frequent mistakes; shown: not folded away."""

    title: str
    matrices: list[tuple[str, Markup]]
    table: Table | None
    shown: bool


def confusions(evaluation: Evaluation, arrays: Arrays) -> list[Confusions]:
    """Confusion matrices of every network, clean and under its main attack, or the last that it has."""
    dataset, found = evaluation.dataset, []
    if not dataset.num_classes or "labels" not in arrays:
        return []
    names = _class_names(evaluation)
    for title in evaluation.nets:
        counts = {}
        for attack in ("clean", _main_attack(evaluation, title, arrays)):
            predicted = arrays.get(f"{title}/{attack}/predicted")
            if predicted is not None:
                shown = label(evaluation, attack) if attack != "clean" else "clean"
                counts[shown] = confusion(arrays["labels"], predicted, dataset.num_classes)
        matrices = [
            (
                name,
                plots.matrix(
                    f"m{len(found)}-{index}",
                    f"Confusion matrix of {title}, {name}",
                    _shares(one),
                    names,
                ),
            )
            for index, (name, one) in enumerate(counts.items())
        ]
        if matrices:
            found.append(Confusions(title, matrices, _mistakes(title, counts, names), not found))
    return found


def _class_names(evaluation: Evaluation) -> list[str]:
    names = evaluation.dataset.class_names
    return [
        names[c] if c < len(names) else str(c) for c in range(evaluation.dataset.num_classes or 0)
    ]


def _main_attack(evaluation: Evaluation, title: str, arrays: Arrays) -> str:
    wanted = [evaluation.main_attack(), "pgd_sat", "pgd_trades", *evaluation.attack_names()]
    return next((n for n in wanted if n and f"{title}/{n}/predicted" in arrays), "")


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _mistakes(title: str, counts: dict[str, np.ndarray], names: list[str]) -> Table | None:
    """The pairs of classes that are confused most, in the order of the shares of the last of `counts`."""
    *_, last = map(_shares, counts.values())
    off = last * (1 - np.eye(len(last)))
    order = np.argsort(-off, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    rows = []
    for i, j in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[i, j]:
            cells = [
                dataclasses.replace(percent_cell(_shares(one)[i, j]), hint=f"{one[i, j]} images")
                for one in counts.values()
            ]
            rows.append([names[i], names[j], *cells])
    heading = f"Most frequent mistakes of {title}, % of the images of the class"
    return Table(["class", "taken for", *counts], rows, heading, left=(1,)) if rows else None


def broken_table(evaluation: Evaluation, arrays: Arrays) -> Table | None:
    """For each network the share of the images that an attack broke, and those that it alone broke.

    Of the first images that all attacks on the network were made on. Attacks made on another network are
    left out.
    """
    names = [n for n in evaluation.attack_names() if not n.startswith(TRANSFER)]
    rows = []
    for title in evaluation.nets:
        right = {n: arrays.get(f"{title}/{n}/correct") for n in ("clean", *names)}
        right = {n: flags for n, flags in right.items() if flags is not None}
        clean = right.pop("clean", None)
        if clean is None or not right:
            continue
        count = min(map(len, right.values()))
        clean = clean[:count]
        broken = {n: clean & ~flags[:count] for n, flags in right.items()}
        number_of = np.sum([*broken.values()], axis=0)
        cells = []
        for name in names:
            if name not in broken:
                cells.append(Cell("-"))
                continue
            alone = percent(np.mean(broken[name] & (number_of == 1)), 1)
            cell = percent_cell(broken[name].mean())
            cells.append(dataclasses.replace(cell, small=f"alone {alone}"))
        left = (clean & (number_of == 0)).mean()
        some = f", first {count}" if count < len(arrays["labels"]) else ""
        rows.append([title + some, percent_cell(1 - clean.mean()), *cells, percent_cell(left)])
    titles = ["net", "wrong before", *(label(evaluation, n) for n in names), "right under all"]
    return (
        Table(titles, rows, "Which attack broke which share of the images, in %") if rows else None
    )
