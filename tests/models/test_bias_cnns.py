"""cnn_a and resnet4b (`verification_networks`) are no part of the package."""

import numpy as np
import pytest
import verification_networks

from ard_jax import interop, models
from ard_jax.models import described


@pytest.mark.parametrize("name", verification_networks.NETWORKS)
def test_the_package_does_not_have_them(name):
    bundle = verification_networks.create(name)
    assert (
        models.num_params(bundle) == {"cnn_a": 214_918, "resnet4b": 123_734}[name]
    )  # as published
    with pytest.raises(ValueError, match=f"unknown model '{name}'"):
        models.create(name)
    description = {"model": name, "kwargs": {}, "init": "torch", "normalization": None,
                   "precision": "float32", "num_classes": 10, "image_shape": [32, 32, 3]}  # fmt: skip
    with pytest.raises(ValueError, match=f"'{name}' is no longer part.*attacks.autoattack"):
        described.from_description(description)
    layout = interop.torch_layout(bundle)
    with pytest.raises(ValueError, match="no classifier of ours"):
        interop.recognise.recognise({key: np.ones(size) for key, size in layout.items()})


def test_other_networks_have_no_convolution_bias():
    layout = interop.torch_layout(models.create("resnet20"))
    assert not [name for name in layout if "conv" in name and name.endswith("bias")]
