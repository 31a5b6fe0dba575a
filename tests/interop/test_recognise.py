import dataclasses
import functools
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from exported_networks import make

from ard_jax import interop, models
from ard_jax.interop import recognise

SHAPE = (32, 32, 3)

# A network of every family -> (number of classes, normalisation that is known, words of its family).
FAMILIES = [
    ("resnet18", {}, 10, None, "kuangliu"),
    ("mobilenet_v2", {}, 100, None, "kuangliu"),
    ("resnet20", {"shortcut": "A"}, 10, "imagenet", "akamaster"),
    ("resnet32", {"shortcut": "A"}, 100, None, "akamaster"),
    ("resnet20", {"shortcut": "B"}, 100, None, "chenyaofo.*CIARD"),
    ("preact_resnet18", {"form": "rice"}, 10, None, "robust_overfitting"),
    ("preact_resnet34", {"form": "robustbench"}, 10, None, "RobustBench"),
    ("preact_resnet18", {"form": "deepmind"}, 100, "cifar100", "DeepMind"),
    ("preact_resnet34", {"form": "deepmind"}, 10, "cifar10", "DeepMind"),
    ("wrn_16_4", {}, 100, "none", "TRADES"),
    ("dm_wrn_10_2", {}, 10, "cifar10", "DeepMind"),
    ("dm_wrn_16_1", {}, 200, None, "DeepMind"),
    ("dm_wrn_22_6", {}, 100, "cifar10", "MTARD"),
    ("small_resnet", {"widths": (8, 12), "blocks": 2}, 5, None, "small_resnet"),
    ("small_cnn", {"widths": (8, 16)}, 7, None, "small_cnn"),
    ("resnet34", {}, 10, None, "kuangliu"),
    ("resnet18", {"form": "imagenet"}, 1000, "imagenet", "torchvision"),
    ("resnet50", {"form": "imagenet"}, 1000, "imagenet", "torchvision"),
    ("wide_resnet50_2", {"form": "imagenet"}, 1000, "imagenet", "torchvision"),
    ("resnet50", {"form": "cifar"}, 10, None, "kuangliu"),
    ("mobilenet_v3_large", {}, 1000, "imagenet", "torchvision"),
    ("mobilenet_v3_small", {}, 10, "imagenet", "torchvision"),
    ("efficientnet_b0", {}, 10, "imagenet", "torchvision"),
    ("shufflenet_v2", {}, 10, "imagenet", "torchvision"),
    ("convnext_tiny", {"stem": "patch"}, 1000, "imagenet", "timm"),
    ("convnext_base", {"stem": "conv"}, 1000, "none", "Singh"),
    ("vit_tiny", {"patch": 4, "stem": "patch"}, 10, None, "DeiT"),
    ("vit_small", {"patch": 16, "stem": "conv"}, 1000, "imagenet", "Singh"),
    ("vit_base", {"patch": 8, "stem": "conv"}, 1000, "none", "Singh"),
]


@functools.cache
def layout(name, classes, *options):
    return interop.torch_layout(models.create(name, classes, SHAPE, **dict(options)))


def shapes_only(name, classes=10, **options):
    """A state dict whose tensors take no memory."""
    shapes = layout(name, classes, *options.items())
    return {key: np.broadcast_to(np.float32(0.5), size) for key, size in shapes.items()}


def filled(name):
    rng = np.random.default_rng(0)
    shapes = layout(name, 10)
    return {k: rng.uniform(0.5, 1.5, shape).astype(np.float32) for k, shape in shapes.items()}


def equal(first, second):
    return jax.tree.structure(first) == jax.tree.structure(second) and jax.tree.all(
        jax.tree.map(np.array_equal, first, second)
    )


@pytest.mark.parametrize(("name", "options", "classes", "normalization", "family"), FAMILIES)
def test_every_family_is_found(name, options, classes, normalization, family):
    found = recognise.recognise(shapes_only(name, classes, **options))
    assert (found.model, found.kwargs, found.num_classes) == (name, options, classes)
    assert found.normalization == normalization
    assert re.search(family, found.family)
    assert found.ignored == ()
    models.create(name, classes, SHAPE, normalization=found.normalization, **found.kwargs)


def test_all_models_are_among_the_families():
    tested = {case[0] for case in FAMILIES}
    missing = {n for n in models.names() if "wrn_" not in n} - tested
    # Other depths of ResNet-20 and 32, and other sizes of ConvNeXt.
    assert missing == {"resnet44", "resnet56", "convnext_small", "convnext_large"}


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [("resnet20", 32, {}), ("shufflenet_v2", 224, {}), ("vit_tiny", 96, {"patch": 8})],
)
def test_the_size_of_the_images_is_found(name, side, options):
    layout = interop.torch_layout(models.create(name, 10, (side, side, 3), **options))
    state = {key: np.broadcast_to(np.float32(0.5), size) for key, size in layout.items()}
    assert recognise.image_side(state) == side


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.model.", "1.", "backbone."])
def test_prefixes(prefix):
    state = filled("small_cnn")
    plain = recognise.convert(state, recognise.recognise(state))
    wrapped = {prefix + name: value for name, value in state.items()}
    found = recognise.recognise(wrapped)
    assert found.model == "small_cnn"
    assert equal(recognise.convert(wrapped, found), plain)


