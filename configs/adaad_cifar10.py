"""AdaAD (Huang et al. 2023) on CIFAR-10.

    python -m ard_jax.main --config=configs/adaad_cifar10.py --config.data.dir=TFDS_FOLDER

The attack maximises the gap between teacher and student, through both. boyellow/AdaAD: 200 epochs, rate
0.1, times 0.1 after 100 and 150, weight decay 5e-4. Each attack step runs the teacher forward and back.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("adaad", variant)
