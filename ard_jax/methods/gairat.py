"""GAIRAT (Zhang et al. 2021, ICLR, arXiv 2010.01736): examples that few steps turn wrong count more."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import AtLeastOne, Options
from ard_jax.state import RunState


class GairatConfig(Options):
    """Options of GAIRAT."""

    form: Literal["tanh", "sigmoid", "discrete"] = Field(
        "tanh", description="How the weight falls with the number of right iterates, see `make`."
    )
    lambda_value: Annotated[float, Field(ge=-10, le=10)] = Field(
        -1.0,
        description="Of `tanh` and `sigmoid`; the larger, the more alike are the weights. -1 in the code.",
    )
    begin_epoch: AtLeastOne = Field(60, description="First epoch, from 1, with weights.")


def example_weights(config: GairatConfig, kappa: jax.Array, steps: int) -> jax.Array:
    """Weights of a batch, float32 [B] with mean 1; see `make`.

    Args:
      config: form and lambda.
      kappa: [B] float, at how many of the attack's iterates the student is right, from 0 to `steps`.
      steps: of the attack, K.
    """
    half = max(steps // 2, 1)
    argument = config.lambda_value + 5.0 * (half - kappa) / half
    logarithms = {
        "tanh": jax.nn.log_sigmoid(2.0 * argument),  # (tanh(a) + 1) / 2, without cancellation
        "sigmoid": jax.nn.log_sigmoid(argument),
        "discrete": jnp.log(steps + 1.0 - kappa),
    }
    return kappa.size * jax.nn.softmax(logarithms[config.form])


def make(config: GairatConfig, parts: base.Parts) -> base.Method:
    """L = mean_B w CE(S(x'), y), w = v / mean_B v from `begin_epoch` on, before it w = 1.

    v = (tanh(a) + 1) / 2 ("tanh"), sigmoid(a) ("sigmoid") or (K + 1 - kappa) / (K + 1) ("discrete"), with
    a = lambda + 5 (H - kappa) / H and H = floor(K/2), not less than 1. kappa counts those of the K attack
    iterates, start included, result excluded, that the student (eval mode) still classifies right.
    Attack: PGD on CE, start x + U(-eps, eps) clipped to [0,1], eps 0.031, step 0.007, 10 steps, eval mode,
    nothing updated; kappa comes from its own forward passes. Then the train-mode pass S(x'): one update of
    the running statistics. Cost with K attack steps: K passes forward and back to the input, 1 to the
    weights. Schedule: 120 epochs, rate 0.1, times 0.1 from 50 %, 0.01 from 75 %, 0.005 from 11/12 of them,
    weight decay 2e-4. Source: zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training, with its
    constant ("fixed") lambda; its "linear" one is NaN with the default maximum, its "piecewise" one has
    branches that cannot be reached. Such networks are robust to PGD rather than to AutoAttack; report the
    latter.
    """

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        labels = batch["label"]
        attacked = base.attack(parts, state, batch, key, count_right=True)
        weights = example_weights(config, attacked.right, parts.attack.steps)
        weights = jnp.where(batch["epoch"] >= config.begin_epoch, weights, 1.0)

        def loss_of(z_adv: jax.Array):
            return jnp.mean(weights * losses.cross_entropy(z_adv, base.targets(batch))), {}

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images,), loss_of, batch["epoch"]
        )
        metrics |= {"kappa": jnp.mean(attacked.right), "weight_max": jnp.max(weights)}
        accuracies = base.accuracies(labels, z_adv=seen.logits[0])
        return state.replace(student=student), metrics | accuracies

    return base.Method(init, step)


REGISTRATION = base.Registration(
    "gairat",
    GairatConfig,
    make,
    attack="gairat_train",
    counts_iterates=True,
    cross_entropy=lambda _: True,
    needs_labels=lambda _: "counts how often the student is right",
)
