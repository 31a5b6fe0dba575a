"""ADR (Wu et al. 2024, ICLR, arXiv 2305.12118): labels rectified by a weight average of the student itself.

No teacher. With E the exponential average of the student's parameters and running statistics, a copy of the
student at first, in eval mode,

    q = softmax(E(x) / T),  l_i = clip(l - (max_c q_c - q_y), 0, 1),  y~ = l_i q + (1 - l_i) onehot(y),

y~ a constant. T and l follow a cosine over all s = 0 .. n - 1 updates of the run, from their first value
towards the last, which is not reached: c(s) = last + (first - last)/2 (1 + cos(pi s/n)). After the update
E <- decay E + (1 - decay) S, from the first one on. E itself, the paper's "ADR + WA", is what
config.ema_decay of the same value keeps and evaluates.
The published code never leaves train mode, so that the attack's passes move the running statistics:
`attack_bn="train"`, `attack_bn_stats="keep"`, which the configs set. Schedule: 200 epochs, rate 0.1, times
0.1 after 100 and 150, Nesterov momentum. `configs/protocol.py` has the constants of other data sets.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import BelowOne, NotNegative, Options, Positive, Share, Variant
from ard_jax.state import NetState, RunState

_SIGMA = 0.001  # of the start of the TRADES form


class AdrConfig(Options):
    """Options of ADR."""

    temperature_first: Positive = Field(
        2.5, description="T at the start. 2.5 on CIFAR-10, 1.5 on CIFAR-100, 2 on Tiny-ImageNet."
    )
    temperature_last: Positive = Field(2.0, description="T towards the end: 2, 1 and 1.5 there.")
    share_first: Share = Field(
        0.7,
        description="Share l of the average's prediction in the label at the start; 0.5 on Tiny-ImageNet.",
    )
    share_last: Share = Field(0.95, description="The same towards the end; 0.9 on Tiny-ImageNet.")
    decay: BelowOne = Field(0.995, description="Of the average, per update.")


class AdrTradesConfig(AdrConfig):
    """Options of ADR on TRADES."""

    variant: Variant = Field(
        "paper",
        description="`paper`: the attack's own start. `released`: x + 0.001 U(0, 1), the code's, which has "
        "uniform noise where TRADES has Gaussian.",
    )
    beta: NotNegative = Field(6.0, description="Weight of the KL term.")


def cosine(first: float, last: float, step: jax.Array, total: int) -> jax.Array:
    """Value at update number `step`, counted from 0, of `total`; float32 scalar."""
    return last + (first - last) / 2 * (1 + jnp.cos(math.pi * step / total))


def rectified_labels(
    logits: jax.Array,
    labels: jax.Array,
    temperature: float | jax.Array,
    share: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the labels y~ [B,K] and the share [B] of the prediction in each, float32, constants.

    Args:
      logits: [B,K] float of the average at the clean images.
      labels: [B] int.
      temperature: T, positive.
      share: l in [0, 1].
    """
    q = jax.nn.softmax(logits.astype(jnp.float32) / temperature)
    onehot = jax.nn.one_hot(labels, q.shape[-1])
    lead = jnp.max(q, axis=-1) - jnp.sum(q * onehot, axis=-1)
    shares = jnp.clip(share - lead, 0.0, 1.0)
    soft = shares[:, None] * q + (1 - shares[:, None]) * onehot
    return jax.lax.stop_gradient((soft, shares))


def soft_labels(
    config: AdrConfig, parts: base.Parts, state: RunState, batch: base.Batch
) -> tuple[jax.Array, base.Metrics]:
    """Returns y~ [B,K] of a step, and its metrics."""
    total = parts.epochs * parts.steps_per_epoch
    temperature = cosine(config.temperature_first, config.temperature_last, state.step, total)
    share = cosine(config.share_first, config.share_last, state.step, total)
    logits, _ = parts.student.apply(state.method["average"], batch["image"], False)
    soft, shares = rectified_labels(logits, batch["label"], temperature, share)
    values = {"label_temperature": temperature, "label_share": share}
    return soft, values | {"label_share_used": jnp.mean(shares)}


def cross_entropy(logits: jax.Array, soft: jax.Array) -> jax.Array:
    """Batch mean of the cross-entropy of logits [B,K] with labels [B,K]; float32 scalar, nats."""
    return -jnp.mean(jnp.sum(soft * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1))


def _init(name: str, parts: base.Parts):
    """Raises ValueError when the length of an epoch is not known."""
    if parts.steps_per_epoch < 1:
        raise ValueError(
            f"method {name!r} changes its labels over all steps of the run: "
            f"Parts.steps_per_epoch={parts.steps_per_epoch} must be at least 1"
        )

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        memory: dict[str, Any] = {"average": student_variables}
        return base.student_state(parts, student_variables, teacher_variables, memory)

    return init


