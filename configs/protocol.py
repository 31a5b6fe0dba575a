"""The protocol that all methods share on a data set (problem, student, teachers), and each one's schedule.

`digits`, `cifar10`, `cifar100`, `tiny_imagenet`, `imagenet` and `imagenet100` make whole experiments; the
config files are these with their command and sources. Options, teachers and attack are those of the method's
registration in `ard_jax.methods`, so that a new method needs nothing here.
"""

import difflib
import importlib
from importlib import util

from ard_jax import methods
from ard_jax.config import schema

from . import common

# Method -> (epochs, SGD) on CIFAR-10, as its paper or code runs it; sources in the docstrings of
# ard_jax/methods. Boundaries are the first epochs, from 1, at the lower rate. "Decays at 215" of the RSLAD
# family happen at the end of that epoch; ARD, IAD, AdaAD, Rice et al. and DARD count epochs from 0.
_ARD = (200, {"schedule": "multistep", "boundaries": (101, 151)})
_RICE = (200, {"schedule": "multistep", "boundaries": (101, 151), "weight_decay": 5e-4})
_MART = (
    120,
    {"lr": 0.01, "schedule": "multistep", "boundaries": (75, 90, 100), "weight_decay": 3.5e-3},
)
_HAT = (
    50,
    {"lr": 0.21, "schedule": "one_cycle", "warmup": 13, "nesterov": True, "weight_decay": 5e-4},
)
_RSLAD = (300, {"schedule": "multistep", "boundaries": (216, 261, 286)})
# ADR's weight decay is that of the run in tests/golden; its config files were not at hand.
_ADR = (
    200,
    {"schedule": "multistep", "boundaries": (101, 151), "weight_decay": 5e-4, "nesterov": True},
)
_CIARD = (300, {"schedule": "ciard", "start": 150})
RECIPES = {
    "natural": (200, {"schedule": "cosine", "weight_decay": 5e-4}),  # a common choice, no paper's
    "kd": _ARD,  # ARD's paper has such a row, without its settings
    "sat": _RICE,
    "fgsm_rs": (15, {"lr": 0.2, "schedule": "cyclic", "weight_decay": 5e-4}),
    "free": (10, {"lr": 0.04, "schedule": "cyclic", "weight_decay": 5e-4}),
    "n_fgsm": (30, {"lr": 0.2, "schedule": "cyclic", "weight_decay": 5e-4}),
    "fat": (120, {"schedule": "multistep", "boundaries": (60, 90)}),
    "consistency_at": _RICE,
    "trades": (76, {"schedule": "multistep", "boundaries": (75,)}),
    "dkl": (200, {"lr": 0.2, "schedule": "cosine", "weight_decay": 5e-4}),
    "mart": _MART,
    **dict.fromkeys(("mail", "mail_trades", "mail_mart"), _MART),
    # The code halves the rate once more, at 11/12.
    "gairat": (120, {"schedule": "multistep", "boundaries": (61, 91)}),
    # The code changes rate and momentum with every step; its helper has the student's size.
    "hat": _HAT,
    "hat_at": _HAT,
    # The schedule without generated data, while attack, BatchNorm modes and beta are those of the script
    # for generated data. There the network is PreActResNet-18, and losses are cut.
    "score": (
        110,
        {"lr": 0.05, "schedule": "multistep", "boundaries": (101, 106), "weight_decay": 5e-4},
    ),
    "ard": _ARD,
    "iad1": _ARD,  # the paper's teacher has the student's size
    "iad2": _ARD,
    "icml26": _ARD,
    "icml26_at": _ARD,
    "rslad": _RSLAD,
    "fair_rslad": (300, {"schedule": "multistep", "boundaries": (216, 261, 286), "nesterov": True}),
    "absld": _RSLAD,
    "mtard": _RSLAD,
    "b_mtard": _RSLAD,
    "adaad": _RICE,
    "adaiad": _RICE,
    "dgad": _RICE,
    "saad": _ARD,  # weight decay of the code; the paper's is 5e-4
    "adr": _ADR,
    "adr_trades": _ADR,
    "dard": (50, {"schedule": "multistep", "boundaries": (31, 41), "weight_decay": 5e-4}),
    "lbgat": (100, {"schedule": "multistep", "boundaries": (76, 91)}),
    "peeraid": (300, {"schedule": "multistep", "boundaries": (215, 260, 285)}),
    "ciard": _CIARD,
    "ciard_dard": _CIARD,
}
# Methods whose official code attacks the student in train mode; what becomes of the statistics.
TRAIN_MODE_ATTACK = {"ard": "keep", "iad1": "keep", "iad2": "keep", "score": "discard"}
TRAIN_MODE_ATTACK |= dict.fromkeys(("adr", "adr_trades", "fgsm_rs", "n_fgsm"), "keep")
# Their code sets the second decay from the base rate, so that it changes nothing: one decay in fact.
ONE_DECAY = ("ard", "iad1", "iad2")
# What `configs/compare_digits.py:search` and `:search_newer` found: of 0.05, 0.1, 0.2, 0.4 the rate with the
# best validation score, mean of seeds 10 and 11; 0.8 was run too where 0.4 was best. The others, which were
# not searched, have 0.1.
DIGITS_RATES = {
    "natural": 0.1, "sat": 0.2, "trades": 0.2, "ard": 0.2, "rslad": 0.2, "mtard": 0.4, "b_mtard": 0.4,
    "dard": 0.8, "ciard": 0.2, "ciard_dard": 0.2, "hat": 0.4, "dkl": 0.8, "adr": 0.2, "adaad": 0.2,
    "adaad:igdm": 0.4, "saad": 0.4, "dgad": 0.4, "lbgat": 0.4, "peeraid": 0.2,
}  # fmt: skip
# Data set -> method -> options that are not those of CIFAR-10.
_ADR_CIFAR100 = {"temperature_first": 1.5, "temperature_last": 1.0}
_ADR_TINY = {
    "temperature_first": 2.0, "temperature_last": 1.5, "share_first": 0.5, "share_last": 0.9,
}  # fmt: skip
_OPTIONS = {
    "cifar100": {"adr": _ADR_CIFAR100, "adr_trades": _ADR_CIFAR100, "saad": {"igdm_weight": 10.0}},
    "tiny_imagenet": {"adr": _ADR_TINY, "adr_trades": _ADR_TINY, "saad": {"igdm_weight": 10.0}},
}
# Data set -> role -> (teacher, least clean accuracy), where they are not those of CIFAR-10.
_TEACHERS = {
    "cifar100": {"robust": ("dm_wrn_70_16", 0.45), "clean": ("dm_wrn_22_6", 0.65)},
    "tiny_imagenet": {"robust": ("preact_resnet34", 0.3), "clean": ("preact_resnet18", 0.5)},
}


