"""CIARD's step on 1, 2, 4 and 8 devices that this machine simulates: counts, and times of little meaning.

    python benchmarks/scaling.py [--quick] [--plot docs/images/scaling.png] [--topology v4:2x2x1]

Prints the tables of docs/scaling.md:

    devices     FLOPs of one device as XLA counts them (the body of the attack's loop once), times devices,
                over those of a single device: what several devices do twice is above 1. What a device sends.
    memory      of one device against the images it gets, by XLA's plan for its buffers.
    time        of the same global batch. All simulated devices share the cores of this machine, so this says
                nothing of real ones; but two of them can be faster than one. Every number of devices is a
                process of its own; they take turns, A B C D A B C D, and only one works at a time.

--topology compiles for TPU chips that need not be there (pip install 'jax[tpu]') and prints what those send.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from unittest import mock

DEVICES = (1, 2, 4, 8)
BATCHES = (8, 16, 32, 64, 128, 256)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, 2 rounds")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="global")
    parser.add_argument("--steps", type=int, default=3, help="attack steps")
    parser.add_argument("--plot", default="", help="file of the plot")
    parser.add_argument("--topology", default="", help="TPU to compile for, such as v4:2x2x1")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.batch, args.rounds, args.steps = 16, 2, 1
    return args


def ciard(args, bn_groups=1):
    """(method, function that makes its first state) on CIFAR-size images."""
    from jax import random

    from ard_jax import attacks, methods, models, optim

    widths = (4, 8) if args.quick else (16, 32, 64)
    net = models.create("small_resnet", widths=widths, bn_groups=bn_groups)
    parts = methods.Parts(
        student=net,
        student_optim=optim.make(optim.OptimConfig(), 300),
        attack=attacks.make("ciard_train", steps=args.steps),
        teachers={"robust": net, "clean": net},
        teacher_optims={"robust": optim.make(optim.OptimConfig(lr=1e-4, momentum=0.1), 300)},
        epochs=300,
        steps_per_epoch=100,
    )
    method = methods.create("ciard", parts, itt_start=1)

    def initial():
        variables = net.init(random.key(0))
        return method.init(variables, {"robust": variables, "clean": variables})

    return method, initial


def compiled(args, mesh, batch, bn_groups=1):
    """The step for a global batch, compiled from shapes alone."""
    import jax
    import jax.numpy as jnp

    from ard_jax.training import train_step

    method, initial = ciard(args, bn_groups)
    arrays = {
        "image": jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    program = train_step.program(method, train_step.StepConfig(0, 100, "crop_flip"), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return program.lower(jax.eval_shape(initial), arrays, key).compile()


def sent(program):
    """{"count", "bytes"} of a step's sums over devices; nothing else is sent."""
    from benchmarks.collectives import collectives

    found = collectives(program.as_text())
    if set(found) - {"all-reduce"}:
        raise SystemExit(f"unexpected collectives: {found}")
    return {k: found.get("all-reduce", {}).get(k, 0) for k in ("count", "bytes")}


def trained_bytes(args):
    """Of the student's parameters and the robust teacher's, which CIARD trains."""
    import jax

    state = jax.eval_shape(ciard(args)[1])
    params = (state.student.params, state.teachers["robust"].params)
    return sum(4 * leaf.size for leaf in jax.tree.leaves(params))


def memory(program):
    """Bytes that one device needs at least for the step."""
    m = program.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes


def worker(args):
    """Prints what is counted; then runs as many steps as each line of standard input says."""
    import jax
    import numpy as np

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.worker)
    from ard_jax.runtime import sharding
    from ard_jax.training import train_step

    mesh = sharding.make_mesh(args.worker)
    program = compiled(args, mesh, args.batch)
    facts = {"flops": program.cost_analysis()["flops"], "sent": sent(program)}
    if args.worker > 1:
        facts["local"] = sent(compiled(args, mesh, args.batch, bn_groups=args.worker))
    else:
        batches = BATCHES[:3] if args.quick else BATCHES
        facts["memory"] = {b: memory(compiled(args, mesh, b)) for b in batches}
        facts["trained"] = trained_bytes(args)
    method, initial = ciard(args)
    state = jax.tree.map(lambda x: x.copy(), sharding.put_replicated(mesh, initial()))
    step = train_step.build(method, train_step.StepConfig(0, 100, "crop_flip"), mesh)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, args.batch, np.int32)
    batch = sharding.put_batch(mesh, {"image": images, "label": labels})
    state, _ = jax.block_until_ready(step(state, batch))
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            state, _ = jax.block_until_ready(step(state, batch))
        print((time.perf_counter() - started) / int(line), flush=True)


