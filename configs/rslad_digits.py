"""RSLAD (Zi et al. 2021) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/rslad_digits.py

Only the robust teacher's soft labels, at x' and at x. Student, teachers and number of updates are those of
configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("rslad", variant)
