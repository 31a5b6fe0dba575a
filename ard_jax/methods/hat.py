"""HAT (Rade and Moosavi-Dezfooli 2022, ICLR): helper examples beyond x' keep the margin from growing."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options
from ard_jax.state import RunState


class HatConfig(Options):
    """Options of HAT, in both forms."""

    beta: NotNegative = Field(
        2.5, description="Weight of the robust term; 2.5 in the authors' CIFAR-10 script."
    )
    gamma: NotNegative = Field(
        0.5, description="Weight of the helper term; 0.5 in the script, 1 in the parser."
    )
    h: Annotated[float, Field(ge=1, le=10)] = Field(
        2.0, description="Where the helper example lies, in perturbations from x: x + h (x' - x)."
    )


def make(config: HatConfig, parts: base.Parts) -> base.Method:
    """L = mean_B [ CE(S(x), y) + beta KL(p(x) || p(x')) + gamma CE(S(x_h), y_h) ].

    x_h = x + h (x' - x), not clipped to [0,1]; y_h = argmax Tn(x'), a constant. The target p(x) is NOT
    detached. Tn, the paper's helper model, is the role "clean": a network of the student's architecture
    after 50 epochs of natural training, in eval mode, asked once, at x' (not at x_h).
    Attack: PGD on KL(p(x) || p(x')), start x + 0.001 N(0, I), step eps/4, 10 steps, eval mode, nothing
    updated. Then the train-mode passes S(x), S(x'), S(x_h), in this order: three updates of the running
    statistics.
    Cost with K attack steps: K passes forward and back to the input, 3 forward and back to the weights, 1
    forward each of student (the attack's target) and helper.
    Schedule: 50 epochs, Nesterov momentum, weight decay 5e-4, and one cycle that changes rate and momentum
    with every step (`optim.one_cycle`: up to 0.21 over a quarter of them); here, as in the code's longer
    runs, with every epoch. Source: imrahulr/hat. Without its option beta the code ignores the helper and runs
    PGD adversarial training.
    """

    def robust(z_nat: jax.Array, z_adv: jax.Array, labels: jax.Array):
        return losses.trades_kl(z_nat, z_adv)

    return _method(config, parts, robust)


def make_at(config: HatConfig, parts: base.Parts) -> base.Method:
    """L = mean_B [ CE(S(x), y) + beta CE(S(x'), y) + gamma CE(S(x_h), y_h) ], the code's `--robust-loss ce`.

    Attack: PGD on CE, start x + U(-eps, eps) clipped to [0,1]. All else is as in `make`.
    """

    def robust(z_nat: jax.Array, z_adv: jax.Array, labels: jax.Array):
        return losses.cross_entropy(z_adv, labels)

    return _method(config, parts, robust)


def _method(config: HatConfig, parts: base.Parts, robust: Callable) -> base.Method:
    """The step of both forms; `robust`: (logits at x, at x', labels) -> [B]."""

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, labels, targets = batch["image"], batch["label"], base.targets(batch)
        attacked = base.attack(parts, state, batch, key)
        beyond = images + config.h * (attacked.images - images)
        helper = jnp.argmax(base.teacher_logits(parts, state, "clean", attacked.images), -1)

        def loss_of(z_nat: jax.Array, z_adv: jax.Array, z_beyond: jax.Array):
            values = {
                "loss_clean": jnp.mean(losses.cross_entropy(z_nat, targets)),
                "loss_robust": jnp.mean(robust(z_nat, z_adv, targets)),
                "loss_helper": jnp.mean(losses.cross_entropy(z_beyond, helper)),
            }
            weights = (1.0, config.beta, config.gamma)
            return sum(w * v for w, v in zip(weights, values.values(), strict=True)), values

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (images, attacked.images, beyond), loss_of,
            batch["epoch"],
        )  # fmt: skip
        metrics |= {"helper_accuracy": jnp.mean((helper == labels).astype(jnp.float32))}
        z_nat, z_adv, _ = seen.logits
        return state.replace(student=student), metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method(init, step)


REGISTRATION = (
    base.Registration(
        "hat", HatConfig, make, ("clean",), "hat_train", cross_entropy=lambda _: True
    ),
    base.Registration(
        "hat_at", HatConfig, make_at, ("clean",), "sat_train", cross_entropy=lambda _: True
    ),
)
