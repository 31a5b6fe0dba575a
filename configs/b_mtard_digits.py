"""B-MTARD (Zhao et al. 2024) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/b_mtard_digits.py

MTARD with teacher temperatures balanced by their entropies. Student, teachers and number of updates are
those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("b_mtard", variant)
