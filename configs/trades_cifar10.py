"""TRADES (Zhang et al. 2019) on CIFAR-10.

    python -m ard_jax.main --config=configs/trades_cifar10.py --config.data.dir=TFDS_FOLDER

Cross-entropy plus 6 KL(p(x) || p(x')). yaodongyu/TRADES: 76 epochs, rate 0.1, times 0.1 at 75, weight decay
2e-4. The paper's eps is 0.031; here it is config.eps, 8/255 = 0.03137.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("trades", variant)
