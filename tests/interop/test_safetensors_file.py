"""The safetensors export: exact, self-describing, readable by the library alone, and refusing strangers."""

import json

import jax
import numpy as np
import pytest
from exported_networks import logits, make
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ard_jax import models
from ard_jax.interop import safetensors_file
from ard_jax.models import described

DESCRIPTION = {
    "model": "small_resnet",
    "kwargs": {"widths": [4, 6], "blocks": 1},
    "init": "torch",
    "normalization": {"mean": [0.3], "std": [0.25]},
    "precision": "float32",
    "num_classes": 3,
    "image_shape": [8, 8, 1],
    "class_names": ["a", "b", "ç"],
}


METADATA = {"description": json.dumps(DESCRIPTION)}


def network():
    return make("small_resnet", num_classes=3, image_shape=(8, 8, 1), widths=(4, 6), blocks=1,
                normalization=DESCRIPTION["normalization"])  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    bundle, variables = network()
    path = tmp_path_factory.mktemp("safetensors") / "student.safetensors"
    assert (
        safetensors_file.export(bundle, variables, path, METADATA | {"made_by": "a test"}) == path
    )
    return path, variables


def test_loading_gives_the_network_back_exactly(exported):
    path, variables = exported
    description, loaded = safetensors_file.load(path)
    assert description == DESCRIPTION
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    images = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)
    bundle = described.from_description(description)
    expected = logits(network()[0], variables, images)
    np.testing.assert_array_equal(logits(bundle, loaded, images), expected)


def test_names_and_header_are_as_documented(exported):
    tensors = load_file(exported[0])
    assert tensors["params/conv1/kernel"].shape == (3, 3, 1, 4)
    assert tensors["batch_stats/layer2__0/bn1/mean"].dtype == np.float32
    with safe_open(exported[0], framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["made_by"] == "a test" and json.loads(metadata["description"]) == DESCRIPTION


def test_transposed_views_are_written_in_order(tmp_path):
    bundle, variables = network()
    kernel = np.asarray(variables["params"]["linear"]["kernel"])
    variables["params"]["linear"]["kernel"] = np.asfortranarray(kernel)
    path = tmp_path / "x.safetensors"
    safetensors_file.export(bundle, variables, path, METADATA)
    loaded = safetensors_file.load(path)[1]
    np.testing.assert_array_equal(loaded["params"]["linear"]["kernel"], kernel)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.pop("description"), 'lack "description"'),
        (lambda m: m.update(epochs=3), r"must be text, but \['epochs'\]"),
        (
            lambda m: m.update(description=json.dumps(DESCRIPTION | {"model": "resnet18"})),
            "description is of 'resnet18', but the network is 'small_resnet'",
        ),
    ],
)
def test_bad_metadata(tmp_path, change, message):
    bundle, variables = network()
    metadata = dict(METADATA)
    change(metadata)
    with pytest.raises(ValueError, match=message):
        safetensors_file.export(bundle, variables, tmp_path / "x", metadata)
    assert not list(tmp_path.iterdir())


def test_variables_of_another_network(tmp_path):
    bundle, variables = network()
    other = models.create("small_resnet", 3, (8, 8, 1), widths=(4, 7))
    with pytest.raises(ValueError, match="variables are not those of small_resnet: .*layer2__0"):
        safetensors_file.export(other, variables, tmp_path / "x", METADATA)
    del variables["params"]["conv1"]
    with pytest.raises(ValueError, match="missing params/conv1/kernel"):
        safetensors_file.export(bundle, variables, tmp_path / "x", METADATA)
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_ours(exported, tmp_path):
    whole = exported[0].read_bytes()
    for name, data in dict(cut=whole[:-4], short=whole[:40], empty=b"", page=b"<html>").items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is not a complete safetensors file"):
            safetensors_file.load(tmp_path / name)
    save_file({"conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="foreign was not exported by ard_jax.*--mode=import"):
        safetensors_file.load(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError):
        safetensors_file.load(tmp_path / "nothing")
