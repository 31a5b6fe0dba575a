"""CIARD on CIFAR-100 with the settings of the authors' CIFAR-10 code (their CIFAR-100 code is not public).

    python -m ard_jax.main --config=configs/ciard_cifar100.py --config.data.dir=TFDS_FOLDER

ResNet-18 student (or `:mobilenet_v2`), teachers of the DeepMind family with their normalisation inside:
WRN-70-16 robust, WRN-22-6 clean. The paper's robust teacher is DeepMind's published network (63.56 clean);
the recipe here trains the same architecture by TRADES without its extra data, which takes weeks on one GPU
and is weaker. The paper's numbers (second-hand): ResNet-18 clean 65.73, PGD_sat 28.05, PGD_trades 29.45,
CW 24.43; MobileNetV2 66.72, 27.02, 28.95, 25.54. This repository has not run it.

The KL is averaged over classes, which makes it 10 times smaller than on CIFAR-10; RSLAD multiplies by 10
for that: `--config.method.kl_scale=10`.
"""

from . import protocol


def get_config(variant: str = ""):
    config = protocol.cifar100("ciard", variant)
    protocol.select_on_test(config)
    return config
