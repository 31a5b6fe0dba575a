"""Fixed views of the images, whose teacher logits are made before the run."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import tiny
from test_labels import experiment as dard

from ard_jax import (
    attacks,
    config,
    labels,
    methods,
    optim,
    phases,
    sharding,
    step_batch,
    steps,
    train,
)
from ard_jax.data import augment
from ard_jax.methods import given
from ard_jax.models.bundle import ModelBundle
from ard_jax.plan import count as counting
from ard_jax.state import RunState
from ard_jax.teachers import Teacher

SHAPE, CLASSES, SIZE, VIEWS = (6, 6, 1), 5, 8, 3


def linear(width):
    """A network whose forward pass on SIZE images is two products with `width` columns."""
    pixels = math.prod(SHAPE)

    def init(key):
        first = jax.random.normal(key, (pixels, width))
        return {"params": {"first": first, "second": jnp.ones((width, CLASSES))}, "batch_stats": {}}

    def apply(variables, images, train):
        p = variables["params"]
        return jnp.tanh(images.reshape(len(images), -1) @ p["first"]) @ p["second"], {}

    return ModelBundle(f"linear {width}", CLASSES, SHAPE, "none", init, apply)


WIDTHS = {"robust": 17, "clean": 23}
ATTACKS = {"rslad": "rslad_train", "fair_rslad": "rslad_train", "absld": "rslad_train",
           "adaad": "adaad_train", "adaiad": "adaad_train", "dard": "dpgd", "ciard_dard": "dpgd"}  # fmt: skip


def traced(name, attack, views, **options):
    """FLOPs of the whole train step, on shapes."""
    spec = attacks.make(attack, eps=0.1, steps=2)
    optimiser = optim.make(optim.OptimConfig(), 2)
    parts = methods.Parts(
        student=linear(7), student_optim=optimiser, attack=spec, epochs=2, steps_per_epoch=2,
        teachers={role: linear(WIDTHS[role]) for role in methods.TEACHERS[name]},
        teacher_optims={"robust": optimiser},
    )  # fmt: skip
    method = methods.create(name, parts, **options)
    batch = {
        "image": jax.ShapeDtypeStruct((SIZE, *SHAPE), jnp.uint8),
        "label": jax.ShapeDtypeStruct((SIZE,), jnp.int32),
        "index": jax.ShapeDtypeStruct((SIZE,), jnp.int32),
    }
    if views:
        logits = jax.ShapeDtypeStruct((SIZE, views, CLASSES), jnp.float32)
        roles = methods.cached_roles(name, options, spec)
        batch |= dict.fromkeys(map(given.logits_column, roles), logits)
    settings = steps.StepConfig(0, 2, "crop", 1, views=views)

    def initial(key):
        variables = {role: net.init(key) for role, net in parts.teachers.items()}
        return method.init(parts.student.init(key), variables)

    key = jax.eval_shape(lambda: jax.random.key(0))
    program = steps.program(method, settings, sharding.make_mesh(1), "views")
    return counting.count(
        program.trace(jax.eval_shape(initial, key), batch, key).jaxpr
    ).matrix_flops


def forward(role):
    return 2 * SIZE * WIDTHS[role] * (math.prod(SHAPE) + CLASSES)


CASES = [
    (name, ATTACKS.get(name, "ciard_train"), {})
    for name in methods.names()
    if methods.TEACHERS[name]
]
CASES += [("mtard", "rslad_train", {}), ("dard", "dpgd", {"labels": "online"})]


@pytest.mark.parametrize(("name", "attack", "options"), CASES)
def test_the_step_has_one_forward_pass_less_for_each_of_these_teachers(name, attack, options):
    roles = methods.cached_roles(name, options, attacks.make(attack))
    saved = traced(name, attack, 0, **options) - traced(name, attack, VIEWS, **options)
    assert saved == sum(map(forward, roles))
    assert bool(roles) == (name not in ("adaiad", "iad2"))


def test_roles():
    rslad = attacks.make("rslad_train")
    assert methods.cached_roles("ciard", {}, None) == ("clean",)  # its robust teacher learns
    assert methods.cached_roles("ciard", {}, rslad) == ("clean",)
    assert methods.cached_roles("mtard", {}, rslad) == ("robust", "clean")
    assert methods.cached_roles("dard", {"labels": "offline"}, None) == ()


@jax.jit
def _moves(index, view):
    return step_batch.view_moves(jax.random.key(4), index, view, "crop_flip", 2)


def moves(index, view):
    return jax.device_get(_moves(jnp.asarray(index), view))


@functools.partial(jax.jit, static_argnums=0)
def given_to_method(settings, epoch, batch, root):
    """The batch as the method gets it, in an epoch of one step, counted from 1."""
    state = RunState(epoch - 1, None, {"robust": None}, None, {})
    return step_batch.prepare(settings, state, batch, root)


def test_a_view_depends_on_image_and_number_alone():
    whole, part = moves([5, 900, 17], 1), moves([17, 5], 1)
    for a, b in zip(whole, part, strict=True):
        assert a[2] == b[0] and a[0] == b[1]
    index = np.arange(200)
    first, second = moves(index, 0), moves(index, 1)
    for a, b in zip(first, second, strict=True):
        assert len(np.unique(a)) > 1 and np.any(a != b)
    assert set(np.asarray(first.top).tolist()) == set(range(5))


def seen_in(epoch, views):
    """Images that the method gets in an epoch, of one step, counted from 1."""
    settings = steps.StepConfig(4, 1, "crop_flip", 2, views=views)
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    batch = {"image": images, "index": jnp.array([2, 40, 7])}
    return images, given_to_method(settings, epoch, batch, jax.random.key(4))["image"]


def test_epochs_go_round_the_views():
    images = [np.asarray(seen_in(epoch, 3)[1]) for epoch in range(1, 7)]
    for i in range(3):
        np.testing.assert_array_equal(images[i], images[i + 3])
        assert np.any(images[i] != images[(i + 1) % 3])
    source, seen = seen_in(2, 3)
    expected = augment.to_float(augment.move(source, moves([2, 40, 7], 1), 2))
    np.testing.assert_array_equal(seen, expected)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Experiment, training split, teacher, logits and the arguments that made them."""
    folder = tmp_path_factory.mktemp("views")
    e = config.build(_rslad(folder))
    split = train.load_data(e).train.subset(np.arange(150))  # not a multiple of the batch
    shape = split.image_shape
    weights = {"kernel": jax.random.normal(jax.random.key(1), (math.prod(shape), 10))}

    def apply(variables, images, train):
        return images.reshape(len(images), -1) @ variables["params"]["kernel"], {}

    bundle = ModelBundle("linear", 10, shape, "none", None, apply)
    variables = {"params": weights, "batch_stats": {}}
    teacher = Teacher("robust", bundle, variables, None, "", "teacher 1", "linear")
    arguments = (e, split, {"robust": teacher}, sharding.make_mesh(1), folder / "run")
    return arguments, labels.of_views(*arguments)


