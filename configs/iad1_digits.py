"""IAD-I (Zhu et al. 2022) on the handwritten digits, eps 0.2.

    python -m ard_jax.main --config=configs/iad1_digits.py

ARD with a teacher that is trusted as far as it is right at x'. Student, teachers and number of updates are
those of configs/compare_digits.py.
`:released`: no reliability factor on the teacher's term, the unused passes.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.digits("iad1", variant)
