"""SAT, PGD adversarial training (Madry et al. 2018) on CIFAR-10.

    python -m ard_jax.main --config=configs/sat_cifar10.py --config.data.dir=TFDS_FOLDER

Cross-entropy at PGD-10 examples. Rice et al. 2020 (locuslab/robust_overfitting): 200 epochs, rate 0.1,
times 0.1 after 100 and 150, weight decay 5e-4.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("sat", variant)