def _moved(config: AdrConfig, state: RunState, student: NetState) -> RunState:
    """The state after an update, its average moved."""
    average = jax.tree.map(
        lambda e, s: config.decay * e + (1 - config.decay) * s,
        state.method["average"], student.variables,
    )  # fmt: skip
    return state.replace(student=student, method={"average": average})


def make(config: AdrConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y~), with y~ of the average before the update (see the module).

    Attack: PGD on CE(S(x'), y~), start x + U(-eps, eps) clipped to [0,1], train mode, statistics kept. Then
    the train-mode pass S(x'): K + 1 updates of the running statistics with K attack steps (1 with
    `attack_bn` "eval").
    Cost: K passes forward and back to the input, 1 forward and back to the weights, 1 forward of E.

    Raises:
      ValueError: the length of an epoch is not known.
    """

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        soft, values = soft_labels(config, parts, state, batch)
        attacked = base.attack(parts, state, batch, key, teacher_logits=losses.as_logits(soft))
        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images,),
            lambda z: (cross_entropy(z, soft), values), batch["epoch"],
        )  # fmt: skip
        metrics |= base.accuracies(batch["label"], z_adv=seen.logits[0])
        return _moved(config, state, student), metrics

    return base.Method(_init("adr", parts), step)


def make_trades(config: AdrTradesConfig, parts: base.Parts) -> base.Method:
    """L = mean_B [ CE(S(x), y~) + beta KL(p_S(x) || p_S(x')) ]; the target p_S(x) is NOT detached.

    Attack: PGD on KL(p_S(x) || p_S(x')), which knows no labels, start x + 0.001 N(0, I), not clipped (see
    `variant`), train mode, statistics kept. Passes that move the running statistics: S(x), the attack's
    target, and the attack's own (with `attack_bn` "train" and "keep"), then one of x and x' together, with
    the statistics of the 2 B images: K + 2 updates with K attack steps (1 with `attack_bn` "eval").
    Cost: K passes forward and back to the input, 1 of 2 B images forward and back to the weights, 1 forward
    of S at x and 1 of E.

    Raises:
      ValueError: the length of an epoch is not known.
    """

    def start(batch: base.Batch, key: jax.Array):
        if config.variant == "paper" or "start_noise" in batch:
            return batch
        return batch | {"start_noise": _SIGMA * jax.random.uniform(key, batch["image"].shape)}

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, stats = batch["image"], state.student.batch_stats
        soft, values = soft_labels(config, parts, state, batch)
        if (parts.attack_bn, parts.attack_bn_stats) == ("train", "keep"):
            stats = parts.student.apply(state.student.variables, images, True)[1]
        attacked = base.attack(
            parts,
            state,
            start(batch, key),
            key,
            batch_stats=stats,
            teacher_logits=losses.as_logits(soft),
        )
        # Pairs side by side, so that a device has both images of its part of the batch.
        both = jnp.stack([images, attacked.images], axis=1).reshape(-1, *images.shape[1:])

        def apart(z: jax.Array):
            pairs = z.reshape(-1, 2, z.shape[-1])
            return pairs[:, 0], pairs[:, 1]

        def loss_of(z: jax.Array):
            z_nat, z_adv = apart(z)
            ce, kl = cross_entropy(z_nat, soft), jnp.mean(losses.trades_kl(z_nat, z_adv))
            return ce + config.beta * kl, values | {"loss_ce": ce, "loss_kl": kl}

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (both,), loss_of, batch["epoch"]
        )
        metrics |= base.accuracies(batch["label"], *apart(seen.logits[0]))
        return _moved(config, state, student), metrics

    return base.Method(_init("adr_trades", parts), step)


def _length_matters(config: AdrConfig) -> str:
    if (
        config.temperature_first == config.temperature_last
        and config.share_first == config.share_last
    ):
        return ""
    return "temperature_first and share_first move to their last values over the length of the run"


def _needs_labels(config: AdrConfig) -> str:
    return "makes its soft labels from them"


REGISTRATION = (
    base.Registration(
        "adr", AdrConfig, make, attack="adr_train", soft_labels=True, length_matters=_length_matters,
        needs_labels=_needs_labels, accumulates=False,
    ),
    base.Registration(
        "adr_trades", AdrTradesConfig, make_trades, attack="adr_trades_train", soft_labels=True,
        length_matters=_length_matters, needs_labels=_needs_labels, accumulates=False,
    ),
)  # fmt: skip
