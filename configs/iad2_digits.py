"""IAD-II (Zhu et al. 2022) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/iad2_digits.py

IAD on AKD2: hard labels, a partly trusted robust teacher and a clean one. Student, teachers and number of
updates are those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("iad2", variant)
