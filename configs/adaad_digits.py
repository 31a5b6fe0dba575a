"""AdaAD (Huang et al. 2023) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/adaad_digits.py

The attack maximises the gap between teacher and student, through both. Student, teachers and number of
updates are those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("adaad", variant)
