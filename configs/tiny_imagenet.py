"""One method on Tiny-ImageNet (200 classes, 64x64): ResNet-18, its CIFAR-10 schedule, PreActResNet teachers.

    python -m ard_jax.main --config=configs/tiny_imagenet.py:rslad --config.data.dir=tiny-imagenet-200

Every method of `ard_jax.methods`. The teachers are those of configs/ciard_tiny_imagenet.py; the official
validation images are the test set. Variants as in configs/cifar10.py, but no `cpu`. None of these experiments
has been run by this project.
"""

from . import protocol


def get_config(choice: str = ""):
    return protocol.experiment("tiny_imagenet", choice)
