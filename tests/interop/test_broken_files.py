"""Files that are not what they are called, and downloads that broke."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from torch_file_writer import KINDS, LEGACY_HEADER, simple

from ard_jax.interop import files

ALL_KINDS = [*KINDS, "haiku npy", "npz", "safetensors"]


def zip_of(**entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return out.getvalue()


def tar_of_nothing():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


SCRIPT = {"a/data.pkl": b"\x80\x02N.", "a/constants.pkl": b"\x80\x02).", "a/code/__torch__.py": b""}
OTHER_FILES = {
    "nothing": (b"", "is empty"),
    "web page": (b"\n<!DOCTYPE html><html><title>Google Drive - Virus", "web page.*Google Drive"),
    "bare web page": (b"<html lang=en>", "web page"),
    "error in XML": (b"<?xml version='1.0'?><Error><Code>Denied</Code>", "web page.*failed download"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "git lfs pull"),
    "text": (b'{"message": "Not Found"}', "text file.*Not Found.*failed download"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5 file .Keras or TensorFlow"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "gzip; unpack it first"),
    "bzip2": (b"BZh91AY&SY" + bytes(64), "bzip2; unpack it first"),
    "xz": (b"\xfd7zXZ\x00" + bytes(64), "xz; unpack it first"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(64), "Zstandard; unpack it first"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(64), "7-Zip; unpack it first"),
    "tar": (tar_of_nothing(), "tar archive; unpack it first"),
    "pickle": (pickle.dumps({"w": 1}, 4), "bare Python pickle"),
    "TorchScript": (zip_of(**SCRIPT), "TorchScript archive.*torch.jit.load"),
    "Keras 3": (zip_of(**{"config.json": b"", "model.weights.h5": b""}), "Keras model"),
    "other zip": (zip_of(**{"a.pth": b"", "b.txt": b""}), "it holds a.pth, b.txt.*unpack it"),
    "two networks": (zip_of(**{"a/data.pkl": b"", "b/data.pkl": b""}), "neither of torch.save nor of"),
    "noise": (bytes(range(200, 256)), "no known kind.*c8 c9"),
    "start of a legacy file": (LEGACY_HEADER[:5], "truncated after a few bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_FILES)
def test_files_that_are_something_else(tmp_path, case, use_torch):
    content, message = OTHER_FILES[case]
    path = tmp_path / "teacher.pt"
    path.write_bytes(content)
    with pytest.raises(files.FileError, match=message) as raised:
        files.read(path, use_torch=use_torch)
    assert str(path) in str(raised.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(files.FileError, match="does not exist"):
        files.read(tmp_path / "x")
    with pytest.raises(files.FileError, match="is a folder"):
        files.read(tmp_path)


def honest_file(kind, path):
    if kind in KINDS:
        simple(kind, path)
        return
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    if kind == "safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, path)
        return
    with path.open("wb") as stream:
        if kind == "npz":
            np.savez(stream, **arrays)
        else:
            pair = np.empty(2, object)
            pair[:] = [{"linear": arrays}, {"norm": {"average": np.zeros(2, np.float32)}}]
            np.save(stream, pair, allow_pickle=True)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_truncated_anywhere(tmp_path, kind):
    path = tmp_path / "x"
    honest_file(kind, path)
    content = path.read_bytes()
    files.read(path, use_torch=False)
    for length in range(0, len(content), 17):
        path.write_bytes(content[:length])
        with pytest.raises(files.FileError):
            files.read(path, use_torch=False)
    path.write_bytes(content[:-1])
    with pytest.raises(files.FileError, match="truncated or damaged"):
        files.read(path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_damaged_anywhere(tmp_path, kind):
    """Whatever three wrong bytes do, the answer is the contents or a FileError."""
    path = tmp_path / "x"
    honest_file(kind, path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = content.copy()
        damaged[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            files.read(path, use_torch=False, max_bytes=10**6)
        except files.FileError:
            refused += 1
    assert refused > 10
