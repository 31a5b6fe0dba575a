"""MART (Wang et al. 2020) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/mart_digits.py

Boosted cross-entropy plus a KL weighted by misclassification. Student, teachers and number of updates are
those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("mart", variant)
