import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ard_jax import models
from ard_jax.convolutions.canonical_conv import exported_convolutions
from ard_jax.models import layers

# A small one of every family; (name, image shape, options).
FAMILIES = [
    ("small_cnn", (8, 8, 1), {}),
    ("small_resnet", (8, 8, 1), {"widths": (4, 8)}),
    pytest.param("resnet20", (8, 8, 2), {}, marks=pytest.mark.slow),
    ("resnet20", (8, 8, 2), {"shortcut": "A"}),
    ("wrn_10_1", (8, 8, 3), {}),
    ("dm_wrn_10_1", (8, 8, 3), {}),
    pytest.param("shufflenet_v2", (32, 32, 3), {}, marks=pytest.mark.slow),
    pytest.param("resnet18", (32, 32, 3), {"form": "imagenet"}, marks=pytest.mark.slow),
    pytest.param("efficientnet_b0", (32, 32, 3), {}, marks=pytest.mark.slow),
]


def images(shape, batch=4):
    return jnp.asarray(np.random.default_rng(3).uniform(size=(batch, *shape)), jnp.float32)


@pytest.fixture(scope="module")
def small():
    bundle = models.create("small_resnet", 5, (8, 8, 1), widths=(4, 8))
    return bundle, jax.jit(bundle.init)(jax.random.key(0))


def logits_shape(bundle):
    """Of two images, without computing them."""
    x = jax.ShapeDtypeStruct((2, *bundle.image_shape), jnp.float32)
    logits, _ = jax.eval_shape(lambda x: bundle.apply(bundle.init(jax.random.key(0)), x, False), x)
    return logits.shape


def flat(tree):
    return {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(tree)}


# Other depths of the same code, and the wide ones, of which FAMILIES has small ones.
LARGE = [
    n for n in models.names()
    if "wrn_" in n or n[-2:] in ("32", "44", "56", "34") or n.startswith(("wide", "convnext", "vit_b"))
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in models.names() if name not in LARGE),
        *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE),
    ],
)
def test_every_name_can_be_created_and_applied(name):
    bundle = models.create(name, 7)

    def both_modes(x):
        variables = bundle.init(jax.random.key(0))
        return variables, bundle.apply(variables, x, False), bundle.apply(variables, x, True)

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables, *applied = jax.eval_shape(both_modes, images)
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for logits, stats in applied:
        assert logits.shape == (2, 7) and logits.dtype == jnp.float32
        assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet18", 10, 11_173_962),
        ("resnet18", 200, 11_271_432),
        ("mobilenet_v2", 100, 2_412_212),
        ("resnet56", 10, 855_770),
        ("wrn_34_10", 10, 46_160_474),
        pytest.param("dm_wrn_70_16", 100, 266_888_756, marks=pytest.mark.slow),
        ("dm_wrn_22_6", 100, 9_693_108),
    ],
)
def test_published_parameter_counts(name, classes, count):
    assert models.num_params(models.create(name, classes)) == count


@pytest.mark.parametrize("form", ["rice", "robustbench", "deepmind"])
def test_preact_resnets_take_tiny_imagenet(form):
    at_64 = models.create("preact_resnet18", 200, (64, 64, 3), form=form)
    assert logits_shape(at_64) == (2, 200)
    # Global pooling: the image size changes no parameter.
    at_32 = models.create("preact_resnet18", 200, form=form)
    assert models.num_params(at_64) == models.num_params(at_32)


@pytest.mark.parametrize(("name", "shape", "options"), FAMILIES)
def test_apply_in_both_modes(name, shape, options):
    bundle = models.create(name, 6, shape, normalization="none", **options)
    variables = jax.jit(bundle.init)(jax.random.key(0))
    x = images(shape)
    apply = jax.jit(bundle.apply, static_argnums=2)
    logits, stats = apply(variables, x, False)
    assert logits.shape == (4, 6) and bool(jnp.all(jnp.isfinite(logits)))
    for key, value in flat(stats).items():
        np.testing.assert_array_equal(value, flat(variables["batch_stats"])[key])
    _, updated = apply(variables, x, True)
    assert jax.tree.structure(updated) == jax.tree.structure(stats)
    moved = [np.any(v != flat(stats)[key]) for key, v in flat(updated).items()]
    assert all(moved)
    # In evaluation an example's logits do not depend on its neighbours.
    others = x.at[1:].set(0.5)
    np.testing.assert_allclose(apply(variables, others, False)[0][0], logits[0], atol=1e-5)


