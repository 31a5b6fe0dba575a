"""KD (Hinton form) on CIFAR-10.

    python -m ard_jax.main --config=configs/kd_cifar10.py --config.data.dir=TFDS_FOLDER

Soft labels of the robust teacher on clean images; no attack in training. ARD's paper has such a row,
without its settings: 200 epochs, rate 0.1, times 0.1 after 100 and 150.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("kd", variant)
