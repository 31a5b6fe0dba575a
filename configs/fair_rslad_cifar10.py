"""Fair-RSLAD (Yue et al. 2023, Fair-ARD) on CIFAR-10.

    python -m ard_jax.main --config=configs/fair_rslad_cifar10.py --config.data.dir=TFDS_FOLDER

RSLAD with weights for the classes that are attacked easily. As RSLAD, with Nesterov momentum.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("fair_rslad", variant)
