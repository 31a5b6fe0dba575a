"""The papers' table on CIFAR-10: every method with the same student, teachers, split and evaluation.

    python -m ard_jax.main --mode=compare --config=configs/compare_cifar10.py --config.data_dir=TFDS_FOLDER

ResNet-18, robust teacher WRN-34-10 by TRADES, clean teacher ResNet-56 (both trained once, by their
recipes, and shared), eps 8/255, best checkpoint by 1,000 held-out training images, three seeds. Each method
runs its own paper's schedule (configs/protocol.py), as in the papers' tables; the output lists them. Weeks on
one GPU; every finished run is kept, so it can be done in parts: `--config.methods="('sat','rslad')"`.
The report has a table with the papers' numbers beside these (`PUBLISHED`).

`:ciard` is the seven methods of CIARD's and DARD's tables as CIARD's paper does it: all 50,000 training
images, best checkpoint picked on the test set (the report says so, with the last one beside it), AutoAttack
on all test images. `:ciard,epochs=30` gives every method 30 epochs of one schedule. See docs/reproduce.md.

`:cpu` is the first with small networks and 5 epochs. None of them has been run by this project.
"""

from . import common, protocol

CIARD_TABLE = ("sat", "trades", "rslad", "mtard", "ciard", "dard", "ciard_dard")
# Under so many epochs a KL that is a mean over classes too (a tenth of the usual one) is too small a step.
_FEW_EPOCHS = 100

_RSLAD = "RSLAD (ICCV 2021), table 3, clean and AutoAttack second-hand, the others unverified"


def _published(source: str, *numbers: float | None):
    columns = ("clean", "fgsm", "pgd_sat", "pgd_trades", "cw_inf", "autoattack")
    known = {c: n for c, n in zip(columns, numbers, strict=True) if n is not None}
    return {"source": source} | known


PUBLISHED = {
    "protocol": "ResNet-18, L-inf 8/255, all 10,000 test images, single runs of up to 300 epochs, "
    "checkpoints picked on the test set, robust teacher WRN-34-10 by TRADES (DARD: an adversarially trained "
    "ResNet-56; how it picks checkpoints is not known). None was read in the paper itself: second-hand "
    "numbers are quoted by another document, unverified ones were noted without one.",
    "rows": {
        "sat": _published(_RSLAD, 83.38, 56.41, 49.11, 51.11, 48.67, 45.83),
        "trades": _published(_RSLAD, 81.93, 57.49, 52.66, 53.68, 50.58, 49.23),
        "ard": _published(
            "RSLAD (ICCV 2021), table 3, AutoAttack second-hand, the others unverified",
            83.93, 59.31, 52.05, 54.20, 51.22, 49.19,
        ),
        "rslad": _published(_RSLAD, 83.38, 60.01, 54.24, 55.94, 53.30, 51.49),
        "mtard": _published("MTARD (ECCV 2022), unverified", 87.36, 61.20, 50.73, 53.60, 48.57, None),
        "b_mtard": _published(
            "B-MTARD (TPAMI 2024), second-hand", 88.20, None, 51.68, 54.40, 49.88, 47.44
        ),
        "ciard": _published(
            "CIARD (ICCV 2025), supplement tables 1 and 5, second-hand",
            88.87, 61.88, 51.70, 54.46, 50.61, 48.88,
        ),
        "dard": _published("DARD (2025), table 1, second-hand", None, None, None, None, None, 47.75),
    },
}  # fmt: skip


def get_config(variant: str = ""):
    kind, more, length = variant.partition(",epochs=")
    epochs = int(length) if length.isdecimal() else 0
    if kind not in ("", "cpu", "ciard") or more and (kind != "ciard" or not epochs):
        raise ValueError(
            f"configs/compare_cifar10.py has no variant {variant!r}: cpu, ciard, or ciard,epochs=N"
        )
    methods = CIARD_TABLE if kind == "ciard" else protocol.method_names()
    rows = {m: row for m, row in PUBLISHED["rows"].items() if m in methods}
    return common.config_dict(
        name="compare_cifar10"
        + (f"_{kind}" if kind else "")
        + (f"_{epochs}_epochs" if epochs else ""),
        workdir="",
        seeds=(0, 1, 2),
        methods=methods,
        main_attack="pgd_sat",
        data_dir="",
        full_reports=False,
        published={} if kind == "cpu" else PUBLISHED | {"rows": rows},
        runs={m: ciard_run(m, epochs) if kind == "ciard" else run(m, kind) for m in methods},
    )


def run(name: str, variant: str):
    config = protocol.cifar10(name, variant)
    config.eval.update(every=10 if not variant else 1, dense_from=0)
    return config


def ciard_run(name: str, epochs: int):
    """The method as CIARD's paper trains and evaluates; `epochs`: 0 for its own paper's."""
    config = protocol.cifar10(name)
    config.select_on, config.data.holdout = "test", 0.0
    config.eval.update(
        attacks=("fgsm", "pgd_sat", "pgd_trades", "cw_inf", "autoattack"),
        every=10,
        dense_from=250,
        autoattack_examples=0,
        autoattack_nets="best",
    )
    if epochs:
        shorten(config, epochs)
    return config


def shorten(config: common.Config, epochs: int) -> None:
    """Trains `epochs` epochs on a cosine; what the method does at an epoch moves to the same share."""
    before, config.epochs = config.epochs, epochs
    config.student_optim = common.sgd(schedule="cosine", weight_decay=5e-4)
    config.robust_teacher_optim.start = max(1, round(epochs * 50 / 300))
    protocol.scale_epochs(config, before)
    config.eval.update(every=max(1, epochs // 10), dense_from=0)
    if epochs < _FEW_EPOCHS:
        config.robust_teacher_optim.lr = 1e-3
        protocol.small_updates(config)
