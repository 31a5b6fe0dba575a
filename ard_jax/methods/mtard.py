"""MTARD (Zhao et al. 2022, ECCV): a robust teacher at x', a clean teacher at x, balanced weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, rslad
from ard_jax.methods.options import Epochs, NotNegative, Options, Reduction, increase

TEACHERS = ("robust", "clean")


class MtardConfig(Options):
    """Options of MTARD."""

    weight_rate: NotNegative = Field(0.025, description="Rate of the loss weights per step.")
    decay_epochs: Epochs = Field(
        (215, 260, 285),
        description=(
            "Epochs, from 1, after which the rate is multiplied by 0.1 (the code decays it, with the "
            "learning rate, at the end of epochs 215, 260 and 285 of 300)."
        ),
    )
    kl_reduction: Reduction = Field(
        "mean_classes",
        description="`mean_classes` on CIFAR-10; the code's CIFAR-100 terms times 10 are `scaled10`.",
    )
    kl_scale: NotNegative = Field(1.0, description="Factor on both terms.")

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return increase("decay_epochs", self.decay_epochs)


def decayed(rate: float, decays_passed: list[jax.Array]) -> jax.Array:
    """`rate` times 0.1 for every decay that has happened; float32 scalar."""
    return jnp.asarray(rate * 0.1 ** sum((p * 1.0 for p in decays_passed), 0.0), jnp.float32)


def first_weights() -> dict[str, jax.Array]:
    """Weights of the two branches before the first step, and room for the first step's losses."""
    weights = {name: jnp.asarray(0.5, jnp.float32) for name in ("w_adv", "w_nat")}
    return weights | {name: jnp.ones(()) for name in ("first_adv", "first_nat")}


def balance(memory, l_adv, l_nat, step, rate, rule: str) -> dict[str, jax.Array]:
    """The memory with the weights that this step's loss uses, constants for its gradient."""
    l_adv, l_nat = jax.lax.stop_gradient((l_adv, l_nat))
    first_adv = jnp.where(step == 0, l_adv, memory["first_adv"])
    first_nat = jnp.where(step == 0, l_nat, memory["first_nat"])
    w_adv, w_nat = losses.balance_weights(
        memory["w_adv"], memory["w_nat"], l_adv, l_nat, first_adv, first_nat, rate, rule
    )
    return memory | {
        "w_adv": w_adv, "w_nat": w_nat, "first_adv": first_adv, "first_nat": first_nat,
    }  # fmt: skip


def two_teachers(name: str, parts: base.Parts, memory: dict, branches: Callable) -> base.Method:
    """The step that MTARD and B-MTARD share; they differ in what `branches` does.

    Args:
      name: registry name.
      parts: networks, attack, optimiser.
      memory: the method's arrays at step 0, with "w_adv" and "w_nat".
      branches: (memory, z_adv, z_nat, teacher logits at x', at x, step, epoch) -> (L_adv, L_nat,
        memory after the step, further metrics).
    """

    def init(student_variables, teacher_variables):
        return base.student_state(parts, student_variables, teacher_variables, memory)

    def step(state, batch, key):
        images, labels, epoch = batch["image"], batch["label"], batch["epoch"]
        attacked = base.attack(parts, state, batch, key)
        soft_adv = base.teacher_logits(parts, state, "robust", attacked.images)
        soft_nat = base.teacher_logits(parts, state, "clean", images)

        def loss_of(z_adv, z_nat):
            l_adv, l_nat, after, values = branches(
                state.method, z_adv, z_nat, soft_adv, soft_nat, state.step, epoch
            )
            values |= {"loss_robust": l_adv, "loss_clean": l_nat}
            values |= {"w_adv": after["w_adv"], "w_nat": after["w_nat"], "memory": after}
            return after["w_adv"] * l_adv + after["w_nat"] * l_nat, values

        student, metrics, (z_adv, z_nat) = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images, images), loss_of, epoch
        )
        new = state.replace(student=student, method=metrics.pop("memory"))
        return new, metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method(name, TEACHERS, (), init, step)


def make(config: MtardConfig, parts: base.Parts) -> base.Method:
    """L = wa La + wn Ln, La = mean_BC KL(p_T(x') || p_S(x')), Ln = mean_BC KL(p_Tn(x) || p_S(x)).

    Weights, before they are used in a step: r_k = L_k / L_k(first step); wn <- wn - 0.025 (wn -
    rn / (ra + rn)); wa = 1 - wn; both start at 0.5 and are constants for the gradient.
    Attack: PGD on CE, start x + 0.001 N(0, I), eval mode, nothing updated. Both teachers in eval mode, T
    once at x', Tn once at x. Then the train-mode passes S(x'), S(x), in this order: two updates of the
    student's running statistics.
    Cost with K attack steps: K passes forward and back to the input, 2 forward and back to the weights,
    1 forward of each teacher.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 215, 260, 285 (as the rate of the weights), weight
    decay 2e-4. Source: zhaoshiji123/MTARD, mtard_resnet18_cifar10.py and mtard_loss.py; paper and code
    agree. The code's exponent of r_k ("bert") is 1 and left out.
    """

    def branches(memory, z_adv, z_nat, soft_adv, soft_nat, step, epoch):
        l_adv = rslad.distillation(config, z_adv, soft_adv)
        l_nat = rslad.distillation(config, z_nat, soft_nat)
        rate = decayed(config.weight_rate, [epoch > e for e in config.decay_epochs])
        return l_adv, l_nat, balance(memory, l_adv, l_nat, step, rate, "mtard"), {}

    return two_teachers("mtard", parts, first_weights(), branches)
