"""Arguments of attacks, losses and `evaluate`: plain meanings are taken, the rest is one ValueError."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, evaluate, losses
from ard_jax.attacks.auto_attack.attack import autoattack
from ard_jax.data.base import ArrayDataset
from ard_jax.evaluation.evaluator import Evaluator

KEY = jax.random.key(0)
W = jax.random.normal(jax.random.key(1), (64, 5))
X = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
Y = np.array([0, 1, 2, 4], np.int32)


def predict(x):
    return x.reshape(len(x), -1) @ W


def pixel_attack(name):
    def run(x=X, y=Y, key=KEY, f=predict):
        return getattr(attacks, name)(f, x, y, key, eps=0.1, steps=1)

    return run


def fgsm(x=X, y=Y, key=KEY, f=predict):
    return attacks.fgsm(f, x, y, key, eps=0.1)


def apgd(x=X, y=Y, key=KEY, f=predict):
    return attacks.apgd(f, x, y, key, eps=0.1, steps=1).images


def fab(x=X, y=Y, key=KEY, f=predict):
    return attacks.fab(f, x, y, key, eps=0.1, steps=1).images


def square(x=X, y=Y, key=KEY, f=predict):
    return attacks.square(f, x, y, key, eps=0.1, queries=1).images


def whole(x=X, y=Y, key=KEY, f=predict):
    del key  # it takes a seed
    return autoattack(
        f, x, y, eps=0.1, version="custom", attacks=("square",), queries=1, progress=False
    ).images


PIXEL = ("pgd", "bim", "targeted_pgd", "ciard_pgd", "trades_pgd", "cw_linf", "dpgd")
ATTACKS = {name: pixel_attack(name) for name in PIXEL}
ATTACKS |= {f.__name__: f for f in (fgsm, apgd, fab, square, whole)}
NAN = X.copy()
NAN[1, 2, 3] = np.nan
# name -> (arguments, message)
BAD = {
    "uint8": ({"x": (255 * X).astype(np.uint8)}, "images are uint8; .*divide uint8 by 255"),
    "pixels to 255": ({"x": 255 * X}, r"images are from .* outside \[0, 1\]; divide by 255"),
    "normalised": ({"x": 2 * X - 1}, "outside .*are they normalised"),
    "NaN": ({"x": NAN}, "images hold NaN or infinite values"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "there is nothing in them"),
    "no batch": ({"x": X[0, :, 0, 0], "y": Y[0]}, "add a batch axis"),
    "channels first": (
        {"x": X.transpose(0, 3, 1, 2)},
        r"\(4, 1, 8, 8\), channels first; .*transpose",
    ),
    "text": ({"x": "images"}, "images must be an array of numbers, not str 'images'"),
    "one-hot": ({"y": np.eye(5, dtype=np.float32)[Y]}, r"labels of shape \(4, 5\) .*not one-hot"),
    "another batch": ({"y": Y[:3]}, r"labels of shape \(3,\) for a batch of 4: give \[4\]"),
    "float labels": ({"y": Y.astype(np.float32)}, r"labels are float32; .*astype\(int\)"),
    "text labels": ({"y": ["a", "b", "c", "d"]}, "labels must be an array of numbers"),
    "label 5 of 5": ({"y": Y + 1}, "labels are from 1 to 5, but there are 5 classes.*count from 1"),
    "negative": ({"y": Y - 1}, "labels are from -1 to 3, but there are 5 classes, 0 to 4"),
    "key as text": ({"key": "0"}, "key='0': give jax.random.key"),
    "negative seed": ({"key": -1}, "key=-1: a seed must be from 0"),
    "no logits": ({"f": lambda x: x.sum((1, 2, 3))}, "logits"),
}
UNUSED = {("whole", "key")}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_input_is_one_error(attack, case):
    arguments, message = BAD[case]
    if (attack, *arguments) in UNUSED or (attack == "trades_pgd" and "classes" in message):
        return  # TRADES' attack looks at no labels
    with pytest.raises(ValueError, match=message):
        ATTACKS[attack](**arguments)


@pytest.mark.parametrize("attack", ATTACKS)
def test_plain_meanings_are_taken(attack):
    expected = np.asarray(ATTACKS[attack]())
    for same in (
        {"x": X.tolist(), "y": Y.tolist(), "key": 0},
        {"x": X.astype(np.float64), "y": Y.astype(np.int64), "key": jax.random.PRNGKey(0)},
        {"x": jnp.asarray(X), "y": tuple(Y.tolist())},
    ):  # fmt: skip
        np.testing.assert_array_equal(ATTACKS[attack](**same), expected)


def test_labels_may_be_missing_where_the_loss_needs_none():
    assert attacks.trades_pgd(predict, X, None, KEY, eps=0.1, steps=1).shape == X.shape
    for name in ("pgd", "dpgd", "apgd", "fab", "square", "whole"):
        with pytest.raises(ValueError, match="labels are None"):
            ATTACKS[name](y=None)


def test_what_jit_traces_cannot_be_looked_at():
    found = jax.jit(lambda x, y: attacks.pgd(predict, x, y, KEY, eps=0.1, steps=1))(NAN, Y + 1)
    assert found.shape == X.shape


Z = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
WITH_LABELS = {
    "cross_entropy": losses.cross_entropy,
    "boosted_cross_entropy": losses.boosted_cross_entropy,
    "cw_margin": losses.cw_margin,
    "dlr": losses.dlr,
    "dice_loss": losses.dice_loss,
    "label_squared_error": losses.label_squared_error,
    "mart_kl": lambda z, y: losses.mart_kl(z, Z, y),
    "push_loss": lambda z, y: losses.push_loss(z, Z, y),
    "targeted_dlr": lambda z, y: losses.targeted_dlr(z, y, (Y + 1) % 5),
    "dpgd_objective": lambda z, y: losses.dpgd_objective(z, y, 0.1),
}


@pytest.mark.parametrize("name", WITH_LABELS)
def test_losses_check_the_same(name):
    loss = WITH_LABELS[name]
    expected = loss(Z, Y)
    for taken in (Y.tolist(), jnp.asarray(Y), Y.astype(np.int64)):
        np.testing.assert_array_equal(loss(Z.tolist(), taken), expected)
    for labels, message in (
        (Y + 1, "labels are from 1 to 5"),
        (Y - (2 if name == "dpgd_objective" else 1), "labels are from -"),  # -1 is its padding
        (np.eye(5, dtype=int)[Y], "not one-hot"),
        (Y.astype(np.float32), "labels are float32"), (Y[:2], "labels of shape"), ("text", "labels must be"),
        (None, "labels are None"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            loss(Z, labels)
    if name == "cross_entropy":  # takes distributions
        np.testing.assert_allclose(loss(Z, np.eye(5)[Y]), expected, rtol=1e-6)
    else:
        with pytest.raises(ValueError, match="not one-hot"):
            loss(Z, np.eye(5)[Y])
    with pytest.raises(ValueError, match=r"logits have shape \(5,\)"):
        loss(Z[0], Y)
    with pytest.raises(ValueError, match="logits are int32"):
        loss(Z.astype(np.int32), Y)


TEST = ArrayDataset((255 * X).astype(np.uint8), Y, tuple("abcde"), "five", "test")


def test_evaluate_takes_one_name_and_plain_arrays():
    expected = evaluate.evaluate(predict, TEST, ("fgsm",), eps=0.1)
    assert evaluate.evaluate(predict, TEST, "fgsm", eps=0.1)["attacks"] == expected["attacks"]
    for images in (TEST.images, TEST.images / np.float32(255)):
        for labels in (Y, Y.tolist()):
            found = evaluate.evaluate(predict, (images, labels), "fgsm", eps=0.1)
            assert found["attacks"] == expected["attacks"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "dataset is ndarray; give a split"),
        ((X, Y), "floats between the 256 grey levels"),
        ((255 * X, Y), "divide by 255"),
        ((TEST.images, Y + 1), "count from 1"),
        ((TEST.images, np.eye(5)[Y]), "not one-hot"),
        ((TEST.images[0], Y), r"give \[N,H,W,C\]"),
    ],
)
def test_evaluate_refuses_what_has_no_plain_meaning(data, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(predict, data, "fgsm", eps=0.1)


@pytest.mark.parametrize("outputs", [4, 6])
def test_a_network_has_one_output_for_each_class(outputs):
    weights = jax.random.normal(KEY, (64, outputs))
    with pytest.raises(ValueError, match=f"{outputs} outputs, but five has 5 classes"):
        evaluate.evaluate(lambda x: x.reshape(len(x), -1) @ weights, TEST, "fgsm", eps=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_count_as_wrong(bad):
    sums = TEST.images.astype(np.float32).sum((1, 2, 3)) / 255

    def network(x):  # right on all four but for the outputs of the third
        nearest = jnp.abs(x.sum((1, 2, 3))[:, None] - sums).argmin(1)
        right = 3 * jax.nn.one_hot(jnp.asarray(Y)[nearest], 5)
        return jnp.where((nearest == 2)[:, None], bad, right + 0.01 * predict(x))

    with pytest.warns(
        UserWarning, match="NaN or infinite, which counts as wrong: 1 of 4 under clean"
    ):
        found = evaluate.evaluate(network, TEST, "fgsm", eps=4e-4, batch_size=4)
    assert found["clean"] == 0.75 and found["flags"].predicted["clean"].tolist()[2] == -1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_autoattack_counts_them_as_wrong_too():
    def network(x):
        return predict(x).at[0].set(jnp.nan)

    found = autoattack(
        network,
        X[:1],
        Y[:1],
        eps=0.1,
        version="custom",
        attacks=("square",),
        queries=1,
        progress=False,
    )
    assert not found.robust.any() and any("count as wrong" in text for text in found.warnings)


@pytest.mark.parametrize("name", ["pgd_sat", "tpgd", "pgd_trades", "dpgd_strong", "apgd_ce"])
def test_a_result_does_not_depend_on_the_batch_size(name):
    rng = np.random.default_rng(3)
    data = ArrayDataset(
        rng.integers(0, 256, (37, 8, 8, 1), np.uint8), rng.integers(0, 5, 37).astype(np.int32),
        tuple("abcde"), "random", "test",
    )  # fmt: skip
    spec = attacks.make(name, eps=0.02)
    if name == "dpgd_strong":
        spec = attacks.make(name, eps=0.02, dice="per_sample")
    found = [
        evaluate.evaluate(predict, data, {name: spec}, batch_size=size)["flags"].predicted[name]
        for size in (1, 8, 64)
    ]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_padding_is_no_part_of_a_batch_dice():
    """Three images in batches of 8: as three images alone."""
    data = ArrayDataset(TEST.images[:3], Y[:3], tuple("abcde"), "three", "test")
    spec = attacks.make("dpgd", eps=0.05, steps=3)
    padded = Evaluator("padded", lambda _, x: predict(x), batch_size=16).run(
        (), data, {"dpgd": spec}
    )
    alone = attacks.dpgd(predict, TEST.images[:3] / np.float32(255), Y[:3], eps=0.05, steps=3)
    expected = np.argmax(predict(alone), -1)
    np.testing.assert_array_equal(padded.predicted["dpgd"], expected)


SIGNS = {
    "stopped gradient": (lambda x: jax.lax.stop_gradient(predict(x)), "gradient"),
    "probabilities": (lambda x: jax.nn.softmax(predict(x)), "look like probabilities"),
}


@pytest.mark.parametrize("name", SIGNS)
def test_evaluate_warns_where_a_failed_attack_means_nothing(name):
    network, text = SIGNS[name]
    labels = np.asarray(predict(TEST.images / np.float32(255)).argmax(-1), np.int32)
    with pytest.warns(UserWarning, match=text):
        evaluate.evaluate(network, (TEST.images, labels), "fgsm", eps=0.1)


def test_no_attack_is_no_evaluation():
    with pytest.raises(ValueError, match="attacks is empty"):
        evaluate.evaluate(predict, TEST, ())


def test_an_attack_without_a_meaning_for_so_few_classes_is_refused():
    three = ArrayDataset(
        TEST.images, np.array([0, 1, 2, 0], np.int32), tuple("abc"), "three", "test"
    )
    with pytest.raises(ValueError, match="'apgd_t' needs at least 4 classes, but the data has 3"):
        evaluate.evaluate(lambda x: predict(x)[:, :3], three, "apgd_t")


@pytest.mark.parametrize("attack", [attacks.apgd, attacks.fab])
def test_targets_are_other_classes(attack):
    options = {"eps": 0.1, "steps": 1} | (
        {"loss": "targeted_dlr"} if attack is attacks.apgd else {}
    )
    for targets, message in (
        (Y, "own label"),
        (np.full(4, 5), "targets are from 5 to 5"),
        (Y[:2], "of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(predict, X, Y, KEY, targets=targets, **options)
