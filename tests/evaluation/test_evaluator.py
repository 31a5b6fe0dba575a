"""Attacks on batches, beside the same attacks on the whole batch at once."""

import numpy as np
import pytest

from ard_jax import attacks
from ard_jax.evaluation import evaluator
from ard_jax.runtime import sharding


@pytest.mark.parametrize(("name", "parts"), [("pgd_sat", 2), ("dpgd", 1)])
def test_cores_of_one_device_attack_parts_of_a_batch(name, parts, monkeypatch):
    weights = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    seen = []

    def apply(variables, images):
        seen.append(len(images))
        return images.reshape(len(images), -1) @ variables

    mesh = sharding.make_mesh(1)
    batch = {"image": np.random.default_rng(1).random((16, 3, 3, 1), np.float32)}
    batch |= {"label": np.arange(16, dtype=np.int32) % 4, "index": np.arange(16, dtype=np.int32)}
    found = {}
    for cores in (1, 2):
        monkeypatch.setattr(evaluator, "cores", lambda mesh, cores=cores: cores)
        ours = evaluator.Evaluator("linear", apply, mesh=mesh, batch_size=16, unroll=1)
        seen.clear()
        found[cores] = ours.attack(
            attacks.make(name, 0.1), weights, sharding.put_batch(mesh, batch)
        )
        assert set(seen) == {16 if cores == 1 else 16 // parts}
    assert np.abs(found[1] - batch["image"]).max() > 0.09
    np.testing.assert_allclose(found[2], found[1], rtol=0, atol=1e-6)
