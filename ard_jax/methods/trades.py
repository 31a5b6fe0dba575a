"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy and robustness traded by a KL term."""

import dataclasses

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base


@dataclasses.dataclass(frozen=True)
class TradesConfig:
    """Options of TRADES.

    Attributes:
      beta: weight of the KL term; the authors' CIFAR-10 script uses 6.
    """

    beta: float = 6.0

    def problems(self) -> list[str]:
        """What is wrong with these values."""
        return [] if self.beta >= 0 else [f"method.beta={self.beta}: must not be negative"]


def make(config: TradesConfig, parts: base.Parts) -> base.Method:
    """L = CE(S(x), y) + beta mean_B KL(p(x) || p(x')); the target p(x) is NOT detached.

    BatchNorm as in yaodongyu/TRADES, trades.py: the attack in eval mode; then the train-mode passes
    S(x), S(x'), S(x) each update the running statistics (the second clean pass serves the KL). In
    train mode both clean passes give the same logits, so their forward pass is computed once here and
    its statistics update is applied twice; the numbers are those of three passes.
    """

    def loss_of(logits_nat, logits_adv, labels):
        ce = jnp.mean(losses.cross_entropy(logits_nat, labels))
        kl = jnp.mean(losses.trades_kl(logits_nat, logits_adv))
        return ce + config.beta * kl, (ce, kl)

    def step(state, batch, key):
        images, labels, student = batch["image"], batch["label"], state.student
        predict = base.predict_fn(parts.student, student.params, student.batch_stats)
        adversarial = base.run_attack(parts, predict, batch, key)
        z_nat, backward_nat, stats_nat = base.train_forward(
            parts.student, student.params, student.batch_stats, images
        )
        z_adv, backward_adv, stats_adv = base.train_forward(
            parts.student, student.params, stats_nat, adversarial
        )
        (loss, (ce, kl)), (g_nat, g_adv) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
            z_nat, z_adv, labels
        )
        grads = base.add_trees(backward_nat(g_nat), backward_adv(g_adv))
        stats = repeat_statistics(student.batch_stats, stats_nat, stats_adv)
        student = base.update_student(parts, student, grads, stats, batch["epoch"])
        metrics = {
            "loss": loss,
            "loss_ce": ce,
            "loss_kl": kl,
            "accuracy": base.accuracy(z_nat, labels),
            "robust_accuracy": base.accuracy(z_adv, labels),
            "lr": jnp.asarray(parts.student_optim.lr(batch["epoch"])),
        }
        return state.replace(student=student), metrics

    return base.Method("trades", (), (), lambda v, _: base.student_only_state(parts, v), step)


def repeat_statistics(before, after_first, current):
    """Applies the first pass's running-statistics update once more, to `current`.

    With r' = m r + (1 - m) b, the batch's contribution is (1 - m) b = r' - m r, and m = 0.9.
    """
    return jax.tree.map(
        lambda r, first, now: 0.9 * now + (first - 0.9 * r), before, after_first, current
    )
