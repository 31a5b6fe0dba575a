"""SAT: PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

import dataclasses

import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base


@dataclasses.dataclass(frozen=True)
class SatConfig:
    """PGD adversarial training has no options beyond its attack."""

    def problems(self) -> list[str]:
        """Nothing can be wrong."""
        return []


def make(config: SatConfig, parts: base.Parts) -> base.Method:
    """L = CE(S(x'), y), x' from the configured attack on CE.

    BatchNorm: the attack reads running statistics (eval mode) and changes none; then one train-mode
    forward pass on x' updates them once. The original TensorFlow code attacks in train mode; its
    maintainers report little difference.
    """
    del config

    def step(state, batch, key):
        labels, student = batch["label"], state.student
        predict = base.predict_fn(parts.student, student.params, student.batch_stats)
        adversarial = base.run_attack(parts, predict, batch, key)
        logits, backward, stats = base.train_forward(
            parts.student, student.params, student.batch_stats, adversarial
        )
        loss, cotangent = base.mean_loss(lambda z: losses.cross_entropy(z, labels), logits)
        student = base.update_student(parts, student, backward(cotangent), stats, batch["epoch"])
        metrics = {
            "loss": loss,
            "robust_accuracy": base.accuracy(logits, labels),
            "lr": jnp.asarray(parts.student_optim.lr(batch["epoch"])),
        }
        return state.replace(student=student), metrics

    return base.Method("sat", (), (), lambda v, _: base.student_only_state(parts, v), step)
