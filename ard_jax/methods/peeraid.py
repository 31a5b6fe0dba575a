"""PeerAiD (Jung et al. 2024, CVPR, arXiv 2403.06668): a peer learns to resist the student's attacks."""

from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base, batch_statistics, partner
from ard_jax.methods.options import NotNegative, Options, Positive, Reduction


class PeeraidConfig(Options):
    """Options of PeerAiD; the defaults are those of the authors' CIFAR-10 script."""

    temperature: Positive = Field(5.0, description="Of the student's terms, target and student.")
    peer_temperature: Positive = Field(1.0, description="Of the peer's distillation term.")
    peer_hard: NotNegative = Field(1.0, description="Weight of the peer's cross-entropy.")
    peer_soft: NotNegative = Field(
        0.1,
        description="Weight of the KL from student to peer; 1 on CIFAR-100, 100 on Tiny-ImageNet.",
    )
    hard: NotNegative = Field(
        0.0, description="Weight of the student's cross-entropy; 0.035 on Tiny-ImageNet."
    )
    soft: NotNegative = Field(
        1.0, description="Weight of the KL from peer to student; 35 on Tiny-ImageNet."
    )
    own: NotNegative = Field(
        1.0, description="Weight of the KL from the student at x to it at x'; 20 on Tiny-ImageNet."
    )
    peer_rate: Positive = Field(
        1.0, description="Learning rate of the peer as a multiple of the student's."
    )
    kl_reduction: Reduction = Field("mean_classes", description="Of every KL term.")
    kl_scale: NotNegative = Field(1.0, description="Factor of every KL term.")


def _kl(config: PeeraidConfig, target: jax.Array, logits: jax.Array, temperature: float):
    per_example = losses.softened_kl(target, logits, temperature)
    return config.kl_scale * losses.reduce_kl(per_example, logits.shape[-1], config.kl_reduction)


def peer_loss(
    config: PeeraidConfig, z_peer: jax.Array, z_student: jax.Array, labels: jax.Array
) -> jax.Array:
    """Of logits [B,K] at x', scalar: CE and the KL from the student, whose gradient reaches the student."""
    ce = jnp.mean(losses.cross_entropy(z_peer, labels))
    soft = _kl(config, z_student, z_peer, config.peer_temperature)
    return config.peer_hard * ce + config.peer_soft * soft


def student_loss(
    config: PeeraidConfig,
    z_adv: jax.Array,
    z_nat: jax.Array,
    z_peer: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Of logits [B,K], the peer's a constant, scalar: CE, the KL from the peer and from the student at x."""
    fixed, t = jax.lax.stop_gradient(z_peer), config.temperature
    ce = jnp.mean(losses.cross_entropy(z_adv, labels))
    soft, own = _kl(config, fixed, z_adv, t), _kl(config, z_nat, z_adv, t)
    return config.hard * ce + config.soft * soft + config.own * own


def make(config: PeeraidConfig, parts: base.Parts) -> base.Method:
    """L = L_P + L_S, with the peer P and the student S trained together; C classes, t, tp temperatures.

    L_P = g1 mean_B CE(P(x'), y) + g2 tp^2 mean_BC KL(p_S^tp(x') || p_P^tp(x')), S not detached;
    L_S = l1 mean_B CE(S(x'), y) + l2 t^2 mean_BC KL(p_P^t(x') || p_S^t(x')), P detached,
        + l3 t^2 mean_BC KL(p_S^t(x) || p_S^t(x')), S(x) not detached.
    g1, g2, l1, l2, l3 are `peer_hard`, `peer_soft`, `hard`, `soft`, `own`.
    Attack: PGD on KL(p_P(x) || p_S(x')), P and S in eval mode, start x + 0.001 N(0, I). Then the train-mode
    passes P(x'), S(x'), S(x') again, S(x): three updates of the student's running statistics, one of the
    peer's. The code computes L_P from the first S(x') and L_S from the second. In train mode both give the
    same logits, so S(x') is computed once here, its gradient is that of both, and its update of the
    statistics is applied twice; the numbers are those of the four passes.
    Cost with K attack steps: K+2 passes of the student forward and back, 1 of the peer forward and back
    and 1 forward.
    P begins with the run, from its seed, has the student's architecture in all scripts, and an SGD of its
    own, here the student's with `peer_rate`.
    Schedule: 300 epochs, rate 0.1, times 0.1 after 214, 259 and 284, weight decay 2e-4; the published
    student is the average of those from epoch 214 on (`config.swa_start`, with `config.average_bn`
    "recomputed"). Written from a description of jaewonalive/PeerAiD, which is
    under GPL-3, and from numbers that it computed.
    """

    def total(z_adv: jax.Array, z_nat: jax.Array, z_peer: jax.Array, labels: jax.Array):
        of_peer = peer_loss(config, z_peer, z_adv, labels)
        own = student_loss(config, z_adv, z_nat, z_peer, labels)
        return of_peer + own, {"loss_peer": of_peer, "loss_student": own}

    def twice_then_once(before: Any, after: tuple):
        adv, nat = after
        return batch_statistics.repeat(adv, nat, batch_statistics.repeat(before, adv, adv))

    return partner.method(
        parts, "peer", "adv", total, rate=config.peer_rate, merge_stats=twice_then_once
    )


REGISTRATION = base.Registration(
    "peeraid",
    PeeraidConfig,
    make,
    ("peer",),
    "rslad_train",
    trained_teachers=("peer",),
    cross_entropy=lambda config: config.hard + config.peer_hard > 0,
)
