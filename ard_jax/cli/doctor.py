"""`--mode=doctor`: what a run would find on this machine, and what is wrong with the fix for each.

    ard-jax --mode=doctor
    ard-jax --mode=doctor --config=ciard_cifar10 --config.data.dir=DIR

With --config also the configuration, its data and its teachers' checkpoints. Nothing is downloaded.
What imports JAX is imported late: a package that is missing is one of the things to be told.
"""

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ard_jax import __version__
from ard_jax.io.cache_folder import cache_dir
from ard_jax.io.files import check_writable, size_text

_PACKAGE = Path(__file__).parents[1]
_LEAST_FREE, _FEW_FREE = 50e6, 2e9  # bytes of a disk below which a run stops, or soon may
_GPU_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl")
_SETTINGS = ("JAX_", "XLA_", "ARD_", "CUDA_VISIBLE_DEVICES", "TFDS_DATA_DIR")  # how variables begin


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
      about: what it is.
      text: how it is.
      fix: what to do about it; "" where nothing is wrong.
      stops: whether it would stop a run.
    """

    about: str
    text: str
    fix: str = ""
    stops: bool = False


def run(config: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Prints what is found, as it is found.

    Args:
      config: as --config takes it; None to look at no experiment.
      overrides: PATH=VALUE.

    Returns:
      Exit code: 1 if something would stop a run, else 0.
    """
    stopping = _print(system())
    stopping += _print(packages(_requirements()))
    if stopping:
        print("\nThe rest was not looked at: it needs these packages.")
        return 1
    checks: list[Callable[[], Iterable[Finding]]] = [devices, limits, known_data, disk, caches]
    if config:
        checks.append(lambda: experiment(config, overrides))
    stopping = sum(_print(check()) for check in checks)
    told = f"{stopping} problem{'s' * (stopping > 1)} would stop a run."
    print(f"\n{told if stopping else 'Nothing would stop a run.'}")
    return 1 if stopping else 0


def _print(findings: Iterable[Finding]) -> int:
    """Prints findings; returns how many of them would stop a run."""
    stopping = 0
    for one in findings:
        sign = "ERROR" if one.stops else "WARNING" if one.fix else "ok"
        print(f"{sign:8} {one.about:16} {one.text}", flush=True)
        if one.fix:
            print(f"{'':25} -> {one.fix}", flush=True)
        stopping += one.stops
    return stopping


def system() -> Iterator[Finding]:
    """This package, Python, and the variables that change how JAX and it work."""
    yield Finding("ard_jax", f"{__version__} in {_PACKAGE}")
    yield Finding("python", f"{platform.python_version()} in {sys.prefix}, {platform.platform()}")
    names = sorted(name for name in os.environ if name.startswith(_SETTINGS))
    if names:
        yield Finding("environment", ", ".join(f"{name}={os.environ[name]}" for name in names))


def _requirements() -> list[str]:
    """What this package needs, as in pyproject.toml; those of an extra with its name as a marker."""
    try:
        return metadata.requires("ard_jax") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        project = tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text())["project"]
        return project["dependencies"]


def packages(requirements: Iterable[str]) -> Iterator[Finding]:
    """Versions of the packages that a run needs, and those that are missing or too old.

    Args:
      requirements: lines such as "jax>=0.10"; those with an unfulfilled marker are left out.
    """
    from packaging.requirements import Requirement  # matplotlib needs it

    good = []
    for line in requirements:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            yield Finding(needed.name, "missing", f"pip install '{needed}'", stops=True)
            continue
        if needed.specifier.contains(version, prereleases=True):
            good.append(f"{needed.name} {version}")
        else:
            text = f"{version}, but it must be {needed.specifier}"
            yield Finding(needed.name, text, f"pip install '{needed}'", stops=True)
    yield Finding("packages", ", ".join(good))


