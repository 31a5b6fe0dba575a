"""Natural training on CIFAR-10.

    python -m ard_jax.main --config=configs/natural_cifar10.py --config.data.dir=TFDS_FOLDER

Cross-entropy on clean images: the baseline that has no robustness. 200 epochs, cosine, weight decay 5e-4: a
common choice, no paper's.
`:cpu` trains small networks for 5 epochs. The full experiment has not been run by this project.
"""

from configs import protocol


def get_config(variant: str = ""):
    return protocol.cifar10("natural", variant)
