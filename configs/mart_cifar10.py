"""MART (Wang et al. 2020) on CIFAR-10.

    python -m ard_jax.main --config=configs/mart_cifar10.py --config.data.dir=TFDS_FOLDER

Boosted cross-entropy plus a KL weighted by misclassification. YisenWang/MART, ResNet-18: 120 epochs, rate
0.01, times 0.1 at 75, 90, 100, weight decay 3.5e-3. The paper's eps is 0.031; here it is config.eps, 8/255
= 0.03137.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("mart", variant)
