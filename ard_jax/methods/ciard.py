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

import jax
import jax.numpy as jnp

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.ciard_config import CiardConfig
from ard_jax.state import NetState, RunState

TEACHERS = ("robust", "clean")


def branch_losses(config: CiardConfig, z_nat, z_adv, soft_adv, soft_nat, temp_adv, temp_nat):
    """(L1, L2): robust and clean distillation, float32 scalars.

    L1 = mean KL(softmax(R(x')/T_adv) -> S(x')), L2 = mean KL(softmax(N(x)/T_nat) -> S(x)). Only the
    teachers are softened, there is no T^2 factor, and the mean runs over batch and classes.
    """

    def branch(student, teacher, temperature):
        kl = losses.kl_divergence(student, teacher, temperature, log_eps=config.kl_eps)
        mean = losses.reduce_kl(kl, student.shape[-1], config.kl_reduction)
        return config.kl_scale * mean

    return branch(z_adv, soft_adv, temp_adv), branch(z_nat, soft_nat, temp_nat)


def push_term(config: CiardConfig, l1, l2, z_adv, push_target, robust_logits, labels, epoch):
    """What is added to the branch losses: (term, L3, scale, number of misclassified samples).

    L3 = mean over W and classes of KL(softmax(N(x')) -> S(x')/5), W = samples that N misclassifies
    at x'; the term is -lambda s L3, and exactly 0 when W is empty. With push_scale="bounded" it is
    +lambda ramp(epoch) times the mean student probability of the wrong class.
    """
    num_classes = z_adv.shape[-1]
    teacher_temperature = config.push_t if config.push_temperature == "both" else 1.0
    kl, wrong = losses.push_loss(z_adv, push_target, labels, config.push_t, teacher_temperature)
    l3 = losses.masked_class_mean(kl, wrong, num_classes)
    n_wrong = jnp.sum(wrong.astype(jnp.float32))
    if not config.push:
        return jnp.zeros(()), l3, jnp.zeros(()), n_wrong
    if config.push_scale == "bounded":
        right = jnp.argmax(robust_logits, -1) == labels
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


def balance(config: CiardConfig, memory, z_r_adv, z_n_nat, l1, l2, step, epoch):
    """Temperatures and loss weights for the next step, and the two mean entropies.

    Live temperatures: section "entropy-based temperature balance" of B-MTARD, kept by CIARD. In the
    authors' code their rate is multiplied by 0.1 at every step of epochs 215, 260 and 285, which
    freezes them from epoch 215; temp_decay="per_epoch" decays once per epoch, as B-MTARD does.
    """
    num_classes = z_r_adv.shape[-1]
    h_adv = (
        jnp.mean(losses.negative_entropy(z_r_adv, memory["temp_adv"], config.kl_eps)) / num_classes
    )
    h_nat = (
        jnp.mean(losses.negative_entropy(z_n_nat, memory["temp_nat"], config.kl_eps)) / num_classes
    )
    passed = [epoch >= e for e in config.decay_epochs]
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
            *(memory[k] for k in ("w_adv", "w_nat")), l1, l2, memory["first_adv"], memory["first_nat"],
            config.weight_rate * factor, rule="ciard",
        )  # fmt: skip
    return memory, h_adv, h_nat


def student_update(config, parts, state, batch, passes, teacher_logits):
    """Losses, the student's gradient and its update. Returns (student, memory, metrics)."""
    (z_nat, backward_nat), (z_adv, backward_adv), stats = passes
    labels, epoch, memory = batch["label"], batch["epoch"], state.method
    z_r_adv, z_n_nat, z_n_adv = map(jax.lax.stop_gradient, teacher_logits)

    def loss_of(z_nat, z_adv):
        l1, l2 = branch_losses(
            config, z_nat, z_adv, z_r_adv, z_n_nat, memory["temp_adv"], memory["temp_nat"]
        )
        term, l3, scale, n_wrong = push_term(config, l1, l2, z_adv, z_n_adv, z_r_adv, labels, epoch)
        after, h_adv, h_nat = balance(config, memory, z_r_adv, z_n_nat, l1, l2, state.step, epoch)
        after = jax.tree.map(jax.lax.stop_gradient, after)
        branches = l1 + l2
        if config.branch_weights == "nlb":
            branches = after["w_adv"] * l1 + after["w_nat"] * l2
        metrics = {
            "loss_robust": l1,
            "loss_clean": l2,
            "loss_push": l3,
            "push_scale": scale,
            "wrong": n_wrong / labels.shape[0],
            "entropy_adv": h_adv,
            "entropy_nat": h_nat,
        }
        return branches + term, (after, metrics)

    (loss, (memory, metrics)), (g_nat, g_adv) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
        z_nat, z_adv
    )
    grads = base.add_trees(backward_nat(g_nat), backward_adv(g_adv))
    student = base.update_student(parts, state.student, grads, stats, epoch)
    metrics |= {
        "loss": loss,
        "accuracy": base.accuracy(z_nat, labels),
        "robust_accuracy": base.accuracy(z_adv, labels),
        "temp_adv": memory["temp_adv"],
        "temp_nat": memory["temp_nat"],
        "lr": jnp.asarray(parts.student_optim.lr(epoch)),
    }
    return student, memory, metrics


