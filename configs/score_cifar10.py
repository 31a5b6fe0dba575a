"""SCORE (Pang et al. 2022) on CIFAR-10.

    python -m ard_jax.main --config=configs/score_cifar10.py --config.data.dir=TFDS_FOLDER

TRADES with squared errors of the probabilities. A mixed recipe: attack, BatchNorm modes and beta are those
of P2333/SCORE's script for generated data; the schedule is that of its script without: 110 epochs, rate 0.05,
times 0.1 after 100 and 105, weight decay 5e-4. There the network is PreActResNet-18, and losses are cut.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("score", variant)
