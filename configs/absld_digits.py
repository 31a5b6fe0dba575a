"""ABSLD (Zhao et al. 2024) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/absld_digits.py

RSLAD with a teacher temperature for each class, sharper where the student is weak. Student, teachers and
number of updates are those of configs/compare_digits.py.
`:released`: both teachers' logits divided by both class temperatures.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("absld", variant)
