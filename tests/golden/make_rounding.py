"""Makes rounding_slice.npz: how far two right float32 runs of an attack may be apart.

    python tests/golden/make_rounding.py DIRECTORY_WITH_THE_FULL_FILES

Attacks decide by signs: of gradients, of ReLU inputs, of differences of losses. Where one is zero up
to rounding, processors decide differently, both are right, and from there on the paths differ by far more
than rounding. So our loops run here in float64, once as they are and MEMBERS times on networks and images
that are moved by what float32 arithmetic errs by. The file holds the largest distance of a member from the
float64 run, of each image at each step: rounding where no decision is near, and how far paths fork where
one is. Nothing in it depends on the processor. All images, in the order of the full files.
"""

import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import nets
import numpy as np
import test_attacks
from float64 import in_float64

from ard_jax import losses
from ard_jax.attacks.auto_attack.apgd import apgd
from ard_jax.attacks.auto_attack.fab import fab

MEMBERS = 32
# Relative size of the moves, in float32 roundings (2^-24). `check_size` measures that it is enough.
SIZE = 6 * 2.0**-24
LOSSES = {"ce": "cross_entropy", "dlr": "dlr", "dlr-targeted": "targeted_dlr"}
EPS = 8 / 255
FAR = 2.0  # stands for the distance of an image for which FAB has found nothing


def moved(weights, rng):
    """The network (images -> logits) on weights and images that are moved at random by SIZE."""
    move = lambda v: v * (1 + SIZE * rng.standard_normal(np.shape(v)))  # noqa: E731
    weights = {k: move(np.float64(v)) for k, v in weights.items()}
    offset = SIZE * rng.standard_normal((32, 32, 3))
    return weights, offset


def network(weights, offset, make=nets.cnn_a_predict):
    """Images [B,32,32,3] -> logits [B,10]."""
    predict = make(weights)
    return lambda images: predict(images + offset)


def members(weights):
    """(weights, offset) of the float64 network itself, and of MEMBERS moved ones."""
    rng = np.random.default_rng(0)
    yield {k: np.float64(v) for k, v in weights.items()}, np.zeros((32, 32, 3))
    for _ in range(MEMBERS):
        yield moved(weights, rng)


def check_size(weights, x, y):
    """The members' logits and input gradients scatter more than float32 errs."""

    def evaluate(weights, offset, x):
        predict = network(weights, offset)
        total = lambda x: jnp.sum(losses.cross_entropy(predict(x), y))  # noqa: E731
        return predict(x), jax.grad(total)(x)

    evaluate = jax.jit(evaluate)
    zero = np.zeros((32, 32, 3))
    as_float = lambda t: {k: np.asarray(v, t) for k, v in weights.items()}  # noqa: E731
    exact = evaluate(as_float(np.float64), zero, np.float64(x))
    single = evaluate(as_float(np.float32), np.float32(zero), np.float32(x))
    moves = [evaluate(*m, np.float64(x)) for m in list(members(weights))[1:]]
    for i, what in enumerate(("logits", "gradient")):
        error = np.sqrt(np.mean(np.square(single[i] - exact[i])))
        scatter = np.sqrt(np.mean([np.square(m[i] - exact[i]) for m in moves]))
        print(f"{what}: float32 errs by {error:.1e}, members scatter by {scatter:.1e}")
        assert scatter > 1.5 * error, what


def spread(run, weights, names):
    """({name: result of the float64 run}, {name: largest distance of a member from it})."""
    first, largest = None, {}
    for weights_, offset in members(weights):
        result = run(weights_, offset)._asdict()
        result = {name: np.float64(result[name]) for name in names}
        if first is None:
            first, largest = result, {n: np.zeros_like(v) for n, v in result.items()}
        largest = {n: np.maximum(v, np.abs(result[n] - first[n])) for n, v in largest.items()}
    return first, largest


def apgd_spread(full, weights, loss):
    """Of the losses and step sizes at every step, and of the success."""
    x, start, y = np.float64(full["apgd/x"]), np.float64(full["apgd/x_init"]), full["apgd/y"]

    @jax.jit
    def run(weights, offset):
        return apgd(
            network(weights, offset), x, y, eps=float(full["apgd/eps"]), loss=LOSSES[loss],
            targets=full["apgd/dlr-targeted/y_target"] if loss == "dlr-targeted" else None,
            start=start, trace=True,
        )  # fmt: skip

    exact, found = spread(run, weights, ("loss", "loss_best", "step_size", "success", "images"))
    found["images"] = found["images"].max(axis=(1, 2, 3))
    if loss == "dlr":
        # Where the label is third, numerator and denominator of DLR are equal, at any weights. Its gradient
        # is 0, and what arithmetic leaves of it is no direction: after such a step nothing is known.
        third = np.maximum.accumulate(np.abs(exact["loss"] - 1.0) < 1e-9)[:-1]
        for name in ("loss", "loss_best"):
            found[name][1:][third] = np.inf
        found["step_size"][third] = np.inf
    return found


def fab_spread(full, weights):
    """Of the distance before every step, and of the result."""
    x, y = np.float64(full["apgd/x"]), full["apgd/y"]

    @jax.jit
    def run(weights, offset):
        predict = network(weights, offset)
        result = fab(predict, x, y, eps=EPS, targets=full["fab/y_target"], trace=True)
        return result._replace(best_distance=jnp.minimum(result.best_distance, FAR))

    _, found = spread(run, weights, ("best_distance", "distance", "success", "images"))
    return found | {"images": found["images"].max(axis=(1, 2, 3))}


class Attacked(NamedTuple):
    """Adversarial images [B,H,W,C], and their cross-entropies [B]."""

    images: jax.Array
    ce: jax.Array


def pgd_spread(make, weights, name):
    """Of an attack of attacks.npz: of the images and of their cross-entropies."""
    images, labels = test_attacks.batch(name)
    spec = test_attacks.spec_of(name)
    start = test_attacks.start_of(name, images, spec.eps)

    @jax.jit
    def run(weights, offset):
        predict = network(weights, offset, make)
        begin = None if start is None else jnp.float64(start)
        x_adv = spec.run(predict, jnp.float64(images), labels, start=begin)
        return Attacked(x_adv, losses.cross_entropy(predict(x_adv), labels))

    _, found = spread(run, weights, Attacked._fields)
    return found | {"images": found["images"].max(axis=(1, 2, 3))}


def main(source):
    """Writes the file beside this script."""
    full = dict(np.load(Path(source) / "autoattack.npz"))
    weights = dict(np.load(Path(source) / "cnn_a_adv_weights.npz"))
    kept = {}
    with in_float64(), jax.default_matmul_precision("highest"):
        check_size(weights, full["apgd/x"], jnp.asarray(full["apgd/y"]))
        for loss in LOSSES:
            found = apgd_spread(full, weights, loss)
            kept |= {f"apgd/{loss}/{name}": value for name, value in found.items()}
        kept |= {f"fab/{name}": value for name, value in fab_spread(full, weights).items()}
        for net, name in itertools.product(test_attacks.NETS, test_attacks.HYPER):
            if name in test_attacks.OWN_ROUNDING:
                continue
            make = {"small": nets.small_predict, "cnn_a": nets.cnn_a_predict}[net]
            found = pgd_spread(make, test_attacks.weights_of(net), name)
            kept |= {f"{net}/{name}/{what}": value for what, value in found.items()}
    path = Path(__file__).parent / "rounding_slice.npz"
    np.savez_compressed(path, **{name: value.astype(np.float32) for name, value in kept.items()})
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1])
