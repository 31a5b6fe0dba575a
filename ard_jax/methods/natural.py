"""Natural training: cross-entropy on clean images. The recipe of clean teachers, and a baseline."""

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options

TEACHERS = ()


class NaturalConfig(Options):
    """Natural training has no options of its own."""


def make(config: NaturalConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x), y). No attack; one train-mode forward pass and one statistics update a step."""
    del config

    def init(student_variables, teacher_variables):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state, batch, key):
        del key
        labels, student = batch["label"], state.student

        def loss_of(z_nat):
            return jnp.mean(losses.cross_entropy(z_nat, labels)), {}

        student, metrics, (z_nat,) = base.train_student(
            parts, student, student.batch_stats, (batch["image"],), loss_of, batch["epoch"]
        )
        return state.replace(student=student), metrics | base.accuracies(labels, z_nat)

    return base.Method("natural", TEACHERS, (), init, step)
