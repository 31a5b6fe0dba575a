"""DARD on CIFAR-100: ResNet-18 student, robust ResNet-56 teacher (Zou et al. 2025, arXiv 2509.11525).

    python -m ard_jax.main --config=configs/dard_cifar100.py --config.data.dir=TFDS_FOLDER

As on CIFAR-10 but 100 epochs (decays after 30 and 40, as in the authors' scripts) and T = 1. `:fused` is the
form of the scripts: adversarial inputs alone, the mean of the teacher's natural and adversarial labels, and
the lambda schedule "cad". `:paper_compat` adds their defects to it, `:strong` starts the attack at random,
`:wrn34_10` takes the other teacher of the scripts. Teacher: DPGD adversarial training, 100 epochs at a
constant rate. No cell of the paper's CIFAR-100 table is known; the experiment has not been run here.
"""

from . import common, dard_cifar10, protocol


def fused(config: common.Config) -> None:
    config.method.objective = "fused"
    config.attack.options.lambda_schedule = "cad"


def paper_compat(config: common.Config) -> None:
    fused(config)
    dard_cifar10.paper_compat(config)


def get_config(variant: str = ""):
    more = {"fused": fused, "paper_compat": paper_compat, "wrn34_10": lambda config: None}
    config = protocol.cifar100("dard", variant, dard_cifar10.PRESETS | more)
    config.epochs = 100
    config.eval.dense_from = 80
    config.method.temperature = 1.0
    recipe = common.sat_recipe(100, weight_decay=5e-4)
    recipe.attack = common.attack("dpgd")
    recipe.optim.schedule = "constant"
    wide = variant == "wrn34_10"
    network = common.net("wrn_34_10") if wide else common.net("resnet56", shortcut="B")
    config.teachers.robust = common.teacher(network, recipe, 0.35)
    return config
