"""RSLAD (Zi et al. 2021) on CIFAR-10.

    python -m ard_jax.main --config=configs/rslad_cifar10.py --config.data.dir=TFDS_FOLDER

Only the robust teacher's soft labels, at x' and at x. zibojia/RSLAD: 300 epochs, rate 0.1, times 0.1 after
215, 260, 285, weight decay 2e-4.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("rslad", variant)
