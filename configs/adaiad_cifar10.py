"""AdaIAD (Huang et al. 2023) on CIFAR-10.

    python -m ard_jax.main --config=configs/adaiad_cifar10.py --config.data.dir=TFDS_FOLDER

AdaAD's attack with IAD-I's objective, temperature 30. boyellow/AdaAD: as AdaAD, reliability from epoch 61.
`:released`: what the code computes (see ard_jax/methods/adaad.py).
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("adaiad", variant)
