"""The train step around a method: averages of the student, seeds, epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax.methods import Method
from ard_jax.runtime import sharding
from ard_jax.state import NetState, RunState
from ard_jax.training import train_step
from ard_jax.training.run import EvaluationEpochs


def counting_method():
    """A student of one parameter that counts its updates, and draws a number from the key."""

    def step(state, batch, key):
        params = {"w": state.student.params["w"] + 1.0}
        student = NetState(params, {"mean": state.student.batch_stats["mean"] + 2.0}, None)
        metrics = {
            "drawn": jax.random.uniform(key),
            "seen_epoch": batch["epoch"].astype(jnp.float32),
        }
        return state.replace(student=student), metrics

    return Method(lambda v, t: None, step)


def run(count, **options):
    """States and metrics after each of `count` updates, 3 an epoch."""
    mesh = sharding.make_mesh(1)
    config = train_step.StepConfig(steps_per_epoch=3, augment="none", **({"seed": 0} | options))
    student = NetState({"w": jnp.zeros(())}, {"mean": jnp.zeros(())}, None)
    state = RunState(jnp.zeros((), jnp.int32), student, {}, None, {})
    state = sharding.put_replicated(mesh, train_step.start_average(state, config))
    step = train_step.build(counting_method(), config, mesh)
    batch = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2, np.int32)}
    found = []
    for _ in range(count):
        state, metrics = step(jax.tree.map(jnp.copy, state), batch)
        found.append((state, metrics))
    return found


def test_swa_is_the_mean_of_the_epoch_ends_from_its_start():
    averages = [float(state.ema["params"]["w"]) for state, _ in run(13, swa_start=2)]
    # Before the end of epoch 2 (update 6) the student itself; then the mean of updates 6, 9, 12.
    assert averages == pytest.approx([1, 2, 3, 3, 3, 6, 6, 6, 7.5, 7.5, 7.5, 9, 9])


def test_swa_averages_running_statistics_too():
    state, _ = run(12, swa_start=3)[-1]
    assert float(state.ema["batch_stats"]["mean"]) == pytest.approx((18 + 24) / 2)


def test_statistics_of_an_average_are_copied_or_left_to_a_pass():
    copied, _ = run(5, ema_decay=0.9, average_bn="copied")[-1]
    assert float(copied.ema["batch_stats"]["mean"]) == 10.0  # the student's
    left, _ = run(12, swa_start=3, average_bn="recomputed")[-1]
    assert float(left.ema["batch_stats"]["mean"]) == 0.0
    assert float(left.ema["params"]["w"]) == pytest.approx((9 + 12) / 2)


def labels_seen(smoothing, **mixing):
    """What a method is given of four images of their own grey level and labels 0, 1, 2, 0."""

    def step(state, batch, key):
        return state.replace(method={"seen": {k: batch[k] for k in KEPT if k in batch}}), {}

    seen = {"image": jnp.zeros((4, 6, 6, 1)), "label": jnp.zeros(4, jnp.int32)}
    seen["soft_label"] = jnp.zeros((4, 3))
    config = train_step.StepConfig(
        seed=0, steps_per_epoch=3, augment="none", label_smoothing=smoothing, num_classes=3, **mixing,
    )  # fmt: skip
    mesh = sharding.make_mesh(1)
    state = RunState(
        jnp.zeros((), jnp.int32), NetState({"w": jnp.zeros(())}, {}), {}, None, {"seen": seen}
    )
    grey = np.array([10, 20, 30, 40], np.uint8)[:, None, None, None]
    images = np.broadcast_to(grey, (4, 6, 6, 1))
    batch = {"image": images, "label": np.array([0, 1, 2, 0], np.int32)}
    build = train_step.build(Method(lambda v, t: None, step), config, mesh)
    return build(sharding.put_replicated(mesh, state), batch)[0].method["seen"]


KEPT = ("image", "label", "soft_label")


def test_smoothed_labels():
    seen = labels_seen(0.3)
    assert seen["label"].tolist() == [0, 1, 2, 0]
    np.testing.assert_allclose(seen["soft_label"][1], [0.1, 0.8, 0.1], atol=1e-7)
    assert "soft_label" not in labels_seen(0.0)


def test_mixed_images_have_labels_of_their_parts():
    seen = jax.tree.map(np.asarray, labels_seen(0.3, cutmix=1.0))
    of_pixel = np.array([0, 1, 2, 0])[np.round(seen["image"][..., 0] * 255).astype(int) // 10 - 1]
    for i, classes in enumerate(of_pixel):
        share = np.bincount(classes.ravel(), minlength=3) / classes.size
        np.testing.assert_allclose(seen["soft_label"][i], 0.7 * share + 0.1, atol=1e-6)
        assert share[seen["label"][i]] == share.max()


def test_ema():
    expected, average = 0.0, []
    for update in range(1, 5):
        expected = 0.9 * expected + 0.1 * update
        average.append(expected)
    assert [float(s.ema["params"]["w"]) for s, _ in run(4, ema_decay=0.9)] == pytest.approx(average)


def test_no_average_unless_asked():
    assert run(1)[0][0].ema is None


def test_epochs_count_from_one_and_seeds_differ():
    metrics = [m for _, m in run(7)]
    assert [int(m["seen_epoch"]) for m in metrics] == [1, 1, 1, 2, 2, 2, 3]
    drawn = [float(m["drawn"]) for m in metrics]
    assert len(set(drawn)) == 7
    assert [float(m["drawn"]) for _, m in run(7)] == drawn
    assert float(run(1, seed=1)[0][1]["drawn"]) != drawn[0]


def test_evaluated_epochs_need_no_memory():
    epochs = EvaluationEpochs(10**6, every=10, dense_from=10**6 - 3)
    assert [e for e in range(1, 32) if e in epochs] == [1, 10, 20, 30]
    assert [10**6 - 4 + i in epochs for i in range(5)] == [False, True, True, True, True]
    assert [e for e in range(1, 8) if e in EvaluationEpochs(7, every=5)] == [1, 5, 7]


def test_a_method_of_two_views_gets_another_augmentation_of_the_same_images():
    def step(state, batch, key):
        gaps = jnp.abs(batch["image"] - batch["view"])
        return state, {"pixels": jnp.max(gaps), "sum": jnp.sum(batch["view"])}

    found = {}
    images = np.arange(1, 65, dtype=np.uint8).reshape(4, 4, 4, 1)
    method, mesh = Method(lambda v, t: None, step, views=2), sharding.make_mesh(1)
    for augment in ("none", "crop"):
        config = train_step.StepConfig(seed=0, steps_per_epoch=3, augment=augment, pad=1)
        student = NetState({"w": jnp.zeros(())}, {}, None)
        state = sharding.put_replicated(
            mesh, RunState(jnp.zeros((), jnp.int32), student, {}, None, {})
        )
        batch = {"image": images, "label": np.zeros(4, np.int32)}
        _, found[augment] = train_step.build(method, config, mesh)(state, batch)
    assert float(found["none"]["pixels"]) == 0 and float(found["crop"]["pixels"]) > 0
    assert float(found["none"]["sum"]) == pytest.approx(images.sum() / 255, rel=1e-6)
