"""ABSLD (Zhao et al. 2024) on CIFAR-10.

    python -m ard_jax.main --config=configs/absld_cifar10.py --config.data.dir=TFDS_FOLDER

RSLAD with a teacher temperature for each class, sharper where the student is weak. zhaoshiji123/ABSLD: as
RSLAD. `:released`: both teachers' logits divided by both class temperatures.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("absld", variant)