def method_names() -> tuple[str, ...]:
    """All methods, in the order of tables: those of `RECIPES`, then those registered since."""
    return tuple(dict.fromkeys((*RECIPES, *methods.names())))


def experiment(dataset: str, choice: str):
    """The experiment of configs/DATASET.py:METHOD or :METHOD:VARIANT.

    It is that of configs/METHOD_DATASET.py where there is such a file.

    Args:
      dataset: "digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet" or "imagenet100".
      choice: what stands behind the file's colon.

    Raises:
      ValueError: no method, an unknown one, or a variant that it does not have.
    """
    name, _, variant = choice.partition(":")
    if name not in methods.names():
        problem = f"knows no method {name!r}" if name else "needs a method"
        example = f"configs/{dataset}.py:rslad"
        raise ValueError(
            f"configs/{dataset}.py {problem}; write e.g. {example}. Methods: {', '.join(_near(name))}"
        )
    own = f"{__package__}.{name}_{dataset}"
    if util.find_spec(own):
        return importlib.import_module(own).get_config(variant)
    return _DATASETS[dataset](name, variant)


def _near(name: str) -> list[str]:
    """The methods, the most similar name first."""
    match = difflib.SequenceMatcher(b=name)

    def distance(known: str):
        match.set_seq1(known)
        return -match.ratio()

    return sorted(methods.names(), key=distance)


