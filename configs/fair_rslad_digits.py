"""Fair-RSLAD (Yue et al. 2023, Fair-ARD) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/fair_rslad_digits.py

RSLAD with weights for the classes that are attacked easily. Student, teachers and number of updates are
those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("fair_rslad", variant)
