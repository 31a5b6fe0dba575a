"""Experiments: one file each; see common.py."""
