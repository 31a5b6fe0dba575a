import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from exported_networks import ALL, FAST, SIZE, TOLERANCE, logits, make, relative, untrained

from ard_jax import models
from ard_jax.interop import stablehlo

pytest.importorskip("flatbuffers", reason="flatbuffers of the extra `export` is not installed")
RNG = np.random.default_rng(2)


@pytest.mark.parametrize("name, kwargs", ALL)
def test_same_logits_at_any_batch_size(name, kwargs, tmp_path):
    bundle, variables = make(name, **kwargs)
    stablehlo.export(bundle, variables, tmp_path / "net")
    run = stablehlo.load(tmp_path / "net")
    images = RNG.random((64, *bundle.image_shape), dtype=np.float32)
    expected = logits(bundle, variables, images)
    for size in (1, 7, 64):
        assert relative(np.asarray(run(images[:size])), expected[:size]) < TOLERANCE


def test_one_file_for_all_platforms(tmp_path):
    bundle, variables = make("small_cnn", **SIZE)
    stablehlo.export(bundle, variables, tmp_path / "net", fold_batchnorm=True)
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (images,), (out,) = exported.in_avals, exported.out_avals
    assert str(images.shape) == "(B, 8, 8, 3)" and str(out.shape) == "(B, 10)"


@pytest.mark.slow
def test_depthwise_convolutions_are_those_of_the_platform(tmp_path):
    bundle = models.create("mobilenet_v2")
    stablehlo.export(bundle, untrained(bundle), tmp_path / "net")
    assert (tmp_path / "net").stat().st_size < 1.05 * 4 * models.num_params(bundle)
    exported = jax.export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    assert "feature_group_count = 960" in exported.mlir_module()  # for CUDA and TPU
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    compiled = jax.jit(exported.call).lower(images).compile().as_text()
    assert "convolution" in compiled and "feature_group_count" not in compiled  # for the CPU


def test_the_loader_beside_it_needs_no_ard_jax(tmp_path):
    bundle, variables = make("small_cnn", **SIZE)
    stablehlo.export(bundle, variables, tmp_path / "student.stablehlo")
    stablehlo.write_loader(tmp_path / "load_stablehlo.py")
    images = RNG.random((3, 8, 8, 3), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['ard_jax'] = None\n"
        "import numpy as np; from load_stablehlo import load\n"
        "np.save('logits.npy', load('student.stablehlo')(np.load('images.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "logits.npy")
    assert relative(found, logits(bundle, variables, images)) < TOLERANCE


@pytest.mark.parametrize(
    "change", [lambda x: 255 * x, lambda x: (255 * x).astype(np.uint8), lambda x: x[:, :5]]
)
def test_images_that_it_does_not_take(tmp_path, change):
    bundle, variables = make(*FAST[0][:1], **FAST[0][1])
    stablehlo.export(bundle, variables, path := tmp_path / "x.stablehlo")
    images = np.random.default_rng(0).uniform(size=(2, *bundle.image_shape)).astype(np.float32)
    network = stablehlo.load(path)
    assert network(images).shape == (2, bundle.num_classes)
    with pytest.raises(ValueError, match="divide by 255|divide uint8|are not those of"):
        network(change(images))


def test_a_file_that_is_none(tmp_path):
    bundle, variables = make("small_cnn", **SIZE)
    path = tmp_path / "net"
    with pytest.raises(stablehlo.StableHloError, match="net cannot be read as StableHLO"):
        stablehlo.load(path)
    stablehlo.export(bundle, variables, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(stablehlo.StableHloError, match="net cannot be read as StableHLO"):
        stablehlo.load(path)


@pytest.mark.parametrize("place", ["missing/o.bin", ""])
def test_a_place_for_no_file(tmp_path, place):
    with pytest.raises(OSError, match="folder"):
        stablehlo.export(None, None, tmp_path / place)


def test_missing_flatbuffers_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(stablehlo.StableHloError, match=r"needs flatbuffers.*'ard_jax\[export\]'"):
        stablehlo.check_installed()
