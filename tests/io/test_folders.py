"""Folders that cannot be written, files that must not be left half done, and modes that follow the umask."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ard_jax.checkpoints import manager
from ard_jax.io import cache_folder, files
from ard_jax.runtime import locks


def test_a_folder_that_can_be_written_passes_and_nothing_is_made(tmp_path):
    files.check_writable(tmp_path / "a" / "b", "--out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_file_in_the_way_is_named(tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out=.*file.*: .*/file is not a folder"):
        files.check_writable(tmp_path / "file" / inside, "--out")


def test_a_dangling_link_is_in_the_way_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link is not a folder"):
        files.check_writable(tmp_path / "link", "--out")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    folder = Path("/proc")  # not even root writes there
    if not folder.is_dir():
        tmp_path.chmod(0o500)
        folder = tmp_path
    with pytest.raises(ValueError, match="config.workdir=.*cannot be written"):
        files.check_writable(folder / "x", "config.workdir")


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = files.write_text_atomic(tmp_path / "report.html", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*report\.html"):
        files.write_text_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_checkpoint_that_cannot_be_saved_says_so(tmp_path, monkeypatch):
    with manager.Checkpoints(tmp_path / "last") as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(manager.CheckpointError, match="could not be saved .No space left"):
            checkpoints.wait()
        monkeypatch.undo()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_cache_files_follow_the_umask(tmp_path, monkeypatch, mask):
    monkeypatch.setenv("ARD_CACHE_DIR", str(tmp_path / "cache"))
    before = os.umask(mask)
    try:
        cache_folder.cached("x", tmp_path, [], {"a"}, lambda: {"a": np.zeros(3)})
        (tmp_path / "private").touch(0o600)
        files.follow_umask(tmp_path / "private")
    finally:
        os.umask(before)
    made = [*(tmp_path / "cache").iterdir(), tmp_path / "private"]
    assert len(made) == 2 and {p.stat().st_mode & 0o777 for p in made} == {0o666 & ~mask}


def test_a_folder_is_held_by_one(tmp_path):
    script = (
        "import sys; from pathlib import Path; from ard_jax.runtime import locks\n"
        f"with locks.try_hold(Path({str(tmp_path)!r})) as alone: print(alone)"
    )
    ask = lambda: subprocess.run(  # noqa: E731
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    with locks.try_hold(tmp_path) as alone:
        assert alone and ask() == "False"
    assert ask() == "True"
