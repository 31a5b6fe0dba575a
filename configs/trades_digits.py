"""TRADES (Zhang et al. 2019) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/trades_digits.py

Cross-entropy plus 6 KL(p(x) || p(x')). Student, teachers and number of updates are those of
configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("trades", variant)
