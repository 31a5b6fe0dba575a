"""Attacks through one program with their numbers as arguments, beside each attack's own program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import attacks, models
from ard_jax.attacks import merged
from ard_jax.evaluation.evaluator import Evaluator
from ard_jax.runtime import compilation, sharding

EPS = 0.1
OTHERS = {
    "many steps": {"steps": 7},
    "no start": {"start": "none"},
    "start left outside": {"start": "gauss", "clip_start": False, "sigma": 0.3},
    "little confidence": {"loss": "cw", "confidence": 0.5},
    "end": {"order": "range_at_end"},
}


@pytest.fixture(scope="module")
def network():
    """float64: no gradient is so near 0 that rounding decides its sign."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        first = jax.random.normal(key, (27, 16), jnp.float64)
        second = jax.random.normal(jax.random.fold_in(key, 1), (16, 5), jnp.float64)
        images = jax.random.uniform(jax.random.fold_in(key, 2), (12, 3, 3, 3), jnp.float64)
        yield lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second, images, jnp.arange(12) % 5


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, "linf") for name in (*attacks.evaluation_names(), *OTHERS)]
    + [("pgd_sat", "l2"), ("cw_inf", "l2")],
)
def test_equals_the_attack_alone(network, name, norm, monkeypatch):
    predict, images, labels = network
    spec = attacks.make("pgd_sat" if name in OTHERS else name, EPS, norm, **OTHERS.get(name, {}))
    assert merged.is_mergeable(spec)
    with jax.enable_x64(True):
        # The losses give float32 to users; here rounding to it would decide signs.
        monkeypatch.setattr(jnp, "float32", jnp.float64)
        key = jax.random.key(3)

        @jax.jit
        def both(images, labels, settings):
            start = spec.own_start(images, key)
            return spec.run(predict, images, labels, key), merged.run(
                predict, images, labels, start, settings, norm=norm, clip=(0.0, 1.0)
            )

        want, found = both(images, labels, merged.settings_of(spec))
    assert np.abs(want - images).max() > 0.01
    # eps and step size are float32 numbers in the merged program.
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    ({"restarts": 2}, {"alpha_schedule": "linear"}, {"channel_mask_rho": 0.5}, {"loss": "squared"}),
)  # fmt: skip
def test_what_it_cannot_do_keeps_a_program_of_its_own(changed):
    assert not merged.is_mergeable(attacks.make("pgd_sat", EPS, **changed))


@pytest.fixture(scope="module")
def evaluator():
    """(evaluator of a small network, its variables, a batch)."""
    net = models.create("small_cnn", 4, (8, 8, 1), widths=(2, 3))
    variables = net.init(jax.random.key(0))
    apply = lambda v, x: net.apply(v, x, False)[0]  # noqa: E731
    evaluator = Evaluator("merged", apply, mesh=sharding.make_mesh(1), batch_size=8, unroll=1)
    batch = {"image": np.random.default_rng(1).random((8, 8, 8, 1), np.float32)}
    batch |= {"label": np.arange(8, dtype=np.int32) % 4, "index": np.arange(8, dtype=np.int32)}
    return evaluator, variables, sharding.put_batch(evaluator.mesh, batch)


def test_the_evaluation_attacks_of_a_network_are_one_program(evaluator):
    evaluator, variables, batch = evaluator
    for name in attacks.evaluation_names():
        found = evaluator.attack(attacks.make(name, EPS), variables, batch)
        assert 0 < np.abs(found - batch["image"]).max() <= EPS + 1e-6
    programs = [title for title in compilation.TRACES if title.startswith("merged attack")]
    assert len(programs) == 1 and compilation.TRACES[programs[0]] == 1


def test_a_start_is_cut_to_the_range_of_its_attack(evaluator):
    evaluator, variables, batch = evaluator
    for low, high in ((0.0, 1.0), (-1.0, 2.0)):
        spec = attacks.make(
            "pgd_sat",
            0.3,
            steps=1,
            step_size=0.003,
            clip_min=low,
            clip_max=high,
            order="range_at_end",
        )
        found = evaluator.attack(spec, variables, batch)
        assert low <= found.min() and found.max() <= high
        assert (low == 0.0) == bool(found.min() >= 0.0)
