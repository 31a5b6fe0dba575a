"""A radius that grows: traced, so that one program serves every epoch, and the step size with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_method_contracts import CLEAN, LABELS, begin, make_parts

from ard_jax import attacks, methods
from ard_jax.methods import base

EPS = 0.1


def batch(epoch):
    images, labels = jnp.asarray(CLEAN), jnp.asarray(LABELS)
    return {"image": images, "label": labels, "epoch": jnp.int32(epoch)}


@pytest.mark.parametrize("name", ["sat", "fat", "rslad"])
def test_the_radius_grows_to_its_own(name):
    parts = make_parts(name, start="none", eps_ramp=4)
    state, key = begin(methods.create(name, parts), parts), jax.random.key(0)
    traces = []

    @jax.jit
    def attack(epoch):
        traces.append(epoch)
        return base.attack(parts, state, batch(epoch), key).images

    plain = make_parts(name, start="none")
    whole = base.attack(plain, state, batch(1), key).images
    reached = [float(jnp.abs(attack(e) - CLEAN).max()) for e in range(1, 7)]
    # As far as steps of the same share go: all of it, since three steps of 0.025 do not leave the ball.
    full = float(jnp.abs(whole - CLEAN).max())
    np.testing.assert_allclose(reached, [full * min(e / 4, 1) for e in range(1, 7)], rtol=1e-4)
    np.testing.assert_allclose(attack(4), whole, atol=1e-6)
    assert len(traces) == 1 and full <= EPS


@pytest.mark.parametrize(
    ("name", "attack", "words"),
    [
        ("natural", None, "method 'natural' has no attack"),
        ("sat", "apgd_ce", "attack 'apgd_ce' has a fixed radius"),
        ("dkl", "dkl_train", "the radius of method 'dkl' grows already"),
        ("sat", "sat_train", ""),
    ],
)
def test_what_cannot_grow_is_told(name, attack, words):
    attack, config = attack and attacks.make(attack), methods.make_config(name, {})
    found = methods.ramp_problems(name, attack, 5, config)
    assert len(found) == bool(words) and all(words in text for text in found)
    assert not methods.ramp_problems(name, attack, 0, config)
