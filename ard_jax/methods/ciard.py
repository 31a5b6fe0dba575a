"""CIARD: cyclic iterative adversarial robustness distillation (Lu et al. 2025, arXiv 2509.12633).

Student S, frozen clean teacher N, robust teacher R that goes on training. The source of every choice
is the authors' code (eminentgu/CIARD, HEAD 93a9a2d, CIARD.py and mtard_loss.py); where that differs
from what is written about the method, the option record says so.

One step, in the code's order, with BatchNorm modes (running-statistics updates: S 2, N 0, R 1, or 2
with r_clean_forward="keep"; the attack updates nothing):

  1. S(x) train mode; statistics update of S.         2. N(x) eval.
  3. R(x) train mode, only for its statistics; skipped unless r_clean_forward="keep".
  4. x' = PGD on CE(S(x'), y), S in eval mode with the statistics of 1.
  5. S(x') train mode; second statistics update.      6. R(x') train mode; N(x') eval.
  7. L = L1 + L2 - lambda s L3; SGD step of S.        8. from itt_start: SGD step of R on CE(R(x'), y).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.ciard_config import CiardConfig
from ard_jax.state import NetState, RunState


class Soft(NamedTuple):
    """Teacher logits [B,K] that the student learns from, constants.

    Attributes:
      robust_adv: R(x').
      clean_nat: N(x).
      clean_adv: N(x').
      robust_nat: R(x); None in CIARD, whose student never sees it.
    """

    robust_adv: jax.Array
    clean_nat: jax.Array
    clean_adv: jax.Array
    robust_nat: jax.Array | Any = None


def distill_branch(
    config: CiardConfig, student: jax.Array, teacher: jax.Array, temperature: float | jax.Array
) -> jax.Array:
    """kl_scale mean_BC KL(softmax(teacher/T) || softmax(student)), float32 scalar.

    Only the teacher is softened, there is no T^2 factor, and the mean runs over batch and classes.
    """
    kl = losses.kl_divergence(student, teacher, temperature, log_eps=config.kl_eps)
    return config.kl_scale * losses.reduce_kl(kl, student.shape[-1], config.kl_reduction)


def branch_losses(
    config: CiardConfig,
    z_nat: jax.Array,
    z_adv: jax.Array,
    soft: Soft,
    memory: dict[str, Any],
    labels: jax.Array,
):
    """(L1, L2): robust distillation R(x') -> S(x') and clean distillation N(x) -> S(x)."""
    del labels
    return (
        distill_branch(config, z_adv, soft.robust_adv, memory["temp_adv"]),
        distill_branch(config, z_nat, soft.clean_nat, memory["temp_nat"]),
    )


def push_term(
    config: CiardConfig,
    l1: jax.Array,
    l2: jax.Array,
    z_adv: jax.Array,
    soft: Soft,
    labels: jax.Array,
    epoch: jax.Array,
):
    """What is added to the branch losses: (term, L3, scale, number of misclassified samples).

    L3 = mean over W and classes of KL(softmax(N(x')) -> S(x')/5), W = samples that N misclassifies
    at x'; the term is -lambda s L3, and exactly 0 when W is empty. With push_scale="bounded" it is
    +lambda ramp(epoch) times the mean student probability of the wrong class.
    """
    num_classes, push_target = z_adv.shape[-1], soft.clean_adv
    teacher_temperature = config.push_t if config.push_temperature == "both" else 1.0
    kl, wrong = losses.push_loss(z_adv, push_target, labels, config.push_t, teacher_temperature)
    l3 = losses.masked_class_mean(kl, wrong, num_classes)
    n_wrong = jnp.sum(wrong.astype(jnp.float32))
    if not config.push:
        return jnp.zeros(()), l3, jnp.zeros(()), n_wrong
    if config.push_scale == "bounded":
        right = jnp.argmax(soft.robust_adv, -1) == labels
        pushed = losses.bounded_push(z_adv, push_target, wrong & right, config.push_t)
        ramp = jnp.minimum(epoch / config.push_warmup, 1.0) if config.push_warmup else 1.0
        return config.push_lambda * ramp * jnp.mean(pushed), l3, jnp.asarray(ramp), n_wrong
    if config.push_scale == "decade":
        scale = losses.decade_scale(l1, l2, l3)
    elif config.push_scale == "continuous":
        scale = losses.continuous_scale(l1, l2, l3)
    else:
        scale = jnp.ones(())
    scale = jnp.where((n_wrong > 0) & jnp.isfinite(l3), scale, 0.0)
    return -config.push_lambda * scale * l3, l3, scale, n_wrong


def balance(
    config: CiardConfig,
    memory: dict[str, Any],
    soft: Soft,
    l1: jax.Array,
    l2: jax.Array,
    step: jax.Array,
    epoch: jax.Array,
):
    """Temperatures and loss weights for the next step, and the two mean entropies.

    Live temperatures: section "entropy-based temperature balance" of B-MTARD, kept by CIARD. In the
    authors' code their rate is multiplied by 0.1 at every step of epochs 215, 260 and 285, which
    freezes them from epoch 215; temp_decay="per_epoch" decays once, after each of these epochs, as
    B-MTARD does.
    """

    def entropy(logits: jax.Array, temperature: float | jax.Array):
        rows = losses.negative_entropy(logits, temperature, config.kl_eps)
        return jnp.mean(rows) / logits.shape[-1]

    h_adv = entropy(soft.robust_adv, memory["temp_adv"])
    h_nat = entropy(soft.clean_nat, memory["temp_nat"])
    per_epoch = config.temp_decay == "per_epoch"
    passed = [epoch > e if per_epoch else epoch >= e for e in config.decay_epochs]
    decayed = jnp.prod(jnp.array([jnp.where(p, 0.1, 1.0) for p in passed])) if passed else 1.0
    frozen = config.temp_decay == "freeze" and passed
    factor = jnp.where(passed[0], 0.0, 1.0) if frozen else decayed
    memory = dict(memory)
    if config.temp_balance == "on":
        memory["temp_adv"], memory["temp_nat"] = losses.balance_temperatures(
            memory["temp_adv"], memory["temp_nat"], h_adv, h_nat, config.temp_rate * factor
        )
    if config.branch_weights == "nlb":
        memory["first_adv"] = jnp.where(step == 0, l1, memory["first_adv"])
        memory["first_nat"] = jnp.where(step == 0, l2, memory["first_nat"])
        memory["w_adv"], memory["w_nat"] = losses.balance_weights(
            memory["w_adv"], memory["w_nat"], l1, l2, memory["first_adv"], memory["first_nat"],
            config.weight_rate * factor, rule="ciard",
        )  # fmt: skip
    return memory, h_adv, h_nat


def student_loss(
    config: CiardConfig, state: RunState, batch: base.Batch, soft: Soft, branches_of: Callable
):
    """(z_nat, z_adv) -> (L, metrics, the method's arrays after the step)."""
    labels, epoch, memory = batch["label"], batch["epoch"], state.method

    def loss_of(z_nat: jax.Array, z_adv: jax.Array):
        l1, l2 = branches_of(config, z_nat, z_adv, soft, memory, base.targets(batch))
        term, l3, scale, n_wrong = push_term(config, l1, l2, z_adv, soft, labels, epoch)
        after, h_adv, h_nat = balance(config, memory, soft, l1, l2, state.step, epoch)
        after = jax.tree.map(jax.lax.stop_gradient, after)
        w_adv, w_nat = 1.0, config.clean_weight
        if config.branch_weights == "nlb":
            w_adv, w_nat = after["w_adv"], after["w_nat"] * w_nat
        values = {
            "loss_robust": l1,
            "loss_clean": l2,
            "loss_push": l3,
            "push_scale": scale,
            "wrong": n_wrong / labels.shape[0],
            "entropy_adv": h_adv,
            "entropy_nat": h_nat,
            "temp_adv": after["temp_adv"],
            "temp_nat": after["temp_nat"],
        }
        return w_adv * l1 + w_nat * l2 + term, values, after

    return loss_of


def student_attack(
    config: CiardConfig, parts: base.Parts, state: RunState, batch: base.Batch, key: jax.Array
) -> tuple[base.Attacked, tuple]:
    """x', made with the statistics that the code has at that moment, and the passes made for it.

    With "clean_first" that is after S(x), a pass of the update too. It is handed on because XLA merges
    equal computations, but not on several devices, where each has sums over the devices.
    """
    stats, passes = state.student.batch_stats, ()
    if config.forward_order == "clean_first":
        passes = (base.train_forward(parts.student, state.student.params, stats, batch["image"]),)
        stats = passes[0][2]
    return base.attack(parts, state, batch, key, batch_stats=stats), passes


def train_student(
    config: CiardConfig,
    parts: base.Parts,
    state: RunState,
    batch: base.Batch,
    adversarial: jax.Array,
    made: tuple,
    loss_of: Callable,
):
    """The student's two train-mode passes in the configured order, and its update."""
    student = state.student
    inputs, in_order = (batch["image"], adversarial), loss_of
    if config.forward_order == "adversarial_first":
        inputs, in_order = inputs[::-1], lambda z_adv, z_nat: loss_of(z_nat, z_adv)
    student, metrics, seen = base.train_student(
        parts, student, student.batch_stats, inputs, in_order, batch["epoch"], made=made
    )
    z_nat, z_adv = seen.logits if config.forward_order == "clean_first" else seen.logits[::-1]
    return student, seen.memory, metrics | base.accuracies(batch["label"], z_nat, z_adv)


def train_teacher(
    config: CiardConfig,
    parts: base.Parts,
    state: RunState,
    batch: base.Batch,
    backward: Callable,
    ce_cotangent: jax.Array,
    z_r: jax.Array,
    adversarial: jax.Array,
    stats: Any,
):
    """R after this step: new statistics, and from itt_start on an SGD step of its cross-entropy.

    Hard labels at the student's adversarial images; itt_anchor="ce_kl" adds
    itt_kl_weight * mean_B KL(R_initial(x') || R(x')).
    """
    robust, epoch, optim = state.teachers["robust"], batch["epoch"], parts.teacher_optims["robust"]
    if config.itt_anchor == "ce_kl":
        initial = state.teachers["robust_initial"]
        target = parts.teachers["robust"].apply(initial.variables, adversarial, False)[0]
        _, anchor = base.mean_loss(lambda z: losses.kl_divergence(z, target, log_eps=0.0), z_r)
        ce_cotangent = ce_cotangent + config.itt_kl_weight * anchor

    def update():
        return optim.update(
            backward(ce_cotangent), robust.opt_state, robust.params, optim.lr(epoch),
            optim.momentum(epoch),
        )  # fmt: skip

    active = (epoch >= config.itt_start) & (state.step % config.itt_every == 0)
    params, opt_state = base.update_when(active, update, (robust.params, robust.opt_state))
    return NetState(params, stats, opt_state)


def robust_labels(
    config: CiardConfig,
    parts: base.Parts,
    state: RunState,
    images: jax.Array,
    z_r_train: jax.Array | None = None,
):
    """R's logits at `images` that the student learns from; `z_r_train`: R's train-mode logits there.

    As the authors' code: R's train-mode logits, so that the soft label of a sample depends on
    its batch. r_label_bn="eval" uses running statistics; itt_anchor="ema" uses R's averaged weights.
    """
    robust, net = state.teachers["robust"], parts.teachers["robust"]
    params = state.method["robust_ema"] if config.itt_anchor == "ema" else robust.params
    if z_r_train is not None and config.r_label_bn == "train" and config.itt_anchor != "ema":
        return z_r_train
    variables = {"params": params, "batch_stats": robust.batch_stats}
    return net.apply(variables, images, config.r_label_bn == "train")[0]


def make(
    config: CiardConfig,
    parts: base.Parts,
    branches_of: Callable = branch_losses,
    label_natural: bool = False,
) -> base.Method:
    """CIARD on these networks; see the module's docstring for the step.

    Args:
      config: options.
      parts: networks, optimisers, attack.
      branches_of: (config, z_nat, z_adv, soft, memory, labels) -> (L1, L2).
      label_natural: also give it R(x), `Soft.robust_nat`.
    """
    robust_net = parts.teachers["robust"]

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        robust = teacher_variables["robust"]
        teachers = {
            "robust": NetState.create(
                robust, parts.teacher_optims["robust"].init(robust["params"])
            ),
            "clean": NetState.create(teacher_variables["clean"]),
        }
        memory = {"temp_adv": jnp.ones(()), "temp_nat": jnp.ones(())}
        if config.branch_weights == "nlb":
            memory |= {k: jnp.asarray(0.5, jnp.float32) for k in ("w_adv", "w_nat")}
            memory |= {k: jnp.ones(()) for k in ("first_adv", "first_nat")}
        if config.itt_anchor == "ema":
            memory["robust_ema"] = robust["params"]
        if config.itt_anchor == "ce_kl":
            teachers["robust_initial"] = NetState.create(robust)
        state = base.student_state(parts, student_variables, memory=memory)
        return state.replace(teachers=teachers)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        labels, robust = batch["label"], state.teachers["robust"]
        attacked, made = student_attack(config, parts, state, batch, key)
        adversarial = attacked.images
        r_stats = robust.batch_stats
        if config.r_clean_forward == "keep":
            r_stats = robust_net.apply(robust.variables, batch["image"], True)[1]
        z_r, backward_r, r_stats = base.train_forward(
            robust_net, robust.params, r_stats, adversarial
        )
        soft = Soft(
            robust_labels(config, parts, state, adversarial, z_r),
            base.teacher_logits(parts, state, "clean", batch["image"]),
            base.teacher_logits(parts, state, "clean", adversarial),
            robust_labels(config, parts, state, batch["image"]) if label_natural else None,
        )
        soft = jax.tree.map(jax.lax.stop_gradient, soft)
        loss_of = student_loss(config, state, batch, soft, branches_of)
        student, memory, metrics = train_student(
            config, parts, state, batch, adversarial, made, loss_of
        )
        ce, cotangent = base.mean_loss(lambda z: losses.cross_entropy(z, labels), z_r)
        robust = train_teacher(
            config, parts, state, batch, backward_r, cotangent, z_r, adversarial, r_stats
        )
        if config.itt_anchor == "ema":
            d = config.itt_ema_decay
            memory["robust_ema"] = jax.tree.map(
                lambda m, p: d * m + (1 - d) * p, memory["robust_ema"], robust.params
            )
        metrics |= {
            "teacher_ce": ce,
            "teacher_robust_accuracy": base.accuracy(z_r, labels),
            "lr_teacher": jnp.asarray(parts.teacher_optims["robust"].lr(batch["epoch"])),
        }
        teachers = state.teachers | {"robust": robust}
        return state.replace(student=student, teachers=teachers, method=memory), metrics

    return base.Method(init, step)


def needs_labels(config: CiardConfig) -> str:
    """See `base.Registration`."""
    return "asks where the clean teacher is wrong"


REGISTRATION = base.Registration(
    "ciard",
    CiardConfig,
    make,
    ("robust", "clean"),
    "ciard_train",
    trained_teachers=("robust",),
    needs_labels=needs_labels,
)
