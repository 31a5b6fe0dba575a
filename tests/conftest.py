"""CPU with 8 simulated devices and quick compilation, set before jax is imported anywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Most tests run their programs once or twice, so that optimising them costs more than it saves. Golden
# tests (tests/golden/conftest.py) and everything outside pytest compile as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
