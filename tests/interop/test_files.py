"""Reading networks from the files of other libraries; hostile and broken ones are in test_hostile_files."""

import hashlib
import importlib.util

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from torch_file_writer import (
    KINDS,
    call,
    mapping,
    name,
    simple,
    storage,
    tensor,
    value,
    view_of,
    write,
    write_legacy,
)  # fmt: skip

from ard_jax.interop import files

HAS_TORCH = importlib.util.find_spec("torch") is not None


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors[key].dtype == array.dtype, key
        assert tensors[key].shape == array.shape, key
        assert tensors[key].tobytes() == array.tobytes(), key  # bit for bit, whatever the dtype


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict(tmp_path, kind, use_torch):
    path = tmp_path / "network.whatever"
    expected = simple(kind, path)
    contents = files.read(path, use_torch=use_torch)
    assert_same(contents.tensors, expected)
    assert (contents.format, contents.nested, contents.metadata) == (kind, "", {})
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


DTYPES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": ml_dtypes.bfloat16, "Long": "i8", "Int": "i4",
    "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexFloat": "c8", "ComplexDouble": "c16",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_also_of_a_gpu(tmp_path, kind, use_torch):
    blocks = {
        name: np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype) for name, dtype in DTYPES.items()
    }
    view, shape = view_of(kind), (2, 3)
    entries = {d: tensor(storage(d, 6, f"torch.{d}Storage", "cuda:0", view), shape) for d in DTYPES}
    path = write(tmp_path / "all", kind, mapping(entries), blocks)
    assert_same(files.read(path, use_torch=use_torch).tensors, blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_views_of_one_storage(tmp_path, kind, use_torch):
    block = np.arange(24, dtype=np.float32)
    where = storage("0", 24, view=view_of(kind))
    entries = {
        "whole": tensor(where, (4, 6)),
        "transposed": tensor(where, (6, 4), (1, 6)),
        "part": tensor(where, (2, 3), (6, 2), offset=7),
        "last": tensor(where, (), (), offset=23),
        "expanded": tensor(where, (3, 2), (0, 1), offset=22),
        "none": tensor(where, (0, 5), (5, 1), offset=24),
    }
    path = write(tmp_path / "views", kind, mapping(entries), {"0": block})
    tensors = files.read(path, use_torch=use_torch).tensors
    grid = block.reshape(4, 6)
    np.testing.assert_array_equal(tensors["whole"], grid)
    np.testing.assert_array_equal(tensors["transposed"], grid.T)
    np.testing.assert_array_equal(tensors["part"], [[7, 9, 11], [13, 15, 17]])
    assert tensors["last"] == 23 and tensors["last"].shape == ()
    np.testing.assert_array_equal(tensors["expanded"], [[22, 23]] * 3)
    assert tensors["none"].shape == (0, 5)


def test_legacy_views_of_a_storage(tmp_path, use_torch):
    block = np.arange(10, dtype=np.float32)
    entries = {
        "a": tensor(storage("0", 10, view=(("v1", 4, 6),)), (2, 2), offset=1),
        "b": tensor(storage("0", 10, view=(("v2", 0, 4),)), (4,)),
    }
    path = write_legacy(tmp_path / "x", mapping(entries), {"0": block})
    tensors = files.read(path, use_torch=use_torch).tensors
    np.testing.assert_array_equal(tensors["a"], [[5, 6], [7, 8]])
    np.testing.assert_array_equal(tensors["b"], [0, 1, 2, 3])


def test_parameters_and_tensors_with_a_dtype_of_their_own(tmp_path, use_torch):
    weight = tensor(storage("0", 6), (2, 3))
    parameter = call(
        "torch._utils._rebuild_parameter", weight, value(True), call("collections.OrderedDict")
    )
    raw = storage("1", 8, "torch.storage.UntypedStorage")
    hooks = value(False) + call("collections.OrderedDict")
    unsigned = call(
        "torch._utils._rebuild_tensor_v3",
        raw + value(1) + value((3,)) + value((1,)) + hooks + name("torch.uint16"),
    )
    blocks = {"0": np.arange(6, dtype=np.float32), "1": np.array([9, 8, 7, 65535], np.uint16)}
    path = write(tmp_path / "x", "torch zip", mapping({"w": parameter, "u": unsigned}), blocks)
    tensors = files.read(path, use_torch=use_torch).tensors
    assert tensors["w"].shape == (2, 3)
    assert tensors["u"].dtype == np.uint16 and tensors["u"].tolist() == [8, 7, 65535]


@pytest.mark.parametrize(
    ("kind", "key"), [(KINDS[0], "model"), (KINDS[0], "ema"), (KINDS[1], "state_dict")]
)
def test_nested_with_scalars_beside_it(tmp_path, kind, key, use_torch):
    scalars = {"epoch": 200, "best_prec1": 91.5, "arch": "resnet20"}
    view = view_of(kind)

    def around(body):
        entries = {name: value(scalar) for name, scalar in (scalars | {"none": None}).items()}
        moments = mapping({"buffer": tensor(storage("0", 6, view=view), (2, 3))})
        optimizer = mapping(
            {"state": mapping({0: moments, "named": moments}), "param_groups": value([])}
        )
        best = tensor(storage("1", 2, view=view), (1,))
        return mapping({**entries, key: body, "optimizer": optimizer, "tensor_acc": best})

    expected = simple(kind, tmp_path / "x", around)
    contents = files.read(tmp_path / "x", use_torch=use_torch)
    assert_same(contents.tensors, expected)
    assert contents.nested == key and contents.metadata == scalars | {"tensor_acc": 1.0}


def test_nested_twice_and_in_a_list(tmp_path, use_torch):
    expected = simple(KINDS[0], tmp_path / "x", lambda body: b"](" + mapping({"net": body}) + b"e")
    contents = files.read(tmp_path / "x", use_torch=use_torch)
    assert contents.nested == "0/net"
    assert_same(contents.tensors, expected)


def test_several_networks(tmp_path, use_torch):
    def around(body):
        other = mapping({"w": tensor(storage("0", 6), (3, 2))})
        return mapping({"model": body, "ema": mapping({"state_dict": other}), "epoch": value(3)})

    simple("torch zip", tmp_path / "x", around)
    several = r"'model' \(2 tensors\), 'ema/state_dict' \(1 tensors\).*--key"
    with pytest.raises(files.FileError, match=several):
        files.read(tmp_path / "x", use_torch=use_torch)
    contents = files.read(tmp_path / "x", use_torch=use_torch, key="ema/state_dict")
    assert contents.nested == "ema/state_dict" and contents.tensors["w"].shape == (3, 2)
    assert contents.metadata == {"epoch": 3}
    with pytest.raises(files.FileError, match="no tensors under 'teacher'.*'model'"):
        files.read(tmp_path / "x", use_torch=use_torch, key="teacher")


def test_no_network(tmp_path):
    body = mapping({"epoch": value(3), "log": value([1, 2])})
    path = write(tmp_path / "x", "torch zip", body, {})
    with pytest.raises(files.FileError, match="no state dict.*'epoch', 'log'"):
        files.read(path)


def test_numpy_scalars_beside_the_tensors(tmp_path):
    """Accuracies are often NumPy's; PyTorch itself refuses them with weights_only."""
    accuracy = value(np.float64(0.5))
    simple("torch zip", tmp_path / "x", lambda body: mapping({"net": body, "acc": accuracy}))
    contents = files.read(tmp_path / "x")
    assert contents.metadata == {"acc": 0.5} and len(contents.tensors) == 2
    if HAS_TORCH:
        with pytest.raises(files.FileError, match="PyTorch refuses"):
            files.read(tmp_path / "x", use_torch=True)


def test_asking_for_torch_without_it(tmp_path, monkeypatch):
    expected = simple("torch zip", tmp_path / "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(files.FileError, match="PyTorch is not installed"):
        files.read(tmp_path / "x", use_torch=True)
    assert_same(files.read(tmp_path / "x").tensors, expected)


def haiku_trees():
    kernel = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    params = {
        "wide_res_net/~/conv": {"w": kernel, "b": np.ones(2, np.float16)},
        "wide_res_net/~/norm": {"scale": np.full(2, 0.5, "f")},
    }
    average = {"average": np.zeros(2, "f"), "counter": np.array(7)}
    return params, {"wide_res_net/~/norm/~/mean_ema": average}


def haiku_expected(params, state):
    return {
        f"{collection}/{module}/{leaf}": np.asarray(array)
        for collection, tree in {"params": params, "state": state}.items()
        for module, leaves in tree.items()
        for leaf, array in leaves.items()
    }


def save_npy(path, pair):
    array = np.empty(len(pair), object)
    array[:] = pair
    np.save(path, array, allow_pickle=True)


def test_haiku_pair(tmp_path):
    params, state = haiku_trees()
    save_npy(tmp_path / "h.npy", (params, state))
    contents = files.read(tmp_path / "h.npy")
    assert contents.format == "haiku npy"
    assert_same(contents.tensors, haiku_expected(params, state))
    assert set(files.read(tmp_path / "h.npy", key="state").tensors) == {
        "wide_res_net/~/norm/~/mean_ema/average",
        "wide_res_net/~/norm/~/mean_ema/counter",
    }


def test_haiku_pair_of_jax_arrays_and_fortran_order(tmp_path):
    params = {"linear": {"w": jnp.arange(6.0).reshape(2, 3), "h": jnp.ones(2, jnp.bfloat16)}}
    fortran, big = np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">f4")
    state = {"other": {"f": fortran, "big": big}}
    save_npy(tmp_path / "h.npy", (params, state))
    tensors = files.read(tmp_path / "h.npy").tensors
    expected = haiku_expected(params, state)
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors[key].dtype == array.dtype
        np.testing.assert_array_equal(tensors[key], array)


def test_haiku_mapping_classes(tmp_path):
    """Checkpoints of 2020 hold Haiku's own immutable mapping, here written as haiku.FlatMapping is."""
    params, state = haiku_trees()
    save_npy(tmp_path / "h.npy", (params, state))
    header = (tmp_path / "h.npy").read_bytes()[:128]
    frozen = "haiku._src.data_structures.FlatMapping"
    inner = [call(frozen, value(tree)) for tree in (params, state)]
    dtype = call("numpy.dtype", *map(value, ["O8", 0, 1]))
    reconstruct = "numpy.core.multiarray._reconstruct"
    array = call(reconstruct, name("numpy.ndarray"), *map(value, [(0,), b"b"]))
    given = [value(1), value((2,)), dtype, value(False), b"(", *inner, b"l"]
    body = array + b"(" + b"".join(given) + b"tb"
    (tmp_path / "h.npy").write_bytes(header + b"\x80\x02" + body + b".")
    assert_same(files.read(tmp_path / "h.npy").tensors, haiku_expected(params, state))


def test_one_array_is_no_network(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    with pytest.raises(files.FileError, match=r"one array of shape \(3, 4\).*params, state"):
        files.read(tmp_path / "x.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    half = np.arange(4, dtype=np.float16)
    brain = half.astype(ml_dtypes.bfloat16)
    kernel, fortran = np.arange(8.0).reshape(2, 2, 2), np.ones((2, 3)).T
    arrays = {"conv/kernel:0": kernel, "half": half, "fortran": fortran}
    save(tmp_path / "x.npz", **arrays, brain=brain, origin=np.array("a paper"))
    contents = files.read(tmp_path / "x.npz")
    assert contents.format == "npz" and contents.metadata == {"origin": "a paper"}
    assert set(contents.tensors) == {*arrays, "brain"}
    for key, array in (arrays | {"brain": brain}).items():
        assert contents.tensors[key].dtype == array.dtype
        np.testing.assert_array_equal(contents.tensors[key], array)


def test_npz_of_nested_dicts(tmp_path):
    params, state = haiku_trees()
    np.savez(tmp_path / "x.npz", params=params, state=state)
    assert_same(files.read(tmp_path / "x.npz").tensors, haiku_expected(params, state))


def test_safetensors(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a": np.ones(3, np.float16), "b.w": np.arange(6.0).reshape(2, 3), "n": np.array(3)}
    arrays["brain"] = np.arange(3).astype(ml_dtypes.bfloat16)
    save_file(arrays, tmp_path / "x", metadata={"arch": "resnet"})
    contents = files.read(tmp_path / "x")
    assert (contents.format, contents.metadata) == ("safetensors", {"arch": "resnet"})
    assert_same({key: contents.tensors[key] for key in arrays}, arrays)


def test_limit_of_size(tmp_path):
    expected = simple("torch legacy", tmp_path / "x")
    size = (tmp_path / "x").stat().st_size
    assert_same(files.read(tmp_path / "x", max_bytes=size).tensors, expected)
    with pytest.raises(files.FileError, match=f"{size:,} bytes, more than the limit"):
        files.read(tmp_path / "x", max_bytes=size - 1)


def torch_tensors(torch):
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "transposed": base.t(),
        "part": base[1:3, ::2],
        "brain": torch.arange(4).to(torch.bfloat16),
        "eight": torch.arange(4.0).to(torch.float8_e4m3fn),
        "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
        "flag": torch.tensor(True),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "count": torch.tensor(5),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_pytorch_wrote(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = torch_tensors(torch)
    if kind == "torch legacy":  # which has no dtypes that came later
        tensors = {key: t for key, t in tensors.items() if key not in ("eight", "unsigned")}
    saved = dict(state_dict=tensors, size=torch.Size([1]), device=torch.device("cpu"), epoch=1)
    torch.save(saved, tmp_path / "x", _use_new_zipfile_serialization=kind == "torch zip")
    ours, theirs = (files.read(tmp_path / "x", use_torch=use) for use in (False, True))
    assert ours.format == kind and ours.metadata == theirs.metadata == {"epoch": 1}
    assert_same(ours.tensors, theirs.tensors)
    for key, expected in tensors.items():
        np.testing.assert_array_equal(
            ours.tensors[key].astype(np.float64), expected.detach().double().numpy(), err_msg=key
        )


LINEAR = ("module.linear.weight", (10, 64))
PUBLISHED = {  # file: format, nested, number of tensors, name and shape of one, what stands beside
    "resnet20-12fca82f.th": ("torch legacy", "state_dict", 97, *LINEAR, "best_prec1"),
    "resnet56-4bfd9763.th": ("torch legacy", "state_dict", 277, *LINEAR, "best_prec1"),
    "cnn_a_adv.model": ("torch zip", "", 8, "0.weight", (16, 3, 4, 4), None),
    "cnn_a_adv4.model": ("torch zip", "", 8, "0.weight", (16, 3, 4, 4), None),
    "resnet4b.pth": ("torch zip", "state_dict", 26, "conv1.weight", (16, 3, 3, 3), "test_acc"),
}


@pytest.mark.data
@pytest.mark.parametrize("filename", PUBLISHED)
def test_published_files(shared_data, filename):
    kind, nested, count, one, shape, beside = PUBLISHED[filename]
    path = shared_data / "weights" / filename
    contents = files.read(path, use_torch=False)
    assert (contents.format, contents.nested, len(contents.tensors)) == (kind, nested, count)
    assert contents.tensors[one].shape == shape
    assert beside is None or 0.5 < contents.metadata[beside] < 100
    if kind == "torch legacy":  # the publisher puts the start of the checksum into the name
        assert path.stem.endswith(contents.sha256[:8])
    if HAS_TORCH:
        by_torch = files.read(path, use_torch=True)
        assert_same(contents.tensors, by_torch.tensors)
        assert contents.metadata == by_torch.metadata
