"""MTARD (Zhao et al. 2022) on CIFAR-10.

    python -m ard_jax.main --config=configs/mtard_cifar10.py --config.data.dir=TFDS_FOLDER

Robust teacher at x', clean teacher at x, with balanced weights. zhaoshiji123/MTARD: 300 epochs, rate 0.1,
times 0.1 after 215, 260, 285 (of the weights' rate too), weight decay 2e-4.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("mtard", variant)
