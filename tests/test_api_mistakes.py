"""Mistakes in notebooks: each gives one error, or one warning, that leads to its cause."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, data, evaluate, losses, methods, models, optim
from ard_jax.attacks.auto_attack.square import SquareState
from ard_jax.checkpoints import manager
from ard_jax.data import augment, mixing, split
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation import evaluator, teacher_quality
from ard_jax.interop import fold, safetensors_file, torch_export, torch_names
from ard_jax.methods import base
from ard_jax.methods.options import Options
from ard_jax.models import described

KEY = jax.random.key(0)
W = np.asarray(jax.random.normal(jax.random.key(1), (64, 5)))
X = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
Y = np.array([0, 1, 2, 4], np.int32)
Z = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
PAIR = ((255 * X).astype(np.uint8), Y)
U8 = PAIR[0]
NET = models.create("small_cnn", 5, (8, 8, 1))
OPTIM = optim.make(optim.OptimConfig(), 1)


def predict(x):
    return x.reshape(len(x), -1) @ W


def numpy_predict(x):
    return np.asarray(x).reshape(len(x), -1) @ W


def pgd(f=predict, **options):
    return attacks.pgd(f, X, Y, KEY, **({"eps": 0.1, "steps": 1} | options))


def pgd_on(images):
    return attacks.pgd(predict, images, Y, KEY, eps=0.1, steps=1)


def apgd(f=predict, **options):
    return attacks.apgd(f, X, Y, KEY, **({"eps": 0.1, "steps": 1} | options))


def autoattack(f=predict, **options):
    options = {"eps": 0.1, "attacks": "apgd-ce", "steps": 1, "progress": False} | options
    return attacks.autoattack(f, X, Y, version="custom", **options)


def measure(f=predict, data=PAIR, names="fgsm", **options):
    return evaluate.evaluate(f, data, names, eps=0.1, **options)


def parts(**changed):
    made = {"student": NET, "student_optim": OPTIM, "attack": attacks.make("sat_train", eps=0.1)}
    return methods.Parts(**(made | changed))


def of_a_kept_key():
    kept = {"key": KEY}

    def noisy(images):
        kept["key"], key = jax.random.split(kept["key"])
        return predict(images * jax.random.bernoulli(key, 0.5, images.shape))

    return noisy


def of_the_call():
    calls = itertools.count()
    return lambda images: predict(images) + jax.random.normal(jax.random.key(next(calls)), (5,))


def loop_loss(images):
    return jnp.sum(images, (1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Mine(attacks.Attack):
    """A user's attack that returns `result(images)`."""

    result: object
    eps: float = 0.1
    norm: str = "linf"
    name: str = "mine"
    pure: bool = True

    def run(self, predict, images, labels, key=None, **_):
        return self.result(images)


class Unfrozen(Mine):
    __hash__ = None


class Narrow(Mine):
    def run(self, predict, images):
        return images


def mine(result, **options):
    return measure(names=Mine(result, **options))


def of_loss(loss, **options):
    robust = {"robust": NET} if options.get("teacher_at") else {}
    return base.from_loss(parts(teachers=robust), loss, **({"passes": ("nat",)} | options))


def mean_ce(z, soft, batch):
    return jnp.mean(losses.cross_entropy(z.nat, batch["label"])), {}


def teachers_of(name):
    return {role: NET for role in methods.TEACHERS[name]}


def begin(student=None, teachers=None):
    method = methods.create("rslad", parts(teachers=teachers_of("rslad")))
    return method.init(NET.init(0) if student is None else student, teachers)


def step(**changed):
    method = methods.create("natural", parts(attack=None))
    batch = {"image": X, "label": Y, "epoch": 1} | changed
    batch = {name: value for name, value in batch.items() if value is not None}
    return method.step(method.init(NET.init(0), {}), batch, KEY)


def start():
    return methods.create("natural", parts(attack=None)).init(NET.init(0), {})


def on_state(**changed):
    batch = {"image": X, "label": Y, "epoch": 1}
    return methods.create("natural", parts(attack=None)).step(
        start().replace(**changed), batch, KEY
    )


def named(class_names):
    return ArrayDataset(*PAIR, class_names, "five", "test")


INTEGERS = jax.tree.map(lambda a: a.astype(np.int32), NET.init(0))
DESCRIPTION = {
    "model": "small_cnn", "num_classes": 5, "image_shape": [8, 8, 1], "init": "torch", "kwargs": {},
    "normalization": "none", "precision": "float32",
}  # fmt: skip


UNKNOWN = "unknown method 'rsald'; did you mean 'rslad'"


