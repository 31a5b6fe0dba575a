"""SCORE (Pang et al. 2022) on CIFAR-10.

    python -m ard_jax.main --config=configs/score_cifar10.py --config.data.dir=TFDS_FOLDER

TRADES with squared errors of the probabilities. P2333/SCORE without extra data: 110 epochs, rate 0.05,
weight decay 5e-4; the decays after 100 and 105 are this project's choice. There the network is
PreActResNet-18.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("score", variant)
