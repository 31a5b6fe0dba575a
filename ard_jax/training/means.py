"""Mergeable means."""

from typing import NamedTuple

import numpy as np


class Mean(NamedTuple):
    """A mean as (total, count), so that means of unequal batches merge exactly."""

    total: float = 0.0
    count: float = 0.0

    def merge(self, value: float, count: float) -> "Mean":
        """With `count` more values whose mean is `value`."""
        return Mean(self.total + float(value) * count, self.count + count)

    @property
    def value(self) -> float:
        """The mean; nan when empty."""
        return self.total / self.count if self.count else float("nan")


class Means(dict):
    """name -> Mean."""

    def add(self, values: dict[str, float], count: float) -> None:
        """Merges one batch's means."""
        for name, value in values.items():
            self[name] = self.get(name, Mean()).merge(value, count)

    def values_and_reset(self) -> dict[str, float]:
        """The means so far, and starts again."""
        result = {name: mean.value for name, mean in self.items()}
        self.clear()
        return result


def non_finite(values: dict[str, float]) -> list[str]:
    """Names of the values that are NaN or infinite."""
    return [name for name, value in values.items() if not np.isfinite(value)]
