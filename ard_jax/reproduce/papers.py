"""What the papers report for these methods: ResNet-18 on CIFAR-10, L-inf 8/255, accuracies in percent.

None was read in the paper itself. "second-hand": quoted by another document; "unverified": noted without
one. A paper's numbers are of single runs, their checkpoints picked on the test set, with 76 to 300 epochs
and the teachers WRN-34-10 (TRADES) and ResNet-56 (clean), DARD's with an adversarially trained ResNet-56.
"""

import dataclasses

COLUMNS = ("clean", "fgsm", "pgd_sat", "pgd_trades", "cw_inf", "autoattack")
MARKS = {"second-hand": "*", "unverified": "?"}


@dataclasses.dataclass(frozen=True)
class Reported:
    """One row of a paper.

    Attributes:
      source: paper and table.
      values: column -> (percent, "second-hand" or "unverified"); columns that it lacks are not known.
    """

    source: str
    values: dict[str, tuple[float, str]]

    def cell(self, column: str) -> str:
        """The number with its mark, 51.70*; or a dash."""
        if column not in self.values:
            return "-"
        value, grade = self.values[column]
        return f"{value:.2f}{MARKS[grade]}"


def _row(source: str, numbers: tuple[float, ...], grades: str) -> Reported:
    """`grades`: s or u for each number, "-" for one that is not known, whose number is left out."""
    names, left, values = {"s": "second-hand", "u": "unverified"}, list(numbers), {}
    for column, grade in zip(COLUMNS, grades, strict=True):
        if grade != "-":
            values[column] = (left.pop(0), names[grade])
    return Reported(source, values)


# RSLAD's table 3 also has the baselines SAT and TRADES.
RESNET18 = {
    "sat": _row("RSLAD (ICCV 2021), table 3", (83.38, 56.41, 49.11, 51.11, 48.67, 45.83), "uuuuus"),
    "trades": _row("RSLAD (ICCV 2021), table 3", (81.93, 57.49, 52.66, 53.68, 50.58, 49.23), "uuuuus"),
    "rslad": _row("RSLAD (ICCV 2021), table 3", (83.38, 60.01, 54.24, 55.94, 53.30, 51.49), "uuuuus"),
    "mtard": _row("MTARD (ECCV 2022), table not known", (87.36, 61.20, 50.73, 53.60, 48.57), "uuuuu-"),
    "ciard": _row(
        "CIARD (ICCV 2025), supplement tables 1 and 5", (88.87, 61.88, 51.70, 54.46, 50.61, 48.88), "ssssss"
    ),
    "dard": _row("DARD (2025), table 1", (47.75,), "-----s"),
}  # fmt: skip
