"""KD: knowledge distillation on clean images (Hinton et al. 2015, arXiv 1503.02531)."""

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options, Positive, Share

TEACHERS = ("robust",)


class KdConfig(Options):
    """Options of KD."""

    alpha: Share = Field(
        0.9, description="Weight of the teacher's term; the hard labels have 1 - alpha."
    )
    temperature: Positive = Field(4.0, description="Softens both networks.")


def softened_kl(
    teacher_logits: jax.Array, student_logits: jax.Array, temperature: float
) -> jax.Array:
    """t^2 KL(p_T^t || p_S^t), both softened; [B] float32. Gradient flows through both arguments."""
    kl = losses.trades_kl(teacher_logits / temperature, student_logits / temperature)
    return temperature**2 * kl


def make(config: KdConfig, parts: base.Parts) -> base.Method:
    """L = (1-a) mean_B CE(S(x), y) + a t^2 mean_B KL(p_T^t(x) || p_S^t(x)).

    No attack: a baseline that shows how little robustness the soft labels of a robust teacher pass on
    by themselves. One train-mode pass S(x), one update of the student's running statistics; the
    teacher is evaluated once, at x, in eval mode.
    The papers' comparisons never published their KD script (goldblum/AdversariallyRobustDistillation
    issue 6), and its robustness depends strongly on alpha and t; the defaults are usual ones for CIFAR
    and no table row stands behind them. Schedule: that of the methods it is compared with.
    """

    def init(student_variables, teacher_variables):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state, batch, key):
        del key
        images, labels = batch["image"], batch["label"]
        soft = base.teacher_logits(parts, state, "robust", images)

        def loss_of(z_nat):
            ce = jnp.mean(losses.cross_entropy(z_nat, labels))
            kl = jnp.mean(softened_kl(soft, z_nat, config.temperature))
            total = (1 - config.alpha) * ce + config.alpha * kl
            return total, {"loss_ce": ce, "loss_distill": kl}

        student, metrics, (z_nat,) = base.train_student(
            parts, state.student, state.student.batch_stats, (images,), loss_of, batch["epoch"]
        )
        return state.replace(student=student), metrics | base.accuracies(labels, z_nat)

    return base.Method("kd", TEACHERS, (), init, step)
