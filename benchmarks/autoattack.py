"""AutoAttack (standard, Linf) beside torchattacks' AutoAttack: seconds per attack, and the ratio.

    pip install -e .[reference]                  # torch and torchattacks
    python benchmarks/autoattack.py              # 64 CIFAR-10 images, eps 2/255, 2 threads
    python benchmarks/autoattack.py --quick      # shows that it runs, measures nothing

Both attack the same network (cnn_a, adversarially trained; `torch_networks`) with the same weights on the
same images, one after the other in one process, one run of each per round; the smallest time counts,
since disturbances only add. First every attack alone, then the cascade of all four.

torchattacks 3.5.1 gives APGD, APGD-T and FAB in its AutoAttack 10 iterations, not AutoAttack's 100, and
Square another schedule. Here they get AutoAttack's numbers, so that both sides do the same work; with 10
iterations its result is not AutoAttack's.

Our first run of each attack compiles; that is reported apart ("compile": first run less the best one),
and so is the ratio with it, for one evaluation of a network from a cold start.
Run it on a machine that does nothing else.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "attacks_slice.npz"
MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 images, 5 iterations, 50 queries")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--data", help="TFDS folder with CIFAR-10, for more than 64 images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--eps", type=float, default=2.0, help="in grey levels of 255")
    parser.add_argument("--attacks", nargs="*", default=[*MEMBERS, "cascade"])
    args = parser.parse_args()
    args.steps, args.queries = 100, 5000
    if args.quick:
        args.images, args.steps, args.queries, args.rounds = 8, 5, 50, 1
    args.eps /= 255
    return args


def load(args):
    """(weights, images [N,32,32,3] float32, labels [N])."""
    golden = np.load(GOLDEN)
    prefix = "cnn_a/weights/"
    weights = {k.removeprefix(prefix): golden[k] for k in golden if k.startswith(prefix)}
    images, labels = golden["x_u8"], golden["y"]
    if args.data:
        import tensorflow_datasets as tfds

        source = tfds.data_source("cifar10", split="test", data_dir=args.data, download=False)
        rows = [source[i] for i in range(args.images)]
        images, labels = (np.stack([row[k] for row in rows]) for k in ("image", "label"))
    if args.images > len(images):
        raise SystemExit(f"{len(images)} images are at hand; --data=FOLDER gives more")
    images = images[: args.images].astype(np.float32) / np.float32(255)
    return weights, images, labels[: args.images].astype(np.int64)


def ours(args, weights, images, labels):
    """Attack name -> function that runs it and returns the number of robust images."""
    from torch_networks import jax_cnn_a

    from ard_jax.attacks.auto_attack.attack import run as run_autoattack
    from ard_jax.attacks.auto_attack.cascade import Session
    from ard_jax.attacks.auto_attack.engine import Engine
    from ard_jax.attacks.auto_attack.versions import members

    network = jax_cnn_a(weights)
    # `attacks.autoattack` makes such an engine for every call; one that stays keeps its programs.
    engine = Engine("cnn_a", lambda _, x: network(x), batch_size=min(len(images), 250))

    def run(name):
        version, names = ("standard", None) if name == "cascade" else ("custom", (name,))
        chosen = members(version, names, steps=args.steps, queries=args.queries)
        result = run_autoattack(
            engine, (), images, labels, chosen, version=version, eps=args.eps,
            session=Session(progress=False),
        )  # fmt: skip
        return int(np.sum(result.robust))

    return run


def theirs(args, weights, images, labels):
    """The same for torchattacks."""
    import torch
    import torchattacks
    from torch_networks import torch_cnn_a

    torch.set_num_threads(args.threads)
    network = torch_cnn_a(weights)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    y = torch.from_numpy(labels)

    def run(name):
        cascade = torchattacks.AutoAttack(network, eps=args.eps, seed=0)
        members = dict(zip(MEMBERS, cascade._autoattack.attacks, strict=True))
        for member in members.values():
            member.steps = args.steps
        members["square"].n_queries, members["square"].resc_schedule = args.queries, False
        adversarial = (cascade if name == "cascade" else members[name])(x, y)
        with torch.no_grad():
            return int(torch.sum(network(adversarial).argmax(1) == y))

    with torch.no_grad():
        logits = network(x).numpy()
    return run, logits


def timed(run, name):
    start = time.perf_counter()
    robust = run(name)
    return time.perf_counter() - start, robust


def main():
    args = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # JAX has no setting
    weights, images, labels = load(args)
    run_torch, logits = theirs(args, weights, images, labels)

    import jax
    from torch_networks import jax_cnn_a

    jax.config.update("jax_default_matmul_precision", "highest")
    difference = np.max(np.abs(jax_cnn_a(weights)(images) - logits))
    clean = int(np.sum(logits.argmax(1) == labels))
    print(f"{len(images)} images, {clean} right, eps {args.eps:.5f}, {args.threads} threads; "
          f"logits differ by at most {difference:.1e}")  # fmt: skip
    run_jax = ours(args, weights, images, labels)
    print(f"{'attack':9} {'torchattacks':>13} {'ours':>8} {'ratio':>6} {'compile':>8} "
          f"{'cold ratio':>10}  robust theirs/ours")  # fmt: skip
    for name in args.attacks:
        first, _ = timed(run_jax, name)
        found = {"torch": [], "jax": []}
        for _ in range(args.rounds):
            found["torch"].append(timed(run_torch, name))
            found["jax"].append(timed(run_jax, name))
        (torch_s, torch_robust), (jax_s, jax_robust) = (min(v) for v in found.values())
        compile_s = max(first - jax_s, 0.0)
        print(f"{name:9} {torch_s:12.2f}s {jax_s:7.2f}s {torch_s / jax_s:6.2f} {compile_s:7.2f}s "
              f"{torch_s / (jax_s + compile_s):10.2f}  {torch_robust}/{jax_robust}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
