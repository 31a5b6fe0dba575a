import os

import numpy as np
import pytest

from ard_jax.io import cache_folder


@pytest.fixture
def source(tmp_path):
    """A directory with one file, and a counting, caching reader of it."""
    directory = tmp_path / "original"
    directory.mkdir()
    file = directory / "a.bin"
    file.write_bytes(b"\x01\x02\x03")
    built = []

    def read():
        def build():
            built.append(1)
            return {"x": np.frombuffer(file.read_bytes(), np.uint8)}

        return cache_folder.cached("toy", directory, [file], {"x"}, build)["x"].tolist()

    read.built, read.file = built, file
    return read


def test_second_time_comes_from_disk(source, cache_dir):
    assert source() == source() == [1, 2, 3]
    assert len(source.built) == 1
    assert [p.suffix for p in cache_dir.iterdir()] == [".npz"]
    assert [p.name for p in source.file.parent.iterdir()] == ["a.bin"]


def test_changed_original_is_read_again_and_replaces_the_cache(source, cache_dir):
    source()
    os.utime(source.file, ns=(1, 1))
    assert source() == [1, 2, 3] and len(source.built) == 2
    source.file.write_bytes(b"\x07\x08\x09\x0a")
    assert source() == [7, 8, 9, 10] and len(source.built) == 3
    assert len(list(cache_dir.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other keys"])
def test_corrupt_cache_is_rebuilt(source, cache_dir, damage):
    source()
    (path,) = cache_dir.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "other keys":
        np.savez(path, fingerprint=np.load(path)["fingerprint"])
    else:
        content[content.index(b"\x01\x02\x03")] ^= 255
        path.write_bytes({"cut": content[:100], "flip": content, "empty": b""}[damage])
    assert source() == [1, 2, 3] and len(source.built) == 2
    assert source() == [1, 2, 3] and len(source.built) == 2


def test_unwritable_cache_is_no_error(source, cache_dir):
    cache_dir.write_text("a file where the directory should be")
    assert source() == source() == [1, 2, 3] and len(source.built) == 2


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_failed_write_leaves_nothing(source, cache_dir, monkeypatch):
    monkeypatch.setattr(np, "savez", fail)
    assert source() == [1, 2, 3]
    assert list(cache_dir.iterdir()) == []


def test_errors_of_the_source_are_passed_on_and_not_stored(source, cache_dir):
    with pytest.raises(OSError, match="No space left"):
        cache_folder.cached("toy", source.file.parent, [source.file], {"x"}, fail)
    assert not cache_dir.exists()


def test_places(monkeypatch, tmp_path):
    assert cache_folder.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    for name, found in (
        ("ARD_CACHE_DIR", "/xdg/ard_jax"),
        ("XDG_CACHE_HOME", "/home/me/.cache/ard_jax"),
    ):
        monkeypatch.delenv(name)
        assert str(cache_folder.cache_dir()) == found
