"""CPU with 8 simulated devices and quick compilation, set before jax is imported anywhere."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Most tests run their programs once or twice, so that optimising them costs more than it saves. Tests of
# exact numbers ask for `optimised_programs`, and everything outside pytest compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# All processes of a session share what they compile; a folder of one's own serves later sessions too.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ard_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def pytest_configure():
    """Has XLA generate the code of programs that are not optimised by its older way, in a third of the time.

    No public setting for it spares `optimised_programs`. A JAX without this function, or without the older
    way (0.12), compiles everything by the newer one.
    """
    import jax
    from jax._src import compiler

    original = getattr(compiler, "get_compile_options", None)
    if jax.__version_info__ >= (0, 11):
        return

    def get_compile_options(*args, **kwargs):
        options = original(*args, **kwargs)
        if options.executable_build_options.debug_options.xla_llvm_disable_expensive_passes:
            options.env_option_overrides = [
                *options.env_option_overrides,
                ("xla_cpu_use_fusion_emitters", False),
                # The code in one part: splitting it in 32 costs more than it shares out.
                ("xla_cpu_parallel_codegen_split_count", 1),
            ]
        return options

    if original is not None:
        compiler.get_compile_options = get_compile_options


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the same options
def pytest_cmdline_main(config):
    """Starts one process per core, at most four, where pytest-xdist is installed and -n is not given."""
    option = config.option
    if hasattr(config, "workerinput") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # a worker starts no workers of its own
    if config.pluginmanager.hasplugin("xdist") and option.numprocesses is None:
        option.numprocesses, option.maxprocesses = "auto", option.maxprocesses or 4
        if option.dist == "no":
            option.dist = "loadfile"


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        default="0/1",
        metavar="I/N",
        help="of the files with tests to run, every N-th from I on",
    )


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """Keeps the files of this share, whole, so that their fixtures are made once."""
    first, count = map(int, config.getoption("--share").split("/"))
    kept = set(sorted({str(item.path) for item in items})[first::count])
    if left := [item for item in items if str(item.path) not in kept]:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if str(item.path) in kept]


@pytest.fixture(scope="module", autouse=True)
def few_maps():
    """Lets go of compiled programs after a module, once the process has many memory maps.

    XLA maps the code of each program; past vm.max_map_count (65,530) the next one ends the process.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 25_000:
        import jax

        jax.clear_caches()
        gc.collect()


_RUN_FOLDERS = ("tests/cli/", "tests/distributed/", "tests/evaluation/", "tests/training/")


@pytest.fixture(scope="module", autouse=True)
def empty_figures(request):
    """Leaves the figures of reports empty in tests of runs; tests/cli/test_run.py has real ones.

    They take as long to draw as a tiny run to train.
    """
    name = request.node.nodeid
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith(_RUN_FOLDERS) and not name.endswith("/test_run.py"):
            from ard_jax.reporting import plots

            patch.setattr(plots, "_svg", lambda *_, **__: '<svg viewBox="0 0 1 1"></svg>')
            patch.setattr(plots, "_place_labels", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def optimised_programs():
    """Compiles as outside the tests; what was compiled before is not reused."""
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data, from $ARD_SHARED or beside the repository."""
    default = Path(__file__).parents[1].parent / "shared"
    path = Path(os.environ.get("ARD_SHARED", default)) / "data"
    if not path.is_dir():
        pytest.skip(f"no real data: {path} does not exist (set ARD_SHARED)")
    return path
