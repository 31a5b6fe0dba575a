"""DARD: Dice adversarial robustness distillation (Zou et al. 2025, arXiv 2509.11525).

Student f, frozen robust teacher g, labels y. Only the paper's abstract and scripts that appear to be the
authors' experiments are public; the defaults are the scripts' CIFAR-10 numbers with their defects mended,
and every defect has an option that brings it back. Named presets are in configs/dard_cifar10.py.

One step (running-statistics updates of f: 2, of g: 0):

  1. x' = DPGD against f (the attack `dpgd`), on hard labels, f in eval mode.
  2. g(x) and g(x'), eval mode (`labels`: other places where the soft labels come from).
  3. f(x), then f(x'), train mode, each with its own batch statistics, each updating the running ones.
  4. KD(z, q) = T^2 mean_B KL(q || softmax(z/T)), q = softmax(g/T);
     L_nat = a KD(f(x), q_nat) + (1-a) mean_B CE(f(x), y), L_adv likewise at x';
     L = (L_nat + L_adv) / 2 (`objective`: other combinations).

Schedule: 50 epochs, batch 128, rate 0.1, times 0.1 after 30 and 40, weight decay 5e-4.

The word "Dice" belongs to the attack; the soft labels are ordinary softmax outputs of the teacher at x
and at Dice-adversarial x'. kd="dice", which no source trains with, replaces the KL by a soft Dice loss.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from pydantic import Field

from ard_jax import losses
from ard_jax.methods import base
from ard_jax.methods.options import Options, Positive, Share
from ard_jax.state import RunState

COLUMNS = ("teacher_nat", "teacher_adv")


class DardConfig(Options):
    """Options of DARD."""

    a: Share = Field(0.7, description="Weight of the soft labels; the hard labels have 1 - a.")
    temperature: Positive = Field(3.0, description="T, of teacher and student.")
    objective: Literal["mean", "epoch_ramp", "fused"] = Field(
        "mean",
        description=(
            "`mean`; `epoch_ramp`: (1-w) L_nat + w L_adv, w = (epoch-1)/(2 epochs); `fused`: a KD(f(x'), "
            "(q_nat+q_adv)/2) + (1-a) CE(f(x'), y), on adversarial inputs alone (the scripts' CIFAR-100 "
            "form, with T = 1; one train-mode pass, one statistics update)."
        ),
    )
    tau: Literal["logits", "double_softmax"] = Field(
        "logits",
        description=(
            "`logits`: q = softmax(g/T). `double_softmax`: softmax(softmax(g)/T), as the scripts compute, "
            "which at 10 classes and T = 3 is nearly uniform (0.134 at most)."
        ),
    )
    labels: Literal["online_shared", "online", "offline"] = Field(
        "online_shared",
        description=(
            "`online_shared`: the teacher at the student's x and x'. `online`: at x and at its own "
            "adversarial example of the same view, made every step. `offline`: both made once before the "
            "run."
        ),
    )
    offline_view: Literal["plain", "augmented_once"] = Field(
        "plain",
        description=(
            "Of `offline`: `plain`, the stored image; `augmented_once`, one random crop and flip of it, "
            "which is not the one that the student sees (as the scripts do)."
        ),
    )
    kd: Literal["kl", "dice"] = Field(
        "kl",
        description="`kl`, or `dice`: T^2 mean_B of the soft Dice loss between softmax(z/T) and q.",
    )


def soft_labels(logits: jax.Array, temperature: float, tau: str) -> jax.Array:
    """Soft labels q [B,K] float32 out of teacher logits [B,K]."""
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    return jax.nn.softmax((logits if tau == "logits" else jax.nn.softmax(logits)) / temperature)


def knowledge_distillation(z: jax.Array, q: jax.Array, temperature: float, kd: str) -> jax.Array:
    """KD(z, q), float32 scalar; 0 where softmax(z/T) = q. Gradient of "kl": T (softmax(z/T) - q) / B."""
    z = z.astype(jnp.float32) / temperature
    if kd == "dice":
        return temperature**2 * jnp.mean(losses.soft_dice(z, q))
    return temperature**2 * jnp.mean(jnp.sum(xlogy(q, q) - q * jax.nn.log_softmax(z), -1))


def branch(config: Any, z: jax.Array, q: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes a KD(z, q) + (1-a) mean_B CE(z, y), float32 scalar."""
    soft = knowledge_distillation(z, q, config.temperature, config.kd)
    return config.a * soft + (1 - config.a) * jnp.mean(losses.cross_entropy(z, labels))


