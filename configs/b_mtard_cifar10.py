"""B-MTARD (Zhao et al. 2024) on CIFAR-10.

    python -m ard_jax.main --config=configs/b_mtard_cifar10.py --config.data.dir=TFDS_FOLDER

MTARD with teacher temperatures balanced by their entropies. zhaoshiji123/MTARD-extension: as MTARD.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("b_mtard", variant)
