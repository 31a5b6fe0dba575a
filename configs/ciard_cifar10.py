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
on 2 CPU cores (an estimate), checkpoint picked on a validation split. Its numbers are in the README.
"""

from configs import common


def get_config(variant: str = "") -> common.ml_collections.ConfigDict:
    config = common.base()
    if variant == "mobilenet_v2":
        config.name = "ciard_cifar10_mobilenet_v2"
        config.student = common.net("mobilenet_v2")
    elif variant == "cpu":
        _cpu(config)
    elif variant:
        raise ValueError(f"configs/ciard_cifar10.py has no variant {variant!r}: mobilenet_v2, cpu")
    return config


def _cpu(config) -> None:
    config.name = "ciard_cifar10_cpu"
    config.select_on = "validation"
    config.data.update(holdout=1000.0, last_batch="drop")
    config.epochs = 5
    config.student = common.net("small_resnet", widths=(16, 32, 64), stem_stride=2)
    config.student_optim = common.sgd(schedule="cosine", weight_decay=5e-4)
    config.robust_teacher_optim.update(lr=1e-3, start=2)
    # kl_scale 10 makes the KL a mean over the batch alone: with few updates the mean over classes too is
    # too small a step.
    config.method.update(itt_start=3, decay_epochs=(5,), temp_rate=5e-3, kl_scale=10.0)
    common.cpu_teachers(config)
    config.eval.update(every=1, dense_from=0, max_examples=1000, max_selection_examples=1000)
    config.eval.update(autoattack_examples=500, autoattack_nets="best")
    config.eval.eps_sweep = (0.0, 0.5, 1.0, 2.0)
    config.run.save_every = 1
