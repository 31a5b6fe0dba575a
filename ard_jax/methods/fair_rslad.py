"""Fair-RSLAD (Yue et al. 2023, NeurIPS): RSLAD with more weight on the classes easiest to attack."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, per_class
from ard_jax.methods.options import NotNegative, Options, Reduction, Share
from ard_jax.state import RunState

_LEAST_KAPPA = 1e-3  # far below one attack step; keeps (1 / kappa)^beta finite in float32


class FairRsladConfig(Options):
    """Options of Fair-RSLAD."""

    beta: Annotated[float, Field(ge=0, le=10)] = Field(2.0, description="Exponent of 1 / kappa.")
    low: NotNegative = Field(5 / 6, description="Smallest class weight.")
    high: NotNegative = Field(5 / 2, description="Largest class weight.")
    adv_weight: Share = Field(
        5 / 6, description="Weight of the adversarial term; the clean one has 1 - adv_weight."
    )
    kl_reduction: Reduction = Field(
        "mean_classes", description="`mean_classes` is the code's mean over batch and classes."
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        if self.low > self.high:
            return [f"low={self.low} must not exceed high={self.high}"]
        return []


def class_weights(
    config: FairRsladConfig, kappa_sum: jax.Array, count: jax.Array, before: jax.Array
) -> jax.Array:
    """Class weights for the next epoch, float32 [K].

    kappa_c = kappa_sum_c / count_c; w_c = (1 / kappa_c)^beta, scaled so that they sum to the number of
    classes, then cut to [low, high] (so the sum may end elsewhere, as in the code). Classes that did
    not occur keep their weight and take no part in the scaling; a class without a single right iterate
    counts as nearly 0, where the code's weights would all become NaN.

    Args:
      config: exponent and bounds.
      kappa_sum: [K] float, sum over the epoch of the number of iterates classified right.
      count: [K] float, examples of each class in the epoch.
      before: [K] float, the weights of the epoch that ends.
    """
    seen = count > 0
    kappa = jnp.maximum(kappa_sum / jnp.maximum(count, 1.0), _LEAST_KAPPA)
    # Relative to the hardest class: the power stays in (0, 1], and the scaling cancels the factor.
    hardest = jnp.min(jnp.where(seen, kappa, jnp.inf))
    raw = jnp.where(seen, (hardest / kappa) ** config.beta, 0.0)
    scaled = raw * jnp.sum(seen) / jnp.maximum(jnp.sum(raw), 1e-30)
    return jnp.where(seen, jnp.clip(scaled, config.low, config.high), before)


def make(config: FairRsladConfig, parts: base.Parts) -> base.Method:
    """L = 5/6 mean_BC w_y KL(p_T(x) || p_S(x')) + 1/6 mean_BC w_y KL(p_T(x) || p_S(x)).

    w_y: weight of the example's class, from the epoch before (1 in the first). kappa_i counts those of
    the K attack iterates, start included, result excluded, that the student (eval mode) still classifies
    right; kappa_c is its mean over the class in one epoch; see `class_weights`. The code divides the sum
    by N / C, the same for classes of equal size.
    Attack: PGD on KL(p_T(x) || p_S(x')), start x + 0.001 N(0, I), eval mode, nothing updated; kappa comes
    from its own forward passes. The teacher is evaluated once, at x. Then the train-mode passes S(x'),
    S(x), in this order: two updates of the student's running statistics.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285, Nesterov momentum, weight decay 2e-4.
    Source: NISP-official/Fair-ARD, Fair-RSLAD.py; paper and code agree.

    Raises:
      ValueError: the length of an epoch is not known.
    """
    per_class.check_epoch_length("fair_rslad", parts)
    num_classes = parts.student.num_classes

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        memory = {name: jnp.zeros(num_classes) for name in ("kappa_sum", "class_count")}
        memory["class_weights"] = jnp.ones(num_classes)
        return base.student_state(parts, student_variables, teacher_variables, memory)

    def at_step_end(memory: dict[str, Any], labels: jax.Array, right: jax.Array, step: jax.Array):
        sums = memory["kappa_sum"] + per_class.class_sums(right, labels, num_classes)
        ones = jnp.ones_like(right)
        count = memory["class_count"] + per_class.class_sums(ones, labels, num_classes)
        ends, old = per_class.epoch_ends(parts, step), memory["class_weights"]
        return {
            "class_weights": jnp.where(ends, class_weights(config, sums, count, old), old),
            "kappa_sum": jnp.where(ends, 0.0, sums),
            "class_count": jnp.where(ends, 0.0, count),
        }

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, labels = batch["image"], batch["label"]
        soft = base.teacher_logits(parts, state, "robust", images)
        attacked = base.attack(parts, state, batch, key, teacher_logits=soft, count_right=True)
        weights = state.method["class_weights"][labels]

        def weighted(z: jax.Array):
            kl = weights * losses.kl_divergence(z, soft)
            return config.kl_scale * losses.reduce_kl(kl, num_classes, config.kl_reduction)

        def loss_of(z_adv: jax.Array, z_nat: jax.Array):
            robust, clean = weighted(z_adv), weighted(z_nat)
            total = config.adv_weight * robust + (1 - config.adv_weight) * clean
            return total, {"loss_robust": robust, "loss_clean": clean}

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images, images), loss_of,
            batch["epoch"],
        )  # fmt: skip
        z_adv, z_nat = seen.logits
        memory = at_step_end(state.method, labels, attacked.right, state.step)
        metrics |= {
            "kappa": jnp.mean(attacked.right),
            "class_weight_min": jnp.min(state.method["class_weights"]),
            "class_weight_max": jnp.max(state.method["class_weights"]),
        }
        new = state.replace(student=student, method=memory)
        return new, metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method(init, step)


REGISTRATION = base.Registration(
    "fair_rslad",
    FairRsladConfig,
    make,
    ("robust",),
    "rslad_train",
    counts_iterates=True,
    needs_labels=lambda _: "has weights for each class",
)
