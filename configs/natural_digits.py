"""Natural training on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/natural_digits.py

Cross-entropy on clean images: the baseline that has no robustness. Student, teachers and number of updates
are those of configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("natural", variant)
