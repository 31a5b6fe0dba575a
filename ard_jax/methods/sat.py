"""SAT: PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options

TEACHERS = ()


class SatConfig(Options):
    """PGD adversarial training has no options beyond its attack."""


def make(config: SatConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y), x' from the configured attack on CE.

    BatchNorm: the attack reads running statistics (eval mode) and changes none; then one train-mode
    forward pass on x' updates them once. The original TensorFlow code attacks in train mode
    (attack.bn="train"); its maintainers report little difference.
    Schedule (Rice et al. 2020): 200 epochs, rate 0.1, times 0.1 at 50 % and 75 %, weight decay 5e-4.
    """
    del config

    def init(student_variables, teacher_variables):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state, batch, key):
        labels = batch["label"]
        attacked = base.attack(parts, state, batch, key)

        def loss_of(z_adv):
            return jnp.mean(losses.cross_entropy(z_adv, labels)), {}

        student, metrics, (z_adv,) = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images,), loss_of, batch["epoch"]
        )
        return state.replace(student=student), metrics | base.accuracies(labels, z_adv=z_adv)

    return base.Method("sat", TEACHERS, (), init, step)
