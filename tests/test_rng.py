import zlib

import jax
import numpy as np
import pytest

from ard_jax import rng


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_stream_is_fold_in_of_crc32_then_step():
    root = jax.random.key(3)
    by_name = jax.random.fold_in(root, zlib.crc32(b"augment"))
    assert data(rng.stream(root, "augment")) == data(by_name)
    assert data(rng.stream(root, "augment", 7)) == data(jax.random.fold_in(by_name, 7))


def test_streams_steps_and_roots_all_differ():
    keys = [
        data(rng.stream(jax.random.key(seed), name, step))
        for seed in (0, 1)
        for name in ("augment", "attack", "init/student", "init/teacher")
        for step in (None, 0, 1, 2, 1000, 2**32 - 1)
    ]
    assert len(set(keys)) == len(keys)


def test_traced_step_gives_the_same_key():
    root = jax.random.key(0)
    jitted = jax.jit(lambda step: rng.stream(root, "attack", step))
    for step in (0, 5, 123456):
        assert data(jitted(np.int32(step))) == data(rng.stream(root, "attack", step))


def test_works_on_a_traced_root():
    root = jax.random.key(4)
    assert data(jax.jit(lambda k: rng.stream(k, "a", 1))(root)) == data(rng.stream(root, "a", 1))


@pytest.mark.parametrize("bad", [0, np.array([0, 1], np.uint32), None])
def test_untyped_key_is_refused_with_the_fix(bad):
    with pytest.raises(ValueError, match=r"jax\.random\.key\(seed\)"):
        rng.stream(bad, "augment")
