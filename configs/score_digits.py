"""SCORE (Pang et al. 2022) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/score_digits.py

TRADES with squared errors of the probabilities. Student, teachers and number of updates are those of
configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("score", variant)