def test_gradients_under_vmap():
    bundle = models.create("small_cnn", 5, (8, 8, 1), widths=(2, 3))
    variables = jax.jit(bundle.init)(jax.random.key(0))

    def gradient(variables, x):
        return jax.grad(lambda x: jnp.sum(bundle.apply(variables, x, False)[0] ** 2))(x)

    x = images((8, 8, 1))
    direct = jax.jit(gradient)(variables, x)
    two = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), variables)
    both = jax.jit(jax.vmap(gradient, (0, None)))(two, x)
    assert bool(jnp.any(direct != 0)) and not np.allclose(both[1], direct, rtol=1e-2)
    np.testing.assert_allclose(both[0], direct, rtol=1e-4, atol=1e-5)


def test_torch_initialisation_fills_its_range():
    bundle = models.create("small_resnet", 50, (8, 8, 3), widths=(16, 32))
    for path, leaf in flat(jax.jit(bundle.init)(jax.random.key(0))["params"]).items():
        values = np.asarray(leaf)
        if "kernel" in path:
            bound = 1 / math.sqrt(math.prod(values.shape[:-1]))
        elif "linear" in path:
            bound = 1 / math.sqrt(32)  # bias: fan-in of the layer
        else:
            assert np.all(values == (1.0 if "scale" in path else 0.0)), path
            continue
        assert np.abs(values).max() <= bound, path
        assert np.abs(values).max() > 0.9 * bound, path
        assert abs(values.mean()) < 0.3 * bound, path
        # Uniform, not normal: standard deviation bound / sqrt(3).
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.2), path


def test_depthwise_fan_in_counts_one_input_channel():
    bundle = models.create("mobilenet_v2")
    shapes = jax.eval_shape(lambda: bundle.init(jax.random.key(0)))
    kernel = shapes["params"]["layers__3"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 1, 144)  # so that the bound is 1/3, as in PyTorch


def test_flax_initialisation():
    bundle = models.create("small_cnn", 50, (8, 8, 3), init="flax", widths=(32, 64))
    params = jax.jit(bundle.init)(jax.random.key(0))["params"]
    np.testing.assert_array_equal(params["fc"]["bias"], np.zeros(50))
    for layer, fan_in in (("conv1", 27), ("conv2", 288), ("fc", 64)):
        assert np.std(params[layer]["kernel"]) == pytest.approx(fan_in**-0.5, rel=0.1)


def test_initialisation_depends_on_the_key_only(small):
    bundle, variables = small
    again = models.create("small_resnet", 5, (8, 8, 1), widths=(4, 8)).init
    other = jax.jit(bundle.init)(jax.random.key(1))["params"]["conv1"]["kernel"]
    assert not np.array_equal(other, variables["params"]["conv1"]["kernel"])
    for name, value in flat(jax.jit(again)(jax.random.key(0))).items():
        np.testing.assert_array_equal(flat(variables)[name], value)
    # Another program: a product may be rounded once or twice.
    for name, value in flat(again(jax.random.key(0))).items():
        np.testing.assert_allclose(flat(variables)[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_is_close_to_float32(small, train):
    bundle, variables = small
    half = models.create("small_resnet", 5, (8, 8, 1), widths=(4, 8), dtype="bfloat16")
    x = images((8, 8, 1), 16)
    apply = jax.jit(lambda b, v, x: b.apply(v, x, train), static_argnums=0)
    (logits, stats), (logits_half, stats_half) = (apply(b, variables, x) for b in (bundle, half))
    assert logits_half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats_half)} == {jnp.dtype("float32")}
    difference = float(jnp.max(jnp.abs(logits_half - logits)) / jnp.max(jnp.abs(logits)))
    assert 0 < difference < 0.03  # 0 would mean that nothing was computed in bfloat16
    for key, value in flat(stats_half).items():
        np.testing.assert_allclose(value, flat(stats)[key], rtol=0.05, atol=0.01)


