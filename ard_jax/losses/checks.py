"""Checks of what callers hand to the losses; they look at shapes and Python numbers only."""

from typing import Any

import jax


def same_logits(first: jax.Array, second: jax.Array, names: str) -> None:
    """Raises ValueError unless both are [B,K] of one shape."""
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"{names}: logits of shapes {first.shape} and {second.shape}; "
            "both must be [batch, classes]"
        )


def logits_and_labels(logits: jax.Array, labels: jax.Array, least_classes: int = 2) -> None:
    """Raises ValueError unless logits are [B,K], labels [B] and K >= least_classes."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape}; "
            "they must be [batch, classes] and [batch] (integer labels, not one-hot)"
        )
    if logits.shape[-1] < least_classes:
        raise ValueError(f"{logits.shape[-1]} classes; this loss needs at least {least_classes}")


def positive(value: Any, name: str) -> None:
    """Raises ValueError when `value` is a Python number that is not positive; skips tracers."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name}={value}: must be positive")


def choice(value: Any, name: str, choices: Any) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
