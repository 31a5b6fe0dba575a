"""Natural training: cross-entropy on clean images. The recipe of clean teachers, and a baseline."""

import dataclasses

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base


@dataclasses.dataclass(frozen=True)
class NaturalConfig:
    """Natural training has no options of its own."""

    def problems(self) -> list[str]:
        """Nothing can be wrong."""
        return []


def make(config: NaturalConfig, parts: base.Parts) -> base.Method:
    """L = CE(S(x), y). One train-mode forward pass and one statistics update per step."""
    del config

    def step(state, batch, key):
        del key
        labels, student = batch["label"], state.student
        logits, backward, stats = base.train_forward(
            parts.student, student.params, student.batch_stats, batch["image"]
        )
        loss, cotangent = base.mean_loss(lambda z: losses.cross_entropy(z, labels), logits)
        student = base.update_student(parts, student, backward(cotangent), stats, batch["epoch"])
        metrics = {
            "loss": loss,
            "accuracy": base.accuracy(logits, labels),
            "lr": jnp.asarray(parts.student_optim.lr(batch["epoch"])),
        }
        return state.replace(student=student), metrics

    return base.Method("natural", (), (), lambda v, _: base.student_only_state(parts, v), step)
