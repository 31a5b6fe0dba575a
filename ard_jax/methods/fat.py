"""FAT: friendly adversarial training (Zhang et al. 2020, ICML, arXiv 2002.11242)."""

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.attacks.attack import Attack
from ard_jax.attacks.friendly import FriendlyAttack
from ard_jax.methods import base
from ard_jax.methods.options import Epochs, Options, increase
from ard_jax.state import RunState


class FatConfig(Options):
    """Options of FAT."""

    tau_epochs: Epochs = Field(
        (51, 91),
        description=(
            "First epochs, from 1, from each of which a misclassified image goes on one step longer; () "
            "stops it at once throughout."
        ),
    )

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        return increase("tau_epochs", self.tau_epochs)


def make(config: FatConfig, parts: base.Parts) -> base.Method:
    """L = mean_B CE(S(x'), y), x' the least adversarial image that the attack meets.

    Attack: PGD on CE, start x + U(-eps, eps) clipped, at most 10 steps of 0.007/0.031 eps with 0.001 N(0, I)
    added before the cut, eval mode, nothing updated. An image stays where it is once tau + 1 of its iterates,
    the start included, were misclassified; tau is 0, then 1 and 2 from the epochs `tau_epochs` on. Then one
    train-mode pass S(x'): one update of the running statistics.
    All steps are computed for all images, so that a step costs what `sat` costs.
    Schedule: 120 epochs, rate 0.1, times 0.1 at 60 and 90, weight decay 2e-4; the code's last factor of 0.5
    at 110 is left out. Source: zjfheart/Friendly-Adversarial-Training, FAT.py, whose TRADES form is not
    offered.
    """

    def init(student_variables: dict, teacher_variables: dict):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        labels, epoch = batch["label"], batch["epoch"]
        tau = sum(((epoch >= e).astype(jnp.int32) for e in config.tau_epochs), jnp.int32(0))
        attacked = base.attack(parts, state, batch, key, patience=tau)

        def loss_of(z_adv: jax.Array):
            return jnp.mean(losses.cross_entropy(z_adv, base.targets(batch))), {}

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images,), loss_of, epoch
        )
        metrics |= {"tau": tau.astype(jnp.float32)}
        new = state.replace(student=student)
        return new, metrics | base.accuracies(labels, None, *seen.logits)

    return base.Method(init, step)


def _refuses(config: FatConfig, attack: Attack) -> str:
    if isinstance(attack, FriendlyAttack):
        return ""
    return (
        "takes as many steps for every image, but method 'fat' stops each on its own; use 'fat_train', or "
        "method 'sat'"
    )


REGISTRATION = base.Registration(
    "fat", FatConfig, make, attack="fat_train", refuses=_refuses, cross_entropy=lambda _: True
)
