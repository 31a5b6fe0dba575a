"""ABSLD (Zhao et al. 2024, NeurIPS): RSLAD with sharper soft labels for the classes that are hard."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, per_class
from ard_jax.methods.options import (
    Epochs,
    NotNegative,
    Options,
    Reduction,
    Share,
    Variant,
    increase,
)
from ard_jax.state import RunState


class AbsldConfig(Options):
    """Options of ABSLD."""

    variant: Variant = Field(
        "paper",
        description=(
            "`paper`: the adversarial soft labels use the adversarial class temperatures, the clean ones "
            "the clean. `released`: both use their product, as the released code does by an aliasing bug."
        ),
    )
    temp_rate: NotNegative = Field(
        0.1, description="Largest change of a class temperature at the end of an epoch."
    )
    temp_low: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Smallest class temperature."
    )
    temp_high: Annotated[float, Field(ge=1)] = Field(5.0, description="Largest class temperature.")
    decay_epochs: Epochs = Field(
        (215, 260, 285),
        description="Epochs, from 1, at whose end the rate is multiplied by 0.1 before it is used.",
    )
    adv_weight: Share = Field(
        5 / 6, description="Weight of the adversarial term; the clean one has 1 - adv_weight."
    )
    kl_reduction: Reduction = Field(
        "mean_classes", description="`mean_classes` is the code's mean over batch and classes."
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return increase("decay_epochs", self.decay_epochs)


def class_temperatures(
    config: AbsldConfig, temperatures: jax.Array, class_loss: jax.Array, rate: jax.Array
) -> jax.Array:
    """Temperatures after an epoch, float32 [K]: lower (sharper labels) for classes with more loss.

    t_c <- cut(t_c - rate (G_c - mean G) / max |G - mean G|, low, high); they stay when all G are equal.

    Args:
      config: the bounds.
      temperatures: [K] float.
      class_loss: [K] float, G: the student's cross-entropy summed over each class's examples.
      rate: float scalar.
    """
    gap = class_loss - jnp.mean(class_loss)
    largest = jnp.max(jnp.abs(gap))
    relative = jnp.where(largest > 0, gap / jnp.where(largest > 0, largest, 1.0), 0.0)
    return jnp.clip(temperatures - rate * relative, config.temp_low, config.temp_high)


def make(config: AbsldConfig, parts: base.Parts) -> base.Method:
    """L = 5/6 mean_BC KL(p_T^{ta_y}(x) || p_S(x')) + 1/6 mean_BC KL(p_T^{tn_y}(x) || p_S(x)).

    ta_c, tn_c: temperature of class c in the adversarial and the clean soft labels, 1 at first, changed
    at the end of every epoch by `class_temperatures` with G_c = sum of CE(S(x'), y), respectively
    CE(S(x), y), over the epoch's examples of class c, from the train-mode logits of the loss.
    Attack: PGD on KL(p_T^{ta_y}(x) || p_S(x')), the softened labels included, start x + 0.001 N(0, I),
    eval mode, nothing updated. The teacher is evaluated once, at x, in eval mode. Then the train-mode
    passes S(x'), S(x), in this order: two updates of the student's running statistics.
    variant="released": the code's two sets of teacher logits share their memory and are divided in place,
    so that attack and both terms use p_T^{ta_y tn_y}(x).
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285, weight decay 2e-4. Source:
    zhaoshiji123/ABSLD, resnet18_absld_cifar10.py and absld_loss.py (CIFAR-10 only).

    Raises:
      ValueError: the length of an epoch is not known.
    """
    per_class.check_epoch_length("absld", parts)
    num_classes = parts.student.num_classes

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        memory = {name: jnp.ones(num_classes) for name in ("temp_adv", "temp_nat")}
        memory |= {name: jnp.zeros(num_classes) for name in ("loss_adv", "loss_nat")}
        return base.student_state(parts, student_variables, teacher_variables, memory)

    def soft_labels(memory: dict[str, Any], logits: jax.Array, labels: jax.Array):
        t_adv, t_nat = memory["temp_adv"][labels, None], memory["temp_nat"][labels, None]
        if config.variant == "released":
            t_adv = t_nat = t_adv * t_nat
        return logits / t_adv, logits / t_nat

    def at_step_end(
        memory: dict[str, Any],
        labels: jax.Array,
        z: dict[str, jax.Array],
        step: jax.Array,
        epoch: jax.Array,
    ):
        ends, after = per_class.epoch_ends(parts, step), {}
        rate = base.decayed(config.temp_rate, [epoch >= e for e in config.decay_epochs])
        for kind, logits in z.items():
            ce = losses.cross_entropy(logits, labels)
            total = memory[f"loss_{kind}"] + per_class.class_sums(ce, labels, num_classes)
            old = memory[f"temp_{kind}"]
            new = class_temperatures(config, old, total, rate)
            after[f"temp_{kind}"] = jnp.where(ends, new, old)
            after[f"loss_{kind}"] = jnp.where(ends, 0.0, total)
        return after

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, labels, epoch = batch["image"], batch["label"], batch["epoch"]
        logits = base.teacher_logits(parts, state, "robust", images)
        soft_adv, soft_nat = soft_labels(state.method, logits, labels)
        attacked = base.attack(parts, state, batch, key, teacher_logits=soft_adv)

        def loss_of(z_adv: jax.Array, z_nat: jax.Array):
            robust = base.scaled_kl(config, z_adv, soft_adv)
            clean = base.scaled_kl(config, z_nat, soft_nat)
            total = config.adv_weight * robust + (1 - config.adv_weight) * clean
            return total, {"loss_robust": robust, "loss_clean": clean}

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images, images), loss_of, epoch
        )
        z_adv, z_nat = seen.logits
        memory = at_step_end(state.method, labels, {"adv": z_adv, "nat": z_nat}, state.step, epoch)
        metrics |= {
            f"temp_{kind}_{name}": reduce(state.method[f"temp_{kind}"])
            for kind in ("adv", "nat")
            for name, reduce in (("min", jnp.min), ("max", jnp.max))
        }
        new = state.replace(student=student, method=memory)
        return new, metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method(init, step)


REGISTRATION = base.Registration(
    "absld",
    AbsldConfig,
    make,
    ("robust",),
    "rslad_train",
    needs_labels=lambda _: "has temperatures for each class",
)
