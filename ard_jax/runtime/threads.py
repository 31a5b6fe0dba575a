"""Threads of this process that decode images."""

import concurrent.futures
import functools
import os

_count = min(32, os.cpu_count() or 1)


def count() -> int:
    """Returns how many threads decode: one per core, unless `limit` said otherwise."""
    return _count


def limit(number: int) -> None:
    """Sets the number, for a process that others decode beside; before the first use of `pool`."""
    global _count
    _count = number


@functools.cache
def pool() -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads, started at the first call."""
    return concurrent.futures.ThreadPoolExecutor(count(), "decode")