def _clean_logits(config: DardConfig, parts: base.Parts, state: RunState, batch: base.Batch):
    """Logits g at the clean input, before the attack, which may want it too (dice="soft")."""
    if config.labels == "offline":
        return batch["teacher_nat"]
    return base.teacher_logits(parts, state, "robust", batch["image"])


def _adversarial_logits(
    config: DardConfig,
    parts: base.Parts,
    state: RunState,
    batch: base.Batch,
    adversarial: jax.Array,
    g_nat: jax.Array,
    key: jax.Array,
):
    """Logits g at the adversarial input that `labels` names."""
    if config.labels == "offline":
        return batch["teacher_adv"]
    if config.labels == "online":
        predict = base.teacher_predict(parts, state, "robust")
        soft = {"teacher_logits": g_nat} if parts.attack.needs_teacher == "logits" else {}
        params = state.teachers["robust"].params
        adversarial = base.run_attack(parts, predict, params, batch, key, **soft)
    return base.teacher_logits(parts, state, "robust", adversarial)


def _student_loss(
    config: DardConfig,
    parts: base.Parts,
    batch: base.Batch,
    q_nat: jax.Array,
    q_adv: jax.Array,
):
    labels, epoch = base.targets(batch), batch["epoch"]
    if config.objective == "fused":
        fused = (q_nat + q_adv) / 2

        def fused_loss(z_adv: jax.Array):
            return branch(config, z_adv, fused, labels), {}

        return fused_loss
    weight = (epoch - 1) / (2 * parts.epochs) if config.objective == "epoch_ramp" else 0.5

    def loss_of(z_nat: jax.Array, z_adv: jax.Array):
        l_nat, l_adv = branch(config, z_nat, q_nat, labels), branch(config, z_adv, q_adv, labels)
        total = (1 - weight) * l_nat + weight * l_adv
        return total, {"loss_clean": l_nat, "loss_robust": l_adv}

    return loss_of


def make(config: DardConfig, parts: base.Parts) -> base.Method:
    """DARD on these networks; see the module's docstring for the step.

    The scripts leave the student in train mode while it is attacked, so that all attack passes move its
    running statistics too: attack.bn="train", attack.bn_stats="keep".
    """

    def init(student_variables: dict[str, Any], teacher_variables: dict[str, Any]):
        return base.student_state(parts, student_variables, teacher_variables)

    def step(state: RunState, batch: base.Batch, key: jax.Array):
        labels = batch["label"]
        g_nat = _clean_logits(config, parts, state, batch)
        attacked = base.attack(parts, state, batch, key, teacher_logits=g_nat)
        g_adv = _adversarial_logits(config, parts, state, batch, attacked.images, g_nat, key)
        q_nat, q_adv = (soft_labels(g, config.temperature, config.tau) for g in (g_nat, g_adv))
        inputs = (batch["image"], attacked.images)
        student, metrics, seen = base.train_student(
            parts, state.student, attacked.batch_stats,
            inputs[1:] if config.objective == "fused" else inputs,
            _student_loss(config, parts, batch, q_nat, q_adv), batch["epoch"],
        )  # fmt: skip
        z_nat = None if config.objective == "fused" else seen.logits[0]
        return state.replace(student=student), metrics | base.accuracies(
            labels, z_nat, seen.logits[-1]
        )

    columns = COLUMNS if config.labels == "offline" else ()
    return base.Method(init, step, columns)


def _length_matters(config: DardConfig) -> str:
    ramp = config.objective == "epoch_ramp"
    return "objective='epoch_ramp' weighs the losses by the part of the run" if ramp else ""


def _needs_labels(config: DardConfig) -> str:
    return "makes its soft labels before the run" if config.labels == "offline" else ""


REGISTRATION = base.Registration(
    "dard",
    DardConfig,
    make,
    ("robust",),
    "dpgd",
    length_matters=_length_matters,
    cross_entropy=lambda config: config.a < 1,
    needs_labels=_needs_labels,
)
