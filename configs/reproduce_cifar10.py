"""The papers' table on CIFAR-10 at a chosen cost: seven methods, one student network, shared teachers.

    launch/reproduce_cifar10.sh --hours=2 --data-dir=TFDS_FOLDER

measures this machine, plans (docs/reproduce.md), trains and evaluates. The plan is a file, and the file is
the variant of this configuration, so that what was run can be looked at and run by the usual tool, too:

    cd WORKDIR
    python -m ard_jax.main --mode=compare --config=REPOSITORY/configs/reproduce_cifar10.py:schedule.json

Without a variant: the longest plan, 300 epochs, on an accelerator; `:cpu` the longest one for CPUs. All
methods have the same epochs, optimiser and rate schedule here, unlike in configs/compare_cifar10.py, where
each has its own paper's.
"""

import json

from configs import common, protocol

METHODS = ("sat", "trades", "rslad", "mtard", "ciard", "dard", "ciard_dard")
TRAIN_IMAGES = 50_000
# Under so many epochs a KL that is a mean over classes too (a tenth of the usual one) is too small a step.
_FEW_EPOCHS = 100
# Name -> (student, robust teachers by name, clean teacher, least clean accuracies of the two): a network is
# (model, options). The CPU's are as small as they are to be trained at all, so their floor is 0.
NETWORKS = {
    "accelerator": {
        "student": ("resnet18", {}),
        "robust": {"wrn_34_10": ("wrn_34_10", {}), "wrn_28_4": ("wrn_28_4", {})},
        "clean": ("resnet56", {"shortcut": "B"}),
        "floors": (0.3, 0.5),
    },
    "cpu": {
        "student": ("small_resnet", {"widths": (16, 32, 64), "stem_stride": 2}),
        "robust": {
            "small_24_48_96": ("small_resnet", {"widths": (24, 48, 96), "stem_stride": 2}),
        },
        "clean": ("small_resnet", {"widths": (24, 48, 96), "stem_stride": 2}),
        "floors": (0.0, 0.0),
    },
}
LONGEST = {
    "networks": "accelerator",
    "robust_teacher": "wrn_34_10",
    "precision": "float32",
    "seeds": [0],
    "methods": METHODS,
    "images": 49_000,
    "batch_size": 128,
    "epochs": {"robust": 76, "clean": 200, "student": 300},
    "evaluation": {
        "every": 10, "selection": 1000, "examples": 10_000, "autoattack": 10_000, "nets": "all",
    },
    "save_every": 5,
}  # fmt: skip
_CPU = LONGEST | {"networks": "cpu", "robust_teacher": "small_24_48_96"}


def get_config(variant: str = ""):
    if variant.endswith(".json"):
        with open(variant, encoding="utf-8") as file:
            schedule = json.load(file)
    elif variant in ("", "cpu"):
        schedule = _CPU if variant else LONGEST
    else:
        raise ValueError(
            f"configs/reproduce_cifar10.py has no variant {variant!r}: cpu, or a schedule.json"
        )
    return comparison(schedule)


def comparison(schedule):
    """The comparison of a schedule; its paths are relative to the folder of the work."""
    return common.config_dict(
        name="reproduce_cifar10",
        workdir=".",
        seeds=tuple(schedule["seeds"]),
        methods=tuple(schedule["methods"]),
        main_attack="pgd_sat",
        data_dir="",
        full_reports=False,
        runs={name: run(name, schedule) for name in schedule["methods"]},
    )


def run(name: str, schedule):
    """The experiment of one method; its teachers are checkpoints, with the recipes that make them."""
    config = protocol.cifar10(name)
    networks, before = NETWORKS[schedule["networks"]], config.epochs
    config.name = f"{name}_reproduce_cifar10"
    config.precision = schedule["precision"]
    config.epochs = schedule["epochs"]["student"]
    config.batch_size = schedule["batch_size"]
    config.data.update(dir="data", last_batch="drop")
    config.data.holdout = float(TRAIN_IMAGES - schedule["images"])
    config.student = _net(networks["student"])
    config.student_optim = common.sgd(schedule="cosine", weight_decay=5e-4)
    config.robust_teacher_optim.start = max(1, round(config.epochs * 50 / 300))
    protocol.scale_epochs(config, before)
    if config.epochs < _FEW_EPOCHS:
        config.robust_teacher_optim.lr = 1e-3
        protocol.small_updates(config)
    _teachers(config, schedule, networks)
    protocol.drop_unused_teachers(config, name)
    _evaluation(config, schedule["evaluation"])
    config.run.update(save_every=schedule["save_every"], tensorboard=False)
    return config


def _net(network):
    model, options = network
    return common.net(model, **options)


def _teachers(config, schedule, networks) -> None:
    size = {"batch_size": schedule["batch_size"], "weight_decay": 5e-4}
    epochs, floors = schedule["epochs"], networks["floors"]
    recipes = {
        "robust": common.trades_recipe(epochs["robust"], schedule="cosine", **size),
        "clean": common.natural_recipe(epochs["clean"], **size),
    }
    nets = {"robust": networks["robust"][schedule["robust_teacher"]], "clean": networks["clean"]}
    for role, floor in zip(("robust", "clean"), floors, strict=True):
        recipes[role].eval_every = max(1, epochs[role] // 10)
        config.teachers[role] = common.teacher(_net(nets[role]), recipes[role], min_clean=floor)
        config.teachers[role].checkpoint = f"teachers/{role}"
    config.teachers.cache = "teachers/training"


def _evaluation(config, evaluation) -> None:
    config.eval.update(
        attacks=("fgsm", "pgd_sat", "pgd_trades", "cw_inf", "autoattack"),
        every=evaluation["every"],
        dense_from=0,
        max_examples=evaluation["examples"],
        max_selection_examples=evaluation["selection"],
        autoattack_examples=evaluation["autoattack"],
        autoattack_nets=evaluation["nets"],
    )
