"""Processes, devices, interruption, locks and compilation: the only mutable state of the package."""
