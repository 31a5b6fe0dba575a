"""Cost of our step against batch, attack steps and classes: is it linear, and is memory flat?"""

import dataclasses

from benchmarks import step_cases, step_times
from benchmarks.step_jax import JaxStep

SWEEPS = {
    "batch": (32, 64, 128, 256),
    "steps": (1, 2, 5, 10, 20),
    "classes": (10, 100, 200),
}
TITLES = {"batch": "batch", "steps": "attack steps", "classes": "classes"}


def run(args):
    """Measures, prints, and returns plain data; one table for each sweep."""
    method = "ciard" if "," in args.method or args.method == "all" else args.method
    precision = step_cases.PRECISIONS.get(args.precision, args.precision)
    small = {"batch": min(args.batch, 64), "steps": min(args.steps, 5), "precision": precision}
    nets = args.teachers | {"student": args.student.split(",")[0]}
    start = step_cases.Case(method, classes=args.classes, **small, **nets)
    results = []
    for name, values in SWEEPS.items():
        values = values[:3] if args.quick else values
        rows = _sweep([dataclasses.replace(start, **{name: v}) for v in values], args.rounds)
        found = {"sweep": name, "values": list(values), "of": start.describe(), **rows}
        _show(found)
        results.append(found)
    return results


def _sweep(cases, rounds):
    """Seconds (medians; the cases take turns), counted FLOPs, XLA's temporary and planned bytes."""
    steps = [JaxStep(step_cases.build(case)) for case in cases]
    times = step_times.in_turns(dict(enumerate(steps)), rounds)
    return {
        "seconds": [step_times.median(times[i]) for i in range(len(steps))],
        "flops": [step_cases.counted(case).flops for case in cases],
        "temporary": [step.temporary for step in steps],
        "planned": [step.planned for step in steps],
    }


def line(x, y):
    """(a, b) of the least squares line a + b x."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((v - mean_x) ** 2 for v in x)
    slope = sum((v - mean_x) * (w - mean_y) for v, w in zip(x, y, strict=True)) / spread
    return mean_y - slope * mean_x, slope


def _show(found):
    x = found["values"]
    fits = {k: line(x, found[k]) for k in ("seconds", "flops")}
    print(f"\n### {TITLES[found['sweep']]} ({found['of']})\n")
    print(f"| {TITLES[found['sweep']]} | ms | of the line | per unit, of the last | GFLOP | of the line "
          "| temporary MiB | of the first |")  # fmt: skip
    print("|---" * 8 + "|")
    for i, value in enumerate(x):
        seconds, flops = found["seconds"][i], found["flops"][i]
        a, b = fits["seconds"]
        c, d = fits["flops"]
        unit = (seconds / value) / (found["seconds"][-1] / x[-1])
        print(f"| {value} | {1e3 * seconds:.1f} | {seconds / (a + b * value):.3f} | {unit:.2f} "
              f"| {flops / 1e9:.4f} | {flops / (c + d * value):.4f} "
              f"| {found['temporary'][i] / 2**20:.1f} "
              f"| {found['temporary'][i] / found['temporary'][0]:.3f} |")  # fmt: skip
    if found["sweep"] == "steps":
        print("\nA loop of one step is no loop for XLA: memory counts from the second row on.")
    a, b = fits["seconds"]
    c, d = (v / 1e9 for v in fits["flops"])
    print(f"\nLine: {1e3 * a:.1f} ms + {1e3 * b:.3f} ms for each; {c:.4f} GFLOP + {d:.6f} for each.",
          flush=True)  # fmt: skip
