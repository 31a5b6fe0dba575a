"""SAT, PGD adversarial training (Madry et al. 2018) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/sat_digits.py

Cross-entropy at PGD-10 examples. Student, teachers and number of updates are those of
configs/compare_digits.py.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("sat", variant)