MISTAKES = {
    "no function": (lambda: pgd(Z), "predict is ndarray; give a function"),
    "a bundle": (lambda: measure(NET), "lambda x: net.apply"),
    "NumPy": (lambda: pgd(numpy_predict), "predict reads the values .* jax.numpy"),
    "NumPy, AutoAttack": (lambda: autoattack(numpy_predict), "predict reads the values"),
    "NumPy, evaluate": (lambda: measure(numpy_predict), "predict reads the values"),
    "a tuple": (lambda: pgd(lambda x: (predict(x), {})), "predict returned tuple"),
    "fewer rows": (lambda: pgd(lambda x: predict(x)[:-1]), r"shape \(3, 5\) for 4 images"),
    "one image": (lambda: attacks.pgd(predict, X[0], Y[0], KEY), "a single image needs a batch"),
    "many radii": (lambda: pgd(eps=np.full(4, 0.1)), r"eps has shape \(4,\)"),
    "radii of JAX": (lambda: pgd(eps=jnp.full(4, 0.1)), r"eps has shape \(4,\)"),
    "step in grey levels": (lambda: pgd(step_size=2), "step_size=2: .*8/255"),
    "step in record": (lambda: attacks.make("pgd_sat", step_size=2), "step_size=2: .*8/255"),
    "sigma": (lambda: attacks.ciard_pgd(predict, X, Y, KEY, sigma=8), "sigma=8: .*8/255"),
    "range": (lambda: pgd(clip_max=255), r"within \[0, 1\], but clip_max=255"),
    "NaN range": (lambda: pgd(clip_max=np.nan), "clip_max=nan: must be a finite number"),
    "several names": (lambda: attacks.make(["fgsm"]), r"unknown attack \['fgsm'\]"),
    "unused targets": (lambda: apgd(targets=(Y + 1) % 5), "use loss='targeted_dlr'"),
    "NaN start": (lambda: apgd(start=X * np.nan), "start holds NaN"),
    "batch as float": (lambda: autoattack(batch_size=7.0), "batch_size=7.0: must be an integer"),
    "devices": (lambda: autoattack(mesh=jax.devices()), "mesh is list"),
    "a file as folder": (lambda: autoattack(state_dir=__file__), "state_dir='.*' cannot be used"),
    "no attack": (lambda: measure(names=None), "attacks=None: give names"),
    "a function as attack": (lambda: measure(names=attacks.fgsm), "give names such as"),
    "text for attack": (lambda: measure(names={"a": "fgsm"}), r"attacks\['a'\] is str"),
    "an attack called clean": (
        lambda: measure(names={"clean": attacks.make("fgsm", eps=0.1)}),
        "name is of the images as they are",
    ),
    "another range": (
        lambda: measure(names=attacks.make("fgsm", eps=0.1, clip_max=255.0)),
        r"clip_max=255; an evaluation's images are in \[0, 1\]",
    ),
    "integer logits": (lambda: pgd(lambda x: predict(x).astype(int)), "predict returned int32"),
    "three arguments": (lambda: evaluate.evaluate(predict, *PAIR), r"\(images, labels\), attacks"),
    "batches": (lambda: measure(data=[PAIR, PAIR]), "dataset is list"),
    "batch true": (lambda: measure(batch_size=True), "batch_size=True: must be an integer"),
    "seed": (lambda: measure(seed=1.5), "seed=1.5: must be an integer"),
    "temperatures": (
        lambda: losses.kl_divergence(Z, Z, np.ones(4)),
        r"has shape \(4,\): give one number, or \[4,1\]",
    ),
    "a negative row": (
        lambda: losses.kl_divergence(Z, Z, np.array([[1.0], [2.0], [-1.0], [1.0]])),
        "teacher_temperature of a row=-1.0",
    ),
    "temperature text": (lambda: losses.kl_divergence(Z, Z, "4"), "must be a number"),
    "temperature 0": (lambda: losses.softened_kl(Z, Z, 0), "temperature=0: must be above 0"),
    "entropy": (lambda: losses.negative_entropy(Z, np.inf), "temperature=inf"),
    "log_eps": (lambda: losses.kl_divergence(Z, Z, log_eps=-1), "log_eps=-1"),
    "confidence": (lambda: losses.cw_margin(Z, Y, np.nan), "confidence=nan"),
    "Dice smoothing": (lambda: losses.dice_loss(Z, Y, smoothing=-1), "smoothing=-1"),
    "Dice mask": (lambda: losses.dice_loss(Z, Y, np.full(4, 2.5)), "mask of a row=2.5"),
    "label smoothing": (lambda: losses.label_squared_error(Z, Y, 10), r"in \[0, 1\]"),
    "KL of logits": (lambda: losses.reduce_kl(Z, 5), r"shape \(4, 5\); it must be \[batch\]"),
    "no classes": (lambda: losses.reduce_kl(Z[:, 0], 0), "num_classes=0"),
    "first loss 0": (
        lambda: losses.balance_weights(0.5, 0.5, 1.0, 1.0, 0.0, 0.0, 0.1),
        "first_adv=0.0: must be above 0",
    ),
    "temperature range": (
        lambda: losses.balance_temperatures(1.0, 1.0, 0.5, 0.5, 0.1, low=10.0, high=1.0),
        "range of temperatures is empty",
    ),
    "float mask": (lambda: losses.masked_class_mean(Z[:, 0], np.zeros(4), 5), "give booleans"),
    "channels first": (lambda: models.create("small_cnn", 5, (3, 32, 32)), r"\(32, 32, 3\)"),
    "a side": (lambda: models.create("small_cnn", 5, 8), "three positive ints"),
    "grey levels": (
        lambda: models.create(
            "small_cnn", 5, (8, 8, 1), normalization={"mean": [125], "std": [60]}
        ),
        "divide mean and std by 255",
    ),
    "groups": (lambda: models.create("small_cnn", 5, (8, 8, 1), bn_groups=2.5), "bn_groups=2.5"),
    "pixels to 255": (lambda: NET.apply(NET.init(0), 255 * X, False), "go up to 25.*by 255"),
    "parameters alone": (lambda: NET.apply(NET.init(0)["params"], X, False), "variables are not"),
    "no network": (lambda: models.num_params("resnet18"), "'resnet18' is no network"),
    "a method's matching": (lambda: methods.igdm_problems("rsald", None), UNKNOWN),
    "a method's teacher": (lambda: methods.needs_robust_teacher("rsald", None), UNKNOWN),
    "a method's labels": (lambda: methods.label_problems("rsald", None, None), UNKNOWN),
    "a method's ramp": (lambda: methods.ramp_problems("rsald", None, 0, None), UNKNOWN),
    "an attack of natural": (
        lambda: methods.create("natural", parts()),
        "makes no adversarial examples: leave Parts",
    ),
    "no parts": (lambda: methods.create("natural", NET), "parts is ModelBundle"),
    "student": (lambda: parts(student="resnet18"), "student is str; give models.create"),
    "optimiser": (lambda: parts(student_optim="sgd"), "student_optim is str; give optim.make"),
    "attack": (lambda: parts(attack="sat_train"), "attack is str; give attacks.make"),
    "teacher": (lambda: parts(teachers={"robust": "wrn"}), r"teachers\['robust'\] is str"),
    "epochs": (lambda: parts(epochs=0), "epochs=0: must be an integer >= 1"),
    "soft labels": (lambda: parts(soft_labels="yes"), "soft_labels='yes': must be True or False"),
    "BatchNorm": (lambda: parts(attack_bn="Train"), "unknown attack_bn 'Train'"),
    "gamma": (lambda: methods.Awp(gamma=-1), "gamma of AWP=-1"),
    "teacher's images": (
        lambda: methods.create(
            "rslad", parts(teachers={"robust": models.create("small_cnn", 5, (9, 9, 1))})
        ),
        r"takes images of \(9, 9, 1\), the student of \(8, 8, 1\)",
    ),
}
OF_ATTACKS = {
    "returns None": (lambda: mine(lambda x: None), "attack 'mine' returned NoneType; its run must"),
    "another shape": (
        lambda: mine(lambda x: x[:-1]),
        r"returned float32\[\d, 8, 8, 1\] for images",
    ),
    "bytes": (
        lambda: mine(lambda x: (255 * x).astype(np.uint8)),
        "returned uint8.*must return floats",
    ),
    "NaN": (lambda: mine(lambda x: x * np.nan), "NaN or infinite values in 4 of 4 images"),
    "beyond the range": (
        lambda: mine(lambda x: x + 0.05),
        r"outside of what it declares.*in \[0, 1\]",
    ),
    "beyond the ball": (lambda: mine(lambda x: jnp.clip(x + 0.2, 0, 1)), "by up to 0.1: eps=0.1 "),
    "beyond an L2 ball": (lambda: mine(lambda x: 1 - x, norm="l2"), r"eps=0.1 \(l2\)"),
    "beyond, called": (lambda: Mine(lambda x: 1 - x)(predict, X, Y), "4 of 4 images outside"),
    "None, called": (lambda: Mine(lambda x: None)(predict, X, Y), "returned NoneType"),
    "beyond, on the host": (lambda: mine(lambda x: 1 - x, pure=False), "4 of 4 images outside"),
    "its own eps": (lambda: mine(lambda x: x, eps=8), "attack 'mine': eps=8: .*8/255"),
    "its own eps, called": (lambda: Mine(lambda x: x, eps=8)(predict, X, Y), "eps=8: .*8/255"),
    "its own eps, training": (lambda: parts(attack=Mine(lambda x: x, eps=8)), "eps=8: .*8/255"),
    "its own norm": (lambda: mine(lambda x: x, norm="inf"), "attack 'mine': unknown norm 'inf'"),
    "without a name": (lambda: Mine(lambda x: x, name=None)(predict, X, Y), "has the name None"),
    "not hashable": (
        lambda: measure(names={"a": Unfrozen(lambda x: x)}),
        "unhashable.*frozen=True",
    ),
    "run of another kind": (lambda: measure(names={"a": Narrow(lambda x: x)}), r"key=None, \*\*_"),
    "a class": (lambda: measure(names={"a": Mine}), r"attacks\['a'\] is the class Mine"),
    "AutoAttack, an object": (
        lambda: measure(names=attacks.make("autoattack", eps=0.1)),
        "its name alone: attacks='autoattack'",
    ),
    "AutoAttack, no suite": (lambda: attacks.make("autoattack", suite="plus"), "suite is str"),
    "no step": (lambda: attacks.make("pgd_sat", steps=0), "steps=0 .*that is no attack"),
    "steps of size 0": (
        lambda: attacks.make("pgd_sat", step_size=0.0),
        "step_size=0.0 .*no attack",
    ),
    "steps of size 0, called": (lambda: pgd(step_size=0), "step_size=0 .*no attack"),
    "a step in the wrong unit": (lambda: pgd(step_size=2 / 255**2), "next to nothing of eps=0.1"),
    "lambda": (lambda: attacks.make("dpgd", lambda_value=0.5), "of lambda_schedule='const'"),
    "unused sigma": (lambda: pgd(sigma=0.1), "sigma=0.1: of start='gauss'"),
    "unused confidence": (lambda: pgd(confidence=1.0), "confidence=1.0: of loss 'cw'"),
    "unused groups": (
        lambda: attacks.make("dpgd_per_sample", dice_groups=2),
        "dice_groups=2: of dice='batch'",
    ),
    "targets of another loss": (lambda: pgd(targets=(Y + 1) % 5), "only 'least_likely' has them"),
    "targets that are labels": (
        lambda: attacks.targeted_pgd(predict, X, Y, KEY, targets=Y),
        "is the image's own label",
    ),
    "targets that are no classes": (
        lambda: attacks.targeted_pgd(predict, X, Y, KEY, targets=Y * 0 + 9),
        "targets are from 9 to 9, but there are 5 classes",
    ),
    "a start of texts": (lambda: pgd(start=["a"] * 4), "start must be an array of numbers"),
    "a start of NaN": (lambda: pgd(start=X * np.nan), "start holds NaN"),
    "a key as radius": (lambda: pgd(eps=KEY), "must be a number"),
    "another radius": (lambda: attacks.make("bim").with_eps("0.1"), "eps='0.1': must be a number"),
    "a state": (lambda: pgd(state=jnp.zeros(())), "fails on images .*2 were given"),
    "a state of none": (
        lambda: pgd(lambda x, state: predict(x), state=jnp.zeros(())),
        r"with a state it must return \(logits, state\)",
    ),
    "an objective": (
        lambda: attacks.pgd_loop("ce", X, X, eps=0.1, step_size=0.1, steps=1),
        "objective is str",
    ),
    "an objective of classes": (
        lambda: attacks.pgd_loop(
            lambda x: jnp.argmax(predict(x), -1), X, X, eps=0.1, step_size=0.1, steps=1
        ),
        "the objective returned int32; it must return floats",
    ),
    "a teacher's NaN": (
        lambda: attacks.make("rslad_train", 0.1)(predict, X, Y, KEY, teacher_logits=Z * np.nan),
        "teacher_logits hold NaN or infinite values",
    ),
    "eot of a plain network": (lambda: apgd(eot=2), r"is given images and a key, .* \(eot > 1\)"),
    "eot without a key": (
        lambda: attacks.apgd(lambda x, key: predict(x), X, Y, eps=0.1, eot=2, start=X),
        r"key is None, but APGD gives a key to predict \(eot > 1\)",
    ),
    "labels below padding": (
        lambda: losses.dpgd_objective(Z, Y - 2, 0.5),
        "labels are from -2 to 2",
    ),
    "bytes in a loop": (
        lambda: attacks.pgd_loop(jnp.sum, *PAIR, eps=0.1, step_size=0.1, steps=1),
        "images are uint8",
    ),
    "a teacher of arrays": (
        lambda: attacks.make("adaad_train", 0.1)(predict, X, Y, KEY, teacher=Z),
        "teacher is ndarray",
    ),
    "logits of a function": (
        lambda: attacks.make("rslad_train", 0.1)(predict, X, Y, KEY, teacher_logits=predict),
        "teacher_logits must be an array",
    ),
    "steps of a schedule": (lambda: attacks.lambda_values("paper", 0), "steps=0: must be"),
    "no state of Square": (lambda: attacks.square_result(predict, None, X, Y), "state is NoneType"),
    "a state of Square of other images": (
        lambda: square_parts(images=X[:2], labels=Y[:2]),
        r"shapes \(\(4, 8, 8, 1\), \(4,\), \(4,\)\) for images of \(2, 8, 8, 1\); give the rows",
    ),
    "half a query": (lambda: square_parts(queries=1.5), "queries=1.5: must be an integer >= 0"),
    "no function of Square": (
        lambda: square_parts(predict=W),
        "predict is ndarray; give a function",
    ),
    "padding of Square": (
        lambda: attacks.square_start(predict, X, Y, KEY, eps=0.1, alive=np.ones(3, bool)),
        r"alive is bool\[3\]; give bool\[4\]",
    ),
    "a folder": (lambda: autoattack(state_dir=3), "state_dir is int; give a path"),
    "progress": (lambda: autoattack(progress="no"), "progress='no': must be True or False"),
    "members": (lambda: autoattack(attacks=3), "attacks=3: give some of apgd-ce"),
    "a text for a flag": (lambda: pgd(clip_start="no"), "clip_start='no': must be True or False"),
    "unroll": (lambda: pgd(unroll="all"), "unroll='all': must be True"),
    "a masked array": (
        lambda: attacks.fgsm(predict, np.ma.masked_less(X, 0.5), Y),
        "images is a masked array",
    ),
    "labels and key": (
        lambda: attacks.pgd(predict, X, KEY, Y),
        "labels is a PRNG key.*another order",
    ),
    "labels as key": (lambda: attacks.pgd(predict, X, Y, Y), r"key is an array int32\[4\]"),
    "a large seed": (
        lambda: measure(seed=2**70),
        "seed=1180591620717411303424: must be an integer from 0",
    ),
    "a large seed, AutoAttack": (lambda: autoattack(seed=2**70), "must be an integer from 0"),
    "a module": (lambda: pgd(nn.Dense(5)), "predict is Dense; .*module.apply"),
    "a class as predict": (lambda: pgd(nn.Dense), "predict is type; give a function"),
    "two arguments": (
        lambda: pgd(lambda x, train: predict(x)),
        "fails on images .*TypeError.*'train'",
    ),
    "another size": (
        lambda: attacks.pgd(predict, X[:, :4], Y, KEY),
        r"fails on images float32\[4, 4, 8, 1\]",
    ),
    "budgets": (lambda: autoattack().square_curve("many"), "budgets='many': must be an integer"),
}
OF_THE_REST = {
    "integer variables": (lambda: NET.apply(INTEGERS, X, False), "is int32; give arrays of floats"),
    "a list of variables": (lambda: NET.apply([1], X, False), "variables are not .*'list'"),
    "variables of a bundle": (
        lambda: NET.apply(NET, X, False),
        "variables are not .*'ModelBundle'",
    ),
    "images as text": (lambda: NET.apply(NET.init(0), "x", False), "images must be an array"),
    "widths": (lambda: models.create("small_resnet", widths=16), r"give a tuple, such as \(16,\)"),
    "networks": (lambda: models.create(["resnet18"]), r"unknown model \['resnet18'\]"),
    "sides": (lambda: models.create("small_cnn", 5, (8, None, 1)), "three positive ints"),
    "a shortcut": (lambda: models.create("resnet20", shortcut=["A"]), r"shortcut=\['A'\]"),
    "a form": (lambda: models.create("preact_resnet18", form=["rice"]), r"form=\['rice'\]"),
    "parameters of arrays": (lambda: models.num_params(NET.init(0)), "^dict is no network"),
    "a description": (lambda: described.from_description("small_cnn"), "str is no description"),
    "half a description": (
        lambda: described.in_float32({"model": "small_cnn"}),
        "lacks image_shape, init",
    ),
    "options of a description": (
        lambda: described.from_description(DESCRIPTION | {"kwargs": 3}),
        "kwargs=3: must be option",
    ),
    "class names": (lambda: named("abcde"), "class_names='abcde'; give a tuple"),
    "class numbers": (
        lambda: named(range(5)),
        r"a class is called 0 \(int\); give texts, such as '0'",
    ),
    "a data set": (lambda: data.known_shape("nope"), "data set 'nope' is unknown"),
    "no epochs": (lambda: optim.make(optim.OptimConfig(), 0), "epochs=0: must be an integer >= 1"),
    "no optimiser": (lambda: optim.make(None, 3), "config is NoneType; give optim.OptimConfig"),
    "boundaries of another schedule": (
        lambda: optim.OptimConfig(schedule="cosine", boundaries=(3,)),
        r"boundaries=\(3,\) is of schedule='multistep': leave it out with schedule='cosine'",
    ),
    "a start of another schedule": (
        lambda: optim.OptimConfig(start=3),
        "start=3 is of schedule='ciard'",
    ),
    "a late decay": (
        lambda: optim.make(optim.OptimConfig(schedule="multistep", boundaries=(100,)), 10),
        "lie behind the last of 10 epochs",
    ),
    "lam": (lambda: losses.dpgd_objective(Z, Y, "0.1"), "lam='0.1': must be a number"),
    "soft logits": (lambda: losses.soft_dice(Z, Z), r"targets are no probabilities: give softmax"),
    "Dice groups": (lambda: losses.dice_loss(Z, Y, groups=2.0), "groups=2.0: must be an integer"),
    "weights": (
        lambda: losses.balance_weights(0.5, 0.9, 1.0, 1.0, 1.0, 1.0, 0.1),
        "weights must sum to 1",
    ),
    "a weight": (
        lambda: losses.balance_weights(-0.5, 1.5, 1.0, 1.0, 1.0, 1.0, 0.1),
        r"w_adv=-0.5: must be a finite number in \[0, 1\]",
    ),
    "entropies": (
        lambda: losses.balance_temperatures(1.0, 1.0, "0.5", 0.5, 0.1),
        "entropy_adv='0.5': must be a number",
    ),
    "a loss": (lambda: losses.decade_scale("1", 1.0, 1.0), "a loss must be an array of numbers"),
    "no kernel": (lambda: NET.init(None), "key is None; give one"),
    "normalised images": (
        lambda: NET.apply(NET.init(0), 2 * X - 1, False),
        "down to -0.99.*are they normalised",
    ),
    "an epoch": (lambda: step(epoch=0), "epoch=0: must be an integer >= 1"),
    "a text of an epoch": (lambda: step(epoch="1"), "epoch must be an array of numbers"),
    "kappa": (lambda: losses.continuous_scale(1.0, 1.0, 1.0, kappa=-1), "kappa=-1"),
    "a teacher": (lambda: parts(teachers=NET), "teachers is ModelBundle; give a dict"),
    "teacher optimisers": (lambda: parts(teacher_optims=OPTIM), "teacher_optims is Optimizer"),
    "a teacher optimiser": (
        lambda: parts(teacher_optims={"robust": "sgd"}),
        r"teacher_optims\['robust'\] is str; give optim.make",
    ),
    "no teacher optimiser": (
        lambda: methods.create("ciard", parts(teachers=teachers_of("ciard"))),
        "trains its robust teacher: give teacher_optims",
    ),
    "a method": (lambda: methods.attack_problems("foo", None), "unknown method 'foo'"),
    "methods": (lambda: methods.make_config(["sat"], {}), r"unknown method \['sat'\]"),
    "a mode": (lambda: methods.attack_problems("sat", None, bn="Train"), "unknown bn 'Train'"),
    "no variables": (
        lambda: methods.create("natural", parts(attack=None)).init(None, {}),
        "those of the student",
    ),
    "no teachers": (lambda: begin(teachers={}), "teachers lack robust; give role -> variables"),
    "half a batch": (lambda: step(label=None), r"the batch lacks label: it has image"),
    "a batch of bytes": (lambda: step(image=PAIR[0]), "images are uint8"),
    "a batch of another size": (lambda: step(image=X[:, 1:]), r"the student takes \(8, 8, 1\)"),
    "labels of a batch": (lambda: step(label=Y + 1), "labels are from 1 to 5"),
    "a make of one argument": (
        lambda: methods.Registration("a", Options, lambda p: p),
        r"make=.*; give a function \(options, parts\) -> Method",
    ),
    "an empty registration": (lambda: methods.Registration("", None, None), "has the name ''"),
    "no options": (lambda: methods.Registration("a", dict, len), "options=<class 'dict'>"),
    "a text of teachers": (
        lambda: methods.Registration("a", Options, divmod, "robust"),
        "teachers='robust': must be a tuple",
    ),
    "no loss": (lambda: of_loss(0.5), "loss is float; give a function"),
    "a constant": (lambda: of_loss(lambda z, soft, batch: (0.5, {})), "the loss has no gradient"),
    "a stopped gradient": (
        lambda: of_loss(lambda z, soft, batch: (jnp.mean(jax.lax.stop_gradient(z.nat)), {})),
        "the loss has no gradient",
    ),
    "an accuracy for a loss": (
        lambda: of_loss(lambda z, soft, batch: ((z.nat.argmax(-1) != batch["label"]).mean(), {})),
        "the loss has no gradient",
    ),
    "a loss per image": (
        lambda: of_loss(lambda z, soft, batch: (losses.cross_entropy(z.nat, batch["label"]), {})),
        "scalars, means of the batch",
    ),
    "metrics per image": (
        lambda: of_loss(lambda z, soft, batch: (jnp.mean(z.nat), {"top": z.nat.max(-1)})),
        "^top is .*scalars",
    ),
    "a loss alone": (
        lambda: of_loss(lambda z, soft, batch: jnp.mean(z.nat)),
        r"\(scalar, metrics\)",
    ),
    "a missing view": (lambda: of_loss(mean_ce, passes=("adv",)), "whose other views are None"),
    "a text of passes": (lambda: of_loss(mean_ce, passes="nat"), "passes='nat': must be a tuple"),
    "a pass": (lambda: of_loss(mean_ce, passes=("clean",)), r"passes=\('clean',\): .*'nat', 'adv'"),
    "no pass": (lambda: of_loss(mean_ce, passes=()), r"passes=\(\): the student needs"),
    "where a teacher is asked": (lambda: of_loss(mean_ce, teacher_at=("x'",)), "teacher_at="),
    "a teacher that is missing": (
        lambda: base.from_loss(parts(), mean_ce, passes=("nat",), teacher_at=("nat",)),
        r"no teachers\['robust'\]",
    ),
    "an attack that is missing": (
        lambda: base.from_loss(parts(attack=None), mean_ce, passes=("nat", "adv")),
        r"'adv' needs Parts\(attack=",
    ),
}