def test_dead_tensors_are_named_and_change_nothing():
    state = filled("wrn_10_1")
    plain = recognise.convert(state, recognise.recognise(state))
    extra = {
        **state,
        "bn1.num_batches_tracked": np.int64(7),
        "block1.layer.0.bn1.num_batches_tracked": np.int64(7),
        "sub_block1.layer.0.conv1.weight": np.full((16, 16, 3, 3), np.nan, np.float32),
        "n_averaged": np.int64(3),
    }
    found = recognise.recognise({f"module.{k}": v for k, v in extra.items()})
    assert set(found.ignored) == {"num_batches_tracked (2)", "sub_block1.* (1)", "n_averaged (1)"}
    assert equal(recognise.convert(extra, found), plain)


@pytest.mark.parametrize(
    ("mean_name", "std_name", "prefix"),
    [
        ("mean", "std", ""),
        ("0.mean", "0.std", "1."),
        ("normalize.mean", "normalize.std", "model."),
        ("module.mu", "module.sigma", "module."),
        ("module.normalizer.new_mean", "module.normalizer.new_std", "module.model."),
    ],
)
def test_stored_constants_are_the_sources_own(mean_name, std_name, prefix):
    state = {prefix + name: value for name, value in filled("small_cnn").items()}
    mean, std = np.float32([0.5, 0.25, 0.125]), np.float32([0.2, 0.3, 0.4])
    plain = interop.from_torch("small_cnn", filled("small_cnn"))
    for shape in ((3,), (1, 3, 1, 1)):
        stored = {**state, mean_name: mean.reshape(shape), std_name: std.reshape(shape)}
        found = recognise.recognise(stored)
        assert found.model == "small_cnn"
        assert np.allclose(found.normalization["mean"], mean, rtol=0, atol=1e-7)
        assert np.allclose(found.normalization["std"], std, rtol=0, atol=1e-7)
        assert equal(recognise.convert(stored, found), plain)


def test_well_known_constants_get_their_name():
    state = filled("dm_wrn_10_1")
    for name, (mean, std) in models.NORMALIZATIONS.items():
        stored = {**state, "mean": np.float32(mean), "std": np.float32(std)}
        assert recognise.recognise(stored).normalization == name
    stored = {**state, "mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
    assert recognise.recognise(stored).normalization == "none"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "one mean and one std"),
        ({"mean": (0.5,) * 3, "std": (0.2,) * 3, "a.mean": (0.6,) * 3}, "one mean and one std"),
        ({"mean": (0.5, 0.5), "std": (0.2, 0.2)}, r"3 channel\(s\)"),
        ({"mean": (0.5,) * 3, "std": (0.2, 0.0, 0.2)}, "std positive"),
    ],
)
def test_broken_constants(stored, message):
    state = filled("small_cnn") | {k: np.float32(v) for k, v in stored.items()}
    with pytest.raises(ValueError, match=message):
        recognise.recognise(state)


def test_files_of_our_own_names():
    options = {"widths": (4, 8)}
    _, variables = make("small_resnet", num_classes=5, image_shape=(8, 8, 1), **options)
    flat = {
        "/".join(entry.key for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    found = recognise.recognise(flat, image_shape=(8, 8, 1))
    assert found.kwargs == {"widths": (4, 8), "blocks": 1}
    assert equal(recognise.convert(flat, found, image_shape=(8, 8, 1)), variables)
    with pytest.raises(ValueError, match="params/x/tau"):
        recognise.recognise({**flat, "params/x/tau": np.ones(3, np.float32)})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_dtypes(dtype):
    state = filled("small_cnn")
    given = {name: value.astype(dtype) for name, value in state.items()}
    variables = recognise.convert(given, recognise.recognise(given))
    kernel = variables["params"]["conv1"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(
        kernel, given["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )


def torchvision(state):
    """Its names: such networks differ in the stem's pooling as well."""
    names = (name.replace("linear", "fc").replace("shortcut", "downsample") for name in state)
    return dict(zip(names, state.values(), strict=True))


NORM, CONV = "layer2.0.bn2.running_var", "layer2.0.conv1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"aux.weight": np.ones((3, 3))},
         r"nearest is resnet18 for 10 classes .*not part of it aux\.weight \(3, 3\)"),
        (lambda s: {name: value for name, value in s.items() if name != NORM},
         r"resnet18.*missing layer2\.0\.bn2\.running_var \(128,\)"),
        (lambda s: s | {CONV: s[CONV][:, :, :1]},
         r"layer2\.0\.conv1\.weight is \(128, 64, 1, 3\) but must be \(128, 64, 3, 3\)"),
        (torchvision,
         r"nearest is resnet18.*not part of it layer2\.0\.downsample.*missing layer2\.0\.shortcut"),
    ],
    ids=["extra", "missing", "shape", "names"],
)  # fmt: skip
def test_what_is_nearly_a_network_of_ours(change, message):
    with pytest.raises(ValueError, match=message) as error:
        recognise.recognise(change(shapes_only("resnet18")))
    assert len(str(error.value)) < 1000


ONE, TEN = np.ones(1, np.float32), np.ones((10, 4))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"features.0.weight": ONE, "classifier.weight": TEN},
         r"no last linear layer.*'features\.0\.weight'"),
        ({}, "no tensors of a network"),
        ({"stem.weight": ONE, "fc.weight": TEN}, r"no names like \['stem\.weight', 'fc\.weight'\]"),
        ({"conv1.weight": TEN, "bn1.weight": TEN, "fc.weight": TEN}, "of no network of ours"),
        ({"layer.0.block.0.x.weight": TEN, "logits.weight": TEN}, "of no network of ours"),
    ],
)  # fmt: skip
def test_what_is_none_of_ours(state, message):
    with pytest.raises(ValueError, match=message):
        recognise.recognise(state)


