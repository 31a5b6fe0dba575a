"""IGDM (Lee et al. 2025, ICLR, arXiv 2312.03286): matched input gradients of student and teacher, an add-on.

To first order a network's logits at x + beta d and x - gamma d differ by (beta + gamma) J d, with J its
Jacobian at x and d = x' - x of the base method's own attack. The term compares these differences:

    L = L_base + weight e/D mean_B KL(softmax(T(x + beta d) - T(x - gamma d))
                                      || softmax(S(x + beta d) - S(x - gamma d)))

with e the epoch from 1, no temperature, T a constant, and x - gamma d not clipped to the pixel range.
Cost beside the base's: with beta = 1 one pass of the student forward and back to the weights, and one forward
of the teacher at x - d (one more at x' where the base has none); else two each.

Sources: an MIT-licensed copy of the CIFAR-100 code on three bases (Xavaitron/VLM_Distillation, ICLR_IGDM),
and igdm.py of HongsinLee/saad. With a teacher that is not robust the linearisation fails and the student
falls to chance.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods.options import Count, NotNegative, Options, Positive


class Igdm(Options):
    """IGDM's gradient matching, an add-on to adaad, adaiad, ard, iad1 and rslad: see `methods.igdm`."""

    weight: NotNegative = Field(
        default=0.0,
        description="Weight of the term in the last epoch; 0 for none. The code has 20 on CIFAR-100; SAAD's "
        "has 1 on CIFAR-10, 10 on CIFAR-100 and Tiny-ImageNet.",
    )
    beta: Positive = Field(default=1.0, description="The first point is x + beta (x' - x).")
    gamma: Positive = Field(
        default=1.0,
        description="The second point is x - gamma (x' - x). The code on ARD has beta in its place.",
    )
    ramp_epochs: Count = Field(
        default=0,
        description="Epochs over which the weight grows from 0, beyond which it goes on growing; 0: those "
        "of the run. The code divides by 200 whatever the length.",
    )
    variant: Literal["paper", "released", "saad"] = Field(
        default="paper",
        description="Train-mode passes of the student: `paper`: the base's, then x + beta d where beta is "
        "not 1, then x - gamma d. `released`: those of the CIFAR-100 code (adaad, ard, rslad). `saad`: of "
        "SAAD's code (adaad).",
    )

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return [] if self.weight else self.without_effect("weight")


def passes(
    config: Igdm, own: tuple[str, ...], released: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Returns the student's train-mode passes, in order.

    Args:
      config: of the term.
      own: passes of the base alone.
      released: variant -> all passes, as `Registration.igdm`.
    """
    if config.variant == "paper":
        return own + (("minus",) if config.beta == 1 else ("plus", "minus"))
    return released[config.variant]


def points(config: Igdm, images: jax.Array, adversarial: jax.Array) -> dict[str, jax.Array]:
    """Returns {"plus": x + beta d, "minus": x - gamma d}, each [B,H,W,C], not clipped to the pixel range."""
    d = adversarial - images
    plus = adversarial if config.beta == 1 else images + config.beta * d
    return {"plus": plus, "minus": images - config.gamma * d}


def teacher_at(config: Igdm) -> set[str]:
    """Returns the points at which the term needs the teacher's logits."""
    return {"adv" if config.beta == 1 else "plus", "minus"}


def term(config: Igdm, teacher: dict[str, jax.Array], student: dict[str, jax.Array]) -> jax.Array:
    """Batch mean of `matching`, float32 scalar, of the logits [B,K] at "plus" (or "adv") and "minus"."""
    first = teacher["adv" if config.beta == 1 else "plus"]
    second = student["plus"] if "plus" in student else student["adv"]
    return jnp.mean(matching(first, teacher["minus"], second, student["minus"]))


def matching(
    teacher_plus: jax.Array,
    teacher_minus: jax.Array,
    student_plus: jax.Array,
    student_minus: jax.Array,
) -> jax.Array:
    """KL(softmax(T+ - T-) || softmax(S+ - S-)) of logits [B,K]; [B] float32, nats.

    Raises:
      ValueError: shapes differ.
    """
    return losses.trades_kl(teacher_plus - teacher_minus, student_plus - student_minus)


def ramp(config: Igdm, epochs: int, epoch: jax.Array) -> jax.Array:
    """Weight of the term in `epoch`, counted from 1, of a run of `epochs` epochs; float32 scalar."""
    return config.weight * epoch / (config.ramp_epochs or epochs)
