"""Attacks that go on where the last one on the same image ended."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import tiny

from ard_jax import attacks, config, loop, optim, phases, preemption, sharding, steps, train
from ard_jax import step_batch as around
from ard_jax.checkpoint import Checkpoints
from ard_jax.data import augment
from ard_jax.methods import Method, Parts, base, given
from ard_jax.models.bundle import ModelBundle
from ard_jax.state import RunState
from ard_jax.step_batch import WarmStart

N, SHAPE, PAD = 12, (6, 5, 3), 2
IMAGE = (8, 8, 1)


def _jitted(function, *static):
    return jax.jit(function, static_argnums=static)


@pytest.mark.parametrize("kind", ["none", "crop", "crop_flip"])
def test_a_perturbation_comes_back_to_the_pixels_it_was_made_for(kind):
    """Store at one crop and mirroring, show at another: every pixel that both show has its own value."""
    pad = augment.padding(kind, PAD)
    keys = (jax.random.split(jax.random.key(i), N) for i in (0, 1))
    draw, window = _jitted(augment.draw, 1, 2), _jitted(augment.window, 2)
    first, second = (draw(k, kind, PAD) for k in keys)
    frame = (N, SHAPE[0] + 2 * pad, SHAPE[1] + 2 * pad, SHAPE[2])
    names = jnp.arange(1, 1 + np.prod(frame)).reshape(
        frame
    )  # every pixel of every frame has its own
    seen = window(names, first, SHAPE)
    kept = jax.jit(augment.put_window)(jnp.zeros(frame, int), first, seen)
    np.testing.assert_array_equal(window(kept, first, SHAPE), seen)
    wanted = window(names, second, SHAPE)
    both = np.isin(wanted, seen)
    np.testing.assert_array_equal(window(kept, second, SHAPE), np.where(both, wanted, 0))
    assert both.any() and (kind == "none") == both.all()
    if kind == "crop_flip":
        assert len(np.unique(first.flip)) == 2 and (first.flip != second.flip).any()


def test_moves_are_those_of_the_augmentation():
    images = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)
    for kind in ("crop", "crop_flip"):
        key = jax.random.key(3)
        moves = _jitted(augment.draw, 1, 2)(jax.random.split(key, N), kind, PAD)
        moved = augment.to_float(_jitted(augment.move, 2)(images, moves, PAD))
        np.testing.assert_array_equal(moved, augment.augment(key, images, kind, pad=PAD))


SPEC = attacks.make("sat_train", eps=0.25, steps=2, step_size=8 / 127 * 0.25)


def test_the_first_attack_starts_by_itself():
    images, key = jnp.full((4, *SHAPE), 0.5), jax.random.key(0)
    known = jnp.array([True, False, True, False])
    kept = given.KeptStart(jnp.full(images.shape, 0.1), known, [])
    start = given.start({"image": images, "kept_start": kept}, SPEC, key)["start"]
    own = np.asarray(SPEC.own_start(images, key))
    np.testing.assert_allclose(start[::2], 0.6, rtol=1e-6)
    np.testing.assert_array_equal(start[1::2], own[1::2])
    # The attack's own: with no step it returns its start (which lies in ball and range).
    end = dataclasses.replace(SPEC, steps=0).run(
        lambda x: x[:, 0, 0], images, jnp.zeros(4, int), key
    )
    np.testing.assert_allclose(own, end, atol=1e-7)
    assert np.std(own) > 0.1


def _init(key):
    keys, pixels = jax.random.split(key), int(np.prod(IMAGE))
    shapes = {"first": (pixels, 16), "second": (16, 10)}
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    return {"params": params, "batch_stats": {}}


def _apply(variables, images, train):
    p = variables["params"]
    hidden = jnp.tanh(images.reshape(len(images), -1) @ p["first"] / 4)
    return hidden @ p["second"], {}


def still(spec, examples=20, devices=1, pad=0, reset=0):
    """(method that attacks and does not train, its step settings, mesh, first state)."""
    net = ModelBundle("two layers", 10, IMAGE, "none", _init, _apply)
    parts = Parts(student=net, student_optim=optim.make(optim.OptimConfig(), 1), attack=spec)

    def step(state, batch, key):
        base.attack(parts, state, batch, key)
        return state, {}

    warm = WarmStart(examples, IMAGE, pad, spec.eps, reset)
    settings = steps.StepConfig(0, 1, "crop_flip" if pad else "none", pad, warm_start=warm)
    mesh = sharding.make_mesh(devices)
    state = base.student_state(parts, net.init(jax.random.key(0)))
    state = sharding.put_replicated(mesh, steps.start_average(state, settings))
    return Method("still", (), (), lambda v, t: None, step), settings, mesh, state


def attacked(count, images, index, spec, **options):
    """RunState after `count` steps, one an epoch, that attack a student and do not train it."""
    *method, mesh, state = still(spec, **options)
    run = steps.build(*method, mesh)
    batch = sharding.put_batch(mesh, {"image": images, "label": index % 10, "index": index})
    for _ in range(count):
        state, _ = run(state, batch)
    return state


@pytest.fixture(scope="module")
def grey():
    # So grey that no step leaves the range of pixels: perturbations are multiples of eps/127.
    images = np.random.default_rng(1).integers(90, 160, (8, *IMAGE), np.uint8)
    return images, np.array([3, 19, 0, 7, 11, 5, 2, 13], np.int32)


def test_two_epochs_of_two_steps_are_one_of_four(grey):
    from_rest = dataclasses.replace(SPEC, start="none")
    twice = attacked(2, *grey, from_rest)
    once = attacked(1, *grey, dataclasses.replace(from_rest, steps=4))
    half = attacked(1, *grey, from_rest)
    np.testing.assert_array_equal(twice.perturbations, once.perturbations)
    assert np.any(np.asarray(half.perturbations) != once.perturbations)
    kept = np.asarray(once.perturbations)
    others = np.setdiff1d(np.arange(20), grey[1])
    assert (kept[others] == -128).all() and np.abs(kept[grey[1]]).max() == 4 * 8


def test_after_a_reset_attacks_start_by_themselves(grey):
    from_rest = dataclasses.replace(SPEC, start="none")
    fresh, again = (attacked(n, *grey, from_rest, reset=2).perturbations for n in (1, 3))
    np.testing.assert_array_equal(fresh, again)  # epochs 1 and 3
    assert np.any(np.asarray(attacked(2, *grey, from_rest, reset=2).perturbations) != fresh)


def test_a_method_without_an_attack_is_told_of(grey):
    warm = WarmStart(20, IMAGE, 0, 0.25, 0)
    settings = steps.StepConfig(0, 1, "none", warm_start=warm)
    state = RunState(jnp.zeros((), jnp.int32), None, {}, None, {}, warm.begin())
    batch = dict(zip(("image", "index"), map(jnp.asarray, grey), strict=True))

    def step(state, batch):
        return around.prepare(settings, state, batch, jax.random.key(0))[1](state)

    with pytest.raises(ValueError, match="0 times in a step.*config.attack.warm_start"):
        jax.eval_shape(step, state, batch)


def test_devices_agree(grey):
    """Each device has a copy of all perturbations, and must see what the others found."""
    alone = np.asarray(attacked(2, *grey, SPEC, pad=1).perturbations)
    shared = attacked(2, *grey, SPEC, devices=4, pad=1).perturbations
    copies = [np.asarray(s.data) for s in shared.addressable_shards]
    assert len(copies) == 4 and all((c == copies[0]).all() for c in copies)
    # A gradient near zero may change its sign with the order of a sum.
    assert np.mean(alone != copies[0]) < 0.01


def test_they_are_changed_in_place(grey):
    """No copy of what is kept for all images is made, and none travels between devices."""
    *method, mesh, state = still(SPEC, examples=5000, devices=2, pad=1)
    images, index = grey
    batch = {"image": images, "label": index % 10, "index": index}
    compiled = steps.program(*method, mesh).lower(state, batch, jax.random.key(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < state.perturbations.nbytes / 10
    travels = [line for line in compiled.as_text().splitlines() if " all-" in line]
    assert travels and not [line for line in travels if "[5000," in line]


def test_checkpoints_hold_them(grey, tmp_path):
    state = attacked(1, *grey, SPEC)
    template = jax.tree.map(jnp.zeros_like, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, template)
    np.testing.assert_array_equal(restored.perturbations, state.perturbations)
    assert restored.perturbations.dtype == jnp.int8


def run_phase(folder, stop=0, monkeypatch=None):
    """The last state of a tiny RSLAD run; with `stop` interrupted at that step and started again."""
    raw = tiny(folder, "sat", attack__warm_start=True)
    e = config.build(raw)
    splits, mesh = train.load_data(e), sharding.make_mesh(1)
    student = train._student(e, splits, mesh)
    phase = phases.student_phase(e, folder / "run", splits, mesh, student, {})
    if stop:
        with monkeypatch.context() as patch, pytest.raises(preemption.PreemptedError):
            asked = iter(range(1, 100))
            patch.setattr(preemption, "requested", lambda: next(asked) >= stop)
            loop.fit(phase)
    return phase, loop.fit(phase).last


@pytest.mark.slow
def test_resumed_run_is_the_same_bit_for_bit(tmp_path, monkeypatch, capsys):
    _, whole = run_phase(tmp_path / "whole")
    phase, parts = run_phase(tmp_path / "parts", stop=7, monkeypatch=monkeypatch)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    kept = np.asarray(whole.perturbations)
    assert kept.dtype == np.int8 and kept.shape == (len(phase.train), 10, 10, 1)
    assert (kept != -128).any() and "Warm start of the attack: 0.1 MB" in capsys.readouterr().out


def test_off_it_leaves_no_trace_in_what_a_run_is(tmp_path):
    e = config.build(tiny(tmp_path))
    splits = train.load_data(e)
    assert phases.step_config(e, splits).warm_start is None
    assert not [k for k in phases.comparable(e, {}, splits)["attack"] if "warm" in k]
    on = config.build(tiny(tmp_path, attack__warm_start=True))
    assert phases.comparable(on, {}, splits)["attack"]["warm_start_reset"] == 10


def test_memory_is_checked_before_teachers_train(tmp_path, monkeypatch):
    e = config.build(tiny(tmp_path, attack__warm_start=True))
    monkeypatch.setattr(around, "device_memory", lambda: 200_000)
    with pytest.raises(ValueError, match="keeps 0.0 GB for the .* training images of digits"):
        phases.step_config(e, train.load_data(e))


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("natural", {}, "method 'natural' makes no adversarial examples"),
        ("sat", {"norm": "l2"}, "config.norm='l2'.*use config.norm=linf"),
        ("sat", {"attack__options": {"restarts": 2}}, "restarts=2: one start"),
        ("sat", {"attack__warm_start_reset": -1}, "warm_start_reset=-1"),
        ("", {"teachers__clean__recipe__attack__warm_start": True}, "clean.recipe.attack.warm_start"),
    ],
)  # fmt: skip
def test_what_it_does_not_go_with(tmp_path, variant, changes, message):
    with pytest.raises(config.ConfigError, match=message):
        config.build(tiny(tmp_path, variant, attack__warm_start=True, **changes))