def _rslad(folder, **changes):
    fixed = {"teachers__views": VIEWS, "data__augment": "crop_flip", "batch_size": 64}
    raw = tiny(folder, **fixed | changes)
    raw.teachers.clean = None
    raw.method = {"name": "rslad"}
    return raw


def test_rows_are_the_teacher_at_what_the_step_shows(made):
    (e, split, teachers, *_), found = made
    logits = found[given.logits_column("robust")]
    assert logits.shape == (150, VIEWS, 10) and logits.dtype == np.float32
    index, teacher = np.array([149, 0, 63, 64, 130]), teachers["robust"]
    settings = dataclasses.replace(phases.step_config(e, _splits(split)), steps_per_epoch=1)
    for epoch in range(1, VIEWS + 2):
        batch = {"image": split.images[index], "index": jnp.asarray(index)}
        batch[given.logits_column("robust")] = jnp.asarray(logits[index])
        got = given_to_method(settings, epoch, batch, jax.random.key(e.seed))
        expected = teacher.bundle.apply(teacher.variables, got["image"], False)[0]
        # Sums of 64 products in another order; the logits are about 10.
        np.testing.assert_allclose(
            got[given.logits_column("robust")], expected, rtol=1e-6, atol=1e-5
        )


def _splits(split):
    return train.data.Splits(split, None, split)


def test_second_start_reads_them_back_unless_something_changed(made, monkeypatch):
    (e, split, teachers, mesh, folder), found = made
    calls = []
    monkeypatch.setattr(labels, "_view_program", lambda *a: calls.append(a) or _zeros)
    again = labels.of_views(e, split, teachers, mesh, folder)
    np.testing.assert_array_equal(*(f["robust_natural_logits"] for f in (found, again)))
    assert not calls
    other = dataclasses.replace(teachers["robust"], identity="teacher 2")
    labels.of_views(e, split, {"robust": other}, mesh, folder.parent / "other")
    assert len(calls) == 1


def _zeros(variables, batch, view):
    return np.zeros((len(batch["index"]), 10), np.float32)


@pytest.mark.slow
def test_a_run_with_views(tmp_path):
    e = config.build(_rslad(tmp_path, epochs=3))
    before = steps.TRACES["student train_step"]
    train.run(e)
    assert steps.TRACES["student train_step"] == before + 1
    assert (tmp_path / "run" / "robust_views.npz").is_file()


def test_identity(tmp_path):
    without = config.build(_rslad(tmp_path, teachers__views=0))
    e = config.build(_rslad(tmp_path))
    splits = train.load_data(e)
    assert phases.comparable(e, {}, splits)["views"] == VIEWS
    assert "views" not in phases.comparable(without, {}, splits)
    recipe = phases.teacher_experiment(e, "robust", e.teachers.robust)
    assert recipe.teachers.views == 0


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("", {"teachers__views": -1}, "views=-1: a number of fixed views"),
        (
            "sat",
            {},
            "'sat' with these options asks no frozen teacher.*use 0, or one of absld, adaad",
        ),
        ("", {"data__augment": "none"}, "all views are the same; use 1"),
    ],
)
def test_what_they_do_not_go_with(tmp_path, variant, changes, message):
    with pytest.raises(config.ConfigError, match=message):
        config.build(tiny(tmp_path, variant, **{"teachers__views": 2} | changes))


def test_offline_labels_are_made_before_the_run_already(tmp_path):
    raw = config.to_dict(dard(tmp_path, "paper_compat"))
    raw["teachers"]["views"] = 2
    with pytest.raises(config.ConfigError, match="views=2: method 'dard'"):
        config.build(raw)
