"""ciard_dard on CIFAR-10: CIARD's teachers and push with DARD's examples and labels.

    python -m ard_jax.main --config=configs/ciard_dard_cifar10.py --config.data.dir=TFDS_FOLDER

This project's own combination (ard_jax/methods/ciard_dard.py): networks, schedule and teacher training of
configs/ciard_cifar10.py. `:cpu` trains small networks for 5 epochs. The full experiment has not been run.
"""

from . import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("ciard_dard", variant)
