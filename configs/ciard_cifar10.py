"""CIARD on CIFAR-10 as the authors' code runs it (eminentgu/CIARD, HEAD 93a9a2d).

    python -m ard_jax.main --config=configs/ciard_cifar10.py --config.data.dir=TFDS_FOLDER

ResNet-18 student (`:mobilenet_v2` for the other one of the paper), WRN-34-10 robust teacher by TRADES,
ResNet-56 clean teacher, 300 epochs, batch 128, best checkpoint picked on the test set as the authors do
(stated in the report, with the last checkpoint beside it; `--config.select_on=validation
--config.data.holdout=2000` for an honest choice). Bring pretrained teachers by
`--config.teachers.robust.checkpoint=FOLDER`; training them here takes long, and says how long.

The paper's numbers (second-hand; single seed, test-selected): ResNet-18 clean 88.87, PGD_sat 51.70,
PGD_trades 54.46, CW 50.61; MobileNetV2 89.51, 47.67, 50.71, 46.88. This repository has not run it.

`configs/ciard_cifar10.py:cpu` trains small networks for a few epochs on all of CIFAR-10, about half an hour
on 2 CPU cores (an estimate), checkpoint picked on a validation split. Its numbers are in docs/results.md.
"""

from . import protocol


def get_config(variant: str = ""):
    config = protocol.cifar10("ciard", variant)
    if variant == "cpu":
        config.method.decay_epochs = (5,)
    else:
        protocol.select_on_test(config)
    return config
