"""CIARD on Tiny-ImageNet (200 classes, 64x64), in the folder layout of the official archive.

    python -m ard_jax.main --config=configs/ciard_tiny_imagenet.py --config.data.dir=tiny-imagenet-200

The authors report Tiny-ImageNet results but published neither code nor settings for it; the networks here
follow MTARD (PreActResNet teachers: 34 robust, 18 clean) and everything else is the CIFAR-10 setting. The
official validation images are the test set, as everywhere in the literature. The repository has not run it.
"""

from configs import common


def get_config(variant: str = "") -> common.ml_collections.ConfigDict:
    config = common.base()
    config.name = "ciard_tiny_imagenet"
    config.data.name = "tiny_imagenet"
    config.student = common.net("resnet18")
    if variant == "mobilenet_v2":
        config.name = "ciard_tiny_imagenet_mobilenet_v2"
        config.student = common.net("mobilenet_v2")
    elif variant:
        raise ValueError(f"configs/ciard_tiny_imagenet.py has no variant {variant!r}: mobilenet_v2")
    config.teachers.robust.net = common.net("preact_resnet34")
    config.teachers.clean.net = common.net("preact_resnet18")
    config.teachers.robust.min_clean = 0.3
    config.teachers.clean.min_clean = 0.5
    return config