def test_block_numbers_of_a_hostile_file_are_not_counted_to():
    state = shapes_only("small_resnet", widths=(4, 8))
    state["layer1.99999999999.conv1.weight"] = np.ones((4, 4, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"blocks=2.*not part of it layer1\.99999999999"):
        recognise.recognise(state)


def test_images_of_other_channels():
    message = r"32, 1\).*conv1\.weight is \(16, 3, 3, 3\) but must be \(16, 1"
    with pytest.raises(ValueError, match=message):
        recognise.recognise(shapes_only("wrn_10_1"), image_shape=(32, 32, 1))


def test_a_model_said_by_hand():
    state = shapes_only("resnet20", shortcut="A")
    found = recognise.recognise(state, model="resnet20")
    assert found == recognise.recognise(state)
    assert recognise.recognise(state, model="resnet20", kwargs={"shortcut": "A"}) == found
    for model, kwargs, message in (
        ("resnet20", {"shortcut": "B"}, r"not those of resnet20 \(shortcut='B'\).*linear\.weight"),
        ("small_cnn", {}, "not those of small_cnn.*It looks like resnet20"),
        ("resnet19", {}, "unknown model 'resnet19'"),
        ("resnet20", {"form": "rice"}, "no option"),
    ):
        with pytest.raises(ValueError, match=message):
            recognise.recognise(state, model=model, kwargs=kwargs)

    # It decides what tensors do not tell.
    options = {"widths": (4, 8), "blocks": 1}
    state = shapes_only("small_resnet", **options)
    assert recognise.recognise(state).kwargs == options
    kwargs = {**options, "stem_stride": 2}
    assert recognise.recognise(state, model="small_resnet", kwargs=kwargs).kwargs == kwargs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn1.bias": np.full(8, np.nan, np.float32)}, "bn1.bias contains NaN"),
        ({"fc.bias": np.full(10, 1e300)}, "fc.bias contains NaN or infinite"),
        ({"bn2.bias": np.ones(16, np.int8)}, "bn2.bias is of dtype int8"),
        ({"9.weight": np.ones((2, 2), np.float32)}, "not part of it 9.weight"),
    ],
)
def test_convert_checks_names_and_values(change, message):
    state = filled("small_cnn")
    found = recognise.recognise(state)
    with pytest.raises(ValueError, match=message):
        recognise.convert(state | change, found)
    other = dataclasses.replace(found, num_classes=100)
    with pytest.raises(ValueError, match=r"fc\.weight is \(10, 16\) but must be \(100, 16\)"):
        recognise.convert(state, other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bn.running_var", -1, "bn.running_var has 512 of 512 variances below 0, the first -1"),
        ("bn.running_var", 0, "bn.running_var has only zeros"),
        ("linear.weight", 0, "linear.weight is zero everywhere: no weights of a trained network"),
    ],
)  # fmt: skip
def test_values_that_no_training_leaves_are_refused(name, value, message):
    state = filled("preact_resnet18")
    state[name] = np.full_like(state[name], value)
    with pytest.raises(ValueError, match=message):
        recognise.convert(state, recognise.recognise(state))


def test_a_tensor_beside_a_network_of_ours_is_named():
    ours = {"params/linear/kernel": np.ones((4, 2)), "extra": np.ones(3)}
    with pytest.raises(
        ValueError, match="extra is no tensor of a network of ours; it should be like params"
    ):
        recognise.recognise(ours)
