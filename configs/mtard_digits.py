"""MTARD (Zhao et al. 2022) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/mtard_digits.py

Robust teacher at x', clean teacher at x, with balanced weights. Student, teachers and number of updates are
those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("mtard", variant)