def student_passes(config, parts, student: NetState, batch, key):
    """The attack and the student's two train-mode passes, in the configured order.

    Returns (x', ((z_nat, backward), (z_adv, backward), statistics after both)).
    """
    net, params = parts.student, student.params
    images, stats = batch["image"], student.batch_stats
    if config.forward_order == "clean_first":
        z_nat, backward_nat, stats = base.train_forward(net, params, stats, images)
    adversarial = base.run_attack(parts, base.predict_fn(net, params, stats), batch, key)
    z_adv, backward_adv, stats = base.train_forward(net, params, stats, adversarial)
    if config.forward_order == "adversarial_first":
        z_nat, backward_nat, stats = base.train_forward(net, params, stats, images)
    return adversarial, ((z_nat, backward_nat), (z_adv, backward_adv), stats)


def train_teacher(
    config, parts, state: RunState, batch, backward, ce_cotangent, z_r, adversarial, stats
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
            backward(ce_cotangent), robust.opt_state, robust.params, optim.lr(epoch)
        )

    active = (epoch >= config.itt_start) & (state.step % config.itt_every == 0)
    params, opt_state = base.update_when(active, update, (robust.params, robust.opt_state))
    return NetState(params, stats, opt_state)


def robust_labels(config, parts, state: RunState, z_r_train, adversarial):
    """R's logits that the student learns from.

    As the authors' code: R's train-mode logits at x', so that the soft label of a sample depends on
    its batch. r_label_bn="eval" uses running statistics; itt_anchor="ema" uses R's averaged weights.
    """
    robust, net = state.teachers["robust"], parts.teachers["robust"]
    params = state.method["robust_ema"] if config.itt_anchor == "ema" else robust.params
    if config.r_label_bn == "train" and config.itt_anchor != "ema":
        return z_r_train
    variables = {"params": params, "batch_stats": robust.batch_stats}
    return net.apply(variables, adversarial, config.r_label_bn == "train")[0]


def make(config: CiardConfig, parts: base.Parts) -> base.Method:
    """CIARD on these networks; see the module's docstring for the step."""
    robust_net, clean_net = parts.teachers["robust"], parts.teachers["clean"]

    def init(student_variables, teacher_variables):
        robust = teacher_variables["robust"]
        teachers = {
            "robust": NetState.create(
                robust, parts.teacher_optims["robust"].init(robust["params"])
            ),
            "clean": NetState.create(teacher_variables["clean"]),
        }
        memory = {"temp_adv": jnp.ones(()), "temp_nat": jnp.ones(())}
        if config.branch_weights == "nlb":
            memory |= {k: jnp.full((), 0.5) for k in ("w_adv", "w_nat")}
            memory |= {k: jnp.ones(()) for k in ("first_adv", "first_nat")}
        if config.itt_anchor == "ema":
            memory["robust_ema"] = robust["params"]
        if config.itt_anchor == "ce_kl":
            teachers["robust_initial"] = NetState.create(robust)
        return base.student_only_state(parts, student_variables).replace(
            teachers=teachers, method=memory
        )

    def step(state, batch, key):
        labels, robust = batch["label"], state.teachers["robust"]
        clean_variables = state.teachers["clean"].variables
        adversarial, passes = student_passes(config, parts, state.student, batch, key)
        r_stats = robust.batch_stats
        if config.r_clean_forward == "keep":
            r_stats = robust_net.apply(robust.variables, batch["image"], True)[1]
        z_r, backward_r, r_stats = base.train_forward(
            robust_net, robust.params, r_stats, adversarial
        )
        teacher_logits = (
            robust_labels(config, parts, state, z_r, adversarial),
            clean_net.apply(clean_variables, batch["image"], False)[0],
            clean_net.apply(clean_variables, adversarial, False)[0],
        )
        student, memory, metrics = student_update(
            config, parts, state, batch, passes, teacher_logits
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

    return base.Method("ciard", TEACHERS, ("robust",), init, step)
