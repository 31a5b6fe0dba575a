"""Consistency-AT (Tack et al. 2022, AAAI, arXiv 2103.04623): adversarial training on two views."""

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options, Positive
from ard_jax.state import RunState


class ConsistencyAtConfig(Options):
    """Options of Consistency-AT."""

    weight: NotNegative = Field(1.0, description="Weight of the Jensen-Shannon divergence.")
    temperature: Positive = Field(0.5, description="Divides the logits in it; below 1 sharpens.")


def make(config: ConsistencyAtConfig, parts: base.Parts) -> base.Method:
    """L = mean_2B CE(S(x'), y) + weight mean_B JS(p_S^t(x'_1), p_S^t(x'_2)).

    x_1 and x_2 are two augmentations of one image, drawn alike by `config.data.augment`; without a random one
    they are equal. Attack: PGD on CE on both, start x + U(-eps, eps) clipped, eval mode, nothing updated.
    Then one train-mode pass on the 2B images together: one update of the running statistics.
    A step costs what two of `sat` do. Schedule: 200 epochs, rate 0.1, times 0.1 at 50 % and 75 %, weight
    decay 5e-4. Source: alinlab/consistency-adversarial. Its AutoAugment is
    `config.data.augment`; one variant switches it on late, which is not offered.
    """

    def init(student_variables: dict, teacher_variables: dict):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        # The views of an image are neighbours, so that they stay on one device and in one group of BatchNorm.
        labels = targets = jnp.repeat(batch["label"], 2)
        if "soft_label" in batch:
            targets = jnp.repeat(base.targets(batch), 2, axis=0)
        pairs = jnp.stack([batch["image"], batch["view"]], axis=1)
        images = pairs.reshape(-1, *pairs.shape[2:])
        twice = {"image": images, "label": labels, "epoch": batch["epoch"]}
        attacked = base.attack(parts, state, twice, key)

        def loss_of(z: jax.Array):
            ce = jnp.mean(losses.cross_entropy(z, targets))
            js = jnp.mean(losses.jensen_shannon(z[::2], z[1::2], config.temperature))
            return ce + config.weight * js, {"loss_ce": ce, "loss_js": js}

        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, (attacked.images,), loss_of, batch["epoch"]
        )
        new = state.replace(student=student)
        return new, metrics | base.accuracies(labels, None, *seen.logits)

    return base.Method(init, step, views=2)


REGISTRATION = base.Registration(
    "consistency_at",
    ConsistencyAtConfig,
    make,
    cross_entropy=lambda _: True,
    needs_labels=lambda _: "compares two views of one image",
)
