"""FAB: minimum-norm adversarial images (Croce and Hein 2020, arXiv 1907.02044), as in AutoAttack."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ard_jax import rng
from ard_jax.attacks import threat_model
from ard_jax.attacks.attack import Predict, create
from ard_jax.attacks.auto_attack import fab_projections
from ard_jax.attacks.checked_predict import checked
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks

NOT_FOUND = 1e10  # the distance of an image for which nothing has been found
_LEAST_DISTANCE = 1e-8  # to the plane, where the weights of the two projections are found
_START_RADIUS = 0.5  # of random restarts, in eps

_DISPLACEMENT = {"linf": fab_projections.linf_displacement, "l2": fab_projections.l2_displacement}


@dataclasses.dataclass(frozen=True)
class FabOptions:
    """How FAB runs.

    Attributes:
      steps: static, per restart.
      alpha_max: largest weight of the clean image's projection.
      eta: overshooting, at least 1.
      beta: where between the clean and the adversarial image the walk goes on.
      restarts: the first begins at the clean image, the others at random ones, eps/2 away.
      trace: also return the smallest distance before every step.

    Raises:
      ValueError: on construction, for a bad value.
    """

    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    restarts: int = 1
    trace: bool = False

    def __post_init__(self):
        """Checks every field."""
        checks.count(self.steps, "steps", 1)
        checks.number(self.alpha_max, "alpha_max", 0.0, 1.0)
        checks.number(self.eta, "eta", 1.0)
        checks.number(self.beta, "beta", 0.0, 1.0)
        checks.count(self.restarts, "restarts", 1)


class FabResult(NamedTuple):
    """What `fab` returns.

    Attributes:
      images: [B,H,W,C] float32, the nearest adversarial image found, where it is within eps; the
        clean image elsewhere.
      success: [B] bool, `images` is misclassified (and so within eps).
      distance: [B] float32, of the nearest adversarial image, within eps or not; 1e10 where none
        was found.
      best_distance: [restarts * steps,B] float32, the smallest distance before every step, or None
        without `trace`.
    """

    images: jax.Array
    success: jax.Array
    distance: jax.Array
    best_distance: jax.Array | None = None


def _dual_size(w: jax.Array, norm: str):
    """Norm of each gradient that turns a logit difference into a distance, [B,...] -> [B]."""
    if norm == "l2":
        return threat_model.l2_norm(w)
    return jnp.sum(jnp.abs(w.reshape(w.shape[0], -1)), axis=1)


def _targeted_plane(predict: Predict, labels: jax.Array, targets: jax.Array):
    """X -> (f, w): z_t - z_y at x, [B], and its gradient, [B,...]."""

    def difference(x: jax.Array):
        logits = predict(x)
        of = lambda c: jnp.take_along_axis(logits, c[:, None], axis=-1)[:, 0]  # noqa: E731
        values = of(targets) - of(labels)
        return jnp.sum(values), values

    def plane(x: jax.Array):
        w, f = jax.grad(difference, has_aux=True)(x)
        return f, w

    return plane


def _nearest_plane(predict: Predict, labels: jax.Array, norm: str):
    """X -> (f, w) of the class whose linearised boundary z_c = z_y is nearest to x.

    One backward pass a class, one after another, so memory does not grow with the classes.
    """

    def plane(x: jax.Array):
        logits, pull_back = jax.vjp(predict, x)
        batch, classes = logits.shape
        of_label = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
        differences = logits - jnp.sum(logits * of_label, axis=-1, keepdims=True)

        def one_class(nearest: tuple[jax.Array, ...], c: jax.Array):
            distance, f, w = nearest
            to_c = jnp.zeros_like(logits).at[:, c].set(1.0) - of_label
            (w_c,) = pull_back(to_c)
            f_c = differences[:, c]
            distance_c = jnp.abs(f_c) / (1e-12 + _dual_size(w_c, norm))
            nearer = (distance_c < distance) & (labels != c)
            w = jnp.where(threat_model.per_image(nearer, w), w_c, w)
            return (jnp.where(nearer, distance_c, distance), jnp.where(nearer, f_c, f), w), None

        row = jnp.zeros(batch, logits.dtype)
        start = (row + jnp.inf, row, jnp.zeros_like(x))
        return jax.lax.scan(one_class, start, jnp.arange(classes))[0][1:]

    return plane


def _step(x: jax.Array, images: jax.Array, plane: Callable, norm: str, options: FabOptions):
    """One biased step to the boundary: from x and from the clean image at once."""
    (f, w), eta = plane(x), options.eta
    flat = lambda a: a.reshape(a.shape[0], -1)  # noqa: E731
    # The plane is <w, v> = <w, x> - f. Both projections in one call, [2B,D].
    gap_clean = f + jnp.sum(flat(w) * flat(images - x), axis=1)
    moves = _DISPLACEMENT[norm](
        jnp.concatenate([flat(x), flat(images)]),
        jnp.concatenate([flat(w), flat(w)]),
        jnp.concatenate([f, gap_clean]),
    )
    of_x, of_clean = (m.reshape(x.shape) for m in jnp.split(moves, 2))
    size_x, size_clean = (
        jnp.maximum(threat_model.size(m, norm), _LEAST_DISTANCE) for m in (of_x, of_clean)
    )
    alpha = jnp.clip(size_x / (size_x + size_clean), 0.0, options.alpha_max)
    alpha = threat_model.per_image(alpha, x)
    return jnp.clip((1 - alpha) * (x + eta * of_x) + alpha * (images + eta * of_clean), 0.0, 1.0)


def _random_starts(key: jax.Array, images: jax.Array, eps: float | jax.Array, norm: str):
    """X plus noise of size eps/2, in the range."""
    noise = threat_model.image_noise(key, images, norm)
    length = threat_model.per_image(jnp.maximum(threat_model.size(noise, norm), 1e-12), images)
    return jnp.clip(images + _START_RADIUS * eps * noise / length, 0.0, 1.0)


def _check(labels: jax.Array, key: Any, targets: Any, options: FabOptions) -> jax.Array | None:
    """Returns the targets as an array."""
    if targets is not None:
        targets = jnp.asarray(checks.array(targets, "targets"))
        checks.check_targets(targets, labels)
    if options.restarts > 1 and key is None:
        raise ValueError(
            f"restarts={options.restarts}: FAB draws random starts; pass a jax PRNG key"
        )
    return targets


def fab(
    predict: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    targets: jax.Array | None = None,
    **options: Any,
) -> FabResult:
    """FAB, or with `targets` FAB-T: walks along the linearised boundary to the nearest point of it.

    Every step linearises z_c - z_y at the iterate, projects the iterate and the clean image onto
    that plane within [0,1], and mixes the two, 1.05 times as far. Where the network is then wrong
    (any class), a smaller distance than before is recorded and the iterate returns to 0.9 of it.
    Follows fra31/auto-attack (commit a392200), with these differences: the plane's distance is
    taken from the logits and not as <w,x> - b; `projections` finds the projections without sorting;
    restarts all run and the nearest image of all of them counts; an image that the network gets
    wrong when clean counts as found at distance 0 (there the attack is not run on it).

    eps plays no part in the walk (but for random restarts), so larger budgets need no new run:
    compare `distance`. Cost: restarts * steps times (1 forward, 1 backward, 1 forward), with one
    backward a class without targets; one loop, of which the program holds one copy. On CPU stock
    convolutions, whose gradients are slow inside a loop, are rewritten (`convolutions.rewrite`).

    Args:
      predict: images [B,H,W,C] -> logits [B,K], pure, eval mode.
      images: [B,H,W,C] float32 in [0,1].
      labels: [B] int.
      key: typed PRNG key, or [B] of them, one per image; needed for restarts > 1 only.
      eps: radius in pixel units (8/255) that counts as success; may be traced.
      norm: "linf" or "l2".
      targets: [B] int, the class whose boundary is approached; None takes the nearest in every step.
      **options: fields of `FabOptions`: steps, alpha_max, eta, beta, restarts, trace.

    Returns:
      FabResult.

    Raises:
      ValueError: a bad argument, or logits of a wrong shape.
    """
    threat = ThreatModel(eps, norm)  # for its checks: the walk is not cut to the ball
    images, labels, key = threat_model.check_batch(images, labels, key, threat, labelled=True)
    chosen = create(FabOptions, "fab", options)
    targets = _check(labels, key, targets, chosen)
    predict = checked(predict, images)
    logits = predict(images)
    threat_model.check_logits(logits, images, labels, *(() if targets is None else (targets,)))
    plane = _nearest_plane(predict, labels, norm)
    if targets is not None:
        plane = _targeted_plane(predict, labels, targets)
    is_wrong = lambda x: jnp.argmax(predict(x), axis=-1) != labels  # noqa: E731

    def one_step(carry: tuple, _: None):
        x, found, best = carry
        x = _step(x, images, plane, norm, chosen)
        wrong, distance = is_wrong(x), threat_model.size(x - images, norm)
        nearer = wrong & (distance < best)
        found = jnp.where(threat_model.per_image(nearer, x), x, found)
        x = jnp.where(threat_model.per_image(wrong, x), images + chosen.beta * (x - images), x)
        return (x, found, jnp.where(nearer, distance, best)), best if chosen.trace else None

    def one_restart(carry: tuple, r: jax.Array):
        start = images
        if key is not None and chosen.restarts > 1:
            drawn = _random_starts(rng.fold_in(key, r), images, eps, norm)
            start = jnp.where(r == 0, images, drawn)
        (_, *kept), best = jax.lax.scan(one_step, (start, *carry), None, length=chosen.steps)
        return tuple(kept), best

    distance = jnp.where(jnp.argmax(logits, -1) != labels, 0.0, NOT_FOUND).astype(images.dtype)
    first = (images, distance)
    (found, distance), traces = jax.lax.scan(one_restart, first, jnp.arange(chosen.restarts))
    success = (distance <= eps) & is_wrong(found)
    result = FabResult(
        jnp.where(threat_model.per_image(success, images), found, images), success, distance,
        traces.reshape(-1, images.shape[0]) if traces is not None else None,
    )  # fmt: skip
    return jax.lax.stop_gradient(result)
