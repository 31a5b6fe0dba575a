"""Adversarial robustness distillation in JAX and Flax.

Importing this package is light: it does not import or initialise JAX. `from ard_jax import attacks,
losses, models, methods, data` imports those parts.
"""

__version__ = "0.1.0"
