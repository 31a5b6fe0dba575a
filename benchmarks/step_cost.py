"""What a training step costs beside the passes that it is made of: RSLAD, MTARD and CIARD.

    python benchmarks/step_cost.py            # batch 128, 32x32x3, 10 attack steps, small_resnet everywhere
    python benchmarks/step_cost.py --quick    # small and short: shows that it runs, measures nothing

For each method, with K attack steps and random images, two times in milliseconds: the whole jitted step,
and the sum of its parts, each of them a jitted program of its own:

    attack        one scan of K x [eval forward pass of the student, gradient to the input, sign step]
    train pass    train-mode forward pass of the student and gradient to the weights       (x n)
    teacher       eval-mode forward pass of a teacher                                     (x m)
    teacher pass  train-mode forward pass of the robust teacher and gradient to the weights (CIARD)
    update        SGD with momentum and weight decay                                      (x u)

    method   n  m  teacher pass  u
    rslad    2  1       0        1     S(x'), S(x); T(x)
    mtard    2  2       0        1     S(x'), S(x); T(x'), N(x)
    ciard    2  2       1        2     S(x), S(x'); N(x), N(x'); R(x'), in an epoch that trains R

and their ratio, whose goal is at most 1.10: whatever lies above 1 is losses, statistics, and work that a
better step would not do. It may lie below 1, because one program fuses what the parts do separately and
starts once. All programs are measured in turn, in one process, round after round; the smallest time of
each counts, since disturbances only add. Run it on a machine that does nothing else.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from ard_jax import attacks, losses, methods, models, optim
from ard_jax.methods import base

ATTACKS = {"rslad": "rslad_train", "mtard": "ciard_train", "ciard": "ciard_train"}
# Method -> how often each part occurs in its step.
COUNTS = {
    "rslad": {"attack": 1, "train pass": 2, "teacher": 1, "update": 1},
    "mtard": {"attack": 1, "train pass": 2, "teacher": 2, "update": 1},
    "ciard": {"attack": 1, "train pass": 2, "teacher": 2, "teacher pass": 1, "update": 2},
}
EPOCH = 100  # past CIARD's itt_start


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, 2 rounds")
    parser.add_argument("--rounds", type=int, default=8, help="repetitions of every program")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="attack steps K")
    parser.add_argument("--network", default="small_resnet", help="of the student and the teachers")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.rounds, args.steps = 16, 2, 2
    return args


def make_parts(args, name):
    net = models.create(args.network, **({"widths": (4, 8)} if args.quick else {}))
    return methods.Parts(
        student=net,
        student_optim=optim.make(optim.OptimConfig(), 300),
        attack=attacks.make(ATTACKS[name], steps=args.steps),
        teachers=dict.fromkeys(methods.TEACHERS[name], net),
        teacher_optims={
            role: optim.make(optim.OptimConfig(lr=1e-4, momentum=0.1), 300)
            for role in methods.TRAINED_TEACHERS[name]
        },
        epochs=300,
        steps_per_epoch=100,
    )


def make_batch(args):
    image, label = jax.random.split(jax.random.key(1))
    return {
        "image": jax.random.uniform(image, (args.batch, 32, 32, 3)),
        "label": jax.random.randint(label, (args.batch,), 0, 10),
        "epoch": jnp.asarray(EPOCH, jnp.int32),
    }


def whole_step(args, name, batch):
    """A call that runs one step of the method."""
    parts = make_parts(args, name)
    method, net = methods.create(name, parts), parts.student
    variables = {role: net.init(jax.random.key(i + 1)) for i, role in enumerate(parts.teachers)}
    state = method.init(net.init(jax.random.key(0)), variables)
    step, key = jax.jit(method.step), jax.random.key(2)
    return lambda: step(state, batch, key)


def part_programs(args, batch):
    """Name of the part -> a call that runs it once."""
    parts = make_parts(args, "ciard")
    net, optimiser = parts.student, parts.student_optim
    variables = net.init(jax.random.key(0))
    params, stats = variables["params"], variables["batch_stats"]
    images, labels, spec = batch["image"], batch["label"], parts.attack

    def attack(variables, images):
        def ascend(x, _):
            gradient = jax.grad(
                lambda z: jnp.sum(losses.cross_entropy(net.apply(variables, z, False)[0], labels))
            )(x)
            x = x + spec.step_size * jnp.sign(gradient)
            return jnp.clip(jnp.clip(x, images - spec.eps, images + spec.eps), 0.0, 1.0), None

        return jax.lax.scan(ascend, images, None, args.steps)[0]

    def train_pass(params, stats, images):
        logits, backward, after = base.train_forward(net, params, stats, images)
        loss, cotangent = base.mean_loss(lambda z: losses.cross_entropy(z, labels), logits)
        return loss, backward(cotangent), after

    def teacher(variables, images):
        return net.apply(variables, images, False)[0]

    programs = {n: jax.jit(f) for n, f in (("attack", attack), ("train", train_pass),
                                           ("teacher", teacher), ("update", optimiser.update))}  # fmt: skip
    gradient, opt_state, rate = params, optimiser.init(params), jnp.asarray(0.1)
    train = lambda: programs["train"](params, stats, images)  # noqa: E731
    return {
        "attack": lambda: programs["attack"](variables, images),
        "train pass": train,
        "teacher": lambda: programs["teacher"](variables, images),
        "teacher pass": train,  # the networks are equal
        "update": lambda: programs["update"](gradient, opt_state, params, rate),
    }


def measure(calls, rounds):
    """Smallest time of each call in milliseconds, measured in turn."""
    best = {}
    for call in calls.values():
        jax.block_until_ready(call())  # compiles
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            elapsed = 1e3 * (time.perf_counter() - begin)
            best[name] = min(elapsed, best.get(name, elapsed))
    return best


def main():
    args = arguments()
    batch = make_batch(args)
    calls = {f"step of {name}": whole_step(args, name, batch) for name in COUNTS}
    times = measure(calls | part_programs(args, batch), args.rounds)
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), batch {args.batch}, K = {args.steps}, "
          f"{args.network}, best of {args.rounds}")  # fmt: skip
    print("\npart            ms")
    for name in ("attack", "train pass", "teacher", "update"):
        print(f"{name:12s}{times[name]:8.2f}")
    print("\nmethod    step ms   sum of parts ms   ratio")
    for name, counts in COUNTS.items():
        step, parts = times[f"step of {name}"], sum(n * times[p] for p, n in counts.items())
        print(f"{name:8s}{step:9.2f}{parts:18.2f}{step / parts:8.3f}")


if __name__ == "__main__":
    main()
