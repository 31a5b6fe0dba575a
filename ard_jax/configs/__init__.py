"""The experiments that come with the package, as `from ard_jax.configs import common, protocol`.

In a checkout they lie in configs/ beside the package, and this file says so; a wheel holds them here.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
