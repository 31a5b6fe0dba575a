"""Peak memory of a step.

GPU: ours by XLA's plan (arguments, results and temporaries, which is what it allocates), PyTorch's by its
allocator's own record. CPU: resident memory of a process of its own for each, because only that is the
same for both: the peak while steps run less what was resident before the case was built.
"""

import contextlib
import ctypes
import gc
import json
import resource
import subprocess
import sys

HOW = {
    "cpu": "resident memory of a process that runs only this step: peak in the step, less what "
    "imports take (compiled code included)",
    "gpu": "ours: XLA's plan, arguments and temporaries; PyTorch's: torch.cuda.max_memory_allocated",
}
_KINDS = {"ard_jax": "jax", "PyTorch, eager": "eager", "PyTorch, eager, NCHW": "nchw",
          "PyTorch, compiled": "compile"}  # fmt: skip


def peak(args, case, step):
    """Bytes, or None where it was not asked for or the process failed."""
    if args.device == "gpu":
        return step.planned if step.name == "ard_jax" else step.peak()
    if args.no_memory:
        return None
    command = [
        sys.executable, "-m", "benchmarks.step", f"--memory-of={_KINDS[step.name]}",
        f"--method={case.method}", f"--student={case.student}", f"--batch={case.batch}",
        f"--steps={case.steps}", f"--precision={case.precision}", f"--classes={case.classes}",
        f"--teachers=robust={case.robust},clean={case.clean}", f"--device={args.device}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"memory of {step.name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def child(args, case):
    """Runs steps of one contender and prints the bytes."""
    import jax
    import jax.numpy as jnp

    from benchmarks import step_cases

    jax.block_until_ready(jnp.ones(8) + 1)
    if args.memory_of != "jax":
        from benchmarks import step_torch

        step_torch.prepare("cpu")
    before = _resident("VmRSS")
    built = step_cases.build(case)
    if args.memory_of == "jax":
        from benchmarks.step_jax import JaxStep

        step = JaxStep(built)
    else:
        step = step_torch.TorchStep(built, args.memory_of, "cpu")
    step()
    _forget()
    step(), step()
    print(json.dumps(_resident("VmHWM") - before))


def _forget():
    """Gives back what compilation used, and lets the peak start anew (Linux; elsewhere it stays in)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _resident(field):
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
