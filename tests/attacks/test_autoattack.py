"""AutoAttack as a whole: what it returns, refuses, warns of, and what must not change its result."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks
from ard_jax.attacks.auto_attack import cascade, versions
from ard_jax.attacks.auto_attack.attack import run
from ard_jax.attacks.auto_attack.cascade import Session
from ard_jax.attacks.auto_attack.engine import Engine
from ard_jax.attacks.auto_attack.versions import members
from ard_jax.runtime import sharding

SHAPE, CLASSES = (6, 6, 1), 6
FAST = {"steps": 8, "queries": 60, "progress": False}
# Of results whose list of warnings is looked at.
TOLD = pytest.mark.filterwarnings("ignore::UserWarning")
RADII = {"linf": 0.08, "l2": 0.3}


def weights(seed=0, classes=CLASSES, hidden=24):
    rng = np.random.default_rng(seed)
    first = rng.normal(0, 0.35, (36, hidden)).astype(np.float32)
    second = rng.normal(0, 0.5, (hidden, classes)).astype(np.float32)
    return jnp.asarray(first), jnp.asarray(second)


def apply(variables, images):
    first, second = variables
    hidden = jax.nn.softplus(4 * (images.reshape(images.shape[0], -1) - 0.5) @ first)
    return hidden @ second


def network(seed=0, classes=CLASSES):
    variables = weights(seed, classes)
    return lambda images: apply(variables, images)


def data(predict, count=40, seed=0, wrong=3):
    """Random images whose labels are the network's classes but for the first few."""
    images = np.random.default_rng(seed).uniform(0, 1, (count, *SHAPE)).astype(np.float32)
    logits = np.asarray(predict(jnp.asarray(images)))
    labels = logits.argmax(1).astype(np.int32)
    labels[:wrong] = (labels[:wrong] + 1) % logits.shape[1]
    return images, labels


ENGINES = {}


def attack(net, images, labels, *, batch_size=48, devices=1, parts=1, version="standard", names=None,
           eps=0.08, norm="linf", steps=8, queries=60, state_dir=None, progress=False, **more):  # fmt: skip
    """`attacks.autoattack` on network(net), with programs that all tests share."""
    place = (batch_size, devices, parts)
    if place not in ENGINES:
        mesh = sharding.make_mesh(devices)
        ENGINES[place] = Engine("net", apply, mesh=mesh, batch_size=batch_size, parts=parts)
        ENGINES[place].sizes = ENGINES[place].sizes[
            -2:
        ]  # two sizes do: compiling is what takes time
    return run(
        ENGINES[place], weights(net), images, labels, members(version, names, steps=steps, queries=queries),
        version=version, eps=eps, norm=norm, session=Session(state_dir, progress), **more,
    )  # fmt: skip


def same(a, b):
    np.testing.assert_array_equal(a.robust, b.robust)
    np.testing.assert_array_equal(a.broken_by, b.broken_by)
    np.testing.assert_array_equal(a.predicted, b.predicted)
    np.testing.assert_allclose(a.images, b.images, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_record_budget_and_flags(norm, seed):
    predict = network(seed)
    images, labels = data(predict, seed=seed)
    eps = RADII[norm]
    found = attack(seed, images, labels, eps=eps, norm=norm)
    assert list(found.stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert 0 < found.robust.sum() < found.clean.sum() == 37
    before = found.clean
    for name, robust in found.stages.items():  # flags only go from true to false
        assert not np.any(robust & ~before)
        assert (found.broken_by == name).sum() == (before & ~robust).sum()
        before = robust
    np.testing.assert_array_equal(found.robust, before)
    delta = found.images - images
    size = np.abs(delta).max((1, 2, 3)) if norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3)))
    assert size.max() <= eps * (1 + 1e-5) + 1e-6
    assert found.images.min() >= 0 and found.images.max() <= 1
    broken = found.broken_by != ""
    np.testing.assert_array_equal(broken, found.clean & ~found.robust)
    assert not delta[~broken].any()
    now = np.asarray(predict(jnp.asarray(found.images))).argmax(1)
    np.testing.assert_array_equal(now, found.predicted)
    np.testing.assert_array_equal(now == labels, found.robust)


