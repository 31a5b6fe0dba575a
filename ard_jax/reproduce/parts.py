"""One long file as several of bounded size, to write and to read."""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PART_BYTES = 15_500_000
PART_NAME = re.compile(r"part-\d{3}\.tar")
_NAME = "part-{:03}.tar"


class Writer(io.RawIOBase):
    """A file to write to that becomes several."""

    def __init__(self, out: Path, part_bytes: int):
        """`out`: folder of the parts; part_bytes: of one at most."""
        self.out, self.part_bytes, self.done = out, part_bytes, []
        self._buffer = bytearray()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Takes all of it."""
        self._buffer += data
        while len(self._buffer) >= self.part_bytes:
            self._put(self.part_bytes)
        return len(data)

    def finish(self) -> None:
        """Writes the last part. `done` then has name, bytes and sha256 of each."""
        if self._buffer:
            self._put(len(self._buffer))

    def _put(self, count: int) -> None:
        name, data = _NAME.format(len(self.done)), bytes(self._buffer[:count])
        del self._buffer[:count]
        (self.out / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self.done.append({"name": name, "bytes": len(data), "sha256": digest})


class Joined(io.RawIOBase):
    """The parts as one file to read."""

    def __init__(self, parts: list[Path]):
        """In their order."""
        self.parts, self.position = parts, 0
        self.sizes = [part.stat().st_size for part in parts]

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: sum(self.sizes)}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """The position."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Reads on, at most to the end of a part."""
        for part, start, size in self._spans():
            if start <= self.position < start + size:
                with open(part, "rb") as file:
                    file.seek(self.position - start)
                    data = file.read(min(len(buffer), size - (self.position - start)))
                buffer[: len(data)] = data
                self.position += len(data)
                return len(data)
        return 0

    def _spans(self) -> Iterator[tuple[Path, int, int]]:
        start = 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            yield part, start, size
            start += size