def devices() -> Iterator[Finding]:
    """What JAX computes on, tried by a small program."""
    import jax
    import jax.numpy as jnp

    from ard_jax.cli import failures
    from ard_jax.runtime import sharding

    sharding.use_cores()
    try:
        found = jax.devices()
        jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()
    except Exception as error:  # whatever the driver or the plug-in raises
        text = failures.missing_device() or f"{type(error).__name__}: {error}".partition("\n")[0]
        fix = "set JAX_PLATFORMS=cpu, or see https://docs.jax.dev/en/latest/installation.html"
        yield Finding("devices", text, fix, stops=True)
        return
    room, _ = sharding.memory(sharding.make_mesh())
    memory = f", {size_text(room)} of memory" if room else ""
    yield Finding("devices", f"{len(found)} x {found[0].device_kind} ({found[0].platform}){memory}")
    if found[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        if any(Path(file).exists() for file in _GPU_FILES):
            yield Finding(
                "gpu", "an NVIDIA GPU is here, but not used", "pip install 'ard_jax[cuda]'"
            )


def limits() -> Iterator[Finding]:
    """What the system allows a process."""
    from ard_jax.runtime import environment

    try:
        environment.raise_open_files()
    except ValueError as error:
        yield Finding("open files", "too few", str(error), stops=True)


def known_data() -> Iterator[Finding]:
    """Data that a configuration finds without config.data.dir."""
    from ard_jax import data
    from ard_jax.data.sources import tfds

    yield Finding("data: digits", f"{len(data.load('digits').train)} training images")
    root = tfds.root_of(None)
    for name in tfds.NAMES:
        try:
            found = tfds.find(name, root)
        except data.DataError as error:
            yield Finding(f"data: {name}", "cannot be read", str(error))
            continue
        text = (
            found
            or f"absent from {root}; --config.data.dir says where it is, docs/data_on_disk.md how"
        )
        yield Finding(f"data: {name}", str(text))


def disk() -> Iterator[Finding]:
    """Whether runs can be written, and how much is free there."""
    folder = Path("runs").absolute()
    try:
        check_writable(folder, "runs")
    except ValueError as error:
        fix = "start in another folder, or give --config.workdir and --config.teachers.cache"
        yield Finding("disk", str(error), fix)
        return
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    few = "make room, or give --config.workdir and --config.teachers.cache" * (free < _FEW_FREE)
    yield Finding("disk", f"{size_text(free)} free for {folder}", few, stops=free < _LEAST_FREE)


def caches() -> Iterator[Finding]:
    """Where caches lie, and how large they are."""
    root = cache_dir()
    try:
        check_writable(root, "cache")
    except ValueError as error:
        fix = "set ARD_CACHE_DIR to a folder that can be written"
        stops = root.exists() and not root.is_dir()  # one that cannot be written costs time alone
        text = str(error) if stops else f"{error}: every start compiles and decodes anew"
        yield Finding("cache", text, fix, stops)
        return
    kinds = {"xla": "compiled programs", "teachers": "downloaded networks"}
    for name, what in kinds.items():
        yield Finding("cache", f"{size_text(_size([root / name]))} of {what} in {root / name}")
    yield Finding("cache", f"{size_text(_size(root.glob('*.npz')))} of decoded images in {root}")
    teachers = Path("runs/teachers").absolute()
    yield Finding("cache", f"{size_text(_size([teachers]))} of trained teachers in {teachers}")


def _size(paths: Iterable[Path]) -> int:
    """Bytes of files, and of all that lies in folders; a path that does not exist has none."""
    total = 0
    for path in paths:
        for file in (path, *path.rglob("*")):
            try:
                total += file.stat().st_size * file.is_file()
            except OSError:  # another process has just removed it
                continue
    return total


def experiment(config: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """The configuration of --config, its data and the checkpoints of its teachers."""
    from ard_jax.cli import config_file, train_checks
    from ard_jax.config import build, parse
    from ard_jax.data import DataError
    from ard_jax.data.sources import tfds
    from ard_jax.methods import TEACHERS
    from ard_jax.training import run, teachers

    try:
        made = parse.to_experiment(config_file.load(config, overrides))
        train_checks.check_mirrors(made)
    except ValueError as error:
        yield Finding("config", config, str(error), stops=True)
        return
    yield Finding(
        "config", f"{config}: {made.method.name} on {made.data.name}, {made.epochs} epochs"
    )
    try:
        root = tfds.root_of(made.data.dir or None)
        if made.data.name in tfds.NAMES and not tfds.find(made.data.name, root):
            fix = f"correct --config.data.dir, or prepare it:\n  {tfds.prepare_command(made.data.name, root)}"
            yield Finding("data", f"{made.data.name} is not in {root}", fix, stops=True)
            return
        splits = build.load_data(made.data)
    except DataError as error:
        yield Finding("data", made.data.dir or made.data.name, str(error), stops=True)
        return
    try:
        check_writable(train_checks.workdir_of(made), "config.workdir")
        run.extra_images(build.training_settings(made), splits)
    except ValueError as error:
        yield Finding("run", "would be stopped", str(error), stops=True)
        return
    counts = f"{len(splits.train)} training and {len(splits.test)} test images"
    yield Finding("data", f"{splits.train.name}: {counts}")
    wanted = [build.teacher_settings(made, role) for role in TEACHERS[made.method.name]]
    try:
        teachers.check_checkpoints(wanted, splits)
    except teachers.TeacherError as error:
        yield Finding("teachers", "a checkpoint cannot be used", str(error), stops=True)
        return
    for teacher in wanted:
        how = teacher.checkpoint or ("trained by its recipe" if teacher.recipe else "begins anew")
        yield Finding(f"{teacher.role} teacher", how)
