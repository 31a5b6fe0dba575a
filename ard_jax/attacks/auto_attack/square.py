"""Square Attack: random search with forward passes only (Andriushchenko et al. 2020, 1912.00049).

`square` is the whole attack. `square_start`, `square_run` and `square_result` are its parts: a host
that wants to drop the images that are broken calls `square_run` for some hundred queries at a time
and compacts the state in between. Random numbers depend on the keys and on the index of the query
only, so the size of the chunks changes nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ard_jax import rng
from ard_jax.attacks import threat_model
from ard_jax.attacks.auto_attack import square_moves
from ard_jax.attacks.auto_attack.square_moves import SquareDraws

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
    if logits.ndim != 2 or logits.shape[0] != images.shape[0] or logits.shape[1] < 2:
        raise ValueError(
            f"predict returned shape {logits.shape} for {images.shape[0]} images; it must return "
            "logits [B,K], K >= 2"
        )
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    of_label = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return of_label - jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)


def _image_keys(key: jax.Array, image_keys: jax.Array | None, batch: int):
    if image_keys is not None:
        return image_keys
    return jax.vmap(jax.random.fold_in, (None, 0))(rng.stream(key, "images"), jnp.arange(batch))


def _check(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    eps: float | jax.Array,
    norm: str,
    image_keys: jax.Array | None,
    draws: SquareDraws | None,
):
    threat_model.check_images(images, labels)
    threat_model.check_threat(eps, 0.0, 1, norm)
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; Square needs [B,H,W,C]")
    if key is None and draws is None:
        raise ValueError("key is None, but Square is a random search; pass a jax PRNG key")
    if key is not None and key.shape != ():
        raise ValueError(f"key of shape {key.shape}: give one key here, others as image_keys")
    if image_keys is not None and image_keys.shape != images.shape[:1]:
        raise ValueError(f"image_keys of shape {image_keys.shape} for {images.shape[0]} images")
    if draws is not None and norm != "linf":
        raise ValueError("draws are recorded for norm 'linf' only")


def square_start(  # noqa: D417 (the others are those of `square`)
    predict: Predict,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    image_keys: jax.Array | None = None,
    alive: jax.Array | None = None,
    draws: SquareDraws | None = None,
) -> SquareState:
    """The first candidate and its margin: one query.

    Args:
      predict, images, labels, key, eps, norm, image_keys, draws: as `square`.
      alive: [B] bool; rows where it is False (padding) count as broken from the start.

    Returns:
      SquareState.

    Raises:
      ValueError: as `square`.
    """
    _check(images, labels, key, eps, norm, image_keys, draws)
    key = jax.random.key(0) if key is None else key  # with draws nothing is drawn from it
    keys = _image_keys(key, image_keys, images.shape[0])
    first = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    x = jnp.clip(images + square_moves.start_noise(key, first, images, eps, norm, draws), 0.0, 1.0)
    margin = _margin(predict, x, labels)
    if alive is not None:
        margin = jnp.where(alive, margin, -jnp.inf)
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
    p_init: float = 0.8,
    norm: str = "linf",
    shared: bool = True,
    rescale: bool = False,
    image_keys: jax.Array | None = None,
    draws: SquareDraws | None = None,
) -> SquareState:
    """Queries first_query .. first_query + queries - 1, or up to the budget; less if all are broken.

    Args:
      predict, images, labels, key, eps, p_init, norm, shared, rescale, image_keys, draws: as
        `square`. After compaction pass the rows that are left, of images, labels and image_keys
        (without image_keys an image's own draws would change with its row).
      state: of `square_start` or of the last `square_run`, compacted like the images.
      first_query: index of the first query after the first candidate, counted from 0; may be traced.
      queries: how many at most; may be traced.
      budget: of the whole attack; may be traced.

    Returns:
      SquareState.

    Raises:
      ValueError: as `square`.
    """
    _check(images, labels, key, eps, norm, image_keys, draws)
    threat_model.check_number("p_init", p_init, 0.0, 1.0)
    key = jax.random.key(0) if key is None else key
    keys = _image_keys(key, image_keys, images.shape[0])
    propose = square_moves.proposer(
        images, key, keys, eps, norm, p_init, shared, rescale, budget, draws
    )
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
    """The state as a result: success is tested once more, by the predicted class."""
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
    p_init: float = 0.8,
    shared: bool = True,
    rescale: bool = False,
    image_keys: jax.Array | None = None,
    draws: SquareDraws | None = None,
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
      p_init: share of the pixels that the first windows cover.
      shared: one window (and in Linf one sign per channel) a query for the whole batch, as in
        AutoAttack; False draws them per image.
      rescale: stretch the schedule of window sizes to the budget, as torchattacks and the original
        attack do, also for papers' 100 queries; AutoAttack does not.
      image_keys: [B] typed keys of what is drawn per image, so that an image's draws do not depend
        on its row. None makes them of `key` and the row.
      draws: recorded random numbers, for replays; Linf only.

    Returns:
      SquareResult. The queries-to-success curve at n is the mean of success & (queries <= n).

    Raises:
      ValueError: a bad argument, or logits of a wrong shape.
    """
    threat_model.check_count("queries", queries, 0)
    state = square_start(
        predict, images, labels, key, eps=eps, norm=norm, image_keys=image_keys, draws=draws
    )
    state = square_run(
        predict, state, images, labels, key, eps=eps, first_query=0, queries=queries,
        budget=queries, p_init=p_init, norm=norm, shared=shared, rescale=rescale,
        image_keys=image_keys, draws=draws,
    )  # fmt: skip
    return square_result(predict, state, images, labels)
