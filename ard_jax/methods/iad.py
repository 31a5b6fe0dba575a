"""IAD-I, IAD-II and AKD2 (Zhu et al. 2022, ICLR): distillation from a partly reliable teacher.

The reliability a(x) = p_T(y|x')^beta weighs what the teacher says against what the student itself says at
the clean image. Source: ZFancy/IAD, IAD-I.py, IAD-II.py, AKD2.py.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, batch_statistics
from ard_jax.methods.options import Count, NotNegative, Options, Positive, Share, Variant
from ard_jax.state import RunState


class Iad1Config(Options):
    """Options of IAD-I."""

    variant: Variant = Field("paper", description="`paper`, or `released` (see `make_iad1`).")
    alpha: Share = Field(
        1.0,
        description="Weight of both KL terms; the hard labels at the clean image have 1 - alpha.",
    )
    temperature: Positive = Field(
        1.0, description="Of the teacher's term, both networks; its square multiplies the KL."
    )
    beta: NotNegative = Field(0.1, description="Exponent of the reliability.")
    begin_epoch: Count = Field(
        60,
        description=(
            "Epochs without reliability; it is used from epoch begin_epoch + 1 (from 1) on. The code "
            "counts epochs from 0, where this is epoch 60."
        ),
    )


class Iad2Config(Options):
    """Options of IAD-II, and of AKD2 (reliability="off")."""

    alpha1: Share = Field(
        0.5, description="Weight of the robust teacher's and the student's own term."
    )
    alpha2: Share = Field(
        0.25,
        description="Weight of the clean teacher's term; the hard labels have 1 - alpha1 - alpha2.",
    )
    temperature: Positive = Field(
        1.0,
        description="Of the teachers' terms, both networks; its square multiplies them and the own term.",
    )
    beta: NotNegative = Field(0.1, description="Exponent of the reliability.")
    begin_epoch: Count = Field(40, description="Epochs without reliability, see `Iad1Config`.")
    reliability: Literal["on", "off"] = Field(
        "on", description="`off` keeps a = 1 for the whole run: AKD2."
    )

    def conflicts(self) -> list[str]:
        """See `Options.conflicts`."""
        if self.alpha1 + self.alpha2 > 1:
            return [f"alpha1={self.alpha1} and alpha2={self.alpha2}: their sum must not exceed 1"]
        return []


def make_iad1(config: Iad1Config, parts: base.Parts) -> base.Method:
    """L = w t^2 mean_B a KL(p_T^t(x) || p_S^t(x')) + w mean_B (1-a) KL(p_S(x) || p_S(x')) + (1-w) CE.

    w = alpha; CE = mean_B CE(S(x), y). The own target p_S(x) carries gradient. a = 1 up to
    `begin_epoch`, which leaves ARD with a batch mean. The teacher is evaluated at x and at x', in eval
    mode.
    Attack as ARD's: CE, start x + U(-eps, eps) not clipped before the first step, step eps/4, 10
    steps, and the official code attacks in train mode and keeps the statistics (`attack_bn="train"`,
    `attack_bn_stats="keep"`, set by the configs).
    Train-mode passes after the attack, each updating the running statistics once:
      "paper": S(x'), S(x).
      "released": S(x'), S(x'), S(x) up to `begin_epoch`; S(x'), S(x'), S(x), S(x) after it. The second
        S(x') is computed and not used; the two S(x) serve KL and CE. Equal passes have equal logits in
        train mode, so each is computed once here and its update of the statistics is repeated.
    Loss: "released" has no factor a on the teacher's term.
    Schedule: 200 epochs, rate 0.1, weight decay 2e-4, one decay times 0.1 at 100 (counted from 0; the
    code's second one at 150 multiplies the base rate again and changes nothing). The teacher has the
    student's size and comes from PGD adversarial training.
    """
    released = config.variant == "released"

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        active = batch["epoch"] > config.begin_epoch
        a = base.reliability(soft.adv, batch["label"], config.beta, active)
        teacher_weight = 1.0 if released else a
        distill = jnp.mean(teacher_weight * losses.softened_kl(soft.nat, z.adv, config.temperature))
        own = jnp.mean((1 - a) * losses.trades_kl(z.nat, z.adv))
        ce = jnp.mean(losses.cross_entropy(z.nat, base.targets(batch)))
        total = config.alpha * (distill + own) + (1 - config.alpha) * ce
        values = {"loss_distill": distill, "loss_own": own, "loss_ce": ce}
        return total, values | {"reliability": jnp.mean(a)}

    def merge(before: Any, after: Any, epoch: jax.Array):
        return released_statistics(before, after, epoch > config.begin_epoch)

    return base.from_loss(
        parts, loss, passes=("adv", "nat"), teacher_at=("nat", "adv"),
        merge_stats=merge if released else None,
    )  # fmt: skip


def released_statistics(before: Any, after: Any, active: jax.Array):
    """Statistics after the passes x', x', x and, where `active`, x once more.

    Args:
      before: statistics before the passes.
      after: statistics after S(x') and, from there, S(x).
      active: bool scalar.
    """
    after_adv, after_nat = after
    twice_adv = batch_statistics.repeat(before, after_adv, after_adv)
    once = batch_statistics.repeat(after_adv, after_nat, twice_adv)
    twice = batch_statistics.repeat(after_adv, after_nat, once)
    return batch_statistics.select(active, twice, once)


def make_iad2(config: Iad2Config, parts: base.Parts) -> base.Method:
    """L = (1-a1-a2) CE + a1 t^2 mean_B [ a KL(p_T^t(x') || p_S^t(x')) + (1-a) KL(p_S(x) || p_S(x')) ] + a2 K.

    CE = mean_B CE(S(x'), y); K = t^2 mean_B KL(p_Tn^t(x') || p_S^t(x')) from the clean teacher; the own
    target p_S(x) carries gradient; a = 1 up to `begin_epoch`, and always with reliability="off" (AKD2).
    Both teachers are evaluated once, at x', in eval mode. Attack, its BatchNorm mode and the schedule are
    those of IAD-I. Train-mode passes after the attack: S(x'); then S(x), needed for the own term only,
    whose update of the running statistics counts after `begin_epoch`, as in the code (before it the
    pass is computed and thrown away; with reliability="off" it is not computed).
    Paper and code agree; the published IAD-II.py does not start, because it declares --beta twice.
    """
    introspects = config.reliability == "on"
    a1, a2 = config.alpha1, config.alpha2

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        images, labels = batch["image"], batch["label"]
        active = introspects & (batch["epoch"] > config.begin_epoch)
        attacked = base.attack(parts, state, batch, key)
        soft = base.teacher_logits(parts, state, "robust", attacked.images)
        soft_clean = base.teacher_logits(parts, state, "clean", attacked.images)
        a = base.reliability(soft, labels, config.beta, active)

        def loss_of(z_adv: jax.Array, z_nat: jax.Array | None = None):
            ce = jnp.mean(losses.cross_entropy(z_adv, base.targets(batch)))
            distill = jnp.mean(a * losses.softened_kl(soft, z_adv, config.temperature))
            clean = jnp.mean(losses.softened_kl(soft_clean, z_adv, config.temperature))
            values = {"loss_ce": ce, "loss_distill": distill, "loss_clean_teacher": clean}
            total = (1 - a1 - a2) * ce + a1 * distill + a2 * clean
            if z_nat is None:
                return total, values
            own = config.temperature**2 * jnp.mean((1 - a) * losses.trades_kl(z_nat, z_adv))
            return total + a1 * own, values | {"loss_own": own}

        inputs, merge = (attacked.images,), None
        if introspects:
            inputs += (images,)
            merge = lambda after: batch_statistics.select(active, after[1], after[0])  # noqa: E731
        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats, inputs, loss_of, batch["epoch"], merge
        )
        z_adv, z_nat = seen.logits if introspects else (*seen.logits, None)
        metrics |= {"reliability": jnp.mean(a)} | base.accuracies(labels, z_nat, z_adv)
        return state.replace(student=student), metrics

    return base.Method(init, step)


REGISTRATION = (
    base.Registration(
        "iad1",
        Iad1Config,
        make_iad1,
        ("robust",),
        "ard_train",
        igdm={},
        cross_entropy=lambda config: config.alpha < 1,
        needs_labels=lambda _: "weighs by the teacher's probability of the label",
    ),
    base.Registration(
        "iad2",
        Iad2Config,
        make_iad2,
        ("robust", "clean"),
        "ard_train",
        cross_entropy=lambda config: config.alpha1 + config.alpha2 < 1,
        needs_labels=lambda _: "weighs by the teacher's probability of the label",
    ),
)
