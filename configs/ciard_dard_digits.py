"""ciard_dard on the handwritten digits, eps 0.2: CIARD's teachers and push with DARD's examples and labels.

    python -m ard_jax.main --config=configs/ciard_dard_digits.py

This project's own combination (ard_jax/methods/ciard_dard.py). Student, teachers and number of updates are
those of configs/compare_digits.py.
"""

from . import protocol


def get_config(variant: str = ""):
    return protocol.digits("ciard_dard", variant)
