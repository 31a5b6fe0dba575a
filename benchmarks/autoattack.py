"""AutoAttack (standard, Linf) and PGD-20 beside torchattacks: seconds per attack, and the ratio.

    pip install -e .[reference]                  # torch and torchattacks
    python -m benchmarks.autoattack              # cnn_a, 64 CIFAR-10 images, eps 2/255, 2 threads
    python -m benchmarks.autoattack --network=plain,resnet18 --attacks pgd-20 cascade --own-labels --eps=0.01
    python -m benchmarks.autoattack --network=FOLDER_OF_AN_IMPORTED_NETWORK --steps=20 --queries=500
    python -m benchmarks.autoattack --quick      # shows that it runs, measures nothing

Both attack the same network with the same weights (`torch_networks`) on the same images, one after the other
in one process, one run of each per round; the smallest time counts, since disturbances only add. First every
attack alone, then the cascade of all four. PyTorch's PGD runs in the layout, channels first or last, whose
forward and backward pass is the faster one; torchattacks' FAB takes channels first alone.

torchattacks 3.5.1 gives APGD, APGD-T and FAB in its AutoAttack 10 iterations, not AutoAttack's 100, and
Square another schedule. Here they get the same numbers on both sides, AutoAttack's unless asked otherwise.
With --own-labels the labels are what the network says and, with a radius at which nothing breaks, every
attack runs to its end on every image: the time of a network whose weights are random.

Our first run of each attack compiles; that is reported apart ("compile": first run less the best one),
and so is the ratio with it, for one evaluation of a network from a cold start. With --cores the batch is
split over the cores as devices, as --mode=evaluate does; without, JAX has one device, as in a notebook.
Run it on a machine that does nothing else.
"""

import argparse
import os
import time

import numpy as np

MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
ATTACKS = ("pgd-20", *MEMBERS, "cascade")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="cnn_a", help="or several with commas")
    parser.add_argument("--quick", action="store_true", help="8 images, 5 iterations, 50 queries")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--data", help="TFDS folder with CIFAR-10, for more than 64 images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cores", action="store_true", help="each core a device, as ard_jax.main has it"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--eps", type=float, default=2.0, help="in grey levels of 255")
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--own-labels", action="store_true", help="what the network says")
    parser.add_argument("--attacks", nargs="*", default=ATTACKS, choices=ATTACKS)
    args = parser.parse_args()
    if args.quick:
        args.images, args.steps, args.queries, args.rounds = 8, 5, 50, 1
    args.eps /= 255
    return args


def load(args):
    """(images [N,32,32,3] float32, labels [N])."""
    from benchmarks.torch_networks import GOLDEN

    golden = np.load(GOLDEN)
    images, labels = golden["x_u8"], golden["y"]
    if args.data:
        import tensorflow_datasets as tfds

        source = tfds.data_source("cifar10", split="test", data_dir=args.data, download=False)
        rows = [source[i] for i in range(args.images)]
        images, labels = (np.stack([row[k] for row in rows]) for k in ("image", "label"))
    if args.images > len(images):
        raise SystemExit(f"{len(images)} images are at hand; --data=FOLDER gives more")
    images = images[: args.images].astype(np.float32) / np.float32(255)
    return images, labels[: args.images].astype(np.int64)


class Ours:
    """Runs an attack by its name, and gives the number of robust images; programs are kept."""

    def __init__(self, args, predict, images, labels):
        """Compiles nothing yet."""
        from ard_jax.convolutions.rewrite import fast_on_cpu
        from ard_jax.data.base import ArrayDataset
        from ard_jax.evaluation.evaluator import Evaluator

        fast = lambda _, x: fast_on_cpu(predict, x)(x)  # noqa: E731 (what attacks.autoattack makes of it)
        self.args, self.images, self.labels = args, images, labels
        # `attacks.autoattack` makes such an engine for every call; one that stays keeps its programs.
        self.evaluator = Evaluator("network", fast, batch_size=min(len(images), 250), unroll=1)
        classes = tuple(map(str, range(10)))
        self.data = ArrayDataset(
            np.rint(images * 255).astype(np.uint8), labels.astype(np.int32), classes, "data", "test"
        )
        self.notes = ""

    def __call__(self, name):
        """Runs one attack."""
        from ard_jax import attacks
        from ard_jax.attacks.auto_attack.attack import run
        from ard_jax.attacks.auto_attack.cascade import Session
        from ard_jax.attacks.auto_attack.versions import members

        args = self.args
        if name == "pgd-20":
            attack = attacks.make("pgd_sat", eps=args.eps)
            return int(self.evaluator.run((), self.data, {name: attack}).correct[name].sum())
        version, names = ("standard", None) if name == "cascade" else ("custom", (name,))
        chosen = members(version, names, steps=args.steps, queries=args.queries)
        result = run(
            self.evaluator.engine, (), self.images, self.labels, chosen, version=version,
            eps=args.eps, session=Session(progress=False),
        )  # fmt: skip
        self.notes = f"{result.padding:.0%}"
        return int(np.sum(result.robust))


