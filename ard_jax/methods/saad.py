"""SAAD (TMLR 2026, arXiv 2512.10275): samples whose x' moves the teacher too count more."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, igdm
from ard_jax.methods.options import NotNegative, Options, Positive
from ard_jax.state import RunState


class SaadConfig(Options):
    """Options of SAAD."""

    entropy_order: Positive = Field(
        1.0, description="Order of the Renyi entropy of the teacher at x'; 1 is Shannon's."
    )
    entropy_scale: NotNegative = Field(
        5.0,
        description="Factor on the entropies in the weights; 5 is fixed in the code, whose option of this "
        "name is not read.",
    )
    igdm_weight: NotNegative = Field(
        1.0,
        description="Weight of the gradient matching in the last epoch: 1 on CIFAR-10, 10 on CIFAR-100 and "
        "Tiny-ImageNet in the code.",
    )
    beta: NotNegative = Field(0.0, description="Weight of the clean term, 0 in the script.")


def entropy(logits: jax.Array, order: float = 1.0) -> jax.Array:
    """Renyi entropy of softmax(logits), [B] float32 in nats.

    Order 1 (within 1e-6) is Shannon's, -sum_c p_c log(p_c + 1e-12); else log(sum_c p_c^order + 1e-12) /
    (1 - order).

    Args:
      logits: [B,K] float.
      order: positive.
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))
    if abs(order - 1) < 1e-6:
        return -jnp.sum(p * jnp.log(p + 1e-12), axis=-1)
    return jnp.log(jnp.sum(p**order, axis=-1) + 1e-12) / (1 - order)


def weights(config: SaadConfig, entropies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of the adversarial term, and of the clean one before beta; constants.

    w_i = scale (h_i - min_batch h), so that one image of a batch always has weight 0; the clean term has
    1 - w_i, w scaled to [0, 1] over the batch.

    Args:
      config: the scale.
      entropies: [B] float of the teacher at x'.

    Returns:
      Two arrays [B] float32.
    """
    w = config.entropy_scale * (entropies - jnp.min(entropies))
    w = jax.lax.stop_gradient(w)
    return w, 1 - w / (jnp.max(w) + 1e-8)


class Logits(NamedTuple):
    """A network's logits [B,K] at x', at x - d and at x; the last None where they are not needed."""

    adv: jax.Array
    minus: jax.Array
    nat: jax.Array | Any = None


def objective(
    config: SaadConfig, z: Logits, soft: Logits, igdm_weight: float | jax.Array
) -> tuple[jax.Array, base.Metrics]:
    """Returns L of `make`, float32 scalar, and its parts.

    Args:
      config: of the weights, and beta.
      z: the student's.
      soft: the teacher's, constants; those at x are needed with beta > 0 alone.
      igdm_weight: of the gradient matching in this epoch; a e/E.
    """
    h = entropy(soft.adv, config.entropy_order)
    w, rest = weights(config, h)
    distill = losses.trades_kl(soft.adv, z.adv)
    matching = igdm.matching(soft.adv, soft.minus, z.adv, z.minus)
    total = jnp.mean(w * (distill + igdm_weight * matching))
    values = {"loss_robust": jnp.mean(distill), "loss_igdm": jnp.mean(matching)}
    if config.beta:
        clean = losses.trades_kl(soft.nat, z.nat)
        total += config.beta * jnp.mean(rest * clean)
        values["loss_clean"] = jnp.mean(clean)
    return total, values | {"weight": jnp.mean(w), "teacher_entropy": jnp.mean(h)}


def make(config: SaadConfig, parts: base.Parts) -> base.Method:
    """L = mean_B [ w (KL(p_T(x') || p_S(x')) + a e/E M) + beta (1 - w^) KL(p_T(x) || p_S(x)) ].

    M = KL(softmax(T(x') - T(x-d)) || softmax(S(x') - S(x-d))), d = x' - x, x - d not clipped: IGDM (see
    `methods.igdm`); e the epoch from 1, E the length of the run. w and 1 - w^: see `weights`. The minimum is
    that of the global batch, whatever the devices.
    Attack: PGD on KL(softmax(z~) || p_S(x')), with z~ = T(x) but for z~_y = T_y(x) + lambda <grad_x T_y(x),
    x' - x>, the gradient through S and z~ (lambda = 1, config.attack.options.linear_weight); start
    x + 0.001 N(0, I), eval mode, nothing updated. Then the train-mode passes S(x'), S(x-d), S(x), in this
    order: three updates of the student's running statistics.
    Cost with K attack steps: K passes forward and back to the input, 3 forward and back to the weights; the
    teacher 3 forward at x, x', x-d and 1 back to x, whatever K is. With beta > 0 it is asked once more at x.
    Effective rate: the weights grow with the teacher's softness; their mean is logged as "weight".
    Schedule: 200 epochs, rate 0.1, times 0.1 after 100 and 150, weight decay 2e-4 (fixed in the code; 5e-4 in
    the paper, second-hand). The published rows are those of a stochastic weight average from epoch 95 on
    (config.swa_start, config.average_bn="recomputed"), at the last epoch. Source: HongsinLee/saad.
    """

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, epoch = batch["image"], batch["epoch"]
        attacked = base.attack(parts, state, batch, key)
        points = attacked.images, images - (attacked.images - images), images
        asked = points if config.beta else points[:2]
        soft = Logits(*(base.teacher_logits(parts, state, "robust", x) for x in asked))

        def loss_of(*logits: jax.Array):
            return objective(
                config, Logits(*logits), soft, config.igdm_weight * epoch / parts.epochs
            )

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, points, loss_of, epoch
        )
        z = Logits(*seen.logits)
        return state.replace(student=student), metrics | base.accuracies(
            batch["label"], z.nat, z.adv
        )

    return base.Method(init, step)


def _length_matters(config: SaadConfig) -> str:
    return "igdm_weight grows over the length of the run" if config.igdm_weight else ""


REGISTRATION = base.Registration(
    "saad", SaadConfig, make, ("robust",), "saad_train", length_matters=_length_matters,
    robust_teacher=True,
)  # fmt: skip
