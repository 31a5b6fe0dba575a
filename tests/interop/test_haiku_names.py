"""DeepMind's Haiku names against the real library: names and logits that dm-haiku 0.0.17 produced."""

import jax
import numpy as np
import pytest

from ard_jax import models
from ard_jax.interop import haiku_names, recognise

SHAPE = (16, 16, 3)
# WideResNet(num_classes=10, depth=10, width=2, activation="swish") of deepmind-research, run by dm-haiku on
# CIFAR-10's normalisation of the images below, weights as in `tree`, highest precision.
LOGITS = [
    [0.7009798, -0.4101712, -0.0068201, -0.0878262, -0.6726108, 0.095687, -0.7226498, -0.3002741,
     -0.2427376, -0.5365775],
    [0.416496, -0.1899849, 0.1500438, 0.0359649, -0.7350348, 0.1175853, -1.0611455, -0.2731955,
     -0.3376367, -0.4208778],
]  # fmt: skip


def layout():
    """Haiku's names and shapes, as hk.transform_with_state(...).init makes them."""
    shapes = {
        "params/wide_res_net/~/init_conv/w": (3, 3, 3, 16),
        "params/wide_res_net/~/logits/w": (128, 10),
        "params/wide_res_net/~/logits/b": (10,),
    }
    norms = {"wide_res_net/~/batchnorm": 128}
    for stage, (before, width) in enumerate(((16, 32), (32, 64), (64, 128))):
        block = f"wide_res_net/~/resnet_lay_{stage}_block_0/~"
        shapes[f"params/{block}/conv_0/w"] = (3, 3, before, width)
        shapes[f"params/{block}/conv_1/w"] = (3, 3, width, width)
        shapes[f"params/{block}/shortcut/w"] = (1, 1, before, width)
        norms |= {f"{block}/batchnorm_0": before, f"{block}/batchnorm_1": width}
    for norm, width in norms.items():
        for leaf in ("scale", "offset"):
            shapes[f"params/{norm}/{leaf}"] = (1, 1, 1, width)
        for ema in ("mean_ema", "var_ema"):
            shapes[f"state/{norm}/~/{ema}/counter"] = ()
            for leaf in ("average", "hidden"):
                shapes[f"state/{norm}/~/{ema}/{leaf}"] = (1, 1, 1, width)
    return shapes


def images_and_tree():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, *SHAPE)).astype(np.float32)
    tree = {}
    for name, shape in sorted(layout().items()):
        leaf = name.rsplit("/", 1)[1]
        u = rng.uniform(-1, 1, shape)
        if leaf == "w":
            u = u * np.sqrt(4.5 / np.prod(shape[:-1]))
        else:
            u = 1 + 0.5 * u if leaf == "scale" or "var_ema" in name else 0.2 * u
        tree[name] = np.full(shape, 5, np.int32) if leaf == "counter" else u.astype(np.float32)
    return images, tree


def test_logits_are_those_of_haiku():
    images, tree = images_and_tree()
    found = recognise.recognise(tree, image_shape=SHAPE)
    assert (found.model, found.num_classes) == ("dm_wrn_10_2", 10)
    assert found.normalization == "cifar10"
    assert set(found.ignored) == {"counter (14)", "hidden (14)"}
    variables = recognise.convert(tree, found, image_shape=SHAPE)
    bundle = models.create(found.model, 10, SHAPE, normalization=found.normalization)
    with jax.default_matmul_precision("highest"):
        logits, _ = jax.jit(lambda v, x: bundle.apply(v, x, False))(variables, images)
    # Stored with seven digits; rounding of float32 sums of this size is 1e-6.
    np.testing.assert_allclose(logits, LOGITS, rtol=0, atol=1e-5)


def test_names_without_the_constructor_mark():
    _, tree = images_and_tree()
    plain = {name.replace("/~", ""): value for name, value in tree.items()}
    first, second = (recognise.convert(t, recognise.recognise(t)) for t in (tree, plain))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("params/wide_res_net/~/init_conv/kernel", "init_conv/kernel is not a tensor of DeepMind"),
        ("state/wide_res_net/~/batchnorm/~/mean_ema/median", "mean_ema/median is not a tensor"),
        ("params/wide_res_net/init_conv/w", "two tensors of the Haiku file mean init_conv.weight"),
        ("params/wide_res_net/~/extra/w", r"nearest is dm_wrn_10_2 .*not part of it extra\.weight"),
        ("params/w", "params/w is not a tensor of DeepMind's"),
    ],
)
def test_other_names_are_refused(name, message):
    _, tree = images_and_tree()
    with pytest.raises(ValueError, match=message):
        recognise.recognise({**tree, name: np.ones((3, 3), np.float32)})


def test_what_is_haiku():
    assert haiku_names.is_haiku(layout())
    assert not haiku_names.is_haiku([])
    assert not haiku_names.is_haiku(["conv1.weight"])
    assert not haiku_names.is_haiku(["params/conv1/kernel", "params/fc/bias"])  # ours
