"""Experiments: one file each; see common.py. Installed as `ard_jax.configs`."""
