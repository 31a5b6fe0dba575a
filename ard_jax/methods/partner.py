"""What LBGAT and PeerAiD share: a second network that learns beside the student from its first step on."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax

from ard_jax.methods import base
from ard_jax.state import NetState, RunState


def method(
    parts: base.Parts,
    role: str,
    at: Literal["nat", "adv"],
    total: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, base.Metrics]],
    *,
    rate: float = 1.0,
    merge_stats: Callable[[Any, tuple], Any] | None = None,
) -> base.Method:
    """Makes a method whose one loss trains the student and a partner, each by the student's kind of SGD.

    Attack; the partner's train-mode pass; the student's train-mode passes S(x'), S(x); both updates.

    Args:
      parts: networks, optimiser, attack.
      role: the partner's.
      at: where the partner is asked, "nat" (clean images) or "adv" (adversarial).
      total: (S(x'), S(x), the partner's logits, each [B,K], `base.targets`) -> (scalar, metrics). Its
        gradient reaches both networks.
      rate: the partner's learning rate as a multiple of the student's.
      merge_stats: (statistics before the passes, those after each) -> the student's; default: the last.
    """
    net, optim = parts.teachers[role], parts.student_optim

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        variables = teacher_variables[role]
        partner = NetState.create(variables, optim.init(variables["params"]))
        return base.student_state(parts, student_variables).replace(teachers={role: partner})

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        labels, targets, partner = batch["label"], base.targets(batch), state.teachers[role]
        attacked = base.attack(parts, state, batch, key)
        before, images = attacked.batch_stats, {"nat": batch["image"], "adv": attacked.images}
        z_partner, backward, stats = base.train_forward(
            net, partner.params, partner.batch_stats, images[at]
        )

        def loss_of(z_adv: jax.Array, z_nat: jax.Array):
            return total(z_adv, z_nat, z_partner, targets)

        student, metrics, seen = base.train_student(
            parts, state.student, before, (images["adv"], images["nat"]), loss_of, batch["epoch"],
            merge_stats and functools.partial(merge_stats, before),
        )  # fmt: skip
        z_adv, z_nat = seen.logits
        cotangent = jax.grad(lambda z: total(z_adv, z_nat, z, targets)[0])(z_partner)
        lr = rate * metrics["lr"]
        momentum = optim.momentum(batch["epoch"], partner.opt_state)
        params, opt_state = optim.update(
            backward(cotangent), partner.opt_state, partner.params, lr, momentum
        )
        metrics |= base.accuracies(labels, z_nat, z_adv)
        metrics |= {f"{role}_accuracy": base.accuracy(z_partner, labels), f"lr_{role}": lr}
        teachers = {role: NetState(params, stats, opt_state)}
        return state.replace(student=student, teachers=teachers), metrics

    return base.Method(init, step)
