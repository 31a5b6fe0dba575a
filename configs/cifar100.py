"""One method on CIFAR-100: ResNet-18, its CIFAR-10 schedule, robust teacher WRN-70-16, clean WRN-22-6.

    python -m ard_jax.main --config=configs/cifar100.py:rslad --config.data.dir=TFDS_FOLDER

Every method of `ard_jax.methods`. The teachers are those of configs/ciard_cifar100.py, which says what
training them takes and when to set `--config.method.kl_scale=10`. Variants as in configs/cifar10.py, but no
`cpu`. None of these experiments has been run by this project.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("cifar100", choice)
