import jax
import numpy as np
import pytest
from exported_networks import ALL, TOLERANCE, logits, make, relative, untrained

from ard_jax import models
from ard_jax.interop import fold
from ard_jax.models.norm import BatchNorm

IMAGES = np.random.default_rng(1).random((8, 32, 32, 3), dtype=np.float32)


@pytest.mark.parametrize("name, kwargs", ALL)
def test_same_logits(name, kwargs):
    bundle, variables = make(name, **kwargs)
    expected = logits(bundle, variables, IMAGES)
    plain, folded = fold.inference(bundle, variables), fold.fold_batchnorm(bundle, variables)
    assert relative(np.asarray(jax.jit(plain)(IMAGES)), expected) < TOLERANCE
    assert relative(np.asarray(jax.jit(folded.predict)(IMAGES)), expected) < TOLERANCE


# Blocks, and BatchNorms that follow a convolution of their own block: all in post-activation networks;
# in pre-activation ones the second of each block, while the first reads a sum.
@pytest.mark.parametrize(
    "name, folded, left",
    [
        ("resnet18", 20, 0),
        ("mobilenet_v2", 57, 0),
        ("resnet20", 21, 0),
        ("small_cnn", 2, 0),
        ("preact_resnet18", 8, 9),
        ("wrn_10_1", 3, 4),
        ("dm_wrn_10_1", 3, 4),
    ],
)
def test_what_is_folded(name, folded, left):
    bundle = models.create(name)
    result = fold.fold_batchnorm(bundle, untrained(bundle))
    assert (len(result.folded), len(result.left)) == (folded, left)


@pytest.mark.slow
def test_folded_batchnorms_leave_no_product():
    def multiplications(function):
        text = str(jax.make_jaxpr(function)(IMAGES))
        return text.count("= mul ")

    bundle, variables = make("small_resnet")
    norms = sum(path[-1].key == "scale" for path, _ in _leaves(variables["params"]))
    assert multiplications(fold.inference(bundle, variables)) == norms
    assert multiplications(fold.fold_batchnorm(bundle, variables).predict) == 0


def test_variables_are_left_alone():
    bundle, variables = make("small_cnn")
    before = jax.tree.map(np.copy, variables)
    fold.fold_batchnorm(bundle, variables)
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_a_tiny_variance_is_folded_exactly_enough():
    bundle, variables = make("small_cnn")
    stats = variables["batch_stats"]["bn1"]
    stats["var"] = np.full_like(stats["var"], BatchNorm.epsilon / 100)
    folded = fold.fold_batchnorm(bundle, variables)
    expected = logits(bundle, variables, IMAGES)
    assert relative(np.asarray(folded.predict(IMAGES)), expected) < TOLERANCE


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)
