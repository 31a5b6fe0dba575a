"""What a method is, and the few moves that every method's step is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ard_jax.models.bundle import ModelBundle
from ard_jax.optim import Optimizer
from ard_jax.state import NetState, RunState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method as a record of pure functions.

    Attributes:
      name: registry name.
      teachers: roles of the teachers that it needs, in order.
      trained_teachers: those of them that it goes on training.
      init: (student variables, {role: teacher variables}) -> RunState at step 0.
      step: (state, batch, key) -> (state, metrics), one update. `batch` holds "image" [B,H,W,C]
        float32 in [0,1] (augmented), "label" [B] int32, "epoch" int32 scalar counted from 1, and
        optionally "start_noise" [B,H,W,C], the attack's start perturbation, which replaces the
        random one (parity tests). `state.step` is advanced by the caller. Metrics are float32
        scalars, means over the batch.
    """

    name: str
    teachers: tuple[str, ...]
    trained_teachers: tuple[str, ...]
    init: Callable[[Any, dict[str, Any]], RunState]
    step: Callable[[RunState, Batch, jax.Array], tuple[RunState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a method is built from; everything here is static.

    Attributes:
      student: the student network.
      teachers: role -> network.
      student_optim: the student's optimiser.
      attack: `attacks.AttackSpec` of the inner attack.
      teacher_optims: role -> optimiser, for teachers that are trained.
      epochs: length of the run.
    """

    student: ModelBundle
    student_optim: Optimizer
    attack: Any = None
    teachers: dict[str, ModelBundle] = dataclasses.field(default_factory=dict)
    teacher_optims: dict[str, Optimizer] = dataclasses.field(default_factory=dict)
    epochs: int = 1


def student_only_state(parts: Parts, variables: Any) -> RunState:
    """RunState of a method without teachers."""
    student = NetState.create(variables, parts.student_optim.init(variables["params"]))
    return RunState(jnp.zeros((), jnp.int32), student, {}, None, {})


def predict_fn(bundle: ModelBundle, params: Any, batch_stats: Any) -> Callable:
    """Eval-mode logits as a function of the images; statistics are read-only."""
    variables = {"params": params, "batch_stats": batch_stats}
    return lambda images: bundle.apply(variables, images, False)[0]


def train_forward(bundle: ModelBundle, params: Any, batch_stats: Any, images: jax.Array):
    """One train-mode forward pass whose backward pass can be taken later.

    Returns (logits [B,K], backward: cotangent [B,K] -> parameter gradient, new batch_stats). Taking
    the pieces apart lets a method use one forward pass for statistics, targets and gradient, as the
    papers' code does with one autograd graph.
    """

    def forward(p):
        return bundle.apply({"params": p, "batch_stats": batch_stats}, images, True)

    logits, vjp, stats = jax.vjp(forward, params, has_aux=True)
    return logits, lambda cotangent: vjp(cotangent)[0], stats


def run_attack(parts: Parts, predict: Callable, batch: Batch, key: jax.Array) -> jax.Array:
    """Adversarial images of the batch, a constant for all later gradients.

    Our networks' convolutions have gradients that are fast inside loops on every backend, so the
    attack loop is a plain scan here (unroll=1).
    """
    start = None
    if "start_noise" in batch:
        start = batch["image"] + batch["start_noise"]
    adversarial = parts.attack.run(
        predict, batch["image"], batch["label"], key, start=start, unroll=1
    )
    return jax.lax.stop_gradient(adversarial)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows whose largest logit is the label; float32 scalar."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def update_student(parts: Parts, student: NetState, grads, batch_stats, epoch) -> NetState:
    """One optimiser step at the epoch's learning rate."""
    optim = parts.student_optim
    params, opt_state = optim.update(grads, student.opt_state, student.params, optim.lr(epoch))
    return NetState(params, batch_stats, opt_state)


def mean_loss(loss: Callable, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Batch mean of a per-example loss, and its gradient with respect to the logits [B,K]."""
    return jax.value_and_grad(lambda z: jnp.mean(loss(z)))(logits)


def add_trees(*trees: Any) -> Any:
    """Leafwise sum."""
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def update_when(active: jax.Array, update: Callable[[], Any], kept: Any) -> Any:
    """`update()` where `active`, otherwise `kept` (the same structure).

    A conditional on accelerators. On CPU the update is always computed and then selected: XLA:CPU runs
    the weight gradients of convolutions inside a conditional far slower than outside (a whole CIARD step
    took 3.8 s with a conditional, 0.6 s without), which costs more than the skipped epochs save.
    """
    if jax.default_backend() == "cpu":
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), update(), kept)
    return jax.lax.cond(active, update, lambda: kept)
