import importlib.util

import jax
import numpy as np
import pytest
import verification_networks
from exported_networks import ALL, FAST, SIZE, TOLERANCE, logits, make, relative, untrained

from ard_jax import attacks, data, models
from ard_jax.interop import onnx, torch_names

for package in onnx.NEEDS:
    pytest.importorskip(package, reason=f"{package} of the extra `export` is not installed")

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("folded", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name, kwargs", ALL)
def test_same_logits_at_any_batch_size(name, kwargs, folded, tmp_path):
    bundle, variables = make(name, **kwargs)
    onnx.export(bundle, variables, tmp_path / "net.onnx", fold_batchnorm=folded)
    run = onnx.predict(tmp_path / "net.onnx")
    images = RNG.random((64, *bundle.image_shape), dtype=np.float32)
    expected = logits(bundle, variables, images)
    for size in (1, 7, 64):
        found = run(images[:size])
        assert found.shape == (size, 10) and found.dtype == np.float32
        assert relative(found, expected[:size]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.data
def test_robust_accuracy_on_adversarial_images(shared_data, tmp_path):
    weights = shared_data.parent / "golden" / "cnn_a_adv_weights.npz"
    if not weights.is_file():
        pytest.skip(f"no trained robust network: {weights} does not exist")
    stored = np.load(weights)
    bundle = verification_networks.create(
        "cnn_a", normalization={"mean": stored["mean"].tolist(), "std": stored["std"].tolist()}
    )
    state = {k.removeprefix("m."): stored[k] for k in stored.files if k.startswith("m.")}
    variables = torch_names.to_variables(bundle, state)
    test = data.load("cifar10", shared_data / "tfds").test
    images, labels = test.images[:1000] / np.float32(255), test.labels[:1000]
    predict = jax.jit(lambda x: bundle.apply(variables, x, False)[0])
    attack = jax.jit(lambda x, y: attacks.pgd(predict, x, y, jax.random.key(0), unroll=1))
    adversarial = np.asarray(attack(images, labels))
    onnx.export(bundle, variables, tmp_path / "net.onnx")
    ours = np.asarray(predict(adversarial)).argmax(1) == labels
    found = onnx.predict(tmp_path / "net.onnx")(adversarial).argmax(1) == labels
    assert 0.10 < ours.mean() < 0.20  # 13.8 % under PGD-20 by the data's README
    np.testing.assert_array_equal(found, ours)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [("resnet20", 21), pytest.param("mobilenet_v2", 57, marks=pytest.mark.slow)],
)
def test_real_convolutions_and_nothing_computed_twice(tmp_path, name, convolutions):
    bundle = models.create(name)
    onnx.export(bundle, untrained(bundle), tmp_path / "net.onnx", fold_batchnorm=True)
    operators = onnx.operators(tmp_path / "net.onnx")
    assert operators["Conv"] == convolutions and "Mul" not in operators
    weights = 4 * models.num_params(bundle)
    assert (tmp_path / "net.onnx").stat().st_size < 1.05 * weights


def test_description_is_in_the_file(tmp_path):
    import onnx as onnx_package

    bundle, variables = make("small_cnn", **SIZE)
    onnx.export(bundle, variables, tmp_path / "net.onnx", metadata={"description": "{}"})
    model = onnx_package.load(tmp_path / "net.onnx")
    assert {p.key: p.value for p in model.metadata_props} == {"description": "{}"}
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "B"


def test_gray_images_and_a_normalisation(tmp_path):
    normalization = {"mean": [0.3], "std": [0.4]}
    bundle, variables = make("small_cnn", image_shape=(8, 8, 1), normalization=normalization)
    onnx.export(bundle, variables, tmp_path / "net.onnx", fold_batchnorm=True)
    images = RNG.random((5, 8, 8, 1), dtype=np.float32)
    found = onnx.predict(tmp_path / "net.onnx")(images)
    assert relative(found, logits(bundle, variables, images)) < TOLERANCE


@pytest.mark.parametrize(
    "change", [lambda x: 255 * x, lambda x: (255 * x).astype(np.uint8), lambda x: x[:, :5]]
)
def test_images_that_it_does_not_take(tmp_path, change):
    bundle, variables = make(*FAST[0][:1], **FAST[0][1])
    onnx.export(bundle, variables, path := tmp_path / "x.onnx", metadata={"count": 1})
    images = np.random.default_rng(0).uniform(size=(2, *bundle.image_shape)).astype(np.float32)
    network = onnx.predict(path)
    assert network(images).shape == (2, bundle.num_classes)
    with pytest.raises(ValueError, match=r"divide by 255|divide uint8|takes \[B, 8, 8, 3\]"):
        network(change(images))


def test_missing_packages_are_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else find(name)
    )
    with pytest.raises(onnx.OnnxError, match=r"needs jax2onnx.*pip install 'ard_jax\[export\]'"):
        onnx.check_installed()


def test_a_network_too_large_for_one_file(tmp_path, monkeypatch):
    bundle = models.create("small_cnn")
    monkeypatch.setattr(onnx, "_LIMIT", 4 * models.num_params(bundle) - 1)
    with pytest.raises(onnx.OnnxError, match="more than the 2 GB.*--format=stablehlo"):
        onnx.export(bundle, None, tmp_path / "net.onnx")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(onnx.OnnxError, match="net.onnx cannot be read by onnxruntime"):
        onnx.predict(tmp_path / "net.onnx")
