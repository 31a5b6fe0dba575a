"""ARD (Goldblum et al. 2020) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/ard_digits.py

The robust teacher's softened labels at x supervise the student at x'. Student, teachers and number of
updates are those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("ard", variant)
