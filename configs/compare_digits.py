"""Robust training and distillation side by side on the handwritten digits, eps 0.2.

    python -m ard_jax.main --mode=compare --config=configs/compare_digits.py

One protocol: the same student (small_resnet, widths 8 and 16), the same two teachers, 40 epochs of 20
updates, the same validation split and evaluation, three seeds. Of the settings only the learning rate was
searched, for every method alike: doubled from 0.05 until it no longer helped, by the mean validation score
of two other seeds (`:search` and `:search_newer` run that; `configs/protocol.py` holds what they found).
The rest are the papers' numbers, with epochs scaled to the length. `:all` compares all the methods there
are; those outside this list and that of `:newer` train at 0.1, which was not searched. `:autoattack` also
runs AutoAttack on the best checkpoints, which takes longer; started in the folder of a finished comparison
it only evaluates again. `:newer`: methods of 2021 to 2026 beside four older ones, with AutoAttack.
`:recipe`: what each part of the training recipe (docs/recipe.md) adds to sat and rslad, and all together,
with AutoAttack.
"""

from . import common, protocol

METHODS = (
    "natural", "sat", "trades", "ard", "rslad", "mtard", "b_mtard", "dard", "ciard", "ciard_dard",
)  # fmt: skip
NEWER = (
    "trades", "hat", "dkl", "adr", "rslad", "adaad", "adaad:igdm", "saad", "dgad", "lbgat", "peeraid",
    "ciard",
)  # fmt: skip

# Part of the recipe -> values; averages and AWP begin after the same shares of the run as in their papers.
RECIPE = {
    "augment": {"data.augment": "cropshift"},
    "awp": {"awp.gamma": 0.005, "awp.start": 3},
    "ema": {"ema_decay": 0.99, "average_bn": "copied"},
    "swa": {"swa_start": 20, "average_bn": "recomputed"},
}
RECIPE["all"] = RECIPE["augment"] | RECIPE["awp"] | RECIPE["swa"]


def run(choice: str, autoattack: bool = False):
    """The run of METHOD or METHOD:VARIANT."""
    name, _, variant = choice.partition(":")
    config = protocol.digits(name, variant)
    config.eval.attacks = tuple(a for a in config.eval.attacks if autoattack or a != "autoattack")
    config.eval.autoattack_nets = "best"
    return config


def get_config(variant: str = ""):
    config = common.config_dict(
        name="compare_digits",
        workdir="",
        seeds=(0, 1, 2),
        methods=METHODS,
        main_attack="pgd_sat",
        full_reports=False,
        runs={name: run(name, variant == "autoattack") for name in METHODS},
    )
    if variant == "all":
        config.name = "compare_digits_all"
        config.runs = common.config_dict(**{name: run(name) for name in protocol.method_names()})
        config.methods = protocol.method_names()
    elif variant == "newer":
        config.name = "compare_digits_newer"
        runs = {choice.replace(":", "_"): run(choice, autoattack=True) for choice in NEWER}
        config.runs, config.methods = common.config_dict(**runs), tuple(runs)
    elif variant == "recipe":
        config.name = "compare_digits_recipe"
        runs = recipes(("sat", "rslad"))
        config.runs, config.methods = common.config_dict(**runs), tuple(runs)
    elif variant in ("search", "search_newer"):
        config.name, config.seeds = f"{variant}_digits", (10, 11)  # not those of the table
        newer = tuple(choice for choice in NEWER if choice not in METHODS)
        config.runs = common.config_dict(**searched(METHODS if variant == "search" else newer))
        config.methods = tuple(config.runs)
    elif variant not in ("", "autoattack"):
        raise ValueError(
            f"configs/compare_digits.py has no variant {variant!r}: all, autoattack, newer, recipe, "
            "search, search_newer"
        )
    return config


def searched(choices: tuple[str, ...]):
    """The methods at five learning rates, evaluated by one attack."""
    found = {}
    for choice in choices:
        for rate in (0.05, 0.1, 0.2, 0.4, 0.8):
            config = run(choice)
            found[f"{choice.replace(':', '_')}_lr{rate * 100:03.0f}"] = config
            config.student_optim.lr = rate
            config.eval.attacks = ("pgd_sat",)
    return found


def recipes(names: tuple[str, ...]):
    """Each method as it is, and with each part of `RECIPE`."""
    found = {}
    for name in names:
        found[name] = run(name, autoattack=True)
        for part, values in RECIPE.items():
            config = found[f"{name}_{part}"] = run(name, autoattack=True)
            config.update_from_flattened_dict(values)
    return found
