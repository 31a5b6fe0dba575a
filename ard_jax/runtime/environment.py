"""What the environment sets and a run must not depend on."""

import sys

import jax

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None

# JAX's own settings that make other numbers of the same seed -> what they are here.
_NUMBERS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}
_LEAST_FILES, _FILES = 128, 4096  # open at once


def fix_numbers() -> None:
    """Undoes, and tells, settings of JAX by which a seed would give another run; before JAX is used."""
    for name, value in _NUMBERS.items():
        if (given := jax.config.values[name]) != value:
            jax.config.update(name, value)
            print(
                f"{name.upper()}={given} is of no effect here: it is {value} in every run, so that a seed "
                "gives the same one everywhere",
                file=sys.stderr,
                flush=True,
            )


def raise_open_files() -> None:
    """Raises the number of files that may be open at once, as far as the system allows.

    Raises:
      ValueError: it allows too few.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < _LEAST_FILES:
        raise ValueError(
            f"ulimit -n is {hard}, but a run has up to {_LEAST_FILES} files open at once; raise it, e.g. "
            "ulimit -n 1024"
        )