def test_normalization_happens_inside(small):
    bundle, variables = small
    logits = jax.jit(lambda b, x: b.apply(variables, x, False)[0], static_argnums=0)
    constants = {"mean": [0.3], "std": [0.2]}
    inside = models.create("small_resnet", 5, (8, 8, 1), widths=(4, 8), normalization=constants)
    assert inside.normalization == {"mean": (0.3,), "std": (0.2,)}
    x = images((8, 8, 1))
    np.testing.assert_allclose(
        logits(inside, x), logits(bundle, (x - 0.3) / 0.2), rtol=1e-4, atol=1e-5
    )


def test_default_normalization():
    assert models.create("resnet18").normalization == "none"
    assert models.create("dm_wrn_10_1", 10).normalization == "cifar10"
    assert models.create("dm_wrn_10_1", 100).normalization == "cifar100"
    assert models.create("preact_resnet18", 100, form="deepmind").normalization == "cifar100"
    assert models.create("dm_wrn_10_1", 100, normalization="cifar10").normalization == "cifar10"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "unknown model 'resnet19'.*resnet18"),
        ({"name": "wrn_35_10"}, r"6 n \+ 4"),
        ({"name": "dm_wrn_28_0"}, "width at least 1"),
        ({"name": "mobilenet_v2", "widths": (1, 2)}, "no option widths.*none"),
        ({"name": "resnet56", "form": "A"}, "no option form.*shortcut"),
        ({"name": "wrn_28_10", "depth": 10}, "no option depth"),
        ({"name": "resnet56", "shortcut": "C"}, "shortcut='C'.*'A', 'B'"),
        ({"name": "preact_resnet18", "form": "he"}, "form='he'.*rice"),
        ({"name": "small_resnet", "widths": ()}, "widths"),
        ({"name": "small_resnet", "widths": 16}, "widths"),
        ({"name": "small_resnet", "blocks": 0}, "blocks"),
        ({"name": "small_cnn", "widths": (8, 16, 32)}, "widths.*2 positive"),
        ({"name": "resnet18", "init": "he"}, "init='he'.*torch"),
        ({"name": "resnet18", "dtype": "float16"}, "dtype='float16'.*bfloat16"),
        ({"name": "resnet18", "num_classes": 1}, "num_classes=1"),
        ({"name": "resnet18", "num_classes": 10.0}, "num_classes=10.0"),
        ({"name": "resnet18", "image_shape": (4, 4, 3)}, "at least 8x8.*small_cnn"),
        ({"name": "resnet18", "image_shape": (32, 32)}, "image_shape"),
        ({"name": "resnet18", "image_shape": (32, 32, 0)}, "image_shape"),
        ({"name": "dm_wrn_10_1", "image_shape": (30, 30, 3)}, "multiples of 4"),
        ({"name": "dm_wrn_10_1", "image_shape": (8, 8, 1)}, r"1 channel\(s\)"),
        ({"name": "resnet18", "normalization": "cifar"}, "normalization='cifar'.*cifar10"),
        ({"name": "resnet18", "normalization": {"mean": [0.5] * 3}}, "'mean' and 'std'"),
        ({"name": "resnet18", "normalization": 3}, "'mean' and 'std'"),
        (
            {"name": "resnet18", "normalization": {"mean": [0.5] * 3, "std": [0.2, 0.0, 0.2]}},
            "std positive",
        ),
    ],
)
def test_create_explains_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(**arguments)


def test_apply_explains_what_is_wrong(small):
    bundle, variables = small
    x = np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=r"\[B, 8, 8, 1\].*\[2, 16, 16, 1\]"):
        bundle.apply(variables, np.zeros((2, 16, 16, 1), np.float32), False)
    with pytest.raises(ValueError, match=r"\[8, 8, 1\]"):
        bundle.apply(variables, x[0], False)
    with pytest.raises(ValueError, match="uint8.*255"):
        bundle.apply(variables, x.astype(np.uint8), False)
    with pytest.raises(ValueError, match="train=1"):
        bundle.apply(variables, x, 1)


