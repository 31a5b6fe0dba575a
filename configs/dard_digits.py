"""DARD on the handwritten digits, eps 0.2: DPGD examples and the robust teacher's soft labels.

    python -m ard_jax.main --config=configs/dard_digits.py

Student, teacher and number of updates are those of configs/compare_digits.py. Presets as in
configs/dard_cifar10.py: `:fixed` (the default), `:paper_compat`, `:strong`, `:fused`.
"""

from . import dard_cifar10, dard_cifar100, protocol


def get_config(variant: str = ""):
    return protocol.digits("dard", variant, dard_cifar10.PRESETS | {"fused": dard_cifar100.fused})
