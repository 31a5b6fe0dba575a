"""Checkpoints of runs and networks through Orbax."""