def wide(**options):
    return {"eps": 9.0, "norm": "l2"} | options


OF_RADII = {
    "L2, PGD": (
        lambda: pgd(**wide()),
        r"eps=9.0: .* in \[0, 8\]; no two images of shape \(8, 8, 1\)",
    ),
    "L2, JAX": (lambda: pgd(**wide(eps=jnp.float32(9))), r"eps=9.0: .* in \[0, 8\]"),
    "L2, APGD": (lambda: apgd(**wide()), r"eps=9.0: .* in \[0, 8\]"),
    "L2, FAB": (lambda: attacks.fab(predict, X, Y, **wide()), r"eps=9.0: .* in \[0, 8\]"),
    "L2, Square": (
        lambda: attacks.square(predict, X, Y, KEY, **wide()),
        r"eps=9.0: .* in \[0, 8\]",
    ),
    "L2, AutoAttack": (lambda: autoattack(**wide()), r"eps=9.0: .* in \[0, 8\]"),
    "L2, evaluate": (
        lambda: evaluate.evaluate(predict, PAIR, "fgsm", **wide()),
        r"eps=9.0: .* in \[0, 8\]",
    ),
    "L2, an attack": (
        lambda: evaluate.evaluate(predict, PAIR, Mine(lambda x: x, **wide())),
        r"eps=9.0: .* in \[0, 8\]",
    ),
    "L2, a range": (lambda: pgd(**wide(eps=2041, clip_max=255.0)), "within .* but clip_max=255"),
    "L2, a loop": (
        lambda: attacks.pgd_loop(jnp.sum, X, X, step_size=0.1, steps=1, **wide()),
        r"eps=9.0: .* in \[0, 8\]",
    ),
    "L2, training": (
        lambda: parts(attack=attacks.make("sat_train", **wide())),
        r"eps=9.0: .* in \[0, 8\]",
    ),
    "traced, make": (lambda: jax.jit(lambda e: attacks.make("fgsm", e))(0.1), "eps is a JAX array"),
    "of JAX, APGD": (lambda: attacks.make("apgd_ce", jnp.float32(0.1)), "eps is a JAX array"),
    "of JAX, FAT": (lambda: attacks.make("fat_train").with_eps(jnp.float32(0.1)), "is a JAX array"),
    "of JAX, one's own": (lambda: mine(lambda x: x, eps=jnp.float32(0.1)), "'mine': eps is a JAX"),
    "of JAX, a suite": (lambda: attacks.make("square100", jnp.float32(0.1)), "eps is a JAX array"),
    "traced, AutoAttack": (lambda: jax.jit(lambda e: autoattack(eps=e))(0.1), "eps is a JAX array"),
    "traced images, AutoAttack": (
        lambda: jax.jit(lambda x: attacks.autoattack(predict, x, Y, eps=0.1))(X),
        "AutoAttack decides on the host .* outside of jit",
    ),
    "traced, evaluate": (
        lambda: jax.jit(lambda e: evaluate.evaluate(predict, PAIR, eps=e))(0.1),
        "eps is a JAX array",
    ),
}


