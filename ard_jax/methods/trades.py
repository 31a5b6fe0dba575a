"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy and robustness traded by a KL term."""

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options

TEACHERS = ()


class TradesConfig(Options):
    """Options of TRADES."""

    beta: NotNegative = Field(
        6.0, description="Weight of the KL term; the authors' CIFAR-10 script uses 6."
    )


def make(config: TradesConfig, parts: base.Parts) -> base.Method:
    """L = mean_B [ CE(S(x), y) + beta KL(p(x) || p(x')) ]; the target p(x) is NOT detached.

    Attack: PGD on KL(p(x) || p(x')), start x + 0.001 N(0, I), eval mode. BatchNorm as in
    yaodongyu/TRADES, trades.py: the attack changes nothing; then the train-mode passes S(x), S(x'),
    S(x) each update the running statistics (the second clean pass serves the KL). In
    train mode both clean passes give the same logits, so their forward pass is computed once here and
    its statistics update is applied twice; the numbers are those of three passes.
    Schedule: 76 epochs, rate 0.1, times 0.1 at 75, weight decay 2e-4.
    """

    def init(student_variables, teacher_variables):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state, batch, key):
        labels = batch["label"]
        attacked = base.attack(parts, state, batch, key)

        def loss_of(z_nat, z_adv):
            ce = jnp.mean(losses.cross_entropy(z_nat, labels))
            kl = jnp.mean(losses.trades_kl(z_nat, z_adv))
            return ce + config.beta * kl, {"loss_ce": ce, "loss_kl": kl}

        student, metrics, (z_nat, z_adv) = base.train_student(
            parts, state.student, attacked.batch_stats, (batch["image"], attacked.images), loss_of,
            batch["epoch"], lambda after: repeat_statistics(attacked.batch_stats, *after),
        )  # fmt: skip
        return state.replace(student=student), metrics | base.accuracies(labels, z_nat, z_adv)

    return base.Method("trades", TEACHERS, (), init, step)


def repeat_statistics(before, after_first, current):
    """Applies the first pass's running-statistics update once more, to `current`.

    With r' = m r + (1 - m) b, the batch's contribution is (1 - m) b = r' - m r, and m = 0.9.
    """
    return jax.tree.map(
        lambda r, first, now: 0.9 * now + (first - 0.9 * r), before, after_first, current
    )