def cifar10(name: str, variant: str = "", more: dict | None = None):
    """The method on CIFAR-10: ResNet-18, the teachers of CIARD's experiment, the paper's schedule.

    The best checkpoint is picked on 1,000 held-out training images, not on the test set.
    """
    return _full("cifar10", name, variant, {"cpu": lambda c: cpu(c, name)} | (more or {}))


def cifar100(name: str, variant: str = "", more: dict | None = None):
    """As `cifar10`, with the teachers of DeepMind's family that RSLAD, MTARD and CIARD have there."""
    return _full("cifar100", name, variant, more or {})


def tiny_imagenet(name: str, variant: str = "", more: dict | None = None):
    """As `cifar10`, with MTARD's teachers."""
    return _full("tiny_imagenet", name, variant, more or {})


def _full(dataset: str, name: str, variant: str, more: dict):
    config = common.base()
    config.name = f"{name}_{dataset}" + (f"_{variant}" if variant else "")
    config.select_on = "validation"
    config.data.update(name=dataset, holdout=1000.0)
    config.epochs, optim = _recipe(name)
    config.student_optim = common.sgd(**optim)
    config.method, config.attack = method(name), attack(name)
    config.method.update(_OPTIONS.get(dataset, {}).get(name, {}))
    config.eval.dense_from = config.epochs - config.epochs // 6
    for role, (model, floor) in _TEACHERS.get(dataset, {}).items():
        config.teachers[role].net, config.teachers[role].min_clean = common.net(model), floor
        config.teachers[role].net.normalization = "cifar100" if dataset == "cifar100" else ""
    drop_unused_teachers(config, name)
    pick_variant(config, name, variant, {"mobilenet_v2": mobilenet_v2} | more)
    add_partners(config, name)
    return config


def digits(name: str, variant: str = "", more: dict | None = None):
    """The method on the handwritten digits: minutes on 2 CPU cores; see configs/compare_digits.py."""
    config = common.digits()
    config.name = f"{name}_digits" + (f"_{variant}" if variant else "")
    config.method, config.attack = method(name), attack(name)
    config.student_optim.lr = DIGITS_RATES.get(f"{name}:{variant}", DIGITS_RATES.get(name, 0.1))
    small_updates(config)
    scale_epochs(config, _recipe(name)[0])
    if name == "n_fgsm":  # with the paper's 2, up to 0.6 of the pixel range away, nothing is learnt
        config.attack.options.start_radius = 1.0
    drop_unused_teachers(config, name)
    pick_variant(config, name, variant, more or {})
    add_partners(config, name)
    return config


