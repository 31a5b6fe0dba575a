"""The deterministic filling of a network's tensors, the same on both sides of a comparison (NumPy alone)."""

import numpy as np


def hashed(count, ordinal, salt):
    """Hash of 0 .. count-1, uint32, all arithmetic modulo 2^32."""
    h = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    offset = (ordinal + 1) * 0x85EBCA77 + salt * 0xC2B2AE3D
    h += np.uint32(offset & 0xFFFFFFFF)
    h ^= h >> 16
    h *= np.uint32(0x7FEB352D)
    h ^= h >> 15
    h *= np.uint32(0x846CA68B)
    h ^= h >> 16
    return h


def filled(name, shape, ordinal, salt):
    """The tensor of that name and torch shape at place `ordinal` of its state dict, float32."""
    u = (hashed(int(np.prod(shape)), ordinal, salt) + 0.5) / 2.0**31 - 1.0
    fan_in = np.prod(shape[1:])
    kind = name.rsplit(".", 1)[-1]
    if len(shape) == 4:
        u *= np.sqrt(4.5 / fan_in)
    elif len(shape) == 2:
        u *= np.sqrt(12.0 / fan_in)
    elif kind == "running_mean" or kind == "bias":
        u *= 0.1
    elif kind == "running_var":
        u = 1.0 + 0.5 * u
    elif kind == "gamma":
        u = 0.3 + 0.1 * u
    elif len(shape) == 3:  # class token and positions
        u *= 0.5
    else:
        u = 1.0 + 0.2 * u
    return u.astype(np.float32).reshape(shape)


def pixels(shape, salt):
    """Images in [0, 1), float32."""
    x = np.floor(hashed(int(np.prod(shape)), 1_000_000, salt) / 256) / 2**24
    return x.astype(np.float32).reshape(shape)