@pytest.mark.parametrize(
    ("name", "options"), [("small_resnet", {}), ("resnet20", {"shortcut": "A"})]
)
def test_odd_image_sizes_work_where_they_can(name, options):
    assert logits_shape(models.create(name, 3, (9, 11, 1), **options)) == (2, 3)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_max_pooling_has_one_result_in_both_forms(size):
    x = images((*size, 3)) - 0.5
    with exported_convolutions("stock"):
        exported = layers.max_pool(x)
    np.testing.assert_array_equal(layers.max_pool(x), exported)
    assert exported.shape[1:3] == tuple((n + 1) // 2 for n in size)


def test_what_the_larger_networks_refuse():
    for name, options, message in (
        (
            "resnet50",
            {"form": "tv"},
            r"form='tv' is unknown; choose one of \('cifar', 'imagenet'\)",
        ),
        (
            "convnext_tiny",
            {"stem": "cvst"},
            r"stem='cvst' is unknown; choose one of \('patch', 'conv'\)",
        ),
        ("vit_tiny", {"patch": 3, "stem": "conv"}, "patch=3: stem='conv' halves the image"),
        ("vit_tiny", {"patch": 0}, "patch=0: must be an integer >= 1"),
        ("vit_tiny", {"patch": 5}, "multiples of 5"),
        ("efficientnet_b0", {"image_shape": (28, 28, 3)}, "at least 32x32"),
        ("convnext_tiny", {"image_shape": (40, 40, 3)}, "multiples of 32"),
        ("resnet50", {"image_shape": (32, 32, 1)}, "normalization='none'"),
    ):
        with pytest.raises(ValueError, match=message):
            models.create(name, **options)


def test_networks_with_layer_norm_have_no_statistics_and_begin_as_published():
    bundle = models.create("vit_tiny", patch=8)
    variables = jax.jit(bundle.init)(jax.random.key(0))
    assert variables["batch_stats"] == {} and bundle.normalization == "imagenet"
    assert models.create("vit_tiny", patch=8, stem="conv").normalization == "none"
    kernel = variables["params"]["blocks__0"]["mlp__fc1"]["kernel"]
    assert np.std(kernel) == pytest.approx(0.02, rel=0.05)
    assert not np.any(variables["params"]["blocks__0"]["mlp__fc1"]["bias"])


@pytest.mark.slow
def test_networks_with_layer_norm_have_one_mode():
    bundle = models.create("vit_tiny", patch=8)
    variables = jax.jit(bundle.init)(jax.random.key(0))
    x = images((32, 32, 3))
    both = jax.jit(lambda v, x: [bundle.apply(v, x, train)[0] for train in (False, True)])
    np.testing.assert_array_equal(*both(variables, x))
    half = models.create("vit_tiny", patch=8, dtype="bfloat16")
    logits = jax.jit(lambda v, x: half.apply(v, x, False)[0])(variables, x)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, both(variables, x)[0], atol=0.05)


_SLOW_TO_TRACE = ("convnext_tiny", "efficientnet_b0", "mobilenet_v2", "shufflenet_v2", "resnet50")


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW_TO_TRACE),
        *("resnet18", "preact_resnet18", "wrn_10_1", "mobilenet_v3_small", "vit_tiny"),
    ],
)
def test_remat_keeps_the_inputs_of_blocks_alone(name):
    """What the backward pass is given: traced, as a CPU's compiler undoes it."""
    kwargs = {"patch": 4} if name == "vit_tiny" else {}
    made = [models.create(name, 10, (32, 32, 3), remat=r, **kwargs) for r in (False, True)]
    shapes = [jax.eval_shape(b.init, jax.random.key(0)) for b in made]
    assert shapes[0] == shapes[1]
    images = jax.ShapeDtypeStruct((256, 32, 32, 3), jnp.float32)

    def kept(bundle):
        def forward(variables, x):
            logits, backward = jax.vjp(lambda v: bundle.apply(v, x, False)[0], variables)
            return backward

        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(forward, shapes[0], images)))

    assert kept(made[1]) < 0.7 * kept(made[0])


def test_remat_has_the_same_gradient():
    made = [
        models.create("small_resnet", 3, (8, 8, 1), widths=(4, 6), remat=r) for r in (False, True)
    ]
    variables, images = made[0].init(0), jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))

    def gradient(bundle):
        def loss(params):
            logits, stats = bundle.apply({**variables, "params": params}, images, True)
            return jnp.sum(logits**2), stats

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    for one, other in zip(*map(jax.tree.leaves, map(gradient, made)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
