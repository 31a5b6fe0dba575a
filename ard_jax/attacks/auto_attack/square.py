"""Square Attack: random search with forward passes only (Andriushchenko et al. 2020, 1912.00049).

`square` is the whole attack. `square_start`, `square_run` and `square_result` are its parts: a host
that wants to drop the images that are broken calls `square_run` for some hundred queries at a time
and compacts the state in between. Random numbers depend on the keys and on the index of the query
only, so the size of the chunks changes nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ard_jax import rng
from ard_jax.attacks import threat_model
from ard_jax.attacks.attack import create
from ard_jax.attacks.auto_attack import square_moves
from ard_jax.attacks.auto_attack.square_moves import SquareOptions
from ard_jax.attacks.checked_predict import check_function, look
from ard_jax.attacks.threat_model import ThreatModel
from ard_jax.losses import checks

Predict = Callable[[jax.Array], jax.Array]


class SquareState(NamedTuple):
    """Where the search stands, per image.

    Attributes:
      images: [B,H,W,C] float32, the best candidate so far.
      margin: [B] float32, z_y - max_{c != y} z_c of it. At 0 or below the image is left alone.
      queries: [B] int32, evaluations used, the first candidate's included.
    """

    images: jax.Array | Any
    margin: jax.Array | Any
    queries: jax.Array | Any


class SquareResult(NamedTuple):
    """What `square` returns.

    Attributes:
      images: [B,H,W,C] float32, the adversarial image; the clean image where none was found.
      success: [B] bool, `images` is misclassified.
      queries: [B] int32, evaluations used: where `success`, the queries to success.
    """

    images: jax.Array
    success: jax.Array
    queries: jax.Array


def _margin(predict: Predict, images: jax.Array, labels: jax.Array):
    logits = predict(images)
    threat_model.check_logits(logits, images, labels)
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    of_label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return of_label - jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)


def _checked(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    threat: ThreatModel,
    options: dict[str, Any],
) -> tuple[jax.Array, jax.Array, jax.Array, SquareOptions]:
    """Returns images, labels, key and the options, with keys for every image."""
    chosen = create(SquareOptions, "square", options)
    images, labels, key = threat_model.check_batch(images, labels, key, threat, labelled=True)
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; Square needs [B,H,W,C]")
    if key is None and chosen.draws is None:
        raise ValueError("key is None, but Square is a random search; pass a jax PRNG key")
    if key is not None and key.shape != ():
        raise ValueError(f"key of shape {key.shape}: give one key here, others as image_keys")
    if chosen.draws is not None and threat.norm != "linf":
        raise ValueError("draws are recorded for norm 'linf' only")
    key = jax.random.key(0) if key is None else key  # with draws nothing is drawn from it
    if chosen.image_keys is None:
        own = rng.of_rows(rng.stream(key, "images"), jnp.arange(images.shape[0]))
        chosen = dataclasses.replace(chosen, image_keys=own)
    if (found := np.shape(checks.random_key(chosen.image_keys))) != images.shape[:1]:
        raise ValueError(f"image_keys of shape {found} for {images.shape[0]} images")
    return images, labels, key, chosen


def _check_state(state: Any, images: Any) -> None:
    if not isinstance(state, SquareState):
        kind = type(state).__name__
        raise ValueError(f"state is {kind}; give that of square_start or square_run")
    found, count = tuple(map(np.shape, state)), len(images)
    if found != (np.shape(images), (count,), (count,)):
        raise ValueError(
            f"state has arrays of shapes {found} for images of {np.shape(images)}; give the rows of the same "
            "images"
        )


def square_start(  # noqa: D417 (the others are those of `square`)
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    alive: jax.Array | None = None,
    **options: Any,
) -> SquareState:
    """The first candidate and its margin: one query.

    Args:
      predict, images, labels, key, eps, norm, **options: as `square`.
      alive: [B] bool; rows where it is False (padding) count as broken from the start.

    Returns:
      SquareState.

    Raises:
      ValueError: as `square`.
    """
    threat = ThreatModel(eps, norm)
    check_function(predict)
    images, labels, key, chosen = _checked(images, labels, key, threat, options)
    mask: Any = None if alive is None else checks.array(alive, "alive")
    if mask is not None and (mask.shape, mask.dtype) != (labels.shape, np.bool_):
        raise ValueError(f"alive is {mask.dtype}{list(mask.shape)}; give bool[{len(labels)}]")
    x = jnp.clip(images + square_moves.start_noise(images, key, threat, chosen), 0.0, 1.0)
    margin = _margin(predict, x, labels)
    if mask is not None:
        margin = jnp.where(mask, margin, -jnp.inf)
    return SquareState(x, margin, jnp.ones(images.shape[0], jnp.int32))


def square_run(  # noqa: D417 (the others are those of `square`)
    predict: Predict,
    state: SquareState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float | jax.Array,
    first_query: int | jax.Array,
    queries: int | jax.Array,
    budget: int | jax.Array,
    norm: str = "linf",
    **options: Any,
) -> SquareState:
    """Queries first_query .. first_query + queries - 1, or up to the budget; less if all are broken.

    Args:
      predict, images, labels, key, eps, norm, **options: as `square`. After compaction pass the rows
        that are left, of images, labels and image_keys (without image_keys an image's own draws would
        change with its row).
      state: of `square_start` or of the last `square_run`, compacted like the images.
      first_query: index of the first query after the first candidate, counted from 0; may be traced.
      queries: how many at most; may be traced.
      budget: of the whole attack; may be traced.

    Returns:
      SquareState.

    Raises:
      ValueError: as `square`.
    """
    threat = ThreatModel(eps, norm)
    check_function(predict)
    images, labels, key, chosen = _checked(images, labels, key, threat, options)
    _check_state(state, images)
    counts = {"first_query": first_query, "queries": queries, "budget": budget}
    for name, value in counts.items():
        if not isinstance(value, jax.Array):
            checks.count(value, name, 0)
    propose = square_moves.proposer(images, key, threat, chosen, budget)
    last = jnp.minimum(jnp.asarray(first_query + queries), budget)

    def one_query(carry: tuple):
        i, state = carry
        candidate = propose(state, i)
        margin, active = _margin(predict, candidate, labels), state.margin > 0
        kept = active & ((margin < state.margin) | (margin <= 0))
        best = jnp.where(threat_model.per_image(kept, candidate), candidate, state.images)
        margin = jnp.where(kept, margin, state.margin)
        return i + 1, SquareState(best, margin, state.queries + active)

    def goes_on(carry: tuple):
        return (carry[0] < last) & jnp.any(carry[1].margin > 0)

    return jax.lax.while_loop(goes_on, one_query, (jnp.asarray(first_query, jnp.int32), state))[1]


def square_result(
    predict: Predict, state: SquareState, images: jax.Array, labels: jax.Array
) -> SquareResult:
    """The state as a result: success is tested once more, by the predicted class.

    Raises:
      ValueError: no state, or one of other images.
    """
    check_function(predict)
    _check_state(state, images)
    success = jnp.argmax(predict(state.images), axis=-1) != labels
    found = jnp.where(threat_model.per_image(success, images), state.images, images)
    return SquareResult(found, success, state.queries)


def square(
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    queries: int = 5000,
    **options: Any,
) -> SquareResult:
    """Square Attack on the margin z_y - max_{c != y} z_c, as AutoAttack runs it.

    Every query changes the perturbation in one square window, whose side shrinks over the queries,
    and keeps what lowers the margin. Follows fra31/auto-attack (commit a392200), with these
    differences: all random numbers come from keys (the draws are the same distribution); in L2 the
    windows fit images that are smaller than 5 pixels a side, and tiles over the edge are left out.

    Args:
      predict: images [B,H,W,C] -> logits [B,K], pure; no gradient is taken.
      images: [B,H,W,C] float32 in [0,1].
      labels: [B] int.
      key: one typed PRNG key.
      eps: radius in pixel units; may be traced.
      norm: "linf" or "l2".
      queries: the budget, beyond the first candidate. 100 and 5,000 are usual.
      **options: fields of `SquareOptions`: p_init, shared, rescale, image_keys, draws.

    Returns:
      SquareResult. The queries-to-success curve at n is the mean of success & (queries <= n).

    Raises:
      ValueError: a bad argument, or logits of a wrong shape.
    """
    checks.count(queries, "queries", 1)
    images, labels, key = threat_model.check_batch(
        images, labels, key, ThreatModel(eps, norm), labelled=True
    )
    look(predict, images)
    state = square_start(predict, images, labels, key, eps=eps, norm=norm, **options)
    state = square_run(
        predict, state, images, labels, key, eps=eps, first_query=0, queries=queries, budget=queries,
        norm=norm, **options,
    )  # fmt: skip
    return square_result(predict, state, images, labels)
