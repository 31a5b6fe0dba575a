"""Mistakes in notebooks: each gives one error, or one warning, that leads to its cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, evaluate, losses, methods, models, optim

KEY = jax.random.key(0)
W = np.asarray(jax.random.normal(jax.random.key(1), (64, 5)))
X = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
Y = np.array([0, 1, 2, 4], np.int32)
Z = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
PAIR = ((255 * X).astype(np.uint8), Y)
NET = models.create("small_cnn", 5, (8, 8, 1))
OPTIM = optim.make(optim.OptimConfig(), 1)


def predict(x):
    return x.reshape(len(x), -1) @ W


def numpy_predict(x):
    return np.asarray(x).reshape(len(x), -1) @ W


def pgd(f=predict, **options):
    return attacks.pgd(f, X, Y, KEY, **({"eps": 0.1, "steps": 1} | options))


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
    "no parts": (lambda: methods.create("natural", NET), "parts is ModelBundle"),
    "student": (lambda: parts(student="resnet18"), "student is str; give models.create"),
    "optimiser": (lambda: parts(student_optim="sgd"), "student_optim is str; give optim.make"),
    "attack": (lambda: parts(attack="sat_train"), "attack is str; give attacks.make"),
    "teacher": (lambda: parts(teachers={"robust": "wrn"}), r"teachers\['robust'\] is str"),
    "epochs": (lambda: parts(epochs=0), "epochs=0: must be an integer >= 1"),
    "BatchNorm": (lambda: parts(attack_bn="Train"), "unknown attack_bn 'Train'"),
    "gamma": (lambda: methods.Awp(gamma=-1), "gamma of AWP=-1"),
    "teacher's images": (
        lambda: methods.create(
            "rslad", parts(teachers={"robust": models.create("small_cnn", 5, (9, 9, 1))})
        ),
        r"takes images of \(9, 9, 1\), the student of \(8, 8, 1\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_error(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


def draws(x):
    return predict(x) + np.random.default_rng().normal(size=(len(x), 5))


def of_the_batch(x):
    return predict(x - 0.5 * x.mean(0))


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
}


@pytest.mark.parametrize("name", SUSPICIONS)
def test_what_may_be_meant_is_told(name):
    call, message = SUSPICIONS[name]
    with pytest.warns(UserWarning, match=message):
        call()


def test_autoattack_tells_of_a_batch_dependent_network():
    assert "depend on the other images" in " ".join(autoattack(of_the_batch).warnings)
    assert "depend on" not in " ".join(autoattack(predict).warnings)


def test_an_attack_can_be_called():
    made = attacks.make("pgd_sat", eps=0.1, steps=1)
    np.testing.assert_array_equal(made(predict, X, Y, KEY), pgd())
    found = evaluate.evaluate(predict, PAIR, made)
    assert list(found["attacks"]) == ["pgd_sat"]


def test_a_seed_is_a_key_of_initial_values():
    jax.tree.map(np.testing.assert_array_equal, NET.init(0), NET.init(KEY))
