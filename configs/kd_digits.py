"""KD (Hinton form) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/kd_digits.py

Soft labels of the robust teacher on clean images; no attack in training. Student, teachers and number of
updates are those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("kd", variant)
