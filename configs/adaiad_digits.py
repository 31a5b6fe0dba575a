"""AdaIAD (Huang et al. 2023) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/adaiad_digits.py

AdaAD's attack with IAD-I's objective, temperature 30. Student, teachers and number of updates are those of
configs/compare_digits.py.
`:released`: what the code computes (see ard_jax/methods/adaad.py).
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("adaiad", variant)
