"""Files of ImageNet networks as their publishers save them, imported by names and shapes."""

import jax
import numpy as np
import pytest

from ard_jax import models
from ard_jax.checkpoints import networks
from ard_jax.cli import import_network
from ard_jax.interop import torch_export, torch_names

pytestmark = pytest.mark.slow


def state_dict(name, **kwargs):
    """(our network, its variables of random running statistics too, PyTorch's tensors)."""
    bundle = models.create(name, 1000, (224, 224, 3), **kwargs)
    variables = bundle.init(0)
    rng = np.random.default_rng(0)
    stats = jax.tree.map(
        lambda a: rng.uniform(0.5, 1.5, a.shape).astype(np.float32), variables["batch_stats"]
    )
    variables = {"params": variables["params"], "batch_stats": stats}
    return bundle, variables, torch_names.to_torch(bundle, variables)


def robustness(tensors):
    """A file of MadryLab/robustness, as Salman et al. publish theirs: the network twice, and constants."""
    held = {f"module.model.{n}": t for n, t in tensors.items()}
    held |= {f"module.attacker.model.{n}": t for n, t in tensors.items()}
    mean, std = (np.array(c, np.float32) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for where in ("normalizer", "attacker.normalize"):
        constants = {"new_mean": mean, "new_std": std}
        held |= {f"module.{where}.{n}": c.reshape(3, 1, 1) for n, c in constants.items()}
    return held, {"epoch": 90}


def singh(tensors):
    """Of nmndeep/revisiting-at: saved out of DistributedDataParallel, in RobustBench's wrapper."""
    return {f"module.model.{n}": t for n, t in tensors.items()}, {}


@pytest.mark.parametrize(
    "name, kwargs, wrap",
    [
        ("resnet18", {"form": "imagenet"}, robustness),
        ("resnet50", {"form": "imagenet"}, robustness),
        ("vit_small", {"stem": "conv"}, singh),
        ("convnext_tiny", {"stem": "conv"}, singh),
        ("mobilenet_v3_small", {}, lambda tensors: (tensors, {})),
    ],
)
def test_a_published_file_is_the_network(tmp_path, capsys, name, kwargs, wrap):
    bundle, variables, tensors = state_dict(name, **kwargs)
    held, beside = wrap(tensors)
    torch_export.write_torch_zip(tmp_path / "published.pt", held, beside)
    folder = import_network.run(file=str(tmp_path / "published.pt"), out=str(tmp_path / "out"))
    # RobustBench's ViT-S alone normalises in front of the ConvStem.
    normalization = "none" if name == "convnext_tiny" else "imagenet"
    assert f"Normalisation: {normalization} " in capsys.readouterr().out
    found, loaded, meta, _ = networks.load(str(folder))
    assert (found.name, found.image_shape) == (name, bundle.image_shape)
    assert meta["config"]["net"]["kwargs"].get("stem", "patch") == kwargs.get("stem", "patch")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    images = jax.random.uniform(jax.random.key(1), (1, *bundle.image_shape))
    expected = models.create(name, 1000, bundle.image_shape, normalization=normalization, **kwargs)
    one, other = (net.apply(variables, images, False)[0] for net in (found, expected))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
