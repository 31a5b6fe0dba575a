import jax
import numpy as np
import pytest
from exported_networks import ALL, SIZE, TOLERANCE, logits, make, relative, untrained

from ard_jax import models
from ard_jax.interop import fold
from ard_jax.models.norm import BatchNorm


def images(bundle):
    return np.random.default_rng(1).random((8, *bundle.image_shape), dtype=np.float32)


@pytest.mark.parametrize("name, kwargs", ALL)
def test_same_logits(name, kwargs):
    bundle, variables = make(name, **kwargs)
    before, x = jax.tree.map(np.copy, variables), images(bundle)
    expected = logits(bundle, variables, x)
    plain, folded = fold.inference(bundle, variables), fold.fold_batchnorm(bundle, variables)
    assert relative(np.asarray(jax.jit(plain)(x)), expected) < TOLERANCE
    assert relative(np.asarray(jax.jit(folded.predict)(x)), expected) < TOLERANCE
    jax.tree.map(np.testing.assert_array_equal, before, variables)  # left alone


# Blocks, and BatchNorms that follow a convolution of their own block: all in post-activation networks;
# in pre-activation ones the second of each block, while the first reads a sum.
@pytest.mark.parametrize(
    "name, folded, left",
    [
        pytest.param("resnet18", 20, 0, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", 57, 0, marks=pytest.mark.slow),
        ("resnet20", 21, 0),
        ("small_cnn", 2, 0),
        pytest.param("preact_resnet18", 8, 9, marks=pytest.mark.slow),
        ("wrn_10_1", 3, 4),
        ("dm_wrn_10_1", 3, 4),
    ],
)
def test_what_is_folded(name, folded, left):
    bundle = models.create(name)
    result = fold.fold_batchnorm(bundle, untrained(bundle))
    assert (len(result.folded), len(result.left)) == (folded, left)


def test_folded_batchnorms_leave_no_product():
    bundle, variables = make("small_resnet", **SIZE)

    def multiplications(function):
        return str(jax.make_jaxpr(function)(images(bundle))).count("= mul ")

    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    norms = sum(path[-1].key == "scale" for path, _ in leaves)
    assert multiplications(fold.inference(bundle, variables)) == norms
    assert multiplications(fold.fold_batchnorm(bundle, variables).predict) == 0


def test_a_tiny_variance_is_folded_exactly_enough():
    bundle, variables = make("small_cnn", **SIZE)
    stats = variables["batch_stats"]["bn1"]
    stats["var"] = np.full_like(stats["var"], BatchNorm.epsilon / 100)
    folded = fold.fold_batchnorm(bundle, variables)
    expected = logits(bundle, variables, images(bundle))
    assert relative(np.asarray(folded.predict(images(bundle))), expected) < TOLERANCE
