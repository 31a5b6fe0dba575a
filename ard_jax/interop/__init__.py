"""Bringing networks in from other libraries and taking them out."""

from ard_jax.interop.torch_names import from_torch, to_torch, torch_layout

__all__ = ["from_torch", "to_torch", "torch_layout"]