def imagenet(name: str, variant: str = "", more: dict | None = None):
    """The method at 224 pixels, eps 4/255, by one recipe for all: configs/imagenet.py."""
    config = common.base()
    config.name = f"{name}_imagenet" + (f"_{variant}" if variant else "")
    config.update(epochs=50, batch_size=1024, eps=4 / 255, precision="bfloat16", ema_decay=0.9999)
    config.select_on = "validation"
    config.data.update(
        name="imagenet", loader="grain", image_size=224, resize=256, augment="resized_crop",
        last_batch="drop", holdout=10_000.0, workers=8,
    )  # fmt: skip
    config.student = common.net("resnet50")
    config.student_optim = common.sgd(
        optimizer="adamw", lr=1e-3, weight_decay=0.05, schedule="cosine", warmup=20, last_lr=5e-6
    )
    config.method, config.attack = method(name), attack(name)
    # Published for fewer classes alone.
    config.method.update(_OPTIONS["tiny_imagenet"].get(name, {}))
    if (
        name == "sat"
    ):  # the mixing of Singh et al., which most distillation methods cannot learn from
        config.attack.name, config.label_smoothing = "apgd_soft_train", 0.1
        config.data.update(mixup=0.8, cutmix=1.0)
    elif config.attack.name == "sat_train":
        config.attack.name = "apgd_train"
    elif config.attack.name not in SINGLE_STEP:
        config.attack.update(steps=3, step_size=2 / 3 * config.eps)
    scale_epochs(config, _recipe(name)[0])
    config.robust_teacher_optim.start = max(1, config.robust_teacher_optim.start * 50 // 300)
    for role, net, floor in (("robust", common.net("convnext_base", stem="conv"), 0.7),
                             ("clean", common.net("convnext_base"), 0.8)):  # fmt: skip
        recipe = common.natural_recipe(90) if role == "clean" else common.sat_recipe(90)
        config.teachers[role] = common.teacher(net, recipe, floor)
        config.teachers[role].checkpoint = f"imported/imagenet_{role}"
    config.eval.update(
        attacks=("pgd_sat", "autoattack"), eps_sweep=(), transfer=False, every=5, dense_from=0,
        max_selection_examples=5000, autoattack_examples=5000, batch_size=256,
    )  # fmt: skip
    config.run.save_every, config.teachers.precision = 1, "bfloat16"
    drop_unused_teachers(config, name)
    students = {student: lambda c, s=student: _student(c, s) for student in STUDENTS}
    pick_variant(config, name, variant, students | (more or {}))
    add_partners(config, name)
    return config


def imagenet100(name: str, variant: str = "", more: dict | None = None):
    """As `imagenet`, on a hundred of its classes, twice as long, with teachers of these classes."""
    config = imagenet(name, variant, more)
    config.name = config.name.replace("_imagenet", "_imagenet100")
    config.data.update(classes="imagenet100", holdout=2_000.0)
    config.update(epochs=100, batch_size=256, ema_decay=0.999)
    for role in ("robust", "clean"):
        if config.teachers[role] is not None:
            config.teachers[role].checkpoint = f"imported/imagenet100_{role}"
    return config


SINGLE_STEP = ("fgsm", "fgsm_rs_train", "n_fgsm_train")
# Students of ImageNet that a variant names.
STUDENTS = {
    "resnet18": {"form": "imagenet"}, "mobilenet_v3_large": {}, "mobilenet_v3_small": {},
    "efficientnet_b0": {}, "shufflenet_v2": {}, "convnext_tiny": {"stem": "conv"},
    "vit_tiny": {"stem": "conv"}, "vit_small": {"stem": "conv"},
}  # fmt: skip


def _student(config: common.Config, name: str) -> None:
    config.student = common.net(name, **STUDENTS[name])


_DATASETS = {
    f.__name__: f for f in (digits, cifar10, cifar100, tiny_imagenet, imagenet, imagenet100)
}


def _recipe(name: str):
    """(epochs, SGD) of `RECIPES`; of a method that is not listed, that of Rice et al."""
    return RECIPES.get(name, _RICE)


def method(name: str):
    """Every option of the method with its default."""
    return common.config_dict(name=name, **methods.make_config(name, {}).model_dump())


def attack(name: str):
    """The method's attack on the student while training."""
    group = common.attack(methods.ATTACKS[name] or "sat_train")
    if name in TRAIN_MODE_ATTACK:
        group.update(bn="train", bn_stats=TRAIN_MODE_ATTACK[name])
    if group.name == "n_fgsm_train":
        group.options = common.config_dict(start_radius=2.0)
    if group.name == "dpgd":
        group.options = common.dpgd_options()
    return group


def drop_unused_teachers(config: common.Config, name: str) -> None:
    """None for the roles that the method does not take."""
    for role in ("robust", "clean"):
        if role not in methods.TEACHERS[name]:
            config.teachers[role] = None


def add_partners(config: common.Config, name: str) -> None:
    """The student's architecture for the networks that the method trains beside it."""
    for role in methods.TEACHERS[name]:
        if role in schema.PARTNERS:
            net = config.student.copy_and_resolve_references()
            config.teachers[role] = common.group(schema.PartnerConfig, net=net)


def scale_epochs(config: common.Config, of: int) -> None:
    """Moves what the method does at certain epochs of `of` to the same shares of config.epochs."""
    options = config.method
    for name in ("begin_epoch", "itt_start"):
        if name in options:
            options[name] = max(1, round(options[name] * config.epochs / of))
    for name in {"decay_epochs", "tau_epochs"} & set(options):
        scaled = {max(1, round(e * config.epochs / of)) for e in options[name]}
        options[name] = tuple(sorted(scaled))


def small_updates(config: common.Config) -> None:
    """For runs of few updates: a KL that is a mean over classes too (a tenth) is too small a step."""
    if "kl_scale" in config.method:
        config.method.kl_scale = 10.0
    if "temp_rate" in config.method and config.method.name != "absld":
        config.method.temp_rate = 5e-3


def pick_variant(config: common.Config, name: str, variant: str, more: dict) -> None:
    """Applies a variant of a config file.

    Args:
      config: changed in place.
      name: of the method.
      variant: what stands behind the colon; "" for none.
      more: variant -> function of the config, beside "paper" (the default), "released" and "igdm".
    """
    known = dict(more)
    if _decays_once(config) or "variant" in config.method:
        known |= {"paper": lambda c: None, "released": released}
    if name in methods.IGDM:
        known["igdm"] = igdm
    if variant and variant not in known:
        have = ", ".join(sorted(known)) or "it has none"
        raise ValueError(f"configs of {name} have no variant {variant!r}: {have}")
    if variant:
        known[variant](config)


def released(config: common.Config) -> None:
    """What the released code does where it differs from the paper."""
    if "variant" in config.method:
        config.method.variant = "released"
    if _decays_once(config):
        config.student_optim.boundaries = config.student_optim.boundaries[:1]


def igdm(config: common.Config) -> None:
    """With IGDM's gradient matching, weighted as in SAAD's code."""
    many = ("cifar100", "tiny_imagenet", "imagenet")
    config.igdm.weight = 10.0 if config.data.name in many else 1.0


def _decays_once(config: common.Config) -> bool:
    return config.method.name in ONE_DECAY and config.student_optim.schedule == "multistep"


def mobilenet_v2(config: common.Config) -> None:
    """The other student of the papers."""
    config.student = common.net("mobilenet_v2")
    if "student_form" in config.method:
        config.method.student_form = "mobilenet_v2"


def select_on_test(config: common.Config) -> None:
    """The best checkpoint by the test set, all training images, as the authors of CIARD do."""
    config.select_on, config.data.holdout = "test", 0.0


def cpu(config: common.Config, name: str) -> None:
    """Small networks, five epochs: about as much as 2 CPU cores can do in half an hour."""
    before = config.epochs
    config.data.last_batch = "drop"
    config.epochs = 5
    config.student = common.net("small_resnet", widths=(16, 32, 64), stem_stride=2)
    config.student_optim = common.sgd(schedule="cosine", weight_decay=5e-4)
    config.robust_teacher_optim.update(lr=1e-3, start=2)
    small_updates(config)
    scale_epochs(config, before)
    if "itt_start" in config.method:
        config.method.itt_start = 3
    common.cpu_teachers(config)
    drop_unused_teachers(config, name)
    config.eval.update(every=1, dense_from=0, max_examples=1000, max_selection_examples=1000)
    config.eval.update(autoattack_examples=500, autoattack_nets="best")
    config.eval.eps_sweep = (0.0, 0.5, 1.0, 2.0)
    config.run.save_every = 1
