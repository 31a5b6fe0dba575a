"""MART (Wang et al. 2020, ICLR): adversarial training that weighs misclassified examples."""

import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import NotNegative, Options


class MartConfig(Options):
    """Options of MART."""

    beta: NotNegative = Field(
        5.0,
        description="Weight of the KL term; 5 in the authors' ResNet-18 script, 6 in that for WideResNets.",
    )


def make(config: MartConfig, parts: base.Parts) -> base.Method:
    """L = mean_B BCE(S(x'), y) + beta mean_B [ KL(p(x) || p(x')) (1 - p_y(x)) ].

    BCE(z, y) = CE(z, y) - log(1.0001 - max_{c != y} p_c). Gradient flows through the target p(x) and
    through the weight 1 - p_y(x), as in the authors' code.
    Attack: PGD on CE, start x + 0.001 N(0, I), eps 0.031, step 0.007, eval mode, nothing updated. Then
    the train-mode passes S(x), S(x'), in this order: two updates of the running statistics.
    Schedule (ResNet-18 script): 120 epochs, rate 0.01, times 0.1, 0.01, 0.001 from epochs 75, 90, 100,
    weight decay 3.5e-3. Source: YisenWang/MART, mart.py and train_resnet.py.
    """

    def loss(z: base.Views, soft: base.Views, batch: base.Batch):
        bce = jnp.mean(losses.boosted_cross_entropy(z.adv, batch["label"]))
        kl = jnp.mean(losses.mart_kl(z.nat, z.adv, batch["label"]))
        return bce + config.beta * kl, {"loss_bce": bce, "loss_kl": kl}

    return base.from_loss(parts, loss, passes=("nat", "adv"))


REGISTRATION = base.Registration(
    "mart",
    MartConfig,
    make,
    attack="mart_train",
    needs_labels=lambda _: "has a margin to the other classes",
)
