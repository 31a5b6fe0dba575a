"""LBGAT (Cui et al. 2021, ICCV, arXiv 2011.11164): a clean guide learns beside the student."""

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, partner
from ard_jax.methods.options import NotNegative, Options


class LbgatConfig(Options):
    """Options of LBGAT."""

    beta: NotNegative = Field(
        6.0, description="Weight of the KL term: 6 is the authors' LBGAT6, 0 their LBGAT0."
    )


def objective(
    config: LbgatConfig,
    z_adv: jax.Array,
    z_nat: jax.Array,
    z_guide: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, base.Metrics]:
    """The loss of student and guide: logits [B,K] at x', x and of the guide at x -> (scalar, its terms)."""
    mse = jnp.mean(jnp.square(z_adv - z_guide))
    ce = jnp.mean(losses.cross_entropy(z_guide, labels))
    kl = jnp.mean(losses.trades_kl(z_nat, z_adv))
    return mse + ce + config.beta * kl, {"loss_mse": mse, "loss_guide": ce, "loss_kl": kl}


def make(config: LbgatConfig, parts: base.Parts) -> base.Method:
    """L = mean_BC (S(x') - G(x))^2 + mean_B CE(G(x), y) + beta mean_B KL(p_S(x) || p_S(x')).

    S and the guide G are trained by it together, and nothing is detached: the squared error moves G too.
    Attack: as TRADES. Then G(x) in train mode, whose logits are the target, and the train-mode passes
    S(x'), S(x), in this order: two updates of the student's running statistics, one of the guide's.
    Cost with K attack steps: K+2 passes of the student forward and back and 1 forward, 1 of the guide
    forward and back.
    G begins with the run, from its seed, and has the student's SGD. In the authors' script, for a WRN-34-10
    on CIFAR-100, it is a ResNet-18.
    Schedule: 100 epochs, rate 0.1, times 0.1 from 76 and 91, weight decay 2e-4; the script's first epoch
    at 0.02 is not offered, and its third decay, at 101, never happens. Source: dvlab-research/LBGAT.
    """

    def total(z_adv: jax.Array, z_nat: jax.Array, z_guide: jax.Array, labels: jax.Array):
        return objective(config, z_adv, z_nat, z_guide, labels)

    return partner.method(parts, "guide", "nat", total)


REGISTRATION = base.Registration(
    "lbgat",
    LbgatConfig,
    make,
    ("guide",),
    "trades_train",
    trained_teachers=("guide",),
    cross_entropy=lambda _: True,
)
