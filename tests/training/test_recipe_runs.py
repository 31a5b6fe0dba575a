"""Averages with recomputed statistics, and further images, in the loop: what is evaluated, exact resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_on_device import BATCH, SIZE, dataset, phase

from ard_jax.data.extra import open_extra
from ard_jax.methods import Method
from ard_jax.models.bundle import ModelBundle
from ard_jax.runtime import preemption, sharding
from ard_jax.state import NetState, RunState
from ard_jax.training import loop, train_step

SPE = -(-SIZE // BATCH)


def one_layer():
    """A network of one weight, whose running statistic is the mean of what it is shown times the weight."""

    def apply(variables, images, train):
        value = variables["params"]["w"] * jnp.mean(images)
        kept = variables["batch_stats"]["mean"]
        after = {"mean": 0.9 * kept + (1 - 0.9) * value} if train else {"mean": kept}
        return jnp.zeros((len(images), 3)) + value, after

    def init(key):
        return {"params": {"w": jnp.ones(())}, "batch_stats": {"mean": jnp.zeros(())}}

    return ModelBundle("one", 3, (4, 4, 1), "none", init, apply)


def counting():
    """Each update adds what was seen to the weight."""

    def step(state, batch, key):
        seen = jnp.mean(batch["image"]) + jnp.mean(batch["label"]) + jax.random.uniform(key)
        params = {"w": state.student.params["w"] + seen}
        student = NetState(params, {"mean": state.student.batch_stats["mean"] + 1.0})
        return state.replace(student=student), {"loss": seen}

    return Method(lambda v, t: None, step)


def start():
    variables = one_layer().init(None)
    return RunState(jnp.zeros((), jnp.int32), NetState(**variables), {}, None, {})


def swa_run(folder, evaluated=None, **options):
    config = train_step.StepConfig(
        seed=0, steps_per_epoch=SPE, augment="none", swa_start=2, average_bn="recomputed"
    )

    def evaluate(state):
        if evaluated is not None:
            evaluated.append(jax.device_get(state.ema))
        return {"student": {"clean": float(state.step)}}

    values = {"method": counting(), "initial": start, "step": config, "bundle": one_layer()}
    values |= {"evaluate": evaluate, "epochs": 4, "eval_epochs": frozenset({3, 4})}
    return loop.fit(phase(folder, **values | options))


def extra(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "extra.npz"
    np.savez(path, image=rng.integers(0, 256, (9, 4, 4, 1), np.uint8), label=np.arange(9) % 3)
    return open_extra(path, dataset(), 0.5, BATCH)


def test_a_stopped_run_ends_in_the_same_bits(tmp_path, monkeypatch):
    options = {"extra": extra(tmp_path)}
    whole = jax.device_get(swa_run(tmp_path / "whole", **options).last)
    asked = []
    monkeypatch.setattr(
        preemption, "requested", lambda: asked.append(0) or len(asked) > 3 * SPE - 3
    )
    with pytest.raises(preemption.PreemptedError):
        swa_run(tmp_path / "stopped", **options)
    monkeypatch.undo()
    again = jax.device_get(swa_run(tmp_path / "stopped", **options).last)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert (whole.ema["batch_stats"]["mean"] != whole.student.batch_stats["mean"]).all()


def test_what_is_evaluated_and_saved_has_the_statistics_of_its_own_weights(tmp_path):
    evaluated = []
    result = swa_run(tmp_path, evaluated)
    # Batches of 4 and a last one of 3 count alike, as in PyTorch's update_bn.
    for epoch, average in zip((3, 4), evaluated, strict=True):
        images = dataset().images / np.float32(255)
        run = phase(tmp_path)
        order = [
            loop.batching.batch_indices(SIZE, BATCH, 0, step, "keep")
            for step in range((epoch - 1) * SPE, epoch * SPE)
        ]
        mean = np.mean([images[rows].mean() for rows in order])
        want = average["params"]["w"] * mean
        assert average["batch_stats"]["mean"] == pytest.approx(want, rel=1e-5), run.title
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.last.ema), evaluated[-1])


def test_further_images_train_and_stay_on_disk(tmp_path):
    seen = []

    def step(state, batch, key):
        jax.debug.callback(lambda index: seen.append(np.asarray(index)), batch["index"])
        return state, {"loss": jnp.zeros(())}

    config = train_step.StepConfig(seed=0, steps_per_epoch=SPE, augment="none")
    run = phase(tmp_path / "run", method=Method(lambda v, t: None, step), initial=start, step=config,
                extra=extra(tmp_path), epochs=1, eval_epochs=frozenset({1}))  # fmt: skip
    loop.fit(run)
    jax.effects_barrier()
    assert [(index < 0).sum() for index in seen] == [2] * SPE and sharding.num_devices(
        run.mesh
    ) == 1
