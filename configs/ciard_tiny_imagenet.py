"""CIARD on Tiny-ImageNet (200 classes, 64x64), in the folder layout of the official archive.

    python -m ard_jax.main --config=configs/ciard_tiny_imagenet.py --config.data.dir=tiny-imagenet-200

The authors report Tiny-ImageNet results but published neither code nor settings for it; the networks here
follow MTARD (PreActResNet teachers: 34 robust, 18 clean) and everything else is the CIFAR-10 setting. The
official validation images are the test set, as everywhere in the literature. The repository has not run it.
"""

from . import protocol


def get_config(variant: str = ""):
    config = protocol.tiny_imagenet("ciard", variant)
    protocol.select_on_test(config)
    return config
