"""The papers' table on CIFAR-10: every method with the same student, teachers, split and evaluation.

    python -m ard_jax.main --mode=compare --config=configs/compare_cifar10.py --config.data_dir=TFDS_FOLDER

ResNet-18, robust teacher WRN-34-10 by TRADES, clean teacher ResNet-56 (both trained once, by their
recipes, and shared), eps 8/255, best checkpoint by 1,000 held-out training images, three seeds. Each method
runs its own paper's schedule (configs/protocol.py), as in the papers' tables; the output lists them. Weeks on
one GPU; every finished run is kept, so it can be done in parts: `--config.methods="('sat','rslad')"`.
`:cpu` is the same with small networks and 5 epochs. Neither has been run by this project.
"""

from configs import common, protocol

METHODS = tuple(protocol.METHODS)


def get_config(variant: str = ""):
    if variant not in ("", "cpu"):
        raise ValueError(f"configs/compare_cifar10.py has no variant {variant!r}: cpu")
    return common.config_dict(
        name="compare_cifar10" + ("_cpu" if variant else ""),
        workdir="",
        seeds=(0, 1, 2),
        methods=METHODS,
        main_attack="pgd_sat",
        data_dir="",
        full_reports=False,
        runs={name: run(name, variant) for name in METHODS},
    )


def run(name: str, variant: str):
    config = protocol.cifar10(name, variant)
    config.eval.update(every=10 if not variant else 1, dense_from=0)
    return config
