"""Images per second of the full train step, beside plain PyTorch that does the same.

    python -m benchmarks.step --method=ciard --student=small_resnet --device=cpu
    python -m benchmarks.step --method=sat,ciard --student=resnet18,mobilenetv2 --json=step.json
    python -m benchmarks.step --student=resnet18 --paper --device=gpu --batch=1024 --precision=bf16
    python -m benchmarks.step --linear      # cost against batch, attack steps and classes
    python -m benchmarks.step --quick       # shows that it runs, measures nothing

The step is the product's (`train_step.program`): augmentation, attack, teachers, updates. The twin
(benchmarks/torch_steps.py) is our own PyTorch: eager and torch.compile, channels-last, on CPU also in
PyTorch's default layout. All start from the same weights, with the data in memory, and take turns in one
process, A B C A B C, so that a slower machine is slower for all. Two steps that warm up are not counted.

Networks: small_resnet (3 stages of 16, 32, 64 channels; small_resnet/8-16 for others), resnet18,
mobilenetv2, resnet20 to resnet56, wrn_34_10, ... Unless told otherwise the teachers are small too, so that
a CPU ends; --paper takes the paper's WRN-34-10 and ResNet-56. CIARD's steps are of epochs that train its
robust teacher, five sixths of all. float32 on a GPU means TF32 in convolutions and products for both.

Without PyTorch (pip install -e '.[reference]') there are our columns alone. Run it on a machine that does
nothing else.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile

PAPER = {"robust": "wrn_34_10", "clean": "resnet56"}
TORCH_HINT = "no PyTorch columns: pip install -e '.[reference]'"


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="ciard", help="or several with commas, or all")
    parser.add_argument("--student", default="small_resnet", help="or several with commas")
    parser.add_argument("--teachers", default="", help="robust=NETWORK,clean=NETWORK")
    parser.add_argument("--paper", action="store_true", help=f"teachers {PAPER}")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="of the attack")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", help="or bf16")
    parser.add_argument("--only", choices=("jax", "torch"), help="one side")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-parts", action="store_true", help="leave the shares of the time out")
    parser.add_argument("--no-memory", action="store_true", help="leave processes for memory out")
    parser.add_argument("--json", default="", help="file for all numbers")
    parser.add_argument("--linear", action="store_true", help="cost against batch, steps, classes")
    parser.add_argument("--quick", action="store_true", help="tiny, 2 rounds")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.batch, args.steps = 2, 16, 2
        args.no_compile = args.no_memory = True
        args.student = "small_resnet/4-8"
        args.method = "sat,ciard" if args.method == "ciard" else args.method
        args.teachers = "robust=small_resnet/4-8,clean=small_resnet/4-8"
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds}: at least 1")
    args.teachers = _teachers(parser, args)
    return args


def _teachers(parser, args):
    found = dict(PAPER) if args.paper else {}
    for item in filter(None, args.teachers.split(",")):
        role, _, name = item.partition("=")
        if role not in PAPER or not name:
            parser.error(f"--teachers={args.teachers}: give robust=NETWORK,clean=NETWORK")
        found[role] = name
    return found


def prepare(args, folder):
    """Sets what JAX and PyTorch read when they are imported."""
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,cpu"}[args.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs memory too
    # Empty caches make compile times comparable; the processes that measure memory then read them.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(folder, "jax"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(folder, "inductor"))
    import jax

    from ard_jax.runtime import sharding

    sharding.use_cores()  # as ard_jax.main does
    try:
        found = jax.devices()[0].platform
    except RuntimeError as error:
        found = str(error).splitlines()[0]
    if found != args.device:
        raise SystemExit(
            f"--device={args.device}: JAX has no such device ({found}); pip install -e '.[cuda]' for a "
            "GPU, or --device=cpu"
        )


def cases(args):
    """One case for each method and network that was asked for."""
    from benchmarks.step_cases import COUNTED, PRECISIONS, WORK, Case

    names = list(WORK) if args.method == "all" else args.method.split(",")
    if alone := [name for name in names if name in COUNTED]:
        raise SystemExit(f"--method={','.join(alone)}: no contender has it; see benchmarks.counts")
    precision = PRECISIONS.get(args.precision, args.precision)
    try:
        return [
            Case(
                method, student, batch=args.batch, steps=args.steps, precision=precision,
                classes=args.classes, **args.teachers,
            )
            for student, method in itertools.product(args.student.split(","), names)
        ]  # fmt: skip
    except ValueError as error:
        raise SystemExit(str(error)) from None


def contenders(args, built):
    """([step that can be called], [why one is not there])."""
    from benchmarks.step_jax import JaxStep

    found, missing = ([] if args.only == "torch" else [JaxStep(built)]), []
    if args.only == "jax":
        return found, missing
    try:
        from benchmarks import step_torch
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torch":
            raise
        return found, [TORCH_HINT]
    device = {"cpu": "cpu", "gpu": "cuda"}[args.device]
    kinds = ["eager"] + ["nchw"] * (device == "cpu") + ["compile"] * (not args.no_compile)
    for kind in kinds:
        try:
            step_torch.prepare(device)
            found.append(step_torch.TorchStep(built, kind, device))
        except Exception as error:  # what torch.compile raises has no common class
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0][:200]}"
            missing.append(f"{step_torch.NAMES[kind]}: not available ({reason})")
    return found, missing


def measure(args, case, peaks):
    """Everything about one case, as plain data."""
    from benchmarks import step_cases, step_memory, step_times

    built = step_cases.build(case)
    steps, missing = contenders(args, built)
    if not steps:
        raise SystemExit("; ".join(missing))
    seconds = step_times.in_turns({s.name: s for s in steps}, args.rounds)
    count = step_cases.counted(case)
    result = {
        "case": case.describe(), "method": case.method, "batch": case.batch, "missing": missing,
        "step_flops": count.flops, "attack_flops": count.loop_flops, "contenders": {},
    }  # fmt: skip
    for step in steps:
        shares = {}
        if not args.no_parts:
            times = step_times.in_turns(step.parts(), max(2, args.rounds // 2))
            whole = step_times.median(seconds[step.name])
            shares = {name: step_times.median(t) / whole for name, t in times.items()}
        result["contenders"][step.name] = {
            "seconds": seconds[step.name], "shares": shares, "compile": step.compile_seconds,
            "xla_flops": getattr(step, "flops", None), "planned": getattr(step, "planned", None),
            "peak": step_memory.peak(args, case, step),
        }  # fmt: skip
    result["matmul"] = peaks
    return result


def matmul_peaks(args):
    """Framework -> measured FLOP/s of a large matrix product, the fastest of several."""
    from benchmarks import step_jax, step_times
    from benchmarks.step_cases import PRECISIONS

    size = 512 if args.quick else {"cpu": 2048, "gpu": 8192}[args.device]
    precision, found = PRECISIONS.get(args.precision, args.precision), {}
    if args.only != "torch":
        found["jax"] = step_jax.matmul_rate(precision, size)
    if args.only != "jax":
        try:
            from benchmarks import step_torch

            device = {"cpu": "cpu", "gpu": "cuda"}[args.device]
            step_torch.prepare(device)
            found["torch"] = step_torch.matmul_rate(precision, size, device)
        except (ModuleNotFoundError, RuntimeError):
            pass  # said with the columns
    times = step_times.in_turns({k: call for k, (call, _) in found.items()}, 10, warm=3)
    return {k: flops / min(times[k]) for k, (_, flops) in found.items()}


def main(argv=None):
    args = arguments(argv)
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, folder)
        from benchmarks import step_linear, step_memory, step_report

        chosen = cases(args)
        if args.memory_of:
            step_memory.child(args, chosen[0])
            return
        if args.linear:
            results = step_linear.run(args)
        else:
            peaks, results = matmul_peaks(args), []
            step_report.head(args)
            for case in chosen:
                results.append(measure(args, case, peaks))
                step_report.show(results[-1])
            step_report.summary(results)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"command": sys.argv, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
