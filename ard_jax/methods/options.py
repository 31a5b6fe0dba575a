"""Types of options that several methods have."""

from typing import Annotated, Literal

from pydantic import Field

from ard_jax.io.options import AtLeastOne, Count, NotNegative, Options, Positive, Share
from ard_jax.losses.distill import Reduction

Variant = Literal["paper", "released"]
# Of a moving average or of smoothed labels: 1 would leave nothing of the new, or of the label.
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Epochs = tuple[AtLeastOne, ...]


def increase(name: str, epochs: tuple[int, ...]) -> list[str]:
    """What is wrong with the order of an option's epochs."""
    if list(epochs) == sorted(set(epochs)):
        return []
    return [f"{name}={epochs}: epochs must increase, such as {tuple(sorted(set(epochs)))}"]


__all__ = ["AtLeastOne", "BelowOne", "Count", "Epochs", "NotNegative", "Options", "Positive",
           "Reduction", "Share", "Variant", "increase"]  # fmt: skip