def measure(args):
    """({devices: facts}, {devices: seconds of a step in each round})."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers, facts = {}, {}
    try:
        for n in DEVICES:
            command = [sys.executable, *sys.argv, f"--worker={n}"]
            workers[n] = subprocess.Popen(command, **pipes)
            facts[n] = json.loads(workers[n].stdout.readline())
            print(f"{n} device(s) compiled", file=sys.stderr, flush=True)
        times = {n: [] for n in DEVICES}
        for _ in range(args.rounds):
            for n, process in workers.items():
                print(2, file=process.stdin, flush=True)
                times[n].append(float(process.stdout.readline()))
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    return facts, times


def tables(args, facts, times):
    """Prints Markdown."""
    trained = facts[1]["trained"]
    print(f"\nParameters that are trained: {trained:,} bytes.\n")
    print("| devices | FLOPs, all devices / one | bytes summed | of it BatchNorm and metrics "
          "| sums | sent by a device, ring | bn_groups=devices: bytes | sums |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for n in DEVICES:
        work = facts[n]["flops"] * n / facts[1]["flops"]
        count, size = (facts[n]["sent"][k] for k in ("count", "bytes"))
        local = facts[n].get("local", facts[n]["sent"])
        other = size - 1.5 * trained if size else 0  # the student's gradient is summed twice on CPU
        ring = 2 * (n - 1) / n * size
        print(f"| {n} | {work:.3f} | {size:,} | {other:,.0f} | {count} | {ring:,.0f} "
              f"| {local['bytes']:,} | {local['count']} |")  # fmt: skip
    print("\n| images of a device | MiB | MiB more for each image |\n|---|---|---|")
    sizes = {int(b): size / 2**20 for b, size in facts[1]["memory"].items()}
    first = min(sizes)
    for b, size in sizes.items():
        more = f"{(size - sizes[first]) / (b - first):.2f}" if b > first else ""
        print(f"| {b} | {size:.1f} | {more} |")
    print(
        "\n| devices, simulated | ms per image, median | one device's time / this, median (range) |"
    )
    print("|---|---|---|")
    for n in DEVICES:
        ratios = [one / this for one, this in zip(times[1], times[n], strict=True)]
        cost = 1e3 * statistics.median(times[n]) / args.batch
        print(f"| {n} | {cost:.2f} | {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f}) |")  # fmt: skip


def plot(args, facts, times):
    """Writes the plot."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    work = [facts[n]["flops"] * n / facts[1]["flops"] for n in DEVICES]
    cost = [1e3 * statistics.median(times[n]) / args.batch for n in DEVICES]
    axes[0].plot(DEVICES, work, "o-", label="FLOPs, all devices")
    axes[0].plot(DEVICES, [c / cost[0] for c in cost], "s--", label="time, simulated on 2 cores")
    axes[0].set(title="cost per image, of one device = 1", ylim=(0, None))
    for name, label in (("sent", "synchronised BatchNorm"), ("local", "bn_groups = devices")):
        sizes = [facts[n].get(name, facts[n]["sent"])["bytes"] / 2**20 for n in DEVICES]
        axes[1].plot(DEVICES, sizes, "o-", label=label)
    axes[1].set(title="MiB summed over devices per step", ylim=(0, None))
    for axis in axes[:2]:
        axis.set(xlabel="devices (simulated)", xscale="log", xticks=DEVICES, xticklabels=DEVICES)
        axis.minorticks_off()
    sizes = {int(b): size / 2**20 for b, size in facts[1]["memory"].items()}
    axes[2].plot(list(sizes), list(sizes.values()), "o-")
    axes[2].set(
        title="MiB of a device", xlabel="images of a device", ylim=(0, None), xlim=(0, None)
    )
    for axis in axes[:2]:
        axis.legend(frameon=False)
    figure.savefig(args.plot, dpi=110)


def tpu(args):
    """Prints what the chips of a topology send, as XLA compiles the step for them."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    jax.config.update("jax_platforms", "cpu")  # for everything that is not compiled for them
    found = np.array(topologies.get_topology_desc(args.topology, "tpu").devices)
    mesh = Mesh(found, ("data",), axis_types=(AxisType.Auto,))
    print(f"\n| {args.topology}, {found.size} devices | bytes summed | sums |\n|---|---|---|")
    with mock.patch.object(jax, "default_backend", lambda: "tpu"):  # the networks ask for it
        for groups in (1, found.size):
            facts = sent(compiled(args, mesh, args.batch, groups))
            print(f"| bn_groups={groups} | {facts['bytes']:,} | {facts['count']} |")


def main():
    args = arguments()
    if args.worker:
        worker(args)
        return
    facts, times = measure(args)
    tables(args, facts, times)
    if args.plot:
        plot(args, facts, times)
    if args.topology:
        tpu(args)


if __name__ == "__main__":
    main()
