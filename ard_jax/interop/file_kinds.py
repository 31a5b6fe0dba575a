"""Tells by its first bytes what a file is, whatever it is called, and which archives are safe to read."""

import re
import tarfile
import zipfile
from pathlib import Path

from ard_jax.interop.restricted_pickle import FileError

_ZIP = b"PK\x03\x04"
# The first pickle of PyTorch's legacy format: protocol 2, the magic number.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NPY = b"\x93NUMPY"
_GZIP, _BZIP2, _XZ, _ZSTANDARD, _7ZIP = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf\x27\x1c",
)
_COMPRESSED = {
    _GZIP: ("gzip", "gunzip"),
    _BZIP2: ("bzip2", "bunzip2"),
    _XZ: ("xz", "unxz"),
    _ZSTANDARD: ("Zstandard", "unzstd"),
    _7ZIP: ("7-Zip", "7z x"),
}
_READABLE = "PyTorch .pt/.pth/.th files, DeepMind's Haiku .npy, safetensors and .npz can be read"
_UNSAFE_NAME = re.compile(r"/|\\|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|$)")
# Weights hardly compress, and the largest member of an honest .npz is not many times its size in zeros.
_MAX_RATIO = 100


def detect(path: Path) -> str:
    """What a file is: "zip", "torch legacy", "haiku npy" or "safetensors".

    Raises:
      FileError: it does not exist, is a folder, is empty, or is something else; the message says what.
    """
    if not path.exists():
        raise FileError(f"{path} does not exist")
    if path.is_dir():
        raise FileError(f"{path} is a folder; name the file of the network inside of it")
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise FileError(f"{path} is empty. Download it again")
    if start.startswith(_ZIP):
        return "zip"
    if start.startswith(_LEGACY):
        return "torch legacy"
    if start.startswith(_NPY):
        return "haiku npy"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        return "safetensors"
    raise FileError(f"{path} {_describe(path, start)}")


def _describe(path: Path, start: bytes):
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<(!doctype html|html|head|\?xml|!--)", text, re.IGNORECASE):
        return (
            "is a web page, not a network: a failed download. Google Drive, for one, answers with a page for "
            "large or much-used files; open the link in a browser and confirm, or use gdown"
        )
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download it "
            "from the page of the file"
        )
    if start.startswith(b"\x89HDF"):
        return f"is an HDF5 file (Keras or TensorFlow), which is not read. {_READABLE}"
    for magic, (name, command) in _COMPRESSED.items():
        if start.startswith(magic):
            return (
                f"is compressed with {name}; unpack it first (`{command}`) and name the file inside"
            )
    if start[257:262] == b"ustar" or tarfile.is_tarfile(path):
        return "is a tar archive; unpack it first and name the file inside"
    if _LEGACY.startswith(start) or _NPY.startswith(start) or _ZIP.startswith(start):
        return "is truncated after a few bytes. Download it again"
    if start[0] == 0x80 and len(start) > 1 and start[1] <= 5:
        return (
            "is a bare Python pickle, neither of torch.save nor of NumPy, and is not read. Load it "
            f"where it was written and save the tensors with numpy.savez or safetensors. {_READABLE}"
        )
    if not re.search(rb"[^\t\r\n -~]", text):
        return (
            f"is a text file ({text[:40].decode()!r}...), not a network: perhaps a failed download"
        )
    return f"is of no known kind (it starts with the bytes {start[:8].hex(' ')}). {_READABLE}"


def check_archive(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> None:
    """Looks at the table of contents of a zip archive before anything is read from it.

    Nothing is ever extracted; a name that leads outside of a folder is still the sign of a hostile file.

    Raises:
      FileError: such a name, a name that occurs twice, encryption, an unusual compression, or more content
        than `max_bytes` or than 100 times the size of the file.
    """
    seen = set()
    for entry in archive.infolist():
        name = entry.filename
        if _UNSAFE_NAME.match(name):
            raise FileError(
                f"{path} has an entry {name!r}, which leads outside of the archive; refused"
            )
        if name in seen:
            raise FileError(f"{path} has two entries {name!r}; refused")
        seen.add(name)
        if entry.flag_bits & 1:
            raise FileError(f"{path} is encrypted; unpack it first")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FileError(
                f"{path} has an entry {name!r} of an unusual compression; unpack it first"
            )
    total = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if total > min(max_bytes, _MAX_RATIO * size):
        raise FileError(
            f"{path} has {size:,} bytes but declares {total:,} bytes of content, more than "
            f"{_MAX_RATIO} times its size or than the limit of {max_bytes:,}; refused. If the network is "
            "really so large, pass a larger max_bytes or save it without compression"
        )


def archive_kind(archive: zipfile.ZipFile, path: Path) -> tuple[str, str]:
    """What a zip archive holds.

    Returns:
      ("torch zip", folder of data.pkl with a final "/") or ("npz", "").

    Raises:
      FileError: something else, among it TorchScript and Keras archives; the message says what.
    """
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
    last_parts = {name.split("/", 1)[-1] for name in names}
    if any(part == "constants.pkl" or part.startswith("code/") for part in last_parts):
        raise FileError(
            f"{path} is a TorchScript archive (torch.jit.save), which holds code. Save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    if any(name == "model.weights.h5" for name in names):
        raise FileError(f"{path} is a Keras model, which is not read. {_READABLE}")
    if len(pickles) == 1:
        _check_stored(archive, path)
        return "torch zip", pickles[0].removesuffix("data.pkl")
    if names and all(name.endswith(".npy") for name in names):
        return "npz", ""
    shown = ", ".join(names[:5]) or "nothing"
    raise FileError(
        f"{path} is a zip archive, but neither of torch.save nor of numpy.savez (it holds {shown}). "
        "If the network is inside, unpack it first"
    )


def _check_stored(archive: zipfile.ZipFile, path: Path):
    """PyTorch stores everything uncompressed, so that the file bounds what it declares."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise FileError(
            f"{path} was packed again with compression; unpack it and save it with torch.save"
        )
    if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
        raise FileError(f"{path} is damaged: its entries declare more bytes than the file has")
