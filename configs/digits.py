"""One method on scikit-learn's handwritten digits (8x8, in the package), eps 0.2: minutes on 2 CPU cores.

    python -m ard_jax.main --config=configs/digits.py:rslad

Every method of `ard_jax.methods`, with student, teachers and number of updates of configs/compare_digits.py.
`:METHOD:released` (absld, adaiad, adr_trades, dgad, dkl, iad1, mail, mail_trades, mail_mart): what the
released code computes where it differs from the paper. `:METHOD:igdm` (adaad, adaiad, ard, iad1, rslad):
with IGDM's gradient matching.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("digits", choice)