def theirs(args, network, images, labels):
    """The same for torchattacks: (function, logits of the clean images, layout)."""
    import torch
    import torchattacks

    torch.set_num_threads(args.threads)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        logits = network(x).numpy()
    y = torch.from_numpy(logits.argmax(1) if args.own_labels else labels)
    layouts = (torch.contiguous_format, torch.channels_last)
    layout = min(layouts, key=lambda f: _pass(network, x, f))

    def run(name):
        chosen = layout if name == "pgd-20" else torch.contiguous_format
        network.to(memory_format=chosen)
        if name == "pgd-20":
            attack = torchattacks.PGD(network, eps=args.eps, alpha=args.eps / 4, steps=20)
        else:
            attack = torchattacks.AutoAttack(network, eps=args.eps, seed=0)
            members = dict(zip(MEMBERS, attack._autoattack.attacks, strict=True))
            for member in members.values():
                member.steps = args.steps
            members["square"].n_queries, members["square"].resc_schedule = args.queries, False
            attack = members.get(name, attack)
        adversarial = attack(x.contiguous(memory_format=chosen), y)
        with torch.no_grad():
            return int(torch.sum(network(adversarial).argmax(1) == y))

    return run, logits, str(layout).removeprefix("torch.")


def _pass(network, x, layout):
    """Seconds of a forward and backward pass in a layout, the best of three."""
    network.to(memory_format=layout)
    seconds = []
    for _ in range(4):
        z = x.contiguous(memory_format=layout).requires_grad_()
        start = time.perf_counter()
        network(z).sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def timed(run, name):
    start = time.perf_counter()
    robust = run(name)
    return time.perf_counter() - start, robust


def measure(args, name, images, labels):
    """Prints the table of one network, and its summary."""
    from benchmarks.torch_networks import make

    pair = make(name)
    run_torch, logits, layout = theirs(args, pair.module, images, labels)
    labels = logits.argmax(1) if args.own_labels else labels
    difference = np.max(np.abs(np.asarray(pair.predict(images)) - logits)) / np.abs(logits).max()
    if difference > 1e-3:
        raise SystemExit(
            f"{name}: the two networks differ by {difference:.0e} of the largest logit"
        )
    clean = int(np.sum(logits.argmax(1) == labels))
    print(f"\n### {name}\n\n{len(images)} images, {clean} right, eps {args.eps:.5f}, {args.threads} threads, "
          f"{args.steps} steps, {args.queries} queries; PGD of PyTorch in {layout}; logits differ by "
          f"{difference:.0e} of the largest\n")  # fmt: skip
    print("| attack | torchattacks, s | ours, s | ratio | compile, s | ratio when cold | padding "
          "| robust: theirs, ours |\n|" + "---|" * 8)  # fmt: skip
    run_jax, ratios = Ours(args, pair.predict, images, labels), {}
    for attack in args.attacks:
        first, _ = timed(run_jax, attack)
        found = {"torch": [], "jax": []}
        for _ in range(args.rounds):
            found["torch"].append(timed(run_torch, attack))
            found["jax"].append(timed(run_jax, attack))
        (torch_s, torch_robust), (jax_s, jax_robust) = (min(v) for v in found.values())
        compile_s, ratios[attack] = max(first - jax_s, 0.0), torch_s / jax_s
        print(f"| {attack} | {torch_s:.2f} | {jax_s:.2f} | {ratios[attack]:.2f} | {compile_s:.1f} | "
              f"{torch_s / (jax_s + compile_s):.2f} | {run_jax.notes} | {torch_robust}, {jax_robust} |",
              flush=True)  # fmt: skip
    ratios = ", ".join(f"{attack} {r:.2f}" for attack, r in ratios.items())
    programs = run_jax.evaluator.engine.programs
    print(
        f"\n{name}: {ratios} times as fast as torchattacks; AutoAttack has {programs} programs",
        flush=True,
    )


def main():
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # JAX has no setting
    import jax

    from ard_jax.runtime import sharding
    from benchmarks.step_report import processor

    if args.cores:
        sharding.use_cores()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"{processor()}, jax {jax.__version__}")
    images, labels = load(args)
    for name in args.network.split(","):
        measure(args, name, images, labels)


if __name__ == "__main__":
    main()
