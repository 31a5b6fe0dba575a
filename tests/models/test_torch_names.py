import jax
import numpy as np
import pytest

from ard_jax import interop, models

OPTIONS = {"num_classes": 3, "image_shape": (8, 8, 2)}


def random_state(name, **options):
    rng = np.random.default_rng(0)
    layout = interop.torch_layout(models.create(name, **options))
    return {k: rng.uniform(0.5, 1.5, shape).astype(np.float32) for k, shape in layout.items()}


def test_layouts():
    state = random_state("small_cnn", **OPTIONS)
    norm = ("weight", "bias", "running_mean", "running_var")
    others = {"conv1.weight", "conv2.weight", "fc.weight", "fc.bias"}
    assert set(state) == others | {f"bn{i}.{n}" for i in (1, 2) for n in norm}
    variables = interop.from_torch("small_cnn", state, **OPTIONS)
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 8, 16) and kernel.dtype == np.float32
    assert kernel[0, 2, 5, 7] == state["conv2.weight"][7, 5, 0, 2]
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    np.testing.assert_array_equal(params["bn1"]["scale"], state["bn1.weight"])
    np.testing.assert_array_equal(stats["bn2"]["var"], state["bn2.running_var"])


def test_what_is_dropped():
    state = random_state("wrn_10_1", **OPTIONS)
    plain = interop.from_torch("wrn_10_1", state, **OPTIONS)
    extra = {
        **state,
        "bn1.num_batches_tracked": np.int64(7),
        "sub_block1.layer.0.conv1.weight": np.ones((16, 16, 3, 3), np.float32),
    }
    parallel = {f"module.{name}": value for name, value in extra.items()}
    for given in (extra, parallel):
        variables = interop.from_torch("wrn_10_1", given, **OPTIONS)
        assert jax.tree.all(jax.tree.map(np.array_equal, variables, plain))


@pytest.mark.parametrize("name", ["small_cnn", "small_resnet", "dm_wrn_10_1"])
def test_both_directions_are_exact(name):
    options = {**OPTIONS, "image_shape": (8, 8, 3), "normalization": "none"}
    bundle = models.create(name, **options)
    state = random_state(name, **options)
    variables = interop.from_torch(name, state, **options)
    expected = jax.eval_shape(bundle.init, jax.random.key(0))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    back = interop.to_torch(bundle, variables)
    assert back.keys() == state.keys()
    for key, value in back.items():
        assert value.dtype == np.float32 and value.flags.c_contiguous
        np.testing.assert_array_equal(value, state[key])


def test_copies_and_to_torch_checks():
    bundle = models.create("small_cnn", **OPTIONS)
    given = random_state("small_cnn", **OPTIONS)
    variables = interop.from_torch("small_cnn", given, **OPTIONS)
    for state in (given, interop.to_torch(bundle, variables)):
        state["bn1.bias"][:] = state["fc.bias"][:] = -1
    assert np.all(variables["params"]["bn1"]["bias"] > 0)
    assert np.all(variables["params"]["fc"]["bias"] > 0)
    other = models.create("small_cnn", **{**OPTIONS, "num_classes": 4})
    with pytest.raises(
        ValueError, match=r"not those of small_cnn.*bias.* is \(3,\) but must be \(4,\)"
    ):
        interop.to_torch(other, variables)
    with pytest.raises(
        ValueError, match="not those of resnet20.*not part of it.*missing.*and [0-9]+ more"
    ):
        interop.to_torch(models.create("resnet20", **OPTIONS), variables)
    with pytest.raises(ValueError, match="missing batch_stats/bn1/mean"):
        interop.to_torch(bundle, {"params": variables["params"], "batch_stats": {}})


def test_a_completely_different_network_gives_a_short_message():
    with pytest.raises(ValueError, match="and [0-9]+ more") as error:
        interop.from_torch("resnet20", random_state("small_cnn", **OPTIONS), **OPTIONS)
    assert len(str(error.value)) < 1000


def test_stored_normalisation_must_be_the_models():
    options = {"num_classes": 100, "image_shape": (8, 8, 3)}
    state = random_state("dm_wrn_10_1", **options)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in models.NORMALIZATIONS["cifar10"])
    stored = {**state, "mean": mean, "std": std}
    with pytest.raises(ValueError, match="normalisation.*0.4914.*'cifar100'"):
        interop.from_torch("dm_wrn_10_1", stored, **options)
    with pytest.raises(ValueError, match="'none'"):
        interop.from_torch("dm_wrn_10_1", stored, **options, normalization="none")
    options["normalization"] = "cifar10"
    variables = interop.from_torch("dm_wrn_10_1", stored, **options)
    plain = interop.from_torch("dm_wrn_10_1", state, **options)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, plain))
