"""What MTARD and B-MTARD share: a robust teacher at x', a clean teacher at x, balanced loss weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.state import RunState


def first_weights() -> dict[str, jax.Array]:
    """Weights of the two branches before the first step, and room for the first step's losses."""
    weights = {name: jnp.asarray(0.5, jnp.float32) for name in ("w_adv", "w_nat")}
    return weights | {name: jnp.ones(()) for name in ("first_adv", "first_nat")}


def balance(
    memory: dict[str, Any],
    l_adv: jax.Array,
    l_nat: jax.Array,
    step: jax.Array,
    rate: float | jax.Array,
    rule: str,
) -> dict[str, jax.Array]:
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


def method(parts: base.Parts, memory: dict, branches: Callable) -> base.Method:
    """The step that MTARD and B-MTARD share; they differ in what `branches` does.

    Args:
      parts: networks, attack, optimiser.
      memory: the method's arrays at step 0, with "w_adv" and "w_nat".
      branches: (memory, z_adv, z_nat, teacher logits at x', at x, step, epoch) -> (L_adv, L_nat,
        memory after the step, further metrics).
    """

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        return base.student_state(parts, student_variables, teacher_variables, memory)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, labels, epoch = batch["image"], batch["label"], batch["epoch"]
        attacked = base.attack(parts, state, batch, key)
        soft_adv = base.teacher_logits(parts, state, "robust", attacked.images)
        soft_nat = base.teacher_logits(parts, state, "clean", images)

        def loss_of(z_adv: jax.Array, z_nat: jax.Array):
            l_adv, l_nat, after, values = branches(
                state.method, z_adv, z_nat, soft_adv, soft_nat, state.step, epoch
            )
            values |= {"loss_robust": l_adv, "loss_clean": l_nat}
            values |= {"w_adv": after["w_adv"], "w_nat": after["w_nat"]}
            return after["w_adv"] * l_adv + after["w_nat"] * l_nat, values, after

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images, images), loss_of, epoch
        )
        z_adv, z_nat = seen.logits
        new = state.replace(student=student, method=seen.memory)
        return new, metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method(init, step)
