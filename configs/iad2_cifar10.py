"""IAD-II (Zhu et al. 2022) on CIFAR-10.

    python -m ard_jax.main --config=configs/iad2_cifar10.py --config.data.dir=TFDS_FOLDER

IAD on AKD2: hard labels, a partly trusted robust teacher and a clean one. ZFancy/IAD: 200 epochs, rate 0.1,
times 0.1 after 100 and 150, weight decay 2e-4, reliability from epoch 41. --config.method.reliability=off is
AKD2. `:released`: one learning-rate decay: the code's second one changes nothing.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("iad2", variant)
