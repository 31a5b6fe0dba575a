"""Adversarial robustness distillation in JAX and Flax.

Importing this package is light: it does not import or initialise JAX. Its parts are loaded when they are
first used: `import ard_jax; ard_jax.attacks.pgd(...)`, or `from ard_jax import attacks, data, evaluate`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_PARTS = ("attacks", "data", "evaluate", "losses", "methods", "models", "optim")
__all__ = ["__version__", *_PARTS]  # pyright: ignore[reportUnsupportedDunderAll]  # loaded late


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_PARTS)}"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS})