def test_worst_case_is_never_above_a_single_attack():
    predict = network(2)
    images, labels = data(predict, 48)
    together = attack(2, images, labels)
    for name in versions.VERSIONS["standard"]:
        alone = attack(2, images, labels, version="custom", names=(name,))
        assert not np.any(together.robust & ~alone.robust), name
        assert alone.upper_bound and list(alone.stages) == [name]


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_batch_size_changes_nothing(norm):
    predict = network(3)
    images, labels = data(predict, 45)
    arguments = {"eps": RADII[norm], "norm": norm}
    same(
        attack(3, images, labels, batch_size=48, **arguments),
        attack(3, images, labels, batch_size=16, **arguments),
    )


def test_the_last_line_of_square_has_its_result(capfd):
    images, labels = data(network(3), 45)
    found = attack(3, images, labels, version="custom", names=("square",), progress=True)
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert found.broken_counts()["square"]
    assert re.search(r" (\d+)/\1 robust accuracy=" + f"{100 * found.accuracy:.2f}%", last), last


@pytest.mark.multidevice
def test_device_count_changes_nothing():
    predict = network(4)
    images, labels = data(predict, 45)
    same(attack(4, images, labels), attack(4, images, labels, devices=8))


def test_parts_on_the_cores_of_one_cpu_change_nothing():
    images, labels = data(network(4), 45)
    same(attack(4, images, labels), attack(4, images, labels, parts=2))


def test_an_image_is_attacked_alike_whatever_its_neighbours():
    predict = network(5)
    images, labels = data(predict, 40, wrong=0)
    whole, part = attack(5, images, labels), attack(5, images[:17], labels[:17])
    np.testing.assert_array_equal(whole.broken_by[:17], part.broken_by)


@pytest.mark.parametrize(("parts", "sizes"), [(1, [8, 16, 32]), (2, [8, 10, 12, 14, 16])])
def test_every_program_is_traced_once_per_batch_size_and_never_per_target(parts, sizes):
    traced = Counter()
    mesh, count = sharding.make_mesh(1), lambda title: traced.update([title])
    engine = Engine("net", apply, mesh=mesh, batch_size=32, parts=parts, on_trace=count)
    assert engine.sizes == sizes
    engine.sizes = engine.sizes[-2:]  # compiling is what takes time here
    for seed, eps in ((6, 0.05), (7, 0.1)):  # other weights and radii use the same programs
        variables = weights(seed)
        images, labels = data(lambda x, v=variables: apply(v, x), 40)
        chosen = members("standard", steps=4, queries=40)
        quiet = Session(progress=False)
        run(engine, variables, images, labels, chosen, version="standard", eps=eps, session=quiet)
    assert set(traced.values()) == {1}, traced
    programs = {title.rsplit(" ", 1)[0] for title in traced}
    assert {"net apgd-ce", "net apgd-t", "net fab-t", "net square", "net predict"} <= programs


class Killed(Exception):
    pass


def killed_after(monkeypatch, calls):
    """Makes the engine's attacks fail after so many calls; returns the list of calls made."""
    made = []
    for name in ("gradient_attack", "square_run"):
        original = getattr(Engine, name)

        def counted(self, *args, original=original, **kwargs):
            if calls is not None and len(made) >= calls:
                raise Killed
            made.append(1)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Engine, name, counted)
    return made


@pytest.mark.parametrize("calls", [1, 4, 14])
def test_continues_where_it_was(tmp_path, monkeypatch, calls):
    monkeypatch.setattr(cascade, "_CHUNK", 20)
    monkeypatch.setattr(cascade, "_SAVE_SECONDS", -1.0)
    predict = network(8)
    images, labels = data(predict, 30)
    arguments = {"eps": 0.06, "batch_size": 16}
    with monkeypatch.context() as patch:
        made = killed_after(patch, None)
        expected = attack(8, images, labels, **arguments)
        needed = len(made)
    assert needed > calls
    with monkeypatch.context() as patch:
        killed_after(patch, calls)
        with pytest.raises(Killed):
            attack(8, images, labels, state_dir=tmp_path, **arguments)
    with monkeypatch.context() as patch:
        made = killed_after(patch, None)
        again = attack(8, images, labels, state_dir=tmp_path, **arguments)
        assert len(made) == needed - calls
        same(expected, again)
        np.testing.assert_array_equal(expected.queries, again.queries)
        made.clear()
        attack(8, images, labels, state_dir=tmp_path, **arguments)
        assert not made  # all of it was on disk
        attack(9, images, labels, state_dir=tmp_path, **arguments)
        assert made  # another network starts anew


