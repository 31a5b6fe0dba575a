"""Will this teacher help: numbers of an image by hand, an unlearnable set, and what is judged of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, models
from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.data import ArrayDataset
from ard_jax.evaluation import teacher_quality as quality
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.reporting import teacher_tables
from ard_jax.reporting.record import Quartiles, TeacherQuality, TeacherView

SHAPE, CLASSES = (2, 2, 1), 3
W = np.random.default_rng(0).normal(size=(4, CLASSES)).astype(np.float32)
X = np.random.default_rng(1).random((5, *SHAPE)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1], np.int32)
D = np.random.default_rng(2).uniform(-0.1, 0.1, X.shape).astype(np.float32)


def linear(x):
    return x.reshape(len(x), -1) @ W


def centred(z):
    return z - z.mean(1, keepdims=True)


def test_a_linear_network_has_no_remainder():
    found = jax.jit(lambda x: quality.per_image(linear, x, Y, {"moved": x + D}))(X)
    assert set(found) == {"clean", "moved"}
    for name in ("first_order", "central"):
        np.testing.assert_allclose(found["moved"][name], 0, atol=1e-5)
    for name, x in (("clean", X), ("moved", X + D)):
        z = np.float64(linear(x))
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        np.testing.assert_array_equal(found[name]["right"], z.argmax(1) == Y)
        np.testing.assert_allclose(found[name]["confidence"], p.max(1), rtol=1e-5)
        np.testing.assert_allclose(found[name]["entropy"], -(p * np.log(p)).sum(1), rtol=1e-5)


def test_the_remainder_of_a_square_by_hand():
    """z = (x W)^2: its first-order remainder is (d W)^2, and nothing of it is in the central difference."""
    found = quality.per_image(lambda x: linear(x) ** 2, X, Y, {"moved": X + D})["moved"]
    rest, whole = centred(linear(D) ** 2), centred(linear(X + D) ** 2)
    want = np.linalg.norm(rest, axis=1) / np.linalg.norm(whole, axis=1)
    assert want.min() > 1e-4
    np.testing.assert_allclose(found["first_order"], want, rtol=1e-3)
    np.testing.assert_allclose(found["central"], 0, atol=1e-4)


def test_the_remainder_of_a_cube_is_in_the_central_difference():
    found = quality.per_image(lambda x: linear(x) ** 3, X, Y, {"moved": X + D})["moved"]
    rest = centred(2 * linear(D) ** 3)
    whole = centred(linear(X + D) ** 3 - linear(X - D) ** 3)
    want = np.linalg.norm(rest, axis=1) / np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(found["central"], want, rtol=2e-2)


def test_an_image_that_nothing_moves_has_no_error():
    flat = lambda x: 0 * linear(x)  # noqa: E731
    found = quality.per_image(flat, X, Y, {"moved": X})["moved"]
    assert not np.any(found["first_order"]) and not np.any(found["central"])


def test_slopes_of_our_convolutions_are_those_of_forward_mode():
    """`per_image` takes J d by reverse mode, as our convolutions have no forward mode."""
    net = models.create("small_cnn", CLASSES, (8, 8, 1), widths=(3, 4))
    variables = net.init(jax.random.key(0))
    x, d = (jax.random.uniform(jax.random.key(i), (2, 8, 8, 1)) / 4 + 0.1 for i in (1, 2))
    predict = lambda x: net.apply(variables, x, False)[0]  # noqa: E731
    found = jax.jit(lambda x: quality.per_image(predict, x, Y[:2], {"moved": x + d}))(x)["moved"]

    @jax.jit
    def by_forward_mode(x):
        z, slope = jax.jvp(predict, (x,), (d,))
        moved = predict(x + d)
        return moved - z - slope, moved

    with exported_convolutions("stock"):
        rest, whole = map(centred, by_forward_mode(x))
    want = np.linalg.norm(rest, axis=1) / np.linalg.norm(whole, axis=1)
    assert want.min() > 1e-4
    np.testing.assert_allclose(found["first_order"], want, rtol=1e-3)


def evaluator(weights):
    return Evaluator(
        "net", lambda v, x: x.reshape(len(x), -1) @ v, batch_size=8, unroll=1
    ), jnp.asarray(weights)


def test_unlearnable_images_are_those_that_every_student_misses():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (19, *SHAPE), np.uint8)
    labels = rng.integers(0, CLASSES, 19).astype(np.int32)
    data = ArrayDataset(images, labels, ("a", "b", "c"), "made up", "test")
    attack = attacks.make("fgsm", eps=0.1)
    students = {"one": evaluator(W), "two": evaluator(W[::-1])}
    found = quality.measure(*evaluator(2 * W), data, attack, students)
    assert list(found.views) == [
        "clean", "uniform noise", "attack on it", "attack on one", "attack on two",
    ]  # fmt: skip
    x, missed, h = images / np.float32(255), [], []
    for w in (W, W[::-1]):
        predict = lambda x, w=w: x.reshape(len(x), -1) @ w  # noqa: E731
        moved = attack.run(predict, x, labels)
        missed.append(np.asarray(predict(moved)).argmax(1) != labels)
        h.append(quality.answers(2 * linear(moved), labels)["entropy"])
    lost = missed[0] & missed[1]
    assert 0 < lost.sum() < 19
    assert found.students == pytest.approx(
        {"one": 1 - missed[0].mean(), "two": 1 - missed[1].mean()}
    )
    assert found.unlearnable.count == lost.sum()
    assert found.unlearnable.share == pytest.approx(lost.mean())
    mean = np.mean(h, axis=0)
    assert found.unlearnable.entropy.mean == pytest.approx(mean[lost].mean(), rel=1e-5)
    assert found.unlearnable.entropy_elsewhere.median == pytest.approx(
        np.median(mean[~lost]), rel=1e-5
    )
    # The same network with larger logits is attacked alike.
    assert found.views["attack on it"].accuracy == pytest.approx(1 - missed[0].mean())


def record(own, remainder=0.1, at_student=None, student=0.5):
    """A teacher of 90 % clean accuracy on 1000 images of 10 classes."""

    def view(accuracy):
        points = Quartiles(mean=remainder, low=0.0, median=remainder, high=1.0)
        return TeacherView(accuracy=accuracy, confidence=points, entropy=points, first_order=points)

    views = {"clean": view(0.9), "uniform noise": view(0.9), "attack on it": view(own)}
    students = {}
    if at_student is not None:
        views["attack on s"], students = view(at_student), {"s": student}
    return TeacherQuality(
        attack="PGD", num_examples=1000, num_classes=10, views=views, students=students
    )


@pytest.mark.parametrize(
    ("given", "verdict", "answers"),
    [
        (record(0.6), "fit", ["yes", "unclear"]),
        (record(0.6, 0.01), "fit", ["yes", "yes"]),
        (record(0.6, 0.5), "fit", ["yes", "no"]),  # of use for methods that match no gradients
        (record(0.0, 0.5), "unfit", ["no", "no"]),
        (record(0.11), "unfit", ["no", "unclear"]),  # guessing
        (record(0.2), "unfit", ["no", "unclear"]),
        (record(0.3), "doubtful", ["unclear", "unclear"]),
        (record(0.6, at_student=0.7), "fit", ["yes", "unclear", "yes", "no"]),
        (record(0.6, at_student=0.4), "unfit", ["yes", "unclear", "no", "no"]),
        (record(0.3, at_student=0.7), "doubtful", ["unclear", "unclear", "yes", "no"]),
    ],
)
def test_judgement(given, verdict, answers):
    found = quality.judge(given)
    assert found.verdict == verdict
    assert [one.answer for one in found.findings] == answers
    assert all(one.threshold and one.evidence for one in found.findings)
    told = teacher_tables.lines("it", found)
    assert told[0] == f"it: {verdict} as a robust teacher" and len(told) > len(answers)
    assert TeacherQuality.from_json(found.to_json()) == found


def test_a_teacher_that_was_not_judged_is_in_the_table_alone():
    given = dataclasses.replace(record(0.6), verdict="")
    assert teacher_tables.lines("it", given) == []
    table = teacher_tables.table({"it": given})
    assert [row[0].text for row in table.cells()] == [f"it, {name}" for name in given.views]
    assert table.cells()[0][2].text == "0.10 (0.00 0.10 1.00)"
    assert teacher_tables.table({}) is None


def test_outputs_that_are_not_finite_are_wrong():
    z = np.eye(CLASSES, dtype=np.float32)[Y]
    z[0], z[1, 2] = np.nan, np.inf
    assert quality.answers(jnp.asarray(z), Y)["right"].tolist() == [False, False, True, True, True]


def test_arguments_of_another_kind_are_named():
    with pytest.raises(ValueError, match="evaluator is function; give"):
        quality.measure(linear, {}, None, None)