def square_parts(**changed):
    state = SquareState(X, np.ones(4, np.float32), np.ones(4, np.int32))
    counts = {"first_query": 0, "queries": 1, "budget": 1}
    given = {"predict": predict, "state": state, "images": X, "labels": Y, "key": KEY} | counts
    return attacks.square_run(**given | changed, eps=0.1)


def moved(name="a", images=X, x_adv=X, labels=Y, f=predict):
    return teacher_quality.per_image(f, images, labels, {name: x_adv})


def trains_with(result, **options):
    return methods.create("sat", parts(attack=Mine(result, **options)))


def of_metrics(**named):
    return of_loss(lambda z, soft, batch: (jnp.mean(z.nat), named))


def steps_on(key):
    """A step of a loss that asks the batch for `key`."""
    made = of_loss(lambda z, soft, batch: (jnp.mean(z.nat) + batch[key], {}))
    return made.step(made.init(NET.init(0), {}), {"image": X, "label": Y, "epoch": 1}, KEY)


def two_views(**batch):
    made = methods.create("consistency_at", parts())
    batch = {"image": X, "label": Y, "epoch": 1} | batch
    return made.step(made.init(NET.init(0), {}), batch, KEY)


CYCLIC = optim.make(optim.OptimConfig(schedule="cyclic"), 2, 1)
FIVE = ArrayDataset(*PAIR, tuple("abcde"), "five", "test")
OF_TRAINING = {
    "beyond the ball": (
        lambda: trains_with(lambda x: jnp.clip(x + 0.2, 0, 1)),
        "2 of 2 images outs",
    ),
    "beyond the range": (
        lambda: trains_with(lambda x: x + 0.05),
        r"outside of what .* in \[0, 1\]",
    ),
    "NumPy in training": (
        lambda: trains_with(np.asarray),
        "'mine' reads the values .* no step can",
    ),
    "an attack that fails": (
        lambda: trains_with(lambda x: x.foo),
        "fails in training: AttributeError",
    ),
    "an attack of another kind": (
        lambda: methods.create("sat", parts(attack=Narrow(lambda x: x))),
        "'mine' fails in training: TypeError",
    ),
    "an optimiser of no teacher": (
        lambda: methods.create("sat", parts(teacher_optims={"robust": OPTIM})),
        r"'sat' trains no robust teacher .* leave teacher_optims\['robust'\] out",
    ),
    "statistics of another mode": (
        lambda: parts(attack_bn_stats="keep"),
        "attack_bn_stats='keep' is of attack_bn='train'",
    ),
    "images for predict": (
        lambda: attacks.make("pgd_sat", eps=0.1)(X, Y),
        r"predict is ndarray; give a function .*, which comes first: attack\(predict, images, labels, key\)",
    ),
    "a key that predict keeps": (lambda: pgd(of_a_kept_key()), "predict keeps values from call to"),
    "a key that predict keeps, evaluate": (
        lambda: measure(of_a_kept_key()),
        "predict keeps values from call to",
    ),
    "a text for flip": (
        lambda: augment.augment(KEY, U8, flip="off"),
        "flip='off': must be True or False",
    ),
    "a wide border": (
        lambda: augment.augment(KEY, U8, pad=8),
        "pad=8: must be an integer from 0 to 7",
    ),
    "channels first": (
        lambda: augment.augment(KEY, np.zeros((2, 3, 8, 8), np.uint8), "cropshift"),
        r"channels come last here; give transpose\(0, 2, 3, 1\)",
    ),
    "rows for a mask": (
        lambda: losses.bounded_push(Z, Z, np.arange(len(Z)) + 1),
        r"mask of a row=.*in \[0, 1\]",
    ),
    "a range below 0": (lambda: pgd(clip_min=-1.0), "images are at least 0, but clip_min=-1"),
    "a network without its step": (
        lambda: manager.save_network("/nowhere", {}, {}),
        "meta lacks step, epoch, config",
    ),
    "two attacks of one name": (
        lambda: evaluate(predict, PAIR, [attacks.make("fgsm"), attacks.make("fgsm", 0.1)]),
        "attacks has several called fgsm",
    ),
    "a long ramp": (lambda: parts(eps_ramp=2), "eps_ramp=2: must be at most epochs=1"),
    "a short schedule": (
        lambda: parts(epochs=2),
        r"student_optim is made for 1 epochs, but Parts has epochs=2; give optim.make\(config, 2\)",
    ),
    "a teacher's short schedule": (
        lambda: parts(epochs=2, student_optim=CYCLIC, teacher_optims={"robust": OPTIM}),
        r"teacher_optims\['robust'\] is made for 1 epochs",
    ),
    "a short cycle": (
        lambda: parts(epochs=2, steps_per_epoch=5, student_optim=CYCLIC),
        r"made for 2 updates, but Parts has 2 epochs of 5 steps; give optim.make\(config, 2, 5\)",
    ),
    "a metric called loss": (lambda: of_metrics(loss=jnp.ones(())), "a metric is called 'loss'"),
    "metrics of the log": (
        lambda: of_metrics(step=jnp.ones(()), lr=jnp.ones(())),
        "called 'lr', 'step', which an update or the log has of its own",
    ),
    "a key of the batch": (
        lambda: steps_on("foo"),
        r"finds no 'foo' in .*test_api_mistakes.py, line \d+: .*the batch has image, label, epoch",
    ),
    "one view": (two_views, "the batch lacks view: .*view, another augmentation of the images,"),
    "half a view": (lambda: two_views(view=X[:2]), r"view has shape \(2, 8, 8, 1\)"),
    "splits of a pair": (
        lambda: data.Splits(PAIR, None, FIVE),
        "train is tuple; give an ArrayData",
    ),
    "no test split": (
        lambda: data.Splits(dataclasses.replace(FIVE, split="train"), None, None),
        "test is NoneType; give an ArrayData",
    ),
    "an attack of a registration": (
        lambda: methods.Registration("a", Options, divmod, attack="foo"),
        "choose one of '', adaad_train",
    ),
    "an attack of another library": (
        lambda: attacks.make("PGD", eps=0.1),
        "unknown attack 'PGD'; did you mean 'pgd_sat'",
    ),
    "a training attack, evaluated": (
        lambda: measure(names="rslad_train"),
        "attack 'rslad_train' only trains: it needs a teacher, or leaves the ball",
    ),
    "a step instead of a method": (
        lambda: methods.create(
            methods.Registration("mm", Options, lambda c, p: lambda s, b, k: s), parts()
        ),
        "make of method 'mm' returned function; it must return a base.Method",
    ),
    "percentages": (lambda: losses.as_logits(Z * 0 + 20.0), "soft labels are no probabilities"),
    "an array of JAX as images": (
        lambda: ArrayDataset(jnp.asarray(PAIR[0]), PAIR[1], tuple("abcde"), "m", "train"),
        r"images are \w+; give a numpy array of uint8",
    ),
    "grey levels in a loop": (
        lambda: attacks.pgd_loop(lambda x: x.sum((1, 2, 3)), X, X, eps=0.1, step_size=2, steps=3),
        "step_size=2: must be a finite number in .*8/255 for 8",
    ),
    "no query": (
        lambda: attacks.square(predict, X, Y, KEY, eps=0.1, queries=0),
        "queries=0: must be",
    ),
    "a tensor dict for a model": (
        lambda: torch_names.from_torch({"a": X}, "resnet18"),
        "model_name is dict; give the name first",
    ),
    "a folder of digits": (
        lambda: data.load("digits", "/data"),
        "data_dir='/data': digits come with a package; leave it out",
    ),
    "an epoch beyond the schedule": (
        lambda: step(epoch=2),
        "epoch=2: the optimiser is made for 1 epochs; make it for all of the run: optim.make",
    ),
    "gradients of other arrays": (
        lambda: OPTIM.update({"a": X}, OPTIM.init({"a": Z}), {"a": Z}, 0.1),
        "grads are not those of params: their arrays have other shapes",
    ),
    "no state of an optimiser": (
        lambda: OPTIM.update({"a": Z}, None, {"a": Z}, 0.1),
        r"opt_state is None; give that of init\(params\)",
    ),
    "variables for a state": (
        lambda: on_state(student=NET.init(0)),
        r"the state's student is dict; give NetState, such as NetState.create\(variables",
    ),
    "a state for variables": (
        lambda: fold.inference(NET, start().student),
        "variables are not those of small_cnn.*NetState",
    ),
    "a state for tensors": (
        lambda: torch_names.to_torch(NET, start().student),
        "variables are not those of small_cnn.*NetState",
    ),
    "a name for a layout": (
        lambda: torch_names.torch_layout("small_cnn"),
        "'small_cnn' is no network; give one of models.create",
    ),
    "a cycle without a rise": (
        lambda: optim.one_cycle(0.0, 0, 3),
        "peak of one_cycle=0: must be ab",
    ),
    "a cycle that ends at its peak": (
        lambda: optim.one_cycle(0.0, 3, 3),
        "last=3: one_cycle needs it above peak=3",
    ),
    "a cycle past its end": (
        lambda: optim.one_cycle(4.0, 1, 3),
        r"position of one_cycle=4.0: must be a finite number in \[0, 3\]",
    ),
    "a rate past the run": (
        lambda: optim.learning_rate(optim.OptimConfig(schedule="cosine"), 3, jnp.arange(1, 5)),
        r"epoch=4.0: must be a finite number in \[1, 3\]",
    ),
    "a rate of an unfit schedule": (
        lambda: optim.learning_rate(optim.OptimConfig(schedule="one_cycle", warmup=3), 3, 1),
        "warmup=3: must be less than the 3 epochs",
    ),
    "a complex loss": (
        lambda: of_loss(lambda z, soft, batch: (1j * jnp.mean(z.nat), {})),
        "the loss is .*complex.* real scalars",
    ),
    "a number for a metric's name": (
        lambda: of_loss(lambda z, soft, batch: (jnp.mean(z.nat), {1: jnp.ones(())})),
        "a metric is called 1; give a text",
    ),
    "splits in another order": (
        lambda: data.Splits(FIVE, None, FIVE),
        "train is the test split of five; is it meant",
    ),
    "another norm": (
        lambda: evaluate(predict, PAIR, attacks.make("fgsm", eps=0.1), norm="l2"),
        r"norm='l2' is for attacks given by name; attacks\['fgsm'\] has norm='linf'",
    ),
    "an attack that fails, evaluated": (
        lambda: mine(lambda x: {}["eps"]),
        "attack 'mine' fails: KeyError: 'eps'",
    ),
    "a description": (
        lambda: torch_export.export(NET, NET.init(0), "nowhere", {"model": "small_cnn"}),
        "lacks image_shape, kwargs, num_classes",
    ),
    "no JSON": (
        lambda: safetensors_file.export(NET, NET.init(0), "nowhere", {"description": "foo"}),
        "the description 'foo' is no JSON",
    ),
    "no network to export": (
        lambda: safetensors_file.export(None, NET.init(0), "nowhere", {}),
        "^NoneType is no network",
    ),
    "no metadata": (
        lambda: safetensors_file.export(NET, NET.init(0), "nowhere", None),
        "metadata is NoneType; give",
    ),
    "no file to export to": (
        lambda: safetensors_file.export(NET, NET.init(0), None, {}),
        "path is NoneType; give a file's path",
    ),
    "no network for PyTorch": (
        lambda: torch_export.export(None, NET.init(0), "nowhere", DESCRIPTION),
        "^NoneType is no network",
    ),
    "no state dict": (
        lambda: torch_names.from_torch("small_cnn", None),
        "state is NoneType; give a dict of torch name -> array",
    ),
    "a teacher that is no function": (lambda: moved(f=W), "predict is ndarray; give a function"),
    "a teacher's images in bytes": (lambda: moved(images=PAIR[0]), "images are uint8"),
    "a teacher's labels": (lambda: moved(labels=Y[:2]), r"labels of shape \(2,\) for a batch of 4"),
    "fewer images of an attack": (
        lambda: moved(x_adv=X[:2]),
        r"moved\['a'\] has shape \(2, 8, 8, 1\)",
    ),
    "an attack called clean, of a teacher": (
        lambda: moved("clean"),
        r"moved is \['clean'\]; give a",
    ),
    "class names in no order": (lambda: named(set("abcde")), r"class_names=.*; give a tuple"),
    "a negative temperature": (
        lambda: losses.softened_kl(Z, Z, -1),
        "temperature=-1: must be above 0",
    ),
}
# What another campaign of mistakes found taken, or answered by a library's own words.
OF_A_CAMPAIGN = {
    "cyclic, no updates": (
        lambda: optim.make(optim.OptimConfig(schedule="cyclic"), 2),
        "steps_per_epoch=0: must be an integer >= 1",
    ),
    "a negative rate": (
        lambda: OPTIM.update({"a": Z}, OPTIM.init({"a": Z}), {"a": Z}, -0.1),
        "lr of the update=-0.1: must be a finite number >= 0",
    ),
    "a margin that is never reached": (lambda: losses.cw_margin(Z, Y, confidence=-50), ">= 0"),
    "cutmix of class numbers": (
        lambda: mixing.mix(KEY, jnp.asarray(X), jnp.asarray(Y), cutmix=1),
        r"labels have shape \(4,\); give distributions \[4,K\]",
    ),
    "float images divided again": (lambda: augment.to_float(jnp.asarray(X)), "float32; give uint8"),
    "x' of other units": (
        lambda: teacher_quality.per_image(predict, X, Y, {"a": 255 * X}),
        "divide by 255",
    ),
    "a dict for a quality": (lambda: teacher_quality.judge({"a": 1}), "quality is dict"),
    "an evaluator of a network": (lambda: evaluator.Evaluator("t", NET), "apply is ModelBundle"),
    "restarts that are all the same": (
        lambda: attacks.make("bim", eps=0.1, restarts=5),
        "restarts=5: of a random start",
    ),
    "a start that there is not": (
        lambda: attacks.make("bim", eps=0.1, start_radius=0.5),
        "start_radius=0.5: of a random start",
    ),
    "queries of no Square": (
        lambda: attacks.autoattack(predict, X, Y, eps=0.1, version="fast", queries=100),
        "queries=100: of Square, but 'fast' runs apgd-ce, apgd-t",
    ),
    "custom without attacks": (
        lambda: attacks.autoattack(predict, X, Y, eps=0.1, version="custom"),
        "version='custom' needs attacks",
    ),
    "epsilon": (lambda: pgd(epsilon=0.1), "no parameter epsilon; it has .*; did you mean eps"),
    "another case": (lambda: attacks.make("FGSM"), "did you mean 'fgsm'"),
    "names in one text": (
        lambda: measure(names="fgsm, pgd_sat"),
        "give several names as a tuple",
    ),
    "channels first": (
        lambda: models.create("small_cnn", 5, (8, 8, 3)).apply(
            {"params": {}, "batch_stats": {}}, np.zeros((4, 3, 8, 8), np.float32), False
        ),
        r"channels first: images.transpose\(0, 2, 3, 1\)",
    ),
    "a single image": (
        lambda: NET.apply({"params": {}, "batch_stats": {}}, X[0], False),
        r"a batch axis: images\[None\]",
    ),
    "logits of a teacher of other classes": (
        lambda: attacks.make("rslad_train", eps=0.1)(predict, X, Y, KEY, teacher_logits=Z[:, :3]),
        r"teacher_logits have shape \(4, 3\), but predict returns \(4, 5\)",
    ),
    "a whole checkpoint": (
        lambda: torch_names.from_torch("small_cnn", {"state_dict": {"a": W}, "epoch": 1}),
        r"give state\['state_dict'\]",
    ),
    "labels before logits": (
        lambda: losses.cross_entropy(jax.nn.one_hot(Y, 5), Z),
        "are they the logits, in the other's place",
    ),
    "a holdout by float labels": (
        lambda: split.validation_indices(Y.astype(float), 1, 0, "mine"),
        "labels are float64; give integers",
    ),
    "another network's options": (
        lambda: models.create("resnet20", widths=(1, 2), blocks=2),
        "no option blocks, widths; its options are shortcut",
    ),
}
MISTAKES |= OF_ATTACKS | OF_THE_REST | OF_RADII | OF_TRAINING | OF_A_CAMPAIGN


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_error(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


def draws(x):
    return predict(x) + np.random.default_rng().normal(size=(len(x), 5))


def of_the_batch(x):
    return predict(x - 0.5 * x.mean(0))


def of_the_place(x):
    return predict(x + 0.1 * jax.random.normal(KEY, x.shape))


def constant(x):
    return jnp.zeros(len(x))[:, None] + jnp.arange(5.0)


def of_another_order():
    images = np.random.default_rng(1).integers(256, size=(40, 8, 8, 1), dtype=np.uint8)
    return images, (np.argmax(predict(images / np.float32(255)), -1).astype(np.int32) + 1) % 5


def square(f, x=X):
    return attacks.square(f, x, Y, KEY, eps=0.1, queries=1)


BLACK = (0 * PAIR[0], Y)


SUSPICIONS = {
    "probabilities": (lambda: pgd(lambda x: jax.nn.softmax(predict(x))), "look like probabilities"),
    "one class NaN": (
        lambda: pgd(lambda x: predict(x).at[:, 3].set(np.nan)),
        "4 of 4 clean images",
    ),
    "NumPy's draws": (lambda: pgd(draws), "another function each time it is traced"),
    "NumPy's draws, evaluate": (lambda: measure(draws), "another function each time"),
    "a batch's mean": (lambda: measure(of_the_batch), "depend on the other images"),
    "dark images": (lambda: measure(data=(PAIR[0] // 16, Y)), "brightest pixel is 15 of 255"),
    "dark images, attack": (lambda: attacks.pgd(predict, X / 255, Y, KEY), "by 255 twice"),
    "a seed for each call": (lambda: measure(of_the_call()), "another function each time it is"),
    "a seed for each call, AutoAttack": (
        lambda: autoattack(of_the_call()),
        "another function each time it is",
    ),
    "no radius in a loop": (
        lambda: attacks.pgd_loop(loop_loss, X, X, eps=8 // 255, step_size=0.1, steps=1),
        "eps=0, so no image can change",
    ),
    "no step in a loop": (
        lambda: attacks.pgd_loop(loop_loss, X, X, eps=0.1, step_size=2 // 255, steps=1),
        "step_size=0, so no image can change",
    ),
    "a step as a part": (
        lambda: attacks.make("pgd_sat", step_size=0.9),
        "step_size=0.9 is 29 times eps=0.0314",
    ),
    "16-bit outputs": (
        lambda: measure(lambda x: predict(x).astype(jnp.bfloat16)),
        "all logits are bfloat16 numbers",
    ),
    "16-bit outputs, attack": (
        lambda: pgd(lambda x: predict(x).astype(jnp.float16).astype(jnp.float32)),
        "all logits are float16 numbers",
    ),
    "black images": (lambda: measure(data=BLACK), "brightest pixel is 0 of 255"),
    "black images, attack": (lambda: attacks.fgsm(predict, 0 * X, Y), "brightest pixel is 0 of"),
    "black images, Square": (lambda: square(predict, 0 * X), "brightest pixel is 0 of 255"),
    "probabilities in a loss": (
        lambda: losses.cross_entropy(jax.nn.softmax(Z), Y),
        "logits look like probabilities",
    ),
    "a batch's mean, attack": (lambda: pgd(of_the_batch), "depend on the other images"),
    "a batch's mean, APGD": (lambda: apgd(of_the_batch), "depend on the other images"),
    "a batch's mean, AutoAttack": (lambda: autoattack(of_the_batch), "depend on the other images"),
    "noise by place": (lambda: measure(of_the_place), "on its place among them"),
    "noise by place, attack": (lambda: pgd(of_the_place), "on its place among them"),
    "noise by place, AutoAttack": (lambda: autoattack(of_the_place), "on its place among them"),
    "constant outputs": (lambda: measure(constant), "outputs of all 4 images are equal"),
    "constant outputs, attack": (lambda: pgd(constant), "outputs of all 4 images are equal"),
    "constant outputs, Square": (lambda: square(constant), "outputs of all 4 images are equal"),
    "constant outputs, AutoAttack": (lambda: autoattack(constant), "outputs of all 4 images"),
    "AutoAttack, called": (
        lambda: attacks.make("square100", eps=0.1)(constant, X, Y),
        "outputs of all 4 images are equal",
    ),
    "no gradient": (
        lambda: attacks.bim(lambda x: predict(jnp.round(x)), X, Y, eps=0.1),
        "moved no image from its start",
    ),
    "nothing done": (lambda: mine(lambda x: x), "mine returned every image unchanged"),
    "nothing done, called": (lambda: Mine(lambda x: x)(predict, X, Y), "'mine' moved no image"),
    "nothing done, training": (
        lambda: trains_with(lambda x: x),
        "'mine' returned its images unchanged, so that a method would train on clean",
    ),
    "divided twice": (lambda: pgd(eps=8 / 255**2), "eps=0.000123 is less than a tenth of a grey"),
    "divided twice, evaluate": (
        lambda: evaluate(predict, PAIR, "fgsm", eps=8 / 255**2),
        "eps=0.000123 is less than a tenth",
    ),
    "permuted classes": (
        lambda: measure(data=of_another_order()),
        "clean accuracy 0.0% is below chance: are the classes in another order",
    ),
    "permuted classes, AutoAttack": (
        lambda: attacks.autoattack(
            predict,
            of_another_order()[0] / np.float32(255),
            of_another_order()[1],
            eps=0.1,
            version="custom",
            attacks="apgd-ce",
            steps=1,
            progress=False,
        ),
        "clean accuracy 0.0% is below chance",
    ),
    "a linf radius in L2": (
        lambda: pgd(eps=8 / 255, norm="l2"),
        "small radius in L2, where 0.25 to 2",
    ),
    "a linf radius in L2, evaluate": (
        lambda: evaluate(predict, PAIR, "fgsm", eps=8 / 255, norm="l2"),
        "eps=0.0314 is a small radius in L2",
    ),
    "divided twice, AutoAttack": (lambda: autoattack(eps=8 / 255**2), "eps=0.000123 is less than"),
    "rand without a key": (
        lambda: attacks.autoattack(predict, X, Y, eps=0.1, version="rand", steps=1, progress=False),
        "version='rand' is for randomised networks, but predict takes no key",
    ),
    "a cosine beyond the run": (
        lambda: parts(student_optim=optim.make(optim.OptimConfig(schedule="cosine"), 9), epochs=2),
        "student_optim is made for 9 epochs, but Parts has epochs=2: its schedule does not come to its end",
    ),
    "no gradient, random start": (
        lambda: pgd(lambda x: predict(jnp.round(4 * x))),
        "moved no image from its start",
    ),
}


@pytest.mark.parametrize("name", SUSPICIONS)
def test_what_may_be_meant_is_told(name):
    call, message = SUSPICIONS[name]
    with pytest.warns(UserWarning, match=message):
        call()


def test_what_is_told_is_kept_with_the_result():
    with pytest.warns(UserWarning, match="depend on the other images"):
        found = autoattack(of_the_batch)
    assert "depend on the other images" in " ".join(found.warnings)
    assert not autoattack(predict).warnings


@pytest.mark.parametrize("pure", [True, False])
def test_an_attack_of_ones_own(pure):
    """Of NumPy where it runs on the host; it is run once for each image, padding left out."""
    seen = []

    def darker(images):
        seen.append(len(images))
        return (jnp if pure else np).clip(images - 0.1, 0, 1)

    found = evaluate.evaluate(predict, PAIR, {"mine": Mine(darker, pure=pure)}, batch_size=3)
    darkened = np.clip(PAIR[0] / np.float32(255) - np.float32(0.1), 0, 1)
    np.testing.assert_array_equal(found["flags"].predicted["mine"], predict(darkened).argmax(-1))
    assert pure or sum(seen) == 4


def test_an_evaluation_without_jit():
    few = {name: attacks.make(name, eps=0.1, steps=2) for name in ("pgd_sat", "cw_inf")}
    want = evaluate.evaluate(predict, PAIR, few, batch_size=3)
    with jax.disable_jit():
        found = evaluate.evaluate(predict, PAIR, few, batch_size=3)
    assert found["attacks"] == want["attacks"]


def test_logits_of_16_bits_do_not_overflow():
    first, second = jnp.full((2, 3), 6e4, jnp.float16), jnp.ones((2, 3), jnp.float16)
    found = losses.kl_divergence(first, second, 0.5)
    assert found.dtype == jnp.float32 and np.isfinite(found).all()


def test_an_evaluation_inside_of_vmap():
    def accuracy(weights):
        return measure(lambda x: x.reshape(len(x), -1) @ weights)["clean"]

    with pytest.raises(ValueError, match="jit, vmap or grad around this call"):
        jax.vmap(accuracy)(jnp.ones((2, 64, 5)))


def test_a_record_stays_as_it_was_checked():
    config = optim.OptimConfig(lr=0.1)
    with pytest.raises(AttributeError, match="OptimConfig is frozen: make a new one.*lr=5.0"):
        config.lr = 5.0


def test_a_name_of_blanks():
    with pytest.raises(ValueError, match="no text with a letter"):
        measure(names={" ": attacks.make("fgsm", eps=0.1)})


def test_an_attack_can_be_called():
    made = attacks.make("pgd_sat", eps=0.1, steps=1)
    np.testing.assert_array_equal(made(predict, X, Y, KEY), pgd())
    with pytest.warns(UserWarning, match="1 step of 0.025 go less than half of eps=0.1"):
        found = evaluate.evaluate(predict, PAIR, made)
    assert list(found["attacks"]) == ["pgd_sat"]


def test_soft_labels_are_no_logits():
    soft = jax.nn.softmax(Z)
    loss = losses.cross_entropy(jnp.asarray(Z), soft)
    np.testing.assert_allclose(loss, -(soft * jax.nn.log_softmax(Z)).sum(-1), rtol=1e-6)


def test_the_rate_of_a_cycle_stays_0_past_its_end():
    made = optim.make(optim.OptimConfig(lr=0.1, schedule="cyclic"), 1, 4)
    rates = [float(made.lr(1, optim.Counted((), jnp.int32(n)))) for n in (0, 2, 4, 6)]
    np.testing.assert_allclose(rates, [0, 0.1, 0, 0], atol=1e-8)


def test_the_module_of_evaluate_is_the_function():
    assert evaluate(predict, PAIR, "fgsm", eps=0.1)["attacks"] == measure()["attacks"]
    with pytest.raises(ValueError, match="unknown attack 'nope'"):
        evaluate(predict, PAIR, "nope")


def test_an_attack_is_a_constant_where_its_images_are_differentiated():
    gradient = jax.grad(lambda x: pgd_on(x).sum())(jnp.asarray(X))
    np.testing.assert_array_equal(gradient, 0)


def test_a_radius_may_be_traced_in_functions():
    found = jax.jit(lambda eps: attacks.pgd(predict, X, Y, KEY, eps=eps, steps=1))(0.1)
    np.testing.assert_allclose(found, pgd(), atol=1e-6)
    apgd_found = jax.jit(lambda eps: attacks.apgd(predict, X, Y, KEY, eps=eps, steps=1).best)(0.1)
    assert abs(apgd_found - X).max() <= 0.1 + 1e-6


def test_a_seed_is_a_key_of_initial_values():
    jax.tree.map(np.testing.assert_array_equal, NET.init(0), NET.init(KEY))
