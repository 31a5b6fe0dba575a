"""Tables of `benchmarks.step`, Markdown."""

import os
import platform

import jax

from benchmarks.step_memory import HOW
from benchmarks.step_times import median, ratio

OURS = "ard_jax"


def head(args):
    """Prints where and how it was measured."""
    import importlib.metadata as metadata

    device = jax.devices()[0]
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "none"
    cores = len(os.sched_getaffinity(0))
    print(f"{device.platform} ({device.device_kind}, {processor()}), {cores} cores used by each; "
          f"jax {jax.__version__}, torch {torch}; {args.rounds} rounds in turns")  # fmt: skip
    if not args.paper and not args.teachers:
        print("Teachers are small (--paper for WRN-34-10 and ResNet-56).")
    if args.device == "gpu" or not args.no_memory:
        print(f"Peak memory: {HOW[args.device]}.")


def processor():
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(result):
    """Prints one case."""
    rate = max(result["matmul"].values())
    print(f"\n### {result['case']}\n")
    print("| | images/s (range) | ms/step | its time / ours (rounds) | GFLOP/s | of matmul peak "
          "| peak MiB | attack | teachers | student | augment | compile s |")  # fmt: skip
    print("|---" * 12 + "|")
    ours = result["contenders"].get(OURS)
    for name, found in result["contenders"].items():
        times, batch = found["seconds"], result["batch"]
        speed = f"{batch / median(times):.1f} ({batch / max(times):.1f}-{batch / min(times):.1f})"
        against = ""
        if ours and name != OURS:
            middle, low, high = ratio(ours["seconds"], times)
            against = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        flops = result["step_flops"] / median(times)
        shares = [
            f"{found['shares'][k]:.0%}" if k in found["shares"] else ""
            for k in ("attack", "teachers", "student", "augment")
        ]
        peak = f"{found['peak'] / 2**20:.0f}" if found["peak"] else ""
        cells = [name, speed, f"{1e3 * median(times):.1f}", against, f"{flops / 1e9:.1f}",
                 f"{flops / rate:.1%}", peak, *shares, f"{found['compile']:.1f}"]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    for line in result["missing"]:
        print(f"\n{line}")
    _notes(result, ours)


def summary(results):
    """Prints a line for each case: our speed over that of PyTorch's forms, and the best of them."""
    for result in results:
        found = dict(result["contenders"])
        ours = found.pop(OURS, None)
        if not ours or not found:
            continue
        ratios = {k: ratio(ours["seconds"], v["seconds"])[0] for k, v in found.items()}
        best = min(ratios, key=ratios.__getitem__)
        line = (
            f"{result['case'].split(';')[0]}: {ratios[best]:.2f} of the best of PyTorch ({best}), "
        )
        line += ", ".join(f"{v:.2f} of {k}" for k, v in ratios.items() if k != best)
        peaks = [v["peak"] for v in found.values() if v["peak"]]
        if peaks and ours["peak"]:
            line += f"; memory {ours['peak'] / min(peaks):.2f} of its least"
        print(f"\n{line}", flush=True)


def _notes(result, ours):
    peaks = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in result["matmul"].items())
    part = result["attack_flops"] / result["step_flops"]
    print(f"\nCounted: {result['step_flops'] / 1e9:.3f} GFLOP in a step, "
          f"{part:.0%} in the attack. Matrix product, GFLOP/s: {peaks}; the larger is the peak.")  # fmt: skip
    if ours:
        xla = f"{ours['xla_flops'] / 1e9:.3f} GFLOP" if ours["xla_flops"] else "nothing"
        print(f"XLA's cost analysis of our program: {xla} (a loop's body once, elementwise work too); its "
              f"plan for memory: {ours['planned'] / 2**20:.0f} MiB.")  # fmt: skip
    print("Shares: each part as a program of its own over the whole step; they need not add up to 100%.",
          flush=True)  # fmt: skip