def test_damaged_state_is_done_again(tmp_path):
    predict = network(8)
    images, labels = data(predict, 20)
    first = attack(8, images, labels, eps=0.06, state_dir=tmp_path)
    files = sorted(tmp_path.glob("*/*.npz"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    same(first, attack(8, images, labels, eps=0.06, state_dir=tmp_path))


def test_deterministic_and_seeded():
    predict = network(10)
    images, labels = data(predict, 24)
    custom = {"version": "custom", "names": ("apgd-ce",)}
    one, two, other = (attack(10, images, labels, seed=s, **custom) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.images, two.images)
    assert np.any(one.images != other.images)


def test_versions():
    names = {v: [m.name for m in members(v)] for v in ("standard", "plus", "rand", "fast")}
    assert names == {
        "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
        "rand": ["apgd-ce", "apgd-dlr"],
        "fast": ["apgd-ce", "apgd-t"],
    }
    assert [m.restarts for m in members("plus")] == [5, 5, 5, 1, 1, 1]
    assert {m.eot for m in members("rand")} == {20} and {m.eot for m in members("plus")} == {1}
    assert members("standard")[1].rounds(10) == 9 and members("standard")[1].rounds(5) == 4
    with pytest.raises(ValueError, match="unknown AutoAttack version 'best'"):
        members("best")
    with pytest.raises(ValueError, match="unknown AutoAttack member 'pgd'"):
        members("custom", ("pgd",))
    with pytest.raises(ValueError, match="version='custom'"):
        members("standard", ("square",))
    with pytest.raises(ValueError, match="version='custom'"):
        members("custom")


def test_plus_and_fast():
    predict = network(11)
    images, labels = data(predict, 16)
    plus = attack(11, images, labels, version="plus")
    assert list(plus.stages) == [m.name for m in members("plus")]
    fast = attack(11, images, labels, version="fast")
    assert fast.upper_bound and "upper bound" in fast.summary()


def test_rand_averages_over_keys():
    variables = weights(12)

    def predict(images, key):
        return apply(variables, images + 0.05 * jax.random.normal(key, images.shape))

    images, labels = data(lambda x: apply(variables, x), 16, wrong=0)
    found = attacks.autoattack(
        predict, images, labels, eps=0.1, version="rand", steps=5, progress=False
    )
    assert list(found.stages) == ["apgd-ce", "apgd-dlr"] and not found.robust.all()


def test_square_curve():
    predict = network(13)
    images, labels = data(predict, 40)
    square = {"version": "custom", "names": ("square",), "eps": 0.1}
    found = attack(13, images, labels, queries=100, **square)
    assert (
        found.reduced
        and attack(13, images, labels, queries=50, **square).accuracy
        == (found.square_curve([51])["accuracy"][0])
    )  # the windows do not depend on the budget
    curve = found.square_curve()
    assert curve["queries"][0] == 0 and curve["accuracy"][0] == found.clean.mean()
    assert curve["accuracy"][-1] == found.accuracy < curve["accuracy"][0]
    assert all(np.diff(curve["accuracy"]) <= 0) and all(np.diff(curve["queries"]) > 0)
    broken = found.broken_by == "square"
    assert found.square_curve([20])["accuracy"][0] == pytest.approx(
        (found.robust | (broken & (found.queries > 20))).mean()
    )


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda x: x[0]}, r"give \[N,H,W,C\]"),
        ({"eps": 0.0}, "eps=0.0: must be above 0"),
        ({"eps": 8.0}, "write 8/255"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"version": "best"}, "unknown AutoAttack version"),
        ({"predict": lambda f: lambda x: f(x)[:, 0]}, r"must return logits \[B,K\]"),
        ({"predict": lambda f: lambda x: f(x).argmax(1)[:, None]}, "not predicted classes"),
    ],
)
def test_bad_input(change, message):
    predict = network()
    images, labels = data(predict, 12)
    arguments = {"predict": predict, "images": images, "labels": labels, "eps": 0.1, **FAST}
    arguments |= {n: v(arguments[n]) if callable(v) else v for n, v in change.items()}
    with pytest.raises(ValueError, match=message):
        attacks.autoattack(**arguments)


@pytest.mark.parametrize("classes", [2, 3])
@TOLD
def test_few_classes(classes):
    predict = network(14, classes)
    images, labels = data(predict, 16, wrong=0)
    with pytest.raises(ValueError, match="apgd-t: the DLR loss needs at least 4 classes"):
        attacks.autoattack(predict, images, labels, eps=0.1, **FAST)
    found = attacks.autoattack(
        predict, images, labels, eps=0.1, version="custom",
        attacks=("apgd-ce", "fab-t", "square"), **FAST,
    )  # fmt: skip
    assert any(f"only {classes} classes" in text for text in found.warnings)


