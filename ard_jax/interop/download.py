"""Fetches one published file over HTTP, resumably, with progress and checks.

Own code on urllib, because pooch starts an interrupted download from the beginning and huggingface_hub
resumes only downloads from its own hub.
"""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ard_jax.io.files import write_text_atomic
from ard_jax.runtime import locks

MAX_BYTES = 8 << 30  # the largest published teachers (WRN-106-16) have about 1.6 GB
_CHUNK = 1 << 20


class DownloadError(ValueError):
    """A download that cannot be completed; the message says what to do."""


def find_local(file_name: str, folders: list[Path]) -> Path | None:
    """The first of `folders` that holds a file of this name, as that file's path; None without one."""
    paths = (Path(folder) / file_name for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    max_bytes: int = MAX_BYTES,
    attempts: int = 5,
    timeout: float = 30.0,
    wait: float = 1.0,
) -> Path:
    """Downloads `url` to `target`, which appears only when it is complete and checked.

    What has arrived is kept in `<target>.part`, and a later call continues there, unless the server
    has another file by then. A file that is already at `target` is left alone.

    Args:
      url: http or https.
      target: path of the file; its folder is made.
      sha256: expected checksum in hex digits, or its beginning; "" for none.
      max_bytes: no more than this is written.
      attempts: connections in a row that bring nothing before giving up.
      timeout: seconds without an answer before a connection counts as broken.
      wait: seconds before the next connection, doubled each time.

    Returns:
      `target`.

    Raises:
      DownloadError: not HTTP, the server refuses, the connection breaks again and again (what has
        arrived is kept), the file is too large, or its checksum is another.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"cannot download {url!r}: only http and https addresses are")
    target = Path(target)
    busy = f"Another process is downloading into {target.parent}; waiting for it."
    with locks.hold(target.parent, on_busy=lambda: print(busy, flush=True)):
        if target.is_file():
            return target
        part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".tag")
        _receive_all(url, part, tag, max_bytes, attempts, timeout, wait)
        _check(url, part, tag, sha256)
        os.replace(part, target)
        tag.unlink(missing_ok=True)
    return target


def _receive_all(
    url: str, part: Path, tag: Path, max_bytes: int, attempts: int, timeout: float, wait: float
):
    """Connects until the file is whole; gives up after `attempts` connections without a byte."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, tag, max_bytes, timeout):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(
                    f"{url}: the server answers {error.code} {error.reason}; the file may have moved: "
                    "get it by hand and give --file=PATH"
                ) from error
            problem = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
        arrived = part.stat().st_size if part.exists() else 0
        failures = 0 if arrived > before else failures + 1
        if failures >= attempts:
            raise DownloadError(
                f"{url}: {problem}, {attempts} times in a row. {arrived} bytes are kept in {part}; "
                "start the same command again to go on from there, or give --file=PATH"
            )
        time.sleep(wait * 2**failures)


def _receive(url: str, part: Path, tag: Path, max_bytes: int, timeout: float) -> bool:
    """One connection: appends what arrives to `part`. True when the file is whole."""
    start = part.stat().st_size if part.exists() else 0
    validator = tag.read_text() if tag.exists() else ""
    if start and not validator:
        start = 0  # without the server's mark nobody knows what the part is a part of
    request = urllib.request.Request(url, headers={"User-Agent": "ard_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing beyond `start`, so the part has everything or too much
            raise
        size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if size and int(size[1]) == start:
            return True
        part.unlink()
        return False
    with answer:
        start = _resumed_at(answer, start)
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if total is not None and total > max_bytes:
            raise DownloadError(f"{url} has {total} bytes, more than the limit of {max_bytes}")
        write_text_atomic(
            tag, answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
        )
        return _append(url, answer, part, start, total, max_bytes)


def _resumed_at(answer: Any, asked: int) -> int:
    """The byte that the answer begins with: 0 when the server sends the file from its beginning."""
    if answer.status != 206:
        return 0
    begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not begins or int(begins[1]) != asked:
        raise http.client.HTTPException("the server continues at another place than asked")
    return asked


def _append(
    url: str, answer: Any, part: Path, start: int, total: int | None, max_bytes: int
) -> bool:
    """Writes the body behind the first `start` bytes. True when the file is whole."""
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem) as bar,
    ):
        arrived = start
        while chunk := answer.read1(_CHUNK):
            arrived += len(chunk)
            if arrived > max_bytes:
                raise DownloadError(f"{url} has more bytes than the limit of {max_bytes}")
            file.write(chunk)
            bar.update(len(chunk))
    return total is None or arrived == total


def _check(url: str, part: Path, tag: Path, sha256: str):
    """Compares the checksum; a wrong file is deleted, or it would be continued forever."""
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        part.unlink()
        tag.unlink(missing_ok=True)
        raise DownloadError(
            f"{url}: the downloaded file has the SHA-256 checksum {found}, but {sha256} was expected; "
            "it was deleted. Download it by hand and look at it, then give --file=PATH --force"
        )