# Warnings.


def test_no_warning_where_none_is_due():
    predict = network(15)
    images, labels = data(predict)
    found = attack(15, images, labels, eps=0.03)
    assert found.warnings == []


@TOLD
def test_probabilities_are_told():
    logits = network(15)
    images, labels = data(logits, 12)
    found = attacks.autoattack(
        lambda x: jax.nn.softmax(logits(x)), images, labels, eps=0.05, **FAST
    )
    assert any("look like probabilities" in text for text in found.warnings)


@TOLD
def test_randomised_predictions_are_told():
    logits = network(15)
    images, labels = data(logits, 12)
    rng = np.random.default_rng(0)

    def random(x):
        shift = jax.pure_callback(
            lambda: rng.normal(0, 0.3, CLASSES).astype(np.float32),
            jax.ShapeDtypeStruct((CLASSES,), jnp.float32),
        )
        return logits(x) + shift

    found = attacks.autoattack(
        random, images, labels, eps=0.05, version="custom", attacks=("square",), **FAST
    )
    assert any("randomised" in text for text in found.warnings)


@TOLD
def test_randomness_of_the_trace_is_told():
    logits = network(15)
    images, labels = data(logits, 12)
    rng = np.random.default_rng(0)
    found = attacks.autoattack(
        lambda x: logits(x) + jnp.asarray(rng.normal(0, 0.01, CLASSES).astype(np.float32)),
        images, labels, eps=0.05, version="custom", attacks=("apgd-ce",), steps=8, progress=False,
    )  # fmt: skip
    assert any("each time it is traced" in text for text in found.warnings)


@TOLD
def test_scaled_logits_are_told_and_do_not_help():
    logits = network(16)
    images, labels = data(logits, 60)
    scaled = lambda x: logits(x) / 1e6  # noqa: E731
    custom = {"eps": 0.08, "version": "custom", "progress": False, "batch_size": 60, "queries": 500}
    custom["attacks"] = ("apgd-ce", "apgd-t", "square")
    found, honest = (attacks.autoattack(f, images, labels, **custom) for f in (scaled, logits))
    assert any("gradient masking by scale" in text for text in found.warnings)
    assert abs(found.robust.sum() - honest.robust.sum()) <= 1
    square = attacks.autoattack(scaled, images, labels, **custom | {"attacks": ("square",)})
    assert square.accuracy < 0.8 * square.clean.mean()


@TOLD
def test_quantised_input_is_told_and_caught_by_square():
    logits = network(17)
    quantised = lambda x: logits(jnp.round(8 * x) / 8)  # noqa: E731
    images, labels = data(quantised, 60)
    found = attacks.autoattack(
        quantised, images, labels, eps=0.1, progress=False, queries=500, version="custom",
        attacks=("apgd-ce", "apgd-t", "square"),
    )  # fmt: skip
    assert any("gradient is exactly zero" in text for text in found.warnings)
    assert any(text.startswith("Square, which takes no gradients") for text in found.warnings)
    assert found.broken_counts()["square"] > 5


@TOLD
def test_nan_gradients_are_told_and_break_nothing():
    logits = network(18)
    images, labels = data(logits, 12)

    def with_bad_gradient(x):
        return logits(x) + jnp.sqrt(0.0 * jnp.sum(x, (1, 2, 3)))[:, None]

    found = attacks.autoattack(
        with_bad_gradient,
        images,
        labels,
        eps=0.1,
        version="custom",
        attacks=("apgd-ce",),
        steps=8,
        progress=False,
    )
    assert any("gradient is NaN" in text for text in found.warnings)
    assert np.isfinite(found.images).all() and np.abs(found.images - images).max() <= 0.1 + 1e-6
    now = np.asarray(logits(jnp.asarray(found.images))).argmax(1)
    np.testing.assert_array_equal(now == labels, found.robust)


@pytest.mark.parametrize("name", ["fab_t", "apgd_t"])
def test_suites_without_square_can_be_called(name):
    images = jax.random.uniform(jax.random.key(0), (4, 6, 6, 1))
    weights = jax.random.normal(jax.random.key(1), (36, 4))
    made = attacks.make(name, eps=0.1)
    found = made(lambda x: x.reshape(len(x), -1) @ weights, images, np.arange(4), jax.random.key(0))
    assert found.shape == images.shape and float(jnp.abs(found - images).max()) <= 0.1 + 1e-6
